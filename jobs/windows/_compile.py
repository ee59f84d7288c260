"""How the kernels of the windows are compiled.

Nothing in them makes an array or keeps one, so numba's reference counts are switched off (`_nrt`):
counting every array up and down in every call took more than half of the time of an event. Whoever
needs room passes it in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from numba import njit

__all__ = ["compiled", "inlined", "kernel"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
"""A Python function that numba can compile."""
_OPTIONS: Final[dict[str, Any]] = {
    "nogil": True,
    "error_model": "numpy",
    "_nrt": False,
}


def kernel(function: _Function) -> _Function:
    """Compile a function when it is first called from another, as a part of that one."""
    made: _Function = njit(**_OPTIONS)(function)
    return made


def inlined(function: _Function) -> _Function:
    """Compile a function into its callers: a call would hand over seven words for each array."""
    made: _Function = njit(forceinline=True, **_OPTIONS)(function)
    return made


def compiled(signature: object) -> Callable[[_Function], _Function]:
    """Compile a function for one signature, now or from the cache."""

    def compile_now(function: _Function) -> _Function:
        made: Any = njit(cache=True, **_OPTIONS)(function)
        # numba (0.68) asks only the function's own file whether it has changed, and would run what
        # was compiled from a kernel in another file as that stood then. There is no word for it.
        file = made._cache._cache_file  # noqa: SLF001
        file._source_stamp = (file._source_stamp, _sources_digest())  # noqa: SLF001
        made.compile(signature)
        made.disable_compile()
        return cast("_Function", made)

    return compile_now


@cache
def _sources_digest() -> str:
    digest = hashlib.sha256()
    here = Path(__file__)
    for file in (here, here.with_name("_layout.py"), *sorted(here.parent.glob("_*kernels.py"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()
