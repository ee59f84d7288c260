"""Contracts: Avro schemas, the wire format, registries, compatibility, columns."""
