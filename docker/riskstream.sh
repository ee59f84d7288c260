#!/usr/bin/env bash
# The `riskstream` command inside the image.
set -euo pipefail
cd /opt/riskstream
exec python3.11 -m jobs.cli.main "$@"
