"""Write one ONNX file per model: float32 `features` (n, k) in, `probability` (n, 1) out.

Nodes are written from the fitted arrays rather than through a converter: one
TreeEnsembleRegressor and its link, no label output, no per-row maps, and covers kept as hit rates
so that any reader can explain the model without the library that trained it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.errors import ModelError
from models.trees import ML_DOMAIN, Trees, regressor_node

__all__ = [
    "EXPORT_TOLERANCE",
    "INPUT_NAME",
    "OUTPUT_NAME",
    "LinearModel",
    "Link",
    "linear_model",
    "tree_model",
    "verify_export",
]

INPUT_NAME: Final = "features"
"""Input of every model we write."""

OUTPUT_NAME: Final = "probability"
"""Output of every model we write."""

EXPORT_TOLERANCE: Final = 1e-5
# Trees are summed in float32 by ONNX Runtime: 200 leaves of about 0.1 err by 1e-6 or so in the
# log-odds, and the slope of the logistic is at most 1/4. 1e-5 leaves room and still catches a wrong
# branch, which moves the score by far more.

Link = Literal["logistic", "identity", "power_of_two"]
"""How the raw score becomes the score."""

_OPSETS: Final = (("", 17), (ML_DOMAIN, 3))
_IR_VERSION: Final = 8


@dataclass(frozen=True, slots=True)
class LinearModel:
    """`logistic(intercept + sum(weight * (x - mean)))`; arrays of length k, NaN counts as 0."""

    mean: NDArray[np.float64]
    weight: NDArray[np.float64]
    intercept: float


def tree_model(trees: Trees, link: Link) -> bytes:
    """Return the ONNX file of a tree ensemble."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    if link == "logistic":
        nodes = [
            regressor_node(trees, INPUT_NAME, "raw"),
            helper.make_node("Sigmoid", ["raw"], [OUTPUT_NAME]),
        ]
    elif link == "power_of_two":
        constants = [numpy_helper.from_array(np.array(2.0, np.float32), "two")]
        nodes = [
            regressor_node(trees, INPUT_NAME, "raw"),
            helper.make_node("Pow", ["two", "raw"], [OUTPUT_NAME]),
        ]
    else:
        nodes = [regressor_node(trees, INPUT_NAME, OUTPUT_NAME)]
    return _file(nodes, constants, int(trees.feature.max(initial=0)) + 1)


def linear_model(linear: LinearModel) -> bytes:
    """Return the ONNX file of a logistic regression; the mean is subtracted first, in float32."""
    width = len(linear.weight)
    constants = [
        numpy_helper.from_array(linear.mean.astype(np.float32), "mean"),
        numpy_helper.from_array(linear.weight.astype(np.float32).reshape(width, 1), "weight"),
        numpy_helper.from_array(np.array([linear.intercept], np.float32), "intercept"),
        numpy_helper.from_array(np.array(0.0, np.float32), "zero"),
    ]
    nodes = [
        helper.make_node("IsNaN", [INPUT_NAME], ["missing"]),
        helper.make_node("Where", ["missing", "zero", INPUT_NAME], ["filled"]),
        helper.make_node("Sub", ["filled", "mean"], ["centred"]),
        helper.make_node("Gemm", ["centred", "weight", "intercept"], ["raw"]),
        helper.make_node("Sigmoid", ["raw"], [OUTPUT_NAME]),
    ]
    return _file(nodes, constants, width)


def _file(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], width: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "riskstream",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["rows", "features"])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["rows", 1])],
        constants,
    )
    model = helper.make_model(
        graph,
        producer_name="riskstream",
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in _OPSETS],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    if width < 1:
        msg = "exporting a model: it has no features"
        raise ModelError(msg)
    return data


def verify_export(onnx_scores: NDArray[np.float64], library_scores: NDArray[np.float64]) -> float:
    """Return the greatest difference between the exported model and its library.

    Raises:
        ModelError: when it exceeds `EXPORT_TOLERANCE` or either side is not finite.
    """
    worst = float(np.max(np.abs(onnx_scores - library_scores), initial=0.0))
    if not np.isfinite(worst) or worst > EXPORT_TOLERANCE:
        msg = (
            f"verifying the exported model: ONNX differs from the library by {worst!r}, expected "
            f"at most {EXPORT_TOLERANCE}; the model was not kept"
        )
        raise ModelError(msg)
    return worst
