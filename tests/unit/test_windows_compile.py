"""Machine code that was kept must be that of the sources at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from jobs.windows import _compile

INNER = """
from pkg._compile import kernel

@kernel
def inner(x):
    return x + {step}
"""
OUTER = """
from numba import int64
from pkg._compile import compiled
from pkg._inner_kernels import inner

@compiled(int64(int64))
def outer(x):
    return inner(x)
"""
ASK = """
from pkg._outer_kernels import outer
print(outer(1), sum(outer.stats.cache_hits.values()))
"""


def answer(folder: Path) -> tuple[int, int]:
    """Return what a new process gets from the kernel, and how often from numba's cache."""
    paths = {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=os.environ | paths,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    result, hits = done.stdout.split()
    return int(result), int(hits)


def test_a_change_in_another_file_of_kernels_is_compiled_anew(tmp_path: Path) -> None:
    """numba asks the file of the outermost function only, and ran last week's windows."""
    package = tmp_path / "pkg"
    package.mkdir()
    shutil.copy(Path(_compile.__file__), package / "_compile.py")
    for name in ("__init__.py", "_layout.py"):
        (package / name).touch()
    (package / "_outer_kernels.py").write_text(OUTER)
    (package / "_inner_kernels.py").write_text(INNER.format(step=1))
    assert answer(tmp_path) == (2, 0)
    assert answer(tmp_path) == (2, 1)
    (package / "_inner_kernels.py").write_text(INNER.format(step=5))
    assert answer(tmp_path) == (6, 0)
