"""Keep what is loaded for good out of Python's garbage collections.

A full collection walks every object that may be part of a cycle: modules, kernels and models are
200,000 and more, 125 to 200 ms in which the stages of a process, who share one interpreter, stand
still.
"""

from __future__ import annotations

import gc

__all__ = ["leave_loaded_alone"]


def leave_loaded_alone() -> None:
    """Drop garbage, then leave all that is alive now out of later collections.

    To be called when a task has opened. What was left alone before is looked at again first: a
    task that ended in the same process, of a job that restarts, is dropped here and not kept.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
