"""No event waits for a compiler: the set-up compiles every kernel that a batch calls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_set_up_compiles_what_the_fraud_job_calls(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compiled_late", str(tmp_path / "home")],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.split() == []
