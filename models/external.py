"""Write the manifest of an ONNX classifier that someone else made.

The model is looked at, run once on probe rows, and described; what it answers becomes its golden
vectors. A `ZipMap` at the end (a list of maps, one Python dict a row) is cut off, so that the
scores leave as one tensor; `source_sha256` keeps the digest of the file as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from models.card import model_card
from models.errors import ManifestError
from models.manifest import Golden, Manifest, ModelInput, ModelOutput, sha256_of
from models.registry import ModelFolder
from models.session import LoadedModel, open_session

__all__ = ["describe_external"]

_PROBES: Final = 16
_FLOATS: Final = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
}


def describe_external(
    data: bytes,
    *,
    name: str,
    created_at_ms: int,
    features: Sequence[str] | None = None,
    output_name: str | None = None,
    class_index: int | None = None,
    feature_set_version: str = "external",
    description: str = "",
    licence: str = "",
    source: str = "",
    probes: NDArray[np.float64] | None = None,
) -> ModelFolder:
    """Return a folder to register.

    Args:
        data: the ONNX file: one float input (rows, features), a float output with one score or one
            column per class, as a tensor or behind a ZipMap.
        name: name in the registry.
        created_at_ms: when it is registered.
        features: names of the inputs, in order; `x0, x1, ...` when None.
        output_name: which output holds the score; needed only when several could.
        class_index: which class is the score; 1 of two when None, needed with more.
        feature_set_version: the feature set its names belong to.
        description: for the card.
        licence: for the card.
        source: where it came from.
        probes: rows for the golden vectors; seeded normal rows when None.

    Raises:
        ManifestError: when the file is not such a model; the message says what was found.
        ModelRefusedError: when the runtime cannot load it.
    """
    original = sha256_of(data)
    model = _parsed(data, name)
    if _cut_zipmap(model):
        data = model.SerializeToString(deterministic=True)
    session = open_session(data)
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in ("tensor(float)", "tensor(double)"):
        listed = ", ".join(f"{one.name!r} {one.type} {one.shape}" for one in inputs)
        msg = f"describing {name!r}: expected one float input (rows, features), was {listed}"
        raise ManifestError(msg)
    width = _width(model, inputs[0], features, name)
    names = tuple(features) if features else tuple(f"x{number}" for number in range(width))
    if len(names) != width:
        msg = f"describing {name!r}: the model takes {width} features, was given {len(names)} names"
        raise ManifestError(msg)
    chosen = _choose_output(session, output_name, name)
    if probes is None:
        generator = np.random.default_rng(0)
        drawn = generator.normal(size=(_PROBES - 3, width)) * 2
        probes = np.vstack([np.zeros((1, width)), np.ones((1, width)), -np.ones((1, width)), drawn])
    dtype = "float32" if inputs[0].type == "tensor(float)" else "float64"
    probes = probes.astype(dtype).astype(np.float64)
    columns = _columns(session, chosen, inputs[0].name, probes.astype(dtype), name)
    if columns == 1:
        if class_index not in (None, 0):
            msg = (
                f"describing {name!r}: output {chosen!r} has one column, class {class_index} is not"
            )
            raise ManifestError(msg)
        output = ModelOutput(name=chosen)
    else:
        if class_index is None and columns == 2:
            class_index = 1
        if class_index is None or class_index >= columns:
            msg = (
                f"describing {name!r}: output {chosen!r} has {columns} classes; choose one with "
                f"--class-index 0 to {columns - 1}, was {class_index!r}"
            )
            raise ManifestError(msg)
        output = ModelOutput(name=chosen, form="matrix", class_index=class_index)
    draft = Manifest.checked(
        name=name,
        kind="external",
        description=description,
        created_at_ms=created_at_ms,
        sha256=sha256_of(data),
        size_bytes=len(data),
        source=source,
        source_sha256=original,
        licence=licence,
        feature_set_version=feature_set_version,
        features=names,
        input=ModelInput(name=inputs[0].name, dtype="float32" if dtype == "float32" else "float64"),
        output=output,
        golden=Golden.of(probes, np.zeros(len(probes))),
    )
    scores = LoadedModel(draft, session, None, data).score_rows(probes)
    if scores.shape != (len(probes),) or not np.isfinite(scores).all():
        msg = f"describing {name!r}: {len(probes)} probe rows gave {scores.tolist()[:4]!r}..."
        raise ManifestError(msg)
    within = bool(((scores >= 0) & (scores <= 1)).all())
    manifest = draft.model_copy(
        update={
            "golden": Golden.of(probes, scores),
            "score_kind": "probability" if within else "margin",
        }
    )
    return ModelFolder(manifest, data, {"card.md": model_card(manifest).encode()})


def _parsed(data: bytes, name: str) -> onnx.ModelProto:
    try:
        model = onnx.load_from_string(data)
    except Exception as e:
        msg = f"describing {name!r}: {len(data)} bytes are not an ONNX file: {str(e)[:200]}"
        raise ManifestError(msg) from e
    if not model.graph.node:
        msg = f"describing {name!r}: {len(data)} bytes are not an ONNX file with a graph"
        raise ManifestError(msg)
    return model


def _cut_zipmap(model: onnx.ModelProto) -> bool:
    """Let the tensors before ZipMap nodes leave in their place, under their own names."""
    graph = model.graph
    maps = {node.output[0]: node for node in graph.node if node.op_type == "ZipMap"}
    outputs = list(graph.output)
    changed = False
    for number, output in enumerate(outputs):
        node = maps.get(output.name)
        if node is None:
            continue
        shape = ["rows", "classes"]
        tensor = onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, shape)
        outputs[number] = tensor
        graph.node.remove(node)
        changed = True
    if changed:
        del graph.output[:]
        graph.output.extend(outputs)
    return changed


def _width(model: onnx.ModelProto, one: Any, features: Sequence[str] | None, name: str) -> int:
    if len(one.shape) == 2 and isinstance(one.shape[1], int) and one.shape[1] > 0:
        return int(one.shape[1])
    if features:
        return len(features)
    # A file that does not say how many features it takes: the trees name the highest one they read.
    highest = -1
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "nodes_featureids":
                highest = max(highest, *attribute.ints)
            elif attribute.name == "coefficients" and node.op_type == "LinearClassifier":
                labels = [len(item.ints or item.strings) for item in node.attribute]
                highest = max(highest, len(attribute.floats) // max([1, *labels]) - 1)
    if highest < 0:
        msg = f"describing {name!r}: the file does not say how many features it takes; name them"
        raise ManifestError(msg)
    return highest + 1


def _choose_output(session: Any, output_name: str | None, name: str) -> str:
    outputs: dict[str, str] = {one.name: one.type for one in session.get_outputs()}
    wanted = ("tensor(float)", "tensor(double)")
    floats = [one for one, kind in outputs.items() if kind in wanted]
    if output_name is not None:
        if output_name in floats:
            return output_name
    elif len(floats) == 1:
        return floats[0]
    listed = ", ".join(f"{one!r} {kind}" for one, kind in outputs.items())
    msg = f"describing {name!r}: expected one float output, or --output to choose; was {listed}"
    raise ManifestError(msg)


def _columns(session: Any, output: str, source: str, rows: Any, name: str) -> int:
    try:
        array = session.run([output], {source: rows})[0]
    except Exception as e:
        msg = f"describing {name!r}: running it on {rows.shape} probe rows: {str(e)[:200]}"
        raise ManifestError(msg) from e
    if array.shape[:1] != (len(rows),) or array.ndim > 2:
        msg = f"describing {name!r}: output {output!r} has shape {array.shape} for {len(rows)} rows"
        raise ManifestError(msg)
    return 1 if array.ndim == 1 else int(array.shape[1])
