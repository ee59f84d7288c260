"""Take an ONNX model from an MLflow registry: over its REST API, or from a local file store.

Only documented endpoints are used (`registered-models/get-latest-versions`,
`registered-models/alias`, `model-versions/get`, `model-versions/get-download-uri`,
`mlflow-artifacts/artifacts`), so MLflow itself need not be installed. References read
`mlflow:NAME`, `mlflow:NAME/3`, `mlflow:NAME/Production` or `mlflow:NAME@champion`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import requests
import yaml

from models.errors import ModelError, ModelNotFoundError
from schemas.errors import RetryableError

__all__ = ["FetchedModel", "fetch_mlflow"]

_API: Final = "api/2.0/mlflow"
_REFERENCE: Final = re.compile(
    r"^mlflow:(?P<name>[^/@]+)(?:/(?P<which>[^/@]+)|@(?P<alias>[^/@]+))?$"
)
_SECONDS: Final = 30
_MODEL_FILES: Final = ("model.onnx", "data/model.onnx")
# What `mlflow.onnx` writes has been `model.onnx` for years; `data/` is the layout of other
# flavours.


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """An ONNX file with the name it had there and where it came from."""

    data: bytes
    name: str
    origin: str


def fetch_mlflow(reference: str, registry: str | None) -> FetchedModel:
    """Return the ONNX file that `reference` names.

    Args:
        reference: `mlflow:NAME`, `mlflow:NAME/VERSION`, `mlflow:NAME/STAGE` or `mlflow:NAME@ALIAS`.
        registry: the tracking server's URL, or the folder of a file store (setting
            `models.mlflow_uri`).

    Raises:
        ModelNotFoundError: no such model, version, stage or alias, or no ONNX file in it.
        RetryableError: the server does not answer.
    """
    match = _REFERENCE.match(reference)
    if match is None:
        msg = f"reading {reference!r}: expected mlflow:NAME, mlflow:NAME/3 or mlflow:NAME@ALIAS"
        raise ModelError(msg)
    if registry is None:
        msg = f"reading {reference!r}: set models.mlflow_uri to the MLflow server or file store"
        raise ModelError(msg)
    name, which, alias = match["name"], match["which"], match["alias"]
    if registry.startswith(("http://", "https://")):
        data, version = _from_server(registry.rstrip("/"), name, which, alias)
    else:
        data, version = _from_folder(_local(registry), name, which, alias)
    return FetchedModel(data, name, f"mlflow:{name}/{version}")


def _from_server(base: str, name: str, which: str | None, alias: str | None) -> tuple[bytes, str]:
    if alias is not None:
        found = _get(f"{base}/{_API}/registered-models/alias", {"name": name, "alias": alias})
        version = str(found["model_version"]["version"])
    elif which is not None and which.isdigit():
        found = _get(f"{base}/{_API}/model-versions/get", {"name": name, "version": which})
        version = str(found["model_version"]["version"])
    else:
        body: dict[str, Any] = {"name": name, **({"stages": [which]} if which else {})}
        found = _get(f"{base}/{_API}/registered-models/get-latest-versions", body, post=True)
        versions = [int(one["version"]) for one in found.get("model_versions", [])]
        if not versions:
            raise ModelNotFoundError(_missing(f"{name}/{which or 'latest'}", base))
        version = str(max(versions))
    one = {"name": name, "version": version}
    found = _get(f"{base}/{_API}/model-versions/get-download-uri", one)
    uri = str(found["artifact_uri"])
    if urlsplit(uri).scheme in ("", "file"):
        return _onnx_in(_local(uri), name), version
    if urlsplit(uri).scheme != "mlflow-artifacts":
        return _through_fsspec(uri, name), version
    root = urlsplit(uri).path.strip("/")
    for file in _MODEL_FILES:
        url = f"{base}/api/2.0/mlflow-artifacts/artifacts/{quote(f'{root}/{file}')}"
        answer = _request("GET", url, None)
        if answer.status_code == requests.codes.ok:
            return answer.content, version
    raise ModelNotFoundError(_missing(f"{name}/{version}: {' or '.join(_MODEL_FILES)}", base))


def _get(url: str, arguments: dict[str, Any], *, post: bool = False) -> dict[str, Any]:
    answer = _request("POST" if post else "GET", url, arguments)
    if answer.status_code == requests.codes.not_found:
        raise ModelNotFoundError(_missing(str(arguments.get("name")), url))
    if answer.status_code != requests.codes.ok:
        msg = f"asking MLflow at {url!r}: status {answer.status_code}, {answer.text[:200]!r}"
        raise ModelError(msg)
    parsed: dict[str, Any] = answer.json()
    return parsed


def _request(method: str, url: str, arguments: dict[str, Any] | None) -> requests.Response:
    try:
        if method == "POST":
            return requests.post(url, json=arguments, timeout=_SECONDS)
        return requests.get(url, params=arguments, timeout=_SECONDS)
    except requests.RequestException as e:
        msg = f"asking MLflow at {url!r}: {e}"
        raise RetryableError(msg) from e


def _from_folder(root: Path, name: str, which: str | None, alias: str | None) -> tuple[bytes, str]:
    model = root / "models" / name
    if not model.is_dir():
        raise ModelNotFoundError(_missing(name, str(root)))
    if alias is not None:
        pointer = model / "aliases" / alias
        if not pointer.is_file():
            raise ModelNotFoundError(_missing(f"{name}@{alias}", str(root)))
        which = pointer.read_text(encoding="utf-8").strip()
    found: dict[int, dict[str, Any]] = {}
    for path in model.glob("version-*/meta.yaml"):
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[int(parsed["version"])] = parsed
    fitting = [
        version
        for version, meta in found.items()
        if which is None or which == str(version) or which == meta.get("current_stage")
    ]
    if not fitting:
        raise ModelNotFoundError(_missing(f"{name}/{which}", str(root)))
    version = max(fitting)
    meta = found[version]
    uri = str(meta.get("storage_location") or meta["source"])
    return _onnx_in(_local(uri), name), str(version)


def _onnx_in(folder: Path, name: str) -> bytes:
    for file in _MODEL_FILES:
        if (folder / file).is_file():
            return (folder / file).read_bytes()
    raise ModelNotFoundError(_missing(f"{name}: {' or '.join(_MODEL_FILES)}", str(folder)))


def _through_fsspec(uri: str, name: str) -> bytes:
    import fsspec

    files, root = fsspec.core.url_to_fs(uri)
    for file in _MODEL_FILES:
        if files.exists(f"{root}/{file}"):
            data: bytes = files.cat_file(f"{root}/{file}")
            return data
    raise ModelNotFoundError(_missing(f"{name}: {' or '.join(_MODEL_FILES)}", uri))


def _local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path) if uri.startswith("file:") else uri)


def _missing(what: str, where: str) -> str:
    return f"looking for {what!r} in MLflow at {where!r}: it is not there"
