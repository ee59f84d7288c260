"""Where a core goes: CPU by process and thread of the whole machine under a load, as a table.

    python -m benchmarks.cpu_profile --rate 2000 --rate 0 --out profile.md    # 0: a backlog

A thread's time is what the scheduler says of it (`/proc/PID/task/TID/schedstat`): on a core, and
waiting for one. Threads that end before the load does are in their process's `(ended)` line.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from benchmarks.contestants.ours import Ours
from benchmarks.contestants.payments import Job
from benchmarks.processes import cpu_seconds, machine_seconds, thread_times
from benchmarks.reference import Reference
from benchmarks.run import TIMED_START_MS, equality_stream
from benchmarks.services import Services, job_document
from benchmarks.session import Session
from benchmarks.workload import Workload
from connectors.profiles import redis_client
from connectors.settings import load_settings

__all__ = ["Line", "lines_of", "main", "table"]

WARM_EVENTS: Final = 150_000
SMALLEST_US: Final = 0.05
"""Lines below this many microseconds an event are left out."""


@dataclass(frozen=True, slots=True)
class Line:
    """One process, or the threads of a process that bear the same name but for numbers."""

    part: str
    thread: str
    ran_us: float
    waited_us: float


Times = dict[tuple[int, int], tuple[str, int, int]]


def lines_of(
    parts: Mapping[str, Sequence[int]],
    before: Times,
    after: Times,
    totals: Mapping[str, float],
    events: int,
) -> list[Line]:
    """Return microseconds an event by part and thread, the largest first.

    `totals` are the CPU seconds of each part between both readings.
    """
    owner = {pid: part for part, pids in parts.items() for pid in pids}
    found: dict[tuple[str, str], list[float]] = {}
    for key, (name, ran, waited) in after.items():
        _, ran_before, waited_before = before.get(key, (name, 0, 0))
        group = (owner[key[0]], re.sub(r"\d+", "#", name))
        times = found.setdefault(group, [0.0, 0.0])
        times[0] += (ran - ran_before) / 1000 / events
        times[1] += (waited - waited_before) / 1000 / events
    for part, seconds in totals.items():
        seen = sum(ran for (of, _), (ran, _) in found.items() if of == part)
        found[part, "(ended)"] = [max(0.0, seconds * 1e6 / events - seen), 0.0]
        found[part, ""] = [seconds * 1e6 / events, 0.0]
    lines = [Line(part, thread, ran, waited) for (part, thread), (ran, waited) in found.items()]
    by_part = {line.part: line.ran_us for line in lines if not line.thread}
    return sorted(lines, key=lambda one: (-by_part.get(one.part, 0), one.part, -one.ran_us))


def table(lines: Sequence[Line], title: str) -> str:
    """Return lines as Markdown; totals of processes are bold."""
    rows = [f"### {title}", "", "| process | thread | on a core | waiting |", "|---|---|---|---|"]
    for line in lines:
        if line.ran_us < SMALLEST_US:
            continue
        if line.thread:
            rows.append(f"| | {line.thread} | {line.ran_us:.2f} | {line.waited_us:.2f} |")
        else:
            rows.append(f"| **{line.part}** | | **{line.ran_us:.2f}** | |")
    return "\n".join([*rows, ""])


@click.command()
@click.option("--rate", "rates", multiple=True, type=float, default=(0.0, 2_000.0))
@click.option("--events", default=300_000, show_default=True, help="Length of a backlog.")
@click.option("--seconds", default=20.0, show_default=True, help="How long a rate is held.")
@click.option("--home", default="/tmp/riskstream-profile", show_default=True)
@click.option("--set", "overrides", multiple=True, help="A setting of riskstream, KEY=VALUE.")
@click.option("--perf", type=click.Path(path_type=Path), help="Folder for what perf records.")
@click.option("--flames", type=click.Path(path_type=Path), help="Folder for flame graphs.")
@click.option("--out", type=click.Path(path_type=Path), help="File to append the tables to.")
def main(
    rates: Sequence[float],
    events: int,
    seconds: float,
    home: str,
    overrides: Sequence[str],
    perf: Path | None,
    flames: Path | None,
    out: Path | None,
) -> None:
    """Profile this engine in thread mode; results are compared first.

    Example: python -m benchmarks.cpu_profile --rate 0 --events 200000
    """
    at_rates = int(sum(rates) * (seconds + 2)) + 200_000
    workload = Workload(WARM_EVENTS + events + at_rates, start_ms=TIMED_START_MS)
    services = Services(
        load_settings(
            environment={},
            overrides=[f"home={home}", f"models.registry=file:{home}/models", *overrides],
        )
    )
    ours = Ours("thread")
    text = ""
    try:
        services.up(workload)
        settings = services.settings_of("reference")
        reference = Reference(Job(**job_document(settings)), redis_client(settings.redis))
        began = time.monotonic()
        ours.start(services)
        session = Session(ours, services, workload.records, lambda line: click.echo(line, err=True))
        session.compare(equality_stream(3_000), 1_000.0, began, reference)
        session.drain(WARM_EVENTS)
        for rate in rates:
            count = int(rate * seconds) or events
            text += _profile(session, services, ours, count, rate or None, perf)
        if flames is not None:
            flames.mkdir(parents=True, exist_ok=True)
            session.sample_stacks(8_000.0, flames)
    finally:
        ours.stop()
        services.down()
    click.echo(text)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(text)


def _profile(
    session: Session,
    services: Services,
    ours: Ours,
    count: int,
    rate: float | None,
    perf: Path | None,
) -> str:
    parts = {**services.processes(), **ours.parts()}
    pids = [pid for of in parts.values() for pid in of]
    before, totals = thread_times(pids), {name: cpu_seconds(of) for name, of in parts.items()}
    (busy, stolen), began = machine_seconds(), time.monotonic()
    recording = None
    if perf is not None:
        perf.mkdir(parents=True, exist_ok=True)
        file = perf / f"perf_{rate or 'backlog'}.data"
        recording = subprocess.Popen(
            ["perf", "record", "-q", "-a", "-g", "-F", "199", "-o", str(file)]
        )
    done = session.send(session.take(count), rate)
    if recording is not None:
        recording.send_signal(2)
        recording.wait()
    now_busy, now_stolen = machine_seconds()
    after = thread_times(pids)
    used = {name: cpu_seconds(of) - totals[name] for name, of in parts.items()}
    lines = lines_of(parts, before, after, used, count)
    took = time.monotonic() - began
    late = done["decision_latency"]
    title = (
        f"{f'{rate:,.0f}/s' if rate else 'flat out'}: {count:,} events, "
        f"{done['events_per_second']:,.0f}/s, p50 {late['p50_ms']:.0f} p99 {late['p99_ms']:.0f} ms"
    )
    by_part = done["cpu_us_per_event_by_part"]
    extra = (
        f"Machine: {(now_busy - busy) / took:.2f} cores busy, {(now_stolen - stolen) / took:.2f} "
        f"stolen; us an event on the whole machine {(now_busy - busy) * 1e6 / count:.1f}; "
        f"generator {by_part['generator']}, harness {by_part['harness']}.\n\n"
    )
    return table(lines, title) + "\n" + extra


if __name__ == "__main__":
    main()
