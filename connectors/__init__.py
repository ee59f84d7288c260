"""What leaves the process: Kafka, Redis, ClickHouse, the Java bridge and the local stack."""
