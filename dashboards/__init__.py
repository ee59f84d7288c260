"""Live pages over ClickHouse, and Grafana provisioning made from the same queries."""
