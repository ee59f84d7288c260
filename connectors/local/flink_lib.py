"""Find Flink inside the pip package and link its class path together.

The class path is Flink's own jars, flink-python, the Kafka connector and the bridge. All of them
must be in the lib folder of the cluster *and* of the submitting client: `pipeline.jars` in a job
would drop flink-python.
"""

from __future__ import annotations

import contextlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from schemas.errors import ConfigurationError

__all__ = ["ROOT", "assemble_lib", "bridge_jar", "jar_folder", "pyflink_folder"]

ROOT: Final = Path(__file__).resolve().parents[2]
"""Root of the repository; relative paths in the settings start here."""


def pyflink_folder() -> Path:
    """Return the folder of the installed pyflink package, which holds Flink's jars.

    Raises:
        ConfigurationError: when apache-flink is not installed.
    """
    # Found without importing it: only jobs.runtime imports pyflink.
    spec = find_spec("pyflink")
    if spec is None or spec.origin is None:
        msg = "finding Flink: package apache-flink is not installed; run `make setup`"
        raise ConfigurationError(msg)
    return Path(spec.origin).parent


def jar_folder(name: str) -> Path:
    """Return the folder of fetched jars, `kafka` or `flink`.

    Raises:
        ConfigurationError: when they were not fetched yet.
    """
    path = ROOT / "connectors" / "local" / "jars" / "target" / name
    if not any(path.glob("*.jar")):
        msg = f"looking for the jars of {name}: they were not fetched yet; run `make setup`"
        raise ConfigurationError(msg)
    return path


def bridge_jar() -> Path:
    """Return the bridge's jar.

    Raises:
        ConfigurationError: when it was not built yet.
    """
    path = ROOT / "connectors" / "bridge" / "target" / "riskstream-bridge.jar"
    if not path.exists():
        msg = "assembling Flink's class path: riskstream-bridge.jar is not built; run `make setup`"
        raise ConfigurationError(msg)
    return path


def assemble_lib(folder: Path) -> Path:
    """Make `folder` hold a link to every jar of the class path and nothing else; return it.

    Repeating it, also at the same time from two processes, is harmless. A relative folder starts at
    the root of the repository.

    Raises:
        ConfigurationError: when a jar is missing; the message names the next step.
    """
    folder = ROOT / folder
    folder.mkdir(parents=True, exist_ok=True)
    package = pyflink_folder()
    wanted = {
        jar.name: jar
        for jar in (
            *(package / "lib").glob("*.jar"),
            *(package / "opt").glob("flink-python*.jar"),
            *jar_folder("flink").glob("*.jar"),
            bridge_jar(),
        )
    }
    for link in folder.glob("*.jar"):
        if link.name not in wanted:
            link.unlink(missing_ok=True)
    for name, jar in wanted.items():
        link = folder / name
        with contextlib.suppress(OSError):
            if link.readlink() == jar:
                continue
        draft = folder / f".{name}.{os.getpid()}"
        draft.symlink_to(jar)
        draft.replace(link)
    return folder
