"""Contracts: Avro schemas, the wire format, registries, compatibility, and columns of decoded batches."""
