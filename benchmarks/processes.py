"""CPU and memory of process trees, and what machine this is, read from /proc."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

__all__ = ["cpu_seconds", "machine", "resident_bytes", "tree"]

PACKAGES: Final = (
    "apache-flink", "numpy", "numba", "onnxruntime", "pyarrow", "fastavro", "confluent-kafka",
    "kafka-python", "redis", "pandas", "chdb",
)  # fmt: skip


def tree(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            fields = _stat(int(folder.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting += children.get(process, [])
    return found


def cpu_seconds(processes: list[int]) -> float:
    """Return user and system time so far; a process that ended counts nothing."""
    ticks = 0
    for process in processes:
        fields = _stat(process)
        if fields:
            ticks += int(fields[11]) + int(fields[12])
    return float(ticks / os.sysconf("SC_CLK_TCK"))


def resident_bytes(processes: list[int]) -> int:
    """Return resident memory now."""
    pages = 0
    for process in processes:
        fields = _stat(process)
        if fields:
            pages += int(fields[21])
    return int(pages * os.sysconf("SC_PAGE_SIZE"))


def machine() -> dict[str, object]:
    """Return processor, cores, memory, load and versions."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next(
        (line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line), ""
    )
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": versions,
    }


def _stat(process: int) -> list[str]:
    # The name may hold spaces and brackets; the fields proper begin after the last bracket.
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
