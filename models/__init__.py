"""Models: train, evaluate, export, register, score, explain, watch for drift."""
