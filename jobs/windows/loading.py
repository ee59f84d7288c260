"""Load the feature set that a file declares."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from jobs.windows.errors import FeatureDeclarationError
from jobs.windows.spec import FeatureSet

__all__ = ["load_feature_set"]


def load_feature_set(where: str) -> FeatureSet:
    """Return the feature set of `PATH.py`, or of `PATH.py:NAME` when the file declares several.

    The file is Python and runs: load only files that you would run.

    Raises:
        FeatureDeclarationError: when the file cannot be run or does not name one feature set.
    """
    name: str | None = None
    file = where
    if not where.endswith(".py") and ":" in where:
        file, _, name = where.rpartition(":")
    path = Path(file)
    spec = importlib.util.spec_from_file_location(f"declared_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        msg = (
            f"loading features from {where!r}: expected a Python file, as in jobs/fraud/features.py"
        )
        raise FeatureDeclarationError(msg)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FeatureDeclarationError:
        raise
    except Exception as e:
        msg = f"loading features from {where!r}: {type(e).__name__}: {e}"
        raise FeatureDeclarationError(msg) from e
    declared = {n: v for n, v in vars(module).items() if isinstance(v, FeatureSet)}
    if name is not None:
        declared = {n: v for n, v in declared.items() if n == name}
    if len(declared) != 1:
        found = ", ".join(sorted(declared)) or "none"
        msg = (
            f"loading features from {where!r}: expected one feature set, was {found}; use PATH:NAME"
        )
        raise FeatureDeclarationError(msg)
    return next(iter(declared.values()))
