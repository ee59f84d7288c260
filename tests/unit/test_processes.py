"""Processes of the local stack: what they are started with."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

import pytest

from connectors.local.processes import spawn

_SCHED_GETATTR = {("Linux", "x86_64"): 315, ("Linux", "aarch64"): 275}
_ATTR = struct.Struct("=IIQiIQQQII")


def _turn_and_niceness(pid: int) -> tuple[float, int]:
    number = _SCHED_GETATTR[platform.system(), platform.machine()]
    found = ctypes.create_string_buffer(_ATTR.size)
    if ctypes.CDLL(None).syscall(number, pid, found, _ATTR.size, 0):
        # A sandbox may forbid the call that tells; the one that sets is then no error either.
        pytest.skip("this system does not tell how long turns are")
    _, _, _, niceness, _, turn_ns, *_ = _ATTR.unpack(found.raw)
    return turn_ns / 1e6, niceness


def _kernel() -> tuple[int, ...]:
    return tuple(int(one) for one in platform.release().split("-")[0].split(".")[:2])


@pytest.mark.skipif(
    (platform.system(), platform.machine()) not in _SCHED_GETATTR or _kernel() < (6, 12),
    reason="the length of turns is a matter of Linux 6.12 and later",
)
def test_a_process_gets_the_niceness_and_the_turns_it_was_given(tmp_path: Path) -> None:
    given = spawn(["sleep", "60"], os.environ, tmp_path, tmp_path / "a.log", 4, 20.0)
    usual = spawn(["sleep", "60"], os.environ, tmp_path, tmp_path / "b.log")
    try:
        assert _turn_and_niceness(given.pid) == (20.0, 4)
        assert _turn_and_niceness(usual.pid)[0] < 20.0
        assert _turn_and_niceness(usual.pid)[1] == os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        for one in (given, usual):
            one.kill()
            one.wait()


def test_turns_of_an_impossible_length_are_no_error(tmp_path: Path) -> None:
    process = spawn(["true"], os.environ, tmp_path, tmp_path / "a.log", 2, 1e9)
    assert process.wait() == 0
