"""What is measured: one module a contestant, and the plain logic that the Python ones share."""
