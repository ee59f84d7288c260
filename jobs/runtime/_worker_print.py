"""Let numba be imported in PyFlink's process-mode worker.

The worker of PyFlink 2.3.0 replaces `builtins.print` with a method, and numba, when it is imported,
looks every builtin up in the module that it says it comes from: there is no `print` in the worker's
module, and the import fails. Drop this when the worker restores what it replaced or numba stops
looking.
"""

import builtins
import sys

__all__ = ["mend"]


def mend() -> None:
    """Put `print` where its `__module__` says it is; elsewhere than in the worker, do nothing."""
    home = sys.modules.get(getattr(builtins.print, "__module__", None) or "builtins")
    if home is not None and not hasattr(home, "print"):
        home.print = builtins.print  # type: ignore[attr-defined]
