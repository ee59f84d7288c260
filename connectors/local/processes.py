"""Start, identify and stop processes so that a reused pid is never mistaken for ours.

A process is named by its pid *and* its start time: a pid alone may belong to a stranger by the time
somebody wants to stop it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "HOME_MARK",
    "ProcessId",
    "alive",
    "free_port",
    "identify",
    "log_tail",
    "marked_processes",
    "of_this_host",
    "port_is_free",
    "spawn",
    "stop_groups",
    "wait_for_end",
]

HOME_MARK: Final = "RISKSTREAM_STACK_HOME"
"""Environment variable that every process of a stack carries: the state directory it belongs to."""

_PROC: Final = Path("/proc")
_SCHED_SETATTR: Final = {("Linux", "x86_64"): 314, ("Linux", "aarch64"): 274}
# struct sched_attr (man 2 sched_setattr): size, policy, flags, nice, priority, runtime, deadline,
# period, least and most utilisation.
_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQII")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: its pid and what the system says about its start (clock ticks, or a date)."""

    pid: int
    started: str


def identify(pid: int) -> ProcessId | None:
    """Return the identity of the live process `pid`, None when there is none or it is a zombie."""
    if _PROC.joinpath("self").exists():
        try:
            stat = _PROC.joinpath(str(pid), "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # The command name is in parentheses and may itself hold spaces and parentheses.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else ProcessId(pid, fields[19])
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split(maxsplit=1)
    if len(answer) < 2 or answer[0].startswith("Z"):
        return None
    return ProcessId(pid, answer[1].strip())


def alive(process: ProcessId) -> bool:
    """Say whether this very process, not a later one with the same pid, still runs."""
    return identify(process.pid) == process


def of_this_host(folder: Path) -> Path:
    """Return what a folder that hosts may share keeps of this one."""
    return folder / socket.gethostname()


def spawn(
    argv: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path,
    out: Path,
    niceness: int = 0,
    turn_ms: float = 0,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, output appended to `out`.

    A `niceness` above 0 lets the processes of other sessions go first where cores are short. Who
    asks for short turns on a core (`turn_ms`, 0.1 to 100; 0 is the kernel's own, about 3) gets
    them sooner, without more in all; kernels before Linux 6.12 take no notice.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab") as sink:
        process = subprocess.Popen(
            list(argv),
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if niceness:
        _make_nice(process.pid, niceness)
    if turn_ms:
        _set_turn(process.pid, niceness, turn_ms)
    return process


def _make_nice(pid: int, niceness: int) -> None:
    # Where the kernel groups processes by session, niceness compares threads of one session only
    # and the session has its own; elsewhere there is no such file. Threads inherit what their
    # process has before it starts any.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    with contextlib.suppress(OSError):
        _PROC.joinpath(str(pid), "autogroup").write_text(str(niceness), encoding="ascii")


def _set_turn(pid: int, niceness: int, turn_ms: float) -> None:
    # As with niceness: what cannot be set is a pity, no error.
    number = _SCHED_SETATTR.get((platform.system(), platform.machine()))
    if number is None:
        return
    turn_ns = int(turn_ms * 1_000_000)
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, 0, 0, niceness, 0, turn_ns, 0, 0, 0, 0)
    ctypes.CDLL(None).syscall(number, pid, attributes, 0)


def stop_groups(processes: Iterable[ProcessId], seconds: float) -> None:
    """Stop each process and its process group: SIGTERM, then SIGKILL after `seconds`.

    Each process must lead its group (see `spawn`). A stopped (SIGSTOP) process is continued, so
    that it can act on SIGTERM. Processes that are gone already are ignored.
    """
    targets = [process for process in processes if alive(process)]
    for process in targets:
        _signal_group(process.pid, signal.SIGTERM)
        _signal_group(process.pid, signal.SIGCONT)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(alive(process) for process in targets):
        time.sleep(0.05)
    for process in targets:
        # Also when the leader is gone: its children (Python workers of a TaskManager) may not be.
        _signal_group(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(alive(process) for process in targets):
        time.sleep(0.02)


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait until the process ends, at most `seconds`; say whether it did.

    On Linux the kernel wakes us: a death is seen at once and waiting costs nothing. Elsewhere the
    process is asked again and again.
    """
    if process.poll() is not None:
        return True
    open_pidfd = getattr(os, "pidfd_open", None)
    if open_pidfd is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.poll() is not None
    descriptor = open_pidfd(process.pid)
    try:
        select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    return process.poll() is not None


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def marked_processes(home: Path) -> Iterator[ProcessId]:
    """Yield every live process that carries `HOME_MARK` for `home` (Linux; elsewhere none)."""
    mark = f"{HOME_MARK}={home}".encode()
    for entry in _PROC.glob("[0-9]*/environ"):
        try:
            environment = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        process = identify(int(entry.parent.name)) if mark in environment else None
        if process is not None and process.pid != os.getpid():
            yield process


def port_is_free(port: int) -> bool:
    """Say whether loopback port `port` can be bound now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(taken: Iterable[int] = ()) -> int:
    """Return a loopback port that nobody listens on and that is not in `taken`."""
    avoid = set(taken)
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in avoid:
            return port


def log_tail(path: Path, lines: int) -> list[str]:
    """Return the last `lines` lines of a log, [] when it is absent; reads at most 256 KiB."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            size = file.tell()
            file.seek(max(0, size - 256 * 1024))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines:]
