"""Load one ONNX model and score batches with it: one thread, no spinning, no per-record Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models._compiled import CompiledTrees, tree_probes
from models.errors import ModelRefusedError
from models.evidence import EvidenceMaker
from models.explain import Explainer, explainer_of
from models.manifest import Manifest

__all__ = ["COMPILED_TOLERANCE", "LoadedModel", "open_model", "open_session"]

COMPILED_TOLERANCE: Final = 1e-6
"""How far compiled trees may be from the runtime's score.

Raw sums are the same bits; the runtime's float32 logistic errs by 1e-7. A wrong branch moves a
score by more.
"""

_DTYPES: Final = {"tensor(float)": "float32", "tensor(double)": "float64"}


class LoadedModel:
    """A model ready to score features of one feature set.

    Scoring is safe from several threads at once.
    """

    def __init__(
        self,
        manifest: Manifest,
        session: onnxruntime.InferenceSession,
        columns: NDArray[np.int64] | None,
        data: bytes,
    ) -> None:
        """Bind a session; `columns` picks the model's features, None when all are, in order."""
        self.manifest: Final = manifest
        self.version: Final = manifest.version
        self.columns: Final = columns
        self._run: Final = _bare_run(session)
        self._session: Final = session
        self._outputs: Final = [manifest.output.name]
        self._input: Final = manifest.input.name
        self._dtype: Final = np.float32 if manifest.input.dtype == "float32" else np.float64
        self._class: Final = manifest.output.class_index
        self._data: Final = data
        self._trees: CompiledTrees | None = None
        self._explainer: Explainer | None = None
        self._evidence: EvidenceMaker | None = None

    def score(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one score for each row of `features`, float64 (n, k of the feature set).

        NaN features reach the model as NaN; a model that was not made for them may answer NaN.
        """
        if self._trees is not None:
            return self._trees.score(features, self.columns)
        if self.columns is not None:
            features = features[:, self.columns]
        return self._run_session(features)

    def score_rows(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return scores for rows that hold exactly the model's own features, in its order."""
        if self._trees is not None:
            return self._trees.score(np.asarray(rows, np.float64))
        return self._run_session(rows)

    def compile_trees(self) -> bool:
        """Score without the runtime from now on, if the model is trees and scores stay the same.

        Rows at, below and above every test and the golden rows are scored both ways. Returns
        whether scores agreed within `COMPILED_TOLERANCE`.
        """
        reading = self.explainer().reading
        if reading is None or self._dtype is not np.float32:
            return False
        compiled = CompiledTrees(reading, len(self.manifest.features))
        golden = self.manifest.golden.input_matrix()
        probes = np.vstack([golden, tree_probes(reading.trees, golden)])
        difference = np.abs(compiled.score(probes) - self._run_session(probes))
        if not (difference <= COMPILED_TOLERANCE).all():
            return False
        self._trees = compiled
        return True

    def _run_session(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        if len(rows) == 0:
            return np.empty(0, np.float64)
        # Trees decide on float32; a float64 cell is rounded once, here, for every caller alike.
        output = self._run(self._outputs, {self._input: rows.astype(self._dtype, order="C")}, None)[
            0
        ]
        if self._class is not None:
            output = output[:, self._class]
        scores: NDArray[np.float64] = output.reshape(-1).astype(np.float64)
        return scores

    def explainer(self) -> Explainer:
        """Return what explains this model's scores, made at the first call (tens of ms)."""
        # Two threads may both make one; they are equal and the last one stays.
        if self._explainer is None:
            self._explainer = explainer_of(self.manifest, self._data, self.score_rows)
        return self._explainer

    def prepare_evidence(self, reference: NDArray[np.float32] | None) -> EvidenceMaker:
        """Make what explains alerts, from the training rows kept with the model.

        Its golden rows take their place when there are none.
        """
        sample = self.manifest.golden.input_matrix() if reference is None else reference
        made = EvidenceMaker(self.explainer(), self.columns, self.score_rows, sample)
        self._evidence = made
        return made

    def evidence(self) -> EvidenceMaker:
        """Return what explains alerts, made at the first call unless it was prepared."""
        return self._evidence or self.prepare_evidence(None)


def _bare_run(session: onnxruntime.InferenceSession) -> Callable[..., Any]:
    # `InferenceSession.run` compares the names it is given with the model's each time, 5 us a call
    # (1.31.1), a quarter of scoring one event; `open_model` has compared them once.
    run: Callable[..., Any] = getattr(getattr(session, "_sess", session), "run")  # noqa: B009
    return run


def open_session(data: bytes) -> onnxruntime.InferenceSession:
    """Open an ONNX file with one thread.

    One thread because a Flink slot is one thread: a pool would fight its neighbours for cores, and
    its threads would spin between batches.

    Raises:
        ModelRefusedError: `corrupt_file` when the runtime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Messages go through exceptions; the runtime's own log would write to the task's stderr.
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as e:
        msg = f"loading an ONNX file of {len(data)} bytes: {str(e)[:300]}"
        raise ModelRefusedError(msg, "corrupt_file") from e


def open_model(manifest: Manifest, data: bytes, feature_names: Sequence[str]) -> LoadedModel:
    """Open a model for features named `feature_names` and check its shape against its manifest.

    Raises:
        ModelRefusedError: `corrupt_file`, `wrong_inputs`, `wrong_outputs` or `unknown_feature`.
    """
    position = {name: index for index, name in enumerate(feature_names)}
    missing = [name for name in manifest.features if name not in position]
    if missing:
        msg = (
            f"model {manifest.version!r} needs features {missing!r} that the job does not compute; "
            "register it for this feature set or extend the set"
        )
        raise ModelRefusedError(msg, "unknown_feature")
    session = open_session(data)
    inputs = session.get_inputs()
    width = len(manifest.features)
    expected = f"one input {manifest.input.name!r} of {manifest.input.dtype} (rows, {width})"
    found = ", ".join(f"{one.name!r} {one.type} {one.shape}" for one in inputs)
    if (
        len(inputs) != 1
        or inputs[0].name != manifest.input.name
        or _DTYPES.get(inputs[0].type) != manifest.input.dtype
        or len(inputs[0].shape) not in (0, 2)
        or (
            (len(inputs[0].shape) == 2 and inputs[0].shape[1] not in (width, None, "features", ""))
            and isinstance(inputs[0].shape[1], int)
        )
    ):
        msg = f"model {manifest.version!r}: expected {expected}, was {found}"
        raise ModelRefusedError(msg, "wrong_inputs")
    outputs = {one.name: one for one in session.get_outputs()}
    chosen = outputs.get(manifest.output.name)
    if chosen is None or chosen.type not in _DTYPES:
        listed = ", ".join(f"{one.name!r} {one.type}" for one in outputs.values())
        msg = (
            f"model {manifest.version!r}: expected a float tensor {manifest.output.name!r} among "
            f"the outputs, was {listed}"
        )
        raise ModelRefusedError(msg, "wrong_outputs")
    chosen_columns = np.array([position[name] for name in manifest.features], np.int64)
    whole = np.array_equal(chosen_columns, np.arange(len(feature_names)))
    return LoadedModel(manifest, session, None if whole else chosen_columns, data)
