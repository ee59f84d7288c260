"""Register a model by the manifest that a person wrote for it.

What the manifest says must be true of the file: its digest, inputs, output and golden vectors are
checked by the same gate that candidates pass in the job. What it leaves out is taken from the file.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, Final

import numpy as np

from models.card import model_card
from models.errors import ManifestError
from models.external import describe_external
from models.gate import admit
from models.manifest import Manifest, sha256_of
from models.registry import ModelFolder

__all__ = ["written_model"]

_NO_BUDGET: Final = 10**9
# Latency is a matter of the machine that scores, which asks again.


def written_model(
    data: bytes, manifest: str | bytes, *, created_at_ms: int, source: str = ""
) -> ModelFolder:
    """Return a folder to register.

    A manifest needs `name`; with several classes also `output.class_index`. `sha256` is that of the
    file as it came.

    Raises:
        ManifestError: when the manifest is malformed or of another file.
        ModelRefusedError: when the model does not do what the manifest says; `code` says what.
    """
    written = _object(manifest)
    name = str(written.get("name", ""))
    digest = sha256_of(data)
    if written.get("sha256", digest) != digest:
        msg = (
            f"registering {name!r}: the manifest is of a file with SHA-256 {written['sha256']!r}, "
            f"was given one with {digest}"
        )
        raise ManifestError(msg)
    output = written.get("output") or {}
    golden = written.get("golden") or {}
    seen = describe_external(
        data,
        name=name,
        created_at_ms=created_at_ms,
        features=written.get("features"),
        output_name=output.get("name"),
        class_index=output.get("class_index"),
        source=source,
        probes=_rows(golden.get("inputs"), name),
    )
    told = seen.manifest.model_dump(mode="json")
    # The file that is kept may differ from the one that came: a ZipMap is cut off.
    own = ("sha256", "size_bytes", "source_sha256")
    said = {key: value for key, value in written.items() if key not in own}
    for part in ("input", "output", "golden"):
        if part in said and isinstance(said[part], dict):
            said[part] = told[part] | said[part]
    complete = Manifest.from_json(json.dumps({**told, **said}))
    admit(complete, seen.model, complete.features, _NO_BUDGET, itertools.count().__next__)
    return ModelFolder(complete, seen.model, {"card.md": model_card(complete).encode()})


def _object(manifest: str | bytes) -> dict[str, Any]:
    try:
        written = json.loads(manifest)
    except ValueError as e:
        msg = f"reading a model manifest: {e}"
        raise ManifestError(msg) from e
    if not isinstance(written, dict) or not written.get("name"):
        msg = "reading a model manifest: expected a JSON object with at least a name"
        raise ManifestError(msg)
    return written


def _rows(inputs: Any, name: str) -> Any:
    if inputs is None:
        return None
    try:
        return np.array(
            [[np.nan if cell is None else cell for cell in row] for row in inputs], np.float64
        )
    except (TypeError, ValueError) as e:
        msg = f"registering {name!r}: golden.inputs must be rows of numbers of one length: {e}"
        raise ManifestError(msg) from e
