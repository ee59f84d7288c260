"""Load what the Python of a task loads, by being imported: `WarmPython` of the bridge does so.

Inside a TaskManager only: PyFlink's part of it needs the JVM around it.
"""

from __future__ import annotations

import sys
import time

_began = time.monotonic()

import pyflink.fn_execution.embedded.operation_utils  # noqa: E402, F401 - what Flink calls first

import jobs.runtime.functions  # noqa: E402, F401
from connectors.settings import load_settings  # noqa: E402
from jobs.warm import warm_jobs  # noqa: E402

__all__: list[str] = []

warm_jobs(load_settings())
sys.stdout.write(f"Python is warm after {time.monotonic() - _began:.1f} s\n")
sys.stdout.flush()
