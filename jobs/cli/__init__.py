"""The `riskstream` command."""
