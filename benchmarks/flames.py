"""Flame graphs of a TaskManager under load: Python by py-spy, Java by JFR, both as SVG and text.

py-spy reads the interpreter inside the JVM from outside; JFR is part of the JVM. Neither needs
rights beyond those of the user that runs the processes.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["collapse_jfr", "draw", "record_java", "record_python"]

WIDTH: Final = 1_200
ROW: Final = 17
SMALLEST: Final = 1.0
"""Frames narrower than this many pixels are left out."""


def record_python(pid: int, seconds: float, path: Path) -> None:
    """Sample the Python stacks of a process that are running, 100 times a second.

    Raises:
        RuntimeError: when py-spy cannot, with what it says.
    """
    command = [str(Path(sys.executable).parent / "py-spy"), "record", "--nonblocking", "-r", "100"]
    command += ["-d", f"{seconds:.0f}", "-f", "raw", "-o", str(path.with_suffix(".txt"))]
    done = subprocess.run([*command, "-p", str(pid)], capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"sampling process {pid} with py-spy: {done.stderr[-500:]}"
        raise RuntimeError(msg)
    text = path.with_suffix(".txt").read_text(encoding="utf-8")
    path.with_suffix(".txt").unlink()
    draw(_counted(text.splitlines()), f"Python in TaskManager {pid}", path)


def record_java(pid: int, seconds: float, path: Path) -> None:
    """Sample the Java stacks of a process with JFR, 50 times a second.

    Raises:
        RuntimeError: when the JVM refuses.
    """
    recording = path.with_suffix(".jfr")
    recording.unlink(missing_ok=True)
    _jcmd(pid, "JFR.start", "name=bench", "settings=profile")
    try:
        subprocess.run(["sleep", f"{seconds:.0f}"], check=True)
        _jcmd(pid, "JFR.dump", "name=bench", f"filename={recording.resolve()}")
    finally:
        _jcmd(pid, "JFR.stop", "name=bench")
    done = subprocess.run(
        ["jfr", "print", "--events", "jdk.ExecutionSample", "--stack-depth", "64", str(recording)],
        capture_output=True,
        text=True,
        check=True,
    )
    recording.unlink()
    draw(collapse_jfr(done.stdout), f"Java in TaskManager {pid}", path)


def _jcmd(pid: int, *words: str) -> None:
    done = subprocess.run(["jcmd", str(pid), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"asking process {pid} for {' '.join(words)}: {(done.stdout + done.stderr)[-500:]}"
        raise RuntimeError(msg)


def collapse_jfr(text: str) -> Counter[tuple[str, ...]]:
    """Count the stacks in what `jfr print` says of samples, outermost frame first."""
    counted: Counter[tuple[str, ...]] = Counter()
    for stack in re.findall(r"stackTrace = \[\n(.*?)\n\s*\]", text, re.DOTALL):
        frames = [line.strip() for line in stack.splitlines()]
        names = [re.sub(r"\(.*", "", frame) for frame in frames if frame and frame != "..."]
        if names:
            counted[tuple(reversed(names))] += 1
    return counted


def _counted(lines: Iterable[str]) -> Counter[tuple[str, ...]]:
    counted: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if count.isdigit():
            counted[tuple(stack.split(";"))] += int(count)
    return counted


@dataclass(slots=True)
class _Frame:
    samples: int = 0
    inner: dict[str, _Frame] = field(default_factory=dict)


def draw(counted: Counter[tuple[str, ...]], title: str, path: Path) -> None:
    """Write stacks as an SVG: widths are shares of samples, titles show names and shares."""
    root = _Frame()
    for stack, samples in sorted(counted.items()):
        frame = root
        frame.samples += samples
        for name in stack:
            frame = frame.inner.setdefault(name, _Frame())
            frame.samples += samples
    boxes: list[str] = []
    deepest = _boxes(root, 0.0, 1, root.samples, boxes)
    height = (deepest + 2) * ROW
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="monospace" font-size="11"><text x="4" y="13">{html.escape(title)}, '
        f"{root.samples} samples</text>"
    )
    path.write_text("\n".join([head, *boxes, "</svg>"]) + "\n", encoding="utf-8")


def _boxes(frame: _Frame, left: float, depth: int, total: int, boxes: list[str]) -> int:
    deepest = depth
    for name, inner in sorted(frame.inner.items(), key=lambda item: -item[1].samples):
        width = WIDTH * inner.samples / total
        if width >= SMALLEST:
            share = inner.samples / total
            # A colour by name, so that the same function looks the same in every graph.
            hue = sum(name.encode()) % 50
            text = name[: int(width / 6.7)] if width > 20 else ""
            boxes.append(
                f"<g><title>{html.escape(name)} ({share:.1%})</title>"
                f'<rect x="{left:.1f}" y="{depth * ROW}" width="{max(0.5, width - 0.5):.1f}" '
                f'height="{ROW - 1}" fill="hsl({hue},80%,68%)"/>'
                f'<text x="{left + 2:.1f}" y="{depth * ROW + 12}">{html.escape(text)}</text></g>'
            )
            deepest = max(deepest, _boxes(inner, left, depth + 1, total, boxes))
        left += width
    return deepest
