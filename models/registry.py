"""Keep models in a folder or at any fsspec URL, under their content.

Layout::

    <root>/<name>/<12 hex digits>/model.onnx, manifest.json, reference.npy, card.md, report.html
    <root>/requests/<issued_at_ms>-<control id>.json     what was asked for, oldest first

A version never changes once it is there; registering the same bytes again is harmless. Which model
decides is settled on the control topic; `requests` only remembers what this registry was used to
ask. Models that ship with riskstream (`models/artefacts/`) can be read from every registry.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fsspec
import numpy as np
from numpy.typing import NDArray

from models.control import DEFAULT_JOB, ControlRecord
from models.errors import ManifestError, ModelError, ModelNotFoundError
from models.manifest import MODEL_FILE, Manifest, sha256_of

__all__ = ["ARTEFACTS", "MANIFEST_FILE", "Listing", "ModelFolder", "Registry", "default_version"]

MANIFEST_FILE: Final = "manifest.json"
"""Name of the manifest in a model's folder."""

ARTEFACTS: Final = Path(__file__).resolve().parent / "artefacts"
"""Models that ship with riskstream, one folder each."""

_ROOT: Final = Path(__file__).resolve().parent.parent
_REQUESTS: Final = "requests"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The files of one model; `extra` maps file names (card.md, reference.npy) to bytes."""

    manifest: Manifest
    model: bytes
    extra: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of `riskstream models list`; `stage` is the last one asked for here."""

    version: str
    kind: str
    created_at_ms: int
    feature_set_version: str
    stage: str
    metrics: Mapping[str, Any]


class Registry:
    """Models by version."""

    def __init__(self, url: str) -> None:
        """Open a path, `file:path` (relative ones start at the repository) or an fsspec URL."""
        path = url.removeprefix("file:") if url.startswith("file:") else url
        if "://" not in path:
            path = str(_ROOT / path)
        self.url: Final = url
        self._files, self._root = fsspec.core.url_to_fs(path)

    def register(self, folder: ModelFolder) -> str:
        """Store a model and return its version.

        The manifest is written last, so a reader never sees half a model. Bytes that are already
        there keep their first manifest.

        Raises:
            ManifestError: when the manifest describes other bytes, or these bytes are there with
                other inputs or outputs.
        """
        manifest = folder.manifest
        if sha256_of(folder.model) != manifest.sha256:
            msg = f"registering {manifest.version!r}: the manifest's SHA-256 is of another file"
            raise ManifestError(msg)
        target = self._path(manifest.version)
        marker = f"{target}/{MANIFEST_FILE}"
        if self._files.exists(marker):
            known = Manifest.from_json(self._files.cat_file(marker))
            facts = ("features", "feature_set_version", "input", "output", "score_kind")
            if any(getattr(known, fact) != getattr(manifest, fact) for fact in facts):
                msg = (
                    f"registering {manifest.version!r}: these bytes are registered with another "
                    "manifest; give the model another name"
                )
                raise ManifestError(msg)
            return manifest.version
        self._files.makedirs(target, exist_ok=True)
        for name, data in {MODEL_FILE: folder.model, **folder.extra}.items():
            self._files.pipe_file(f"{target}/{name}", data)
        self._files.pipe_file(marker, manifest.to_json().encode())
        return manifest.version

    def load(self, version: str) -> tuple[Manifest, bytes]:
        """Return manifest and model file; the digest is for the gate to check.

        Raises:
            ModelNotFoundError: when there is no such version.
        """
        return self.manifest(version), self.file(version, MODEL_FILE)

    def reference(self, manifest: Manifest) -> NDArray[np.float32] | None:
        """Return the sample of training rows kept with a model: features, then the score.

        None when its manifest names no sample.

        Raises:
            ModelNotFoundError: when the file is not there.
            ManifestError: when it is another file than the manifest says.
        """
        if manifest.reference is None:
            return None
        data = self.file(manifest.version, manifest.reference.file)
        if sha256_of(data) != manifest.reference.sha256:
            msg = f"model {manifest.version!r}: its reference sample is another file; copy it again"
            raise ManifestError(msg)
        sample: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
        return sample

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a version."""
        return Manifest.from_json(self.file(version, MANIFEST_FILE))

    def file(self, version: str, name: str) -> bytes:
        """Return one file of a version, as `card.md`.

        Raises:
            ModelNotFoundError: when the version or the file is not there.
        """
        shipped = _shipped().get(version)
        if shipped is not None and (shipped / name).is_file():
            return (shipped / name).read_bytes()
        try:
            data: bytes = self._files.cat_file(f"{self._path(version)}/{name}")
        except FileNotFoundError as e:
            msg = (
                f"reading {name!r} of model {version!r} from {self.url!r}: it is not there; "
                "`riskstream models list` shows what is"
            )
            raise ModelNotFoundError(msg) from e
        return data

    def path_of(self, version: str, name: str) -> str:
        """Return where a file of a version is: a local path, or a URL of a remote registry."""
        shipped = _shipped().get(version)
        if shipped is not None:
            return str(shipped / name)
        return str(self._files.unstrip_protocol(f"{self._path(version)}/{name}")).removeprefix(
            "file://"
        )

    def listings(self) -> list[Listing]:
        """Return every model, oldest first, those that ship with riskstream included."""
        manifests = [
            Manifest.from_json((folder / MANIFEST_FILE).read_bytes())
            for folder in _shipped().values()
        ]
        manifests += [
            Manifest.from_json(self._files.cat_file(path))
            for path in self._files.glob(f"{self._root}/*/*/{MANIFEST_FILE}")
        ]
        stages = self._stages()
        by_version = {manifest.version: manifest for manifest in manifests}
        return sorted(
            (
                Listing(
                    version,
                    manifest.kind,
                    manifest.created_at_ms,
                    manifest.feature_set_version,
                    stages.get(version, "registered"),
                    manifest.metrics,
                )
                for version, manifest in by_version.items()
            ),
            key=lambda listing: (listing.created_at_ms, listing.version),
        )

    def resolve(self, text: str) -> str:
        """Return the one version that `text` names: a version, a name, `name@prefix` or `default`.

        A bare name means its newest version.

        Raises:
            ModelNotFoundError: when nothing or more than one version fits.
        """
        if text == "default":
            return default_version()
        versions = [listing.version for listing in self.listings()]
        if text in versions:
            return text
        if "@" in text:
            fitting = [version for version in versions if version.startswith(text)]
        else:
            fitting = [version for version in versions if version.split("@")[0] == text][-1:]
        if len(fitting) != 1:
            found = ", ".join(fitting or versions) or "none"
            msg = f"looking for model {text!r} in {self.url!r}: expected one version, was {found}"
            raise ModelNotFoundError(msg)
        return fitting[0]

    def remember(self, control: ControlRecord) -> None:
        """Write down a request that went to the control topic."""
        folder = f"{self._root}/{_REQUESTS}"
        self._files.makedirs(folder, exist_ok=True)
        path = f"{folder}/{control.issued_at_ms:013d}-{control.control_id}.json"
        self._files.pipe_file(path, json.dumps(control.to_record(), sort_keys=True).encode())

    def requests(self) -> list[ControlRecord]:
        """Return the requests made through this registry, oldest first."""
        paths = sorted(self._files.glob(f"{self._root}/{_REQUESTS}/*.json"))
        return [ControlRecord.from_record(json.loads(self._files.cat_file(path))) for path in paths]

    def champion(self, job: str = DEFAULT_JOB, default: str | None = None) -> str:
        """Return the version that the requests have made champion of a job, else its default.

        Without `default` that is the model that ships for fraud.
        """
        default = default_version() if default is None else default
        history = self._champions(job, default)
        return history[-1] if history else default

    def previous_champion(self, job: str = DEFAULT_JOB, default: str | None = None) -> str | None:
        """Return what a rollback would go back to; `default` as in `champion`."""
        default = default_version() if default is None else default
        history = self._champions(job, default)
        if not history:
            return None
        return history[-2] if len(history) > 1 else default

    def _champions(self, job: str, default: str) -> list[str]:
        history: list[str] = []
        for control in self.requests():
            if "route_field" in control.arguments or control.job != job:
                continue
            if control.kind == "activate_model" and control.subject not in history[-1:]:
                history.append(control.subject)
            elif control.kind == "rollback_model" and history:
                history.pop()
                if not history and control.subject != default:
                    history.append(control.subject)
        return [version for version in history if version]

    def _stages(self) -> dict[str, str]:
        stages: dict[str, str] = {}
        names = {
            "shadow_model": "shadow",
            "challenge_model": "challenger",
            "retire_model": "retired",
        }
        jobs = {DEFAULT_JOB}
        for control in self.requests():
            jobs.add(control.job)
            if control.kind in names and "route_field" not in control.arguments:
                stages[control.subject] = names[control.kind]
            elif control.kind == "activate_model" and "route_field" in control.arguments:
                stages[control.subject] = "routed"
        for job in jobs:
            stages[self.champion(job, None if job == DEFAULT_JOB else "")] = "champion"
        stages.pop("", None)
        return stages

    def _path(self, version: str) -> str:
        name, separator, digest = version.partition("@")
        if not separator or not name or not digest or "/" in version or ".." in version:
            msg = f"looking for model {version!r}: expected NAME@DIGEST, as `models list` prints"
            raise ModelNotFoundError(msg)
        return f"{self._root}/{name}/{digest}"


def default_version() -> str:
    """Return the version of the model that ships with riskstream.

    Raises:
        ModelError: when the installation lacks it.
    """
    for version, folder in _shipped().items():
        if folder.name == "default":
            return version
    msg = f"looking for the default model in {str(ARTEFACTS)!r}: not there; reinstall riskstream"
    raise ModelError(msg)


def _shipped() -> dict[str, Path]:
    return {
        Manifest.from_json(path.read_bytes()).version: path.parent
        for path in sorted(ARTEFACTS.glob(f"*/{MANIFEST_FILE}"))
    }
