"""CPU and memory of process trees and their threads, and what machine this is, read from /proc."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

__all__ = [
    "code_version", "cpu_seconds", "machine", "machine_seconds", "resident_bytes", "thread_times",
    "tree",
]  # fmt: skip

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


def thread_times(processes: Iterable[int]) -> dict[tuple[int, int], tuple[str, int, int]]:
    """Return (process, thread) -> name, nanoseconds on a core, nanoseconds waiting for one."""
    found: dict[tuple[int, int], tuple[str, int, int]] = {}
    for process in processes:
        for folder in Path(f"/proc/{process}/task").glob("*"):
            try:
                ran, waited, _ = (folder / "schedstat").read_text(encoding="utf-8").split()
                name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
            except OSError:
                continue  # It ended meanwhile.
            found[process, int(folder.name)] = (name, int(ran), int(waited))
    return found


def machine_seconds() -> tuple[float, float]:
    """Return core seconds that the machine was busy, and that its host gave to others (steal)."""
    words = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    user, nice, system, _, _, irq, soft, steal = (int(word) for word in words[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + soft) / tick, steal / tick


def code_version(folder: Path) -> str:
    """Return the commit of a work tree, with `+` when files differ from it; empty without one."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    # What a run itself writes does not change what was measured.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


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
