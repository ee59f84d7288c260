"""Every byte that leaves the process: Kafka, Redis, ClickHouse, the Java bridge and the local stack."""
