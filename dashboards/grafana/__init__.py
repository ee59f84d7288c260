"""Grafana dashboards and data sources, generated from the queries of the live pages."""
