"""Let a candidate in only after it has shown that it is the model its manifest describes.

In order: the file's digest, the shape of inputs and outputs, the features it needs, its golden
vectors, finite answers, its latency. Nothing here touches the model that is running.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from models.errors import ManifestError, ModelError, ModelNotFoundError, ModelRefusedError
from models.manifest import Manifest, sha256_of
from models.session import LoadedModel, open_model

__all__ = ["GATE_ROWS", "admit", "measure_us"]

GATE_ROWS: Final = 256
# The latency budget is for a batch of this many rows: about what a 2-core machine gathers at 20,000
# events/s. Fewer rows would measure the fixed cost of a call, more would hide it.

_REPEATS: Final = 5
# The best of five: a busy neighbour must not get a good model refused, and five runs of a batch
# within the budget cost the stream a few budgets at most.


def admit(
    manifest: Manifest,
    data: bytes,
    feature_names: Sequence[str],
    latency_budget_us: int,
    clock_ns: Callable[[], int],
) -> LoadedModel:
    """Return the model, ready to score, or refuse it.

    Raises:
        ModelRefusedError: with the code of the first check that failed.
    """
    digest = sha256_of(data)
    if digest != manifest.sha256:
        msg = (
            f"model {manifest.version!r}: the file's SHA-256 is {digest}, its manifest says "
            f"{manifest.sha256}; copy the file again"
        )
        raise ModelRefusedError(msg, "corrupt_file")
    model = open_model(manifest, data, feature_names)
    try:
        _check_golden(model)
        _check_finite(model)
        model.compile_trees()
        _check_latency(model, latency_budget_us, clock_ns)
    except (ModelError, ManifestError, ModelNotFoundError):
        raise
    except Exception as e:
        msg = f"model {manifest.version!r} failed while scoring its golden rows: {str(e)[:300]}"
        raise ModelRefusedError(msg, "wrong_inputs") from e
    return model


def measure_us(
    model: LoadedModel,
    rows: int,
    repeats: int,
    clock_ns: Callable[[], int],
    stop_us: float = np.inf,
) -> float:
    """Return the best time of one call on `rows` tiled golden rows, in microseconds.

    Stops early once a run is within `stop_us`, or more than ten times beyond it.
    """
    golden = model.manifest.golden.input_matrix()
    batch = np.tile(golden, (rows // len(golden) + 1, 1))[:rows]
    best = np.inf
    for _ in range(repeats):
        start = clock_ns()
        model.score_rows(batch)
        took = (clock_ns() - start) / 1000
        best = min(best, took)
        # A run ten times over cannot have been a busy moment alone; more would hold up the stream.
        if best <= stop_us or took > 10 * stop_us:
            break
    return best


def _check_golden(model: LoadedModel) -> None:
    golden = model.manifest.golden
    expected = np.array(golden.outputs, np.float64)
    scores = model.score_rows(golden.input_matrix())
    if scores.shape != expected.shape:
        msg = (
            f"model {model.version!r}: {len(expected)} rows gave {len(scores)} scores; expected "
            "one score a row"
        )
        raise ModelRefusedError(msg, "wrong_outputs")
    if not np.isfinite(scores).all():
        msg = f"model {model.version!r}: golden rows gave {scores[~np.isfinite(scores)][0]!r}"
        raise ModelRefusedError(msg, "not_finite")
    worst = float(np.max(np.abs(scores - expected)))
    if worst > golden.tolerance:
        row = int(np.argmax(np.abs(scores - expected)))
        msg = (
            f"model {model.version!r}: golden row {row} gave {scores[row]!r}, expected "
            f"{expected[row]!r} within {golden.tolerance}"
        )
        raise ModelRefusedError(msg, "golden_mismatch")


def _check_finite(model: LoadedModel) -> None:
    # Golden rows are what the author chose; a quiet card (zeros) is what the stream will bring.
    width = len(model.manifest.features)
    probes = np.vstack([np.zeros(width), np.ones(width), np.full(width, 1e6)])
    scores = model.score_rows(probes)
    if not np.isfinite(scores).all():
        msg = (
            f"model {model.version!r}: rows of 0, 1 and 1e6 gave {scores.tolist()!r}; expected "
            "finite scores"
        )
        raise ModelRefusedError(msg, "not_finite")
    if model.manifest.score_kind != "margin" and not ((scores >= 0) & (scores <= 1)).all():
        msg = (
            f"model {model.version!r}: scores {scores.tolist()!r} are not between 0 and 1, as "
            f"score kind {model.manifest.score_kind!r} promises"
        )
        raise ModelRefusedError(msg, "wrong_outputs")


def _check_latency(model: LoadedModel, latency_budget_us: int, clock_ns: Callable[[], int]) -> None:
    measured = measure_us(model, GATE_ROWS, _REPEATS, clock_ns, latency_budget_us)
    if measured > latency_budget_us:
        msg = (
            f"model {model.version!r}: {GATE_ROWS} rows took {measured:.0f} us, the budget is "
            f"{latency_budget_us} us (models.latency_budget_us)"
        )
        raise ModelRefusedError(msg, "too_slow")
