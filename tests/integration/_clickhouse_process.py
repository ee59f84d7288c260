"""Run the local ClickHouse server as a process of its own, as `riskstream up` does."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def clickhouse(data: Path, *options: str, token: str | None = None) -> Iterator[int]:
    """Serve `data` and yield the port; stop the server afterwards."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if token is not None:
        environment["RISKSTREAM_CLICKHOUSE_TOKEN"] = token
    process = subprocess.Popen(
        [
            *(sys.executable, "-u", "-m", "connectors.local.clickhouse_server"),
            *("--path", str(data), "--port", "0", *options),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r":(\d+), pid", line)
        assert found is not None, f"the server said {line!r}"
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()
