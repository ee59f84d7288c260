"""Producers: what puts transactions and labels on Kafka (replays of files, simulated streams)."""

__all__: list[str] = []
