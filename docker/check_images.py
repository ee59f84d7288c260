"""Check what no linter knows: that the image's files exist and its settings are real settings.

Run by docker/check.sh from the root of the repository; exit 1 with every problem.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from connectors.settings import Settings, load_settings  # noqa: E402
from schemas.errors import ConfigurationError  # noqa: E402

__all__ = ["problems"]


def problems() -> list[str]:
    """Return what is wrong with the image, compose and Kubernetes files, one sentence each."""
    return [*_copied(), *_mounted(), *_compose_settings(), *_secret_settings(), *_versions()]


def _copied() -> list[str]:
    """Every file that the Dockerfile copies from the repository must be there and not ignored."""
    text = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    allowed = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    ]
    found = []
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        if "--from=" in line:
            continue
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            if not (ROOT / source).exists():
                found.append(f"Dockerfile copies {source!r}, which does not exist")
            if not any(source == name or source.startswith(name + "/") for name in allowed):
                found.append(f"Dockerfile copies {source!r}, which .dockerignore hides")
    return found


def _compose() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))
    return tree


def _mounted() -> list[str]:
    found = []
    for name, service in _compose()["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith(".") and not (ROOT / "docker" / source).exists():
                found.append(f"service {name} mounts {source!r}, which does not exist")
    return found


def _compose_settings() -> list[str]:
    # `${NAME:-default}` as compose would fill it in.
    environment = {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
        for name, value in _compose()["x-settings"].items()
    }
    try:
        load_settings(environment=environment)
    except ConfigurationError as e:
        return [f"compose.yaml: {e}"]
    return []


def _secret_settings() -> list[str]:
    path = ROOT / "docker/kubernetes/settings-secret.yaml"
    secret = yaml.safe_load(path.read_text("utf-8"))["stringData"]["settings.json"]
    try:
        settings = Settings.model_validate(json.loads(secret))
    except ValueError as e:
        return [f"{path.name}: {e}"]
    job = yaml.safe_load((ROOT / "docker/kubernetes/fraud-job.yaml").read_text("utf-8"))
    parallelism = job["spec"]["job"]["parallelism"]
    if settings.flink.shards % parallelism:
        return [f"fraud-job.yaml: parallelism {parallelism} does not divide flink.shards"]
    return []


def _versions() -> list[str]:
    """One Flink version everywhere, and the image's version is the project's."""
    found = []
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    flink = re.findall(r"apache-flink==([\d.]+)", project)[0]
    version = re.findall(r'^version = "([^"]+)"', project, re.MULTILINE)[0]
    for path in [ROOT / "docker/Dockerfile", *(ROOT / "docker").glob("*.yaml"),
                 *(ROOT / "docker/kubernetes").glob("*.yaml")]:  # fmt: skip
        text = path.read_text("utf-8")
        for what, expected, pattern in (
            ("Flink", flink, r"flink(?:-python-|:)([\d.]+\d)"),
            ("riskstream", version, r"riskstream:([\d.]+\d)"),
        ):
            found += [
                f"{path.name} names {what} {other}, pyproject.toml {expected}"
                for other in re.findall(pattern, text)
                if other != expected
            ]
    return found


if __name__ == "__main__":
    listed = problems()
    sys.stderr.write(
        "".join(f"docker/check_images.py: {problem}{os.linesep}" for problem in listed)
    )
    sys.exit(bool(listed))
