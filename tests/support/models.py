"""Small models over the fraud features: good ones, and one broken in each way a gate must see."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from jobs.fraud.features import FRAUD_FEATURES
from models.export import INPUT_NAME, OUTPUT_NAME, LinearModel, linear_model
from models.manifest import Golden, Manifest, ModelInput, ModelOutput, Thresholds, sha256_of
from models.registry import ModelFolder, Registry

__all__ = ["BROKEN", "amount_model", "break_model"]

NAMES = FRAUD_FEATURES.names
ROWS = np.random.default_rng(5).uniform(0, 50, (8, len(NAMES)))
BROKEN = {
    "wrong_inputs": "expected one input",
    "not_finite": "nan",
    "golden_mismatch": "golden row",
    "corrupt_file": "SHA-256",
    "too_slow": "budget",
}
"""Ways to be broken, by refusal code, with a word of the reason."""


def _folder(name: str, data: bytes, outputs: np.ndarray) -> ModelFolder:
    manifest = Manifest(
        name=name,
        kind="logistic",
        created_at_ms=1,
        sha256=sha256_of(data),
        size_bytes=len(data),
        feature_set_version=FRAUD_FEATURES.version,
        features=NAMES,
        input=ModelInput(name=INPUT_NAME),
        output=ModelOutput(name=OUTPUT_NAME),
        thresholds=Thresholds(review=0.9, block=0.99),
        golden=Golden.of(ROWS, outputs),
    )
    return ModelFolder(manifest, data, {})


def _logistic(weight: float, intercept: float) -> np.ndarray:
    raw = ROWS.astype(np.float32)[:, 0] * np.float32(weight) + np.float32(intercept)
    return 1 / (1 + np.exp(-raw.astype(np.float64)))


def _linear(weight: float, intercept: float, width: int = len(NAMES)) -> bytes:
    weights = np.zeros(width)
    weights[0] = weight
    return linear_model(LinearModel(np.zeros(width), weights, intercept))


def amount_model(name: str, weight: float, intercept: float = -2.0) -> ModelFolder:
    """Return a logistic model of the amount alone."""
    return _folder(name, _linear(weight, intercept), _logistic(weight, intercept))


def _slow() -> bytes:
    # 120 products with a 1024 x 1024 matrix made when the file is loaded: some 64 GFLOP for the 256
    # rows of the gate. With 24 a processor with wide vectors was, in a calm moment, fast enough.
    size, k = 1024, len(NAMES)
    nodes = [
        helper.make_node("ReduceSum", [INPUT_NAME, "axis"], ["sum"], keepdims=1),
        helper.make_node("Sigmoid", ["sum"], ["start"]),
        helper.make_node("Expand", ["start", "wide"], ["x0"]),
    ]
    nodes += [helper.make_node("MatMul", [f"x{n}", "square"], [f"x{n + 1}"]) for n in range(120)]
    nodes += [
        helper.make_node("ReduceMean", ["x120"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sigmoid", ["mean"], [OUTPUT_NAME]),
        helper.make_node("ConstantOfShape", ["shape"], ["square"], value=numpy_helper.from_array(
            np.array([1 / size], np.float32))),
    ]  # fmt: skip
    nodes = [nodes[-1], *nodes[:-1]]
    constants = [
        numpy_helper.from_array(np.array([size, size], np.int64), "shape"),
        numpy_helper.from_array(np.array([1, size], np.int64), "wide"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["rows", k])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["rows", 1])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def break_model(registry: Registry, code: str) -> str:
    """Register a model that must be refused with that code and return its version."""
    name = f"broken-{code.replace('_', '-')}"
    good = _logistic(0.1, -2.0)
    if code == "wrong_inputs":
        # One feature more than the manifest says, and a fixed width in the file.
        model = onnx.load_from_string(_linear(0.1, -2.0, len(NAMES) + 1))
        shape = model.graph.input[0].type.tensor_type.shape
        shape.dim[1].dim_value = len(NAMES) + 1
        return registry.register(_folder(name, model.SerializeToString(), good))
    if code == "not_finite":
        return registry.register(_folder(name, _linear(0.1, float("nan")), good))
    if code == "golden_mismatch":
        return registry.register(_folder(name, _linear(0.1, -2.0), good + 0.1))
    if code == "too_slow":
        row = np.array([1 / (1 + np.exp(-ROWS.sum(axis=1)))])
        return registry.register(_folder(name, _slow(), 1 / (1 + np.exp(-row[0]))))
    version = registry.register(_folder(name, _linear(0.2, -2.0), _logistic(0.2, -2.0)))
    with open(registry.path_of(version, "model.onnx"), "ab") as file:
        file.write(b"\0")
    return version
