"""What the model package raises.

The tree::

    RiskstreamError
     + FatalError
        + ModelError            a model, its manifest or its data cannot be used
           + ManifestError      the manifest is missing, malformed or contradicts the model
           + ModelNotFoundError no model of that version in the registry
           + ModelRefusedError  the gate refused a candidate; `code` says which check
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from schemas.errors import FatalError

__all__ = [
    "REFUSAL_CODES",
    "ManifestError",
    "ModelError",
    "ModelNotFoundError",
    "ModelRefusedError",
    "RefusalCode",
]

RefusalCode = Literal[
    "not_found",
    "corrupt_file",
    "bad_manifest",
    "wrong_inputs",
    "wrong_outputs",
    "unknown_feature",
    "golden_mismatch",
    "not_finite",
    "too_slow",
    "bad_control",
]
"""Why a candidate or a control record was refused."""

REFUSAL_CODES: Final[tuple[str, ...]] = get_args(RefusalCode)
"""Every refusal code, for metrics that must exist before the first refusal."""


class ModelError(FatalError):
    """A model, its manifest or its training data cannot be used."""


class ManifestError(ModelError):
    """The manifest is missing, malformed or contradicts the model file."""


class ModelNotFoundError(ModelError):
    """The registry has no model of that version."""


class ModelRefusedError(ModelError):
    """The gate refused a candidate; the model that was running stays."""

    def __init__(self, message: str, code: RefusalCode) -> None:
        """Keep the machine-readable code beside the message."""
        super().__init__(message)
        self.code: RefusalCode = code
