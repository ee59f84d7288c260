"""Describe one model so that anyone can load, check and judge it without its author.

A model folder holds `model.onnx`, `manifest.json`, and usually `reference.npy` (a sample of
training rows with their scores, float32, shape (rows, features + 1)), `card.md` and `report.html`.
The version of a model is its name and the first twelve hex digits of the SHA-256 of the ONNX file:
equal versions are equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import ManifestError

__all__ = [
    "MANIFEST_VERSION",
    "MODEL_FILE",
    "REFERENCE_FILE",
    "Golden",
    "Manifest",
    "ModelInput",
    "ModelOutput",
    "Reference",
    "Thresholds",
    "sha256_of",
    "version_of",
]

MANIFEST_VERSION: Final = 1
"""Format of manifest.json; a reader refuses a newer one."""

MODEL_FILE: Final = "model.onnx"
"""Name of the model in its folder."""

REFERENCE_FILE: Final = "reference.npy"
"""Name of the sample of training rows in the model's folder."""

SHORT_SHA: Final = 12
# 12 hex digits are 48 bits: with 10,000 models under one name two collide with odds of 2e-7, and
# the full digest in the manifest still tells them apart.

_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelInput(_Part):
    """The one input tensor: shape (rows, features)."""

    name: str
    dtype: Literal["float32", "float64"] = "float32"


class ModelOutput(_Part):
    """Where in the model's outputs the score is.

    `column` is a tensor of shape (n,) or (n, 1); `matrix` has one column per class and
    `class_index` chooses one.
    """

    name: str
    form: Literal["column", "matrix"] = "column"
    class_index: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _class_is_chosen(self) -> ModelOutput:
        if (self.form == "matrix") != (self.class_index is not None):
            msg = "class_index belongs to outputs of form 'matrix', and they need one"
            raise ValueError(msg)
        return self


class Golden(_Part):
    """Input rows and the scores they must give; NaN inputs are null in JSON."""

    inputs: tuple[tuple[float | None, ...], ...]
    outputs: tuple[float, ...]
    tolerance: Annotated[float, Field(gt=0)] = 1e-5

    @model_validator(mode="after")
    def _lengths_agree(self) -> Golden:
        if len(self.inputs) != len(self.outputs) or not self.inputs:
            msg = "golden needs as many outputs as inputs, and at least one"
            raise ValueError(msg)
        return self

    def input_matrix(self) -> NDArray[np.float64]:
        """Return the inputs as float64 of shape (rows, features)."""
        rows = [[math.nan if cell is None else cell for cell in row] for row in self.inputs]
        return np.array(rows, np.float64)

    @staticmethod
    def of(inputs: NDArray[np.float64], outputs: NDArray[np.float64]) -> Golden:
        """Record rows and their scores."""
        rows = tuple(
            tuple(None if math.isnan(cell) else float(cell) for cell in row) for row in inputs
        )
        return Golden(inputs=rows, outputs=tuple(float(score) for score in outputs))


class Reference(_Part):
    """The sample of training rows that drift and sampled explanations compare with."""

    file: str = REFERENCE_FILE
    sha256: str
    rows: Annotated[int, Field(gt=0)]


class Thresholds(_Part):
    """Scores at which to act, chosen on rows after those the trial model learned from."""

    review: Annotated[float, Field(ge=0, le=1)]
    block: Annotated[float, Field(ge=0, le=1)]
    basis: str = ""


class Manifest(_Part):
    """Everything about a model except its bytes."""

    manifest_version: int = MANIFEST_VERSION
    name: str
    kind: str
    description: str = ""
    created_at_ms: int
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(gt=0)]
    source: str = ""
    source_sha256: str | None = None
    licence: str = ""
    feature_set_version: str
    features: Annotated[tuple[str, ...], Field(min_length=1)]
    input: ModelInput
    output: ModelOutput
    score_kind: Literal["probability", "anomaly", "margin"] = "probability"
    calibration: str = "none"
    thresholds: Thresholds | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    golden: Golden
    reference: Reference | None = None

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not _NAME.match(value):
            msg = f"a name is lower-case letters, digits, '.', '_' and '-', was {value!r}"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _widths_agree(self) -> Manifest:
        if self.manifest_version > MANIFEST_VERSION:
            msg = (
                f"manifest version {self.manifest_version} is newer than {MANIFEST_VERSION}; "
                "upgrade riskstream"
            )
            raise ValueError(msg)
        if len(set(self.features)) != len(self.features):
            msg = "feature names must differ"
            raise ValueError(msg)
        wrong = {len(row) for row in self.golden.inputs} - {len(self.features)}
        if wrong:
            msg = f"golden rows must have {len(self.features)} values, was {sorted(wrong)}"
            raise ValueError(msg)
        return self

    @property
    def version(self) -> str:
        """Name and short digest, as in `fraud-lightgbm@1c9d3a5e7b90`."""
        return version_of(self.name, self.sha256)

    def to_json(self) -> str:
        """Return manifest.json; equal manifests give equal text."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Manifest:
        """Read manifest.json.

        Raises:
            ManifestError: with every mistake in it.
        """
        try:
            return Manifest.model_validate_json(text)
        except ValidationError as e:
            msg = f"reading a model manifest: {_listed(e)}"
            raise ManifestError(msg) from e

    @staticmethod
    def checked(**fields: Any) -> Manifest:
        """Make a manifest from fields that a person chose.

        Raises:
            ManifestError: with every mistake in them.
        """
        try:
            return Manifest(**fields)
        except ValidationError as e:
            msg = f"describing {fields.get('name')!r}: {_listed(e)}"
            raise ManifestError(msg) from e


def _listed(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(step) for step in one['loc']) or 'manifest'}: {one['msg']}"
        for one in error.errors(include_url=False, include_input=False)
    )


def version_of(name: str, sha256: str) -> str:
    """Return the version of a model from its name and full digest."""
    return f"{name}@{sha256[:SHORT_SHA]}"


def sha256_of(data: bytes) -> str:
    """Return the hex digest of a file's bytes."""
    return hashlib.sha256(data).hexdigest()
