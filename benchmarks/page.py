"""Write the benchmark page from the kept results: tables, plots, and the losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.page_parts import (
    demo_part,
    flames_part,
    limits_part,
    scaling_part,
    stages_part,
    table,
)
from benchmarks.plots import plot_latency, plot_stages, plot_throughput
from benchmarks.sustained import grows
from connectors.settings import load_settings

__all__ = ["write_page"]

Result = dict[str, Any]
OURS: Final = "riskstream-thread"
MEASURED_RATES: Final = (500, 2_000, 5_000, 10_000, 20_000)
# What a user would pick instead; what did not run is listed all the same.
FIELD: Final = {
    "riskstream-thread-1tm": "riskstream, thread mode, one TaskManager",
    "riskstream-thread-2tasks": "riskstream, thread mode, tasks a stage: 2",
    "riskstream-process": "riskstream, process mode",
    "java": "Java Flink",
    "java-batched": "Java Flink, up to 64 scored at once",
    "pyflink-thread": "PyFlink per record, thread mode",
    "pyflink-process": "PyFlink per record, process mode",
    "quix": "Quix Streams",
    "bytewax": "Bytewax",
    "pyflink-sql": "PyFlink SQL micro-batches",
    "pathway": "Pathway",
    "kafka-loop": "kafka-python and pandas, one loop",
}
MOST_OTHERS: Final = 0.2
"""With more than so many cores busy with foreign work nothing is ranked."""


def write_page(results: Path, page: Path) -> None:
    """Write `page` (Markdown) and the plots beside the results; a missing result is left out."""
    found = _contestants(results)
    limits = _read(results, "limits")
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks.run` (`make bench`) from the files in `results/`; "
        "do not edit. What is measured, and how, is in the module docstrings of `measure.py` "
        "and `load.py`.",
        "",
    ]
    ran = [one for one in found if "error" not in one]
    if ran:
        lines += _machine(ran)
        lines += _throughput(ran)
        lines += _by_part(ran)
        lines += _latency(ran, limits.get("floor", []))
        lines += _life(ran)
        lines += _aims(ran, limits)
        lines += _losses(ran)
        plot_throughput(ran, results / "throughput.svg")
        plot_latency(ran, results / "latency.svg")
    lines += limits_part(limits)
    managers = [one for one in ran if one["name"].startswith(OURS)]
    managers.sort(key=lambda one: one.get("task_managers", 0))
    lines += scaling_part(
        _read(results, "scaling"), managers, _read(results, "windows").get("keys", [])
    )
    stages = _read(results, "stages")
    if stages:
        lines += stages_part(stages)
        plot_stages(stages, results / "stages.svg")
    lines += flames_part(results)
    demo = _read(results, "demo")
    if demo:
        lines += demo_part(demo)
    lines += _fairness()
    lines += _missing(found)
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _read(results: Path, name: str) -> Result:
    path = results / f"{name}.json"
    if not path.exists():
        return {}
    found: Result = json.loads(path.read_text(encoding="utf-8"))
    return found


def _contestants(results: Path) -> list[Result]:
    read = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(results.glob("contestant_*.json"))
    }
    # Files with a suffix (`--out`) are runs beside those that the page is about.
    found = [one for stem, one in read.items() if stem == f"contestant_{one['name']}"]
    return sorted(found, key=lambda one: -float(one.get("drained", {}).get("events_per_second", 0)))


def _machine(found: Sequence[Result]) -> list[str]:
    machine = found[0]["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    first = min(one["measured_at"] for one in found)
    last = max(one["measured_at"] for one in found)
    drained = [one["drained"] for one in found]
    others = [one.get("others_cores", machine["cores"]) for one in drained]
    stolen = [one.get("machine_cores_stolen", 0.0) for one in drained]
    codes = sorted({one.get("code", "unknown") for one in found})
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; Python "
        f"{machine['python']}, {versions}. Broker, Redis, ClickHouse, load generator and the "
        f"contestant share these cores. Measured {first} to {last}, code {', '.join(codes)}. While "
        f"backlogs were drained, work that is not part of the benchmark took {min(others)} to "
        f"{max(others)} cores, and the host gave {min(stolen)} to {max(stolen)} cores to others.",
        "",
    ]
    by_processor: dict[str, list[str]] = {}
    for one in found:
        by_processor.setdefault(one["machine"]["processor"], []).append(one["title"])
    if len(by_processor) > 1:
        where = "; ".join(f"on {name} {', '.join(run)}" for name, run in by_processor.items())
        lines += [f"**Not one machine**, so compare within each only: {where}.", ""]
    busy = [one["title"] for one in found if _busy(one)]
    if busy:
        lines += [
            f"**The machine was busy with other work** when these ran: {'; '.join(busy)}. Their "
            "figures show that they run, agree, and how much CPU they took. They are floors, say "
            "nothing of latency, and rank no one.",
            "",
        ]
    slow = {one["title"]: shares for one in found if (shares := _slow_shares(one))}
    if slow:
        worst = ", ".join(
            f"{title} {' / '.join(f'{share:.1%}' for share in shares)}"
            for title, shares in slow.items()
        )
        lines += [
            "**How steady the host was**: share of the time in which one core, with nothing else "
            "to do, worked at less than half its speed, before / after each: "
            f"{worst}. Steal time does not show it; such stumbles last for some 100 ms and are in "
            "the tails of the latencies below.",
            "",
        ]
    short = [one["title"] for one in found if one.get("short")]
    if short:
        lines += [
            f"**Short runs**, after a short warm-up, rank no one either: {'; '.join(short)}.",
            "",
        ]
    return lines


def _slow_shares(one: Result) -> list[float]:
    found = [one.get(f"host_{when}", {}).get("slow_share") for when in ("before", "after")]
    return [share for share in found if share is not None]


def _busy(one: Result) -> bool:
    """Under foreign load a comparison may flatter whoever ran at the calmer time."""
    others = one["drained"].get("others_cores", one["machine"]["cores"])
    return bool(others > MOST_OTHERS)


def _throughput(found: Sequence[Result]) -> list[str]:
    rows = []
    for one in found:
        drained = one["drained"]
        rows.append(
            (
                one["title"],
                f"{drained['events']:,}",
                f"**{drained['events_per_second']:,.0f}**",
                _sustained(one),
                drained["cpu_us_per_event"],
                f"{1e6 / drained['cpu_us_per_event']:,.0f}",
                drained["cores_used"],
                f"{drained['resident_mb']:,}",
                drained.get("machine_cores_stolen", ""),
            )
        )
    return [
        "## Throughput",
        "",
        "A backlog is sent at once and drained; events/s is the backlog over the time from the "
        "first publication to the last decision. A backlog that is not counted goes before it (JIT "
        "compilers, caches, connections), and its speed decides how long the counted one is: some "
        "ten seconds of work for everyone. Sustained: the highest rate of an open loop, of those "
        "tried, at which the lag did not grow (`sustained.py`). CPU is that of the contestant's "
        "own processes (TaskManagers or workers), user and system; a million events take as many "
        "CPU seconds as one takes microseconds. All values of every contestant below were equal "
        f"to the reference ({_values(found)} of each, and every alert).",
        "",
        *table(
            (
                *("contestant", "backlog", "events/s", "sustained", "CPU us/event"),
                *("events/s per core used", "cores used", "resident MB", "stolen cores"),
            ),
            rows,
        ),
        "![throughput](results/throughput.svg)",
        "",
    ]


def _values(found: Sequence[Result]) -> str:
    values = sorted({one["equality"]["values"] for one in found if "equality" in one})
    return " or ".join(f"{count:,}" for count in values) or "all"


def _sustained(one: Result) -> str:
    return f"{one['sustained']:,}" if "sustained" in one else "-"


def _by_part(found: Sequence[Result]) -> list[str]:
    names = ["kafka", "redis", "clickhouse", "generator", "harness"]
    rows = []
    for one in found:
        parts = one["drained"].get("cpu_us_per_event_by_part")
        if parts is None:
            continue
        own = round(sum(cost for name, cost in parts.items() if name not in names), 1)
        whole = round(sum(parts.values()), 1)
        rows.append((one["title"], own, *(parts.get(name, "") for name in names), whole))
    if not rows:
        return []
    return [
        "The same backlogs, CPU microseconds an event of all that runs here; the contestant's own "
        "with its JobManager. The harness asks ClickHouse four times a second whether all rows "
        "are there and takes the alerts.",
        "",
        *table(("contestant", "its own", *names, "sum"), rows),
    ]


def _latency(found: Sequence[Result], floor: Sequence[Result]) -> list[str]:
    lines = [
        "## Latency",
        "",
        "Open loop: every payment is due at a fixed time and stamped with it, also when the "
        "generator or the contestant is late. To the alert: until a consumer that polls record by "
        "record has it (two alerts in a hundred payments: a p99.9 of few is their slowest). To the "
        "decision: of every payment, by the row. The first two seconds of a rate do not count. "
        "p50 / p99 / p99.9 in ms; a dash: above what it was able to drain. "
        + ("The harness alone: published, received, no engine between." if floor else ""),
        "",
    ]
    for kind, title in (("alert_latency", "to the alert"), ("decision_latency", "to the decision")):
        rows = []
        for one in (one for one in found if one.get("at_rate") or "at_80_percent" in one):
            by_rate = {run["rate"]: run[kind] for run in one.get("at_rate", [])}
            cells = [_three(by_rate.get(rate)) for rate in MEASURED_RATES]
            top = one.get("at_80_percent")
            last = f"{_three(top[kind])} (at {top['rate']:,}/s)" if top else "-"
            rows.append((one["title"], *cells, last))
        if floor and kind == "alert_latency":
            alone = {run["rate"]: run for run in floor}
            cells = [_three(alone.get(rate)) for rate in MEASURED_RATES]
            rows.append(("the harness alone", *cells, "-"))
        lines += table(
            (title, *(f"{rate:,}/s" for rate in MEASURED_RATES), "80 % of what it sustains"), rows
        )
    return [*lines, *_tried(found), "![latency](results/latency.svg)", ""]


def _tried(found: Sequence[Result]) -> list[str]:
    rows = []
    for one in (one for one in found if one.get("tried")):
        cells = []
        for run in sorted(one["tried"], key=lambda run: float(run["rate"])):
            growth = f", grew by {run['lag_growth']:.2f} s/s" if grows(run) else ""
            share = run["rate"] / one["drained"]["events_per_second"]
            p50, p99 = (run["decision_latency"][name] for name in ("p50_ms", "p99_ms"))
            cells.append(f"{run['rate']:,}/s ({share:.0%}): {p50:,.0f} / {p99:,.0f}{growth}")
        rows.append((one["title"], "; ".join(cells)))
    if not rows:
        return []
    return [
        "The rates that were tried for what is sustained, as shares of what the backlog drained "
        "at: decision p50 / p99 in ms, and by how much the lag grew where it did.",
        "",
        *table(("contestant", "rates tried"), rows),
    ]


def _three(found: Result | None) -> str:
    if not found or "p50_ms" not in found:
        return "-"
    return " / ".join(f"{found[name]:,.0f}" for name in ("p50_ms", "p99_ms", "p99_9_ms"))


def _life(found: Sequence[Result]) -> list[str]:
    rows = []
    for one in (one for one in found if "state_bytes" in one):
        back, surge = one.get("recovery"), one.get("surge")
        state = one.get("state_bytes")
        rows.append(
            (
                one["title"],
                one["first_row_seconds"],
                _recovery(back),
                _surge(surge),
                "none" if state is None else f"{state / 1e6:.1f}",
            )
        )
    return [
        "## Start, failure, surge, state",
        "",
        "Start: from nothing to the first scored payment, cluster included. Recovery: the longest "
        "that a payment waited when a worker was killed with SIGKILL under load; every payment had "
        "its row afterwards. Surge: ten times the load for some seconds; seconds after its end "
        "until no payment waited longer than twice what was usual.",
        "",
        *table(("contestant", "start, s", "recovery, s", "surge over after, s", "state, MB"), rows),
    ]


def _recovery(back: Result | None) -> str:
    if not back:
        return "-"
    if "error" in back:
        return f"**not**: {back['error'].splitlines()[0]}"
    return f"{back['gap_seconds']} (at {back['rate']:,}/s)"


def _surge(surge: Result | None) -> str:
    if not surge:
        return "-"
    rates = f"{surge['base_rate']:,} to {surge['surge_rate']:,}/s"
    return f"{surge['recovered_seconds']} ({rates})"


def _aims(found: Sequence[Result], limits: Result) -> list[str]:
    by_name = {one["name"]: one for one in found}
    ours = by_name.get(OURS)
    if ours is None:
        return []
    lines = ["## Aims", ""]
    rate = ours["drained"]["events_per_second"]
    core = 1e6 / ours["drained"]["cpu_us_per_event"]
    rows: list[tuple[str, str, str]] = []

    def aim(what: str, value: str, *, met: bool, against: Result = ours) -> None:
        verdict = "met" if met else "**missed**"
        if _busy(ours) or _busy(against):
            verdict = "not judged: busy machine"
        elif against.get("short"):
            verdict = "not judged: short run"
        rows.append((what, value, verdict))

    for name in ("pyflink-thread", "pyflink-process"):
        other = by_name.get(name)
        if other:
            drained = other["drained"]
            times = rate / drained["events_per_second"]
            a_core = core * drained["cpu_us_per_event"] / 1e6
            value = f"{times:.1f} times its events/s, {a_core:.1f} times per core used"
            aim(f"20 times {other['title']}", value, met=times >= 20, against=other)
    java = [one for one in found if one["name"].startswith("java")]
    if java:
        best = max(java, key=lambda one: 1e6 / float(one["drained"]["cpu_us_per_event"]))
        its = 1e6 / best["drained"]["cpu_us_per_event"]
        aim(
            "above the Java job in throughput per core",
            f"{core:,.0f} against {its:,.0f} events/s per core used ({best['title']})",
            met=core > its,
            against=best,
        )
    at = {run["rate"]: run["alert_latency"] for run in ours.get("at_rate", [])}
    if 5_000 in at:
        p99 = at[5_000]["p99_ms"]
        aim("p99 under 40 ms at 5,000/s", f"{p99:,.0f} ms", met=p99 < 40)
    of_backlog = next(iter(ours.get("tried", [])), None)
    for what, top in (
        ("what it sustains", ours.get("at_80_percent")),
        ("what its backlog drained at", of_backlog),
    ):
        if top:
            p99 = top["alert_latency"].get("p99_ms", float("inf"))
            value = f"{p99:,.0f} ms at {top['rate']:,}/s"
            aim(f"p99 under 100 ms at 80 % of maximum: of {what}", value, met=p99 < 100)
    sustained = ours.get("sustained", 0)
    aim(
        "60,000 events/s here, generator included",
        f"{sustained:,} sustained; {rate:,.0f} of a backlog",
        met=sustained >= 60_000,
    )
    if limits:
        share = limits["efficiency"]["efficiency"]
        aim("efficiency above 0.6", str(share), met=share > 0.6)
    return [*lines, *table(("aim", "measured", ""), rows)]


def _losses(found: Sequence[Result]) -> list[str]:
    ours = next((one for one in found if one["name"] == OURS), None)
    if ours is None:
        return []
    lines = []
    measures: list[tuple[str, Callable[[Result], float | None], bool]] = [
        ("throughput", lambda one: one["drained"]["events_per_second"], True),
        ("CPU per event", lambda one: one["drained"]["cpu_us_per_event"], False),
        ("memory", lambda one: one["drained"]["resident_mb"], False),
        ("start-up", lambda one: one["first_row_seconds"], False),
        ("recovery", lambda one: (one.get("recovery") or {}).get("gap_seconds"), False),
        ("surge", lambda one: (one.get("surge") or {}).get("recovered_seconds"), False),
        *(
            (
                f"alert p99 at {rate:,}/s",
                lambda one, rate=rate: next(
                    (
                        run["alert_latency"].get("p99_ms")
                        for run in one.get("at_rate", [])
                        if run["rate"] == rate
                    ),
                    None,
                ),
                False,
            )
            for rate in MEASURED_RATES
        ),
    ]
    for what, value, more_is_better in measures:
        own = value(ours)
        if own is None:
            continue
        for one in found:
            other = value(one)
            if other is None or one is ours or one["name"].startswith("riskstream"):
                continue
            if (other > own) if more_is_better else (other < own):
                lines.append(f"- {what}: {one['title']} {other:,} against our {own:,}")
    if not lines:
        return []
    return ["## Where we lose", "", *lines, ""]


def _fairness() -> list[str]:
    defaults = load_settings(environment={})
    return [
        "## What the contestants do alike, and what not",
        "",
        "- Same topics of two partitions, profiles in Redis behind a cache of the same size and "
        f"age, ONNX model, rules, table, row gathering of {defaults.clickhouse.gather_ms / 1000:g} "
        f"s, checkpoints every {defaults.flink.checkpoint_interval_ms / 1000:g} s.",
        "- We also check every field, refuse duplicates by event id, write dead letters, take "
        "labels, control records and model changes, and explain each alert by the features behind "
        "it. The others do none of this; their alerts name the rules that fired.",
        "- The Java job runs with both JIT compilers, heap state, object reuse, Avro's generated "
        "decoders, a Caffeine cache before Lettuce; scoring each payment alone and, as a second "
        "contestant, up to 64 in one call.",
        "- PyFlink per record uses our bridge to read and write bytes, since it cannot read a "
        "record's coordinates or binary values from Kafka itself; heap state.",
        "- PyFlink SQL reads Kafka with SQL's own source; a window of 50 ms in processing time "
        "gathers a batch a shard (ARRAY_AGG), Python takes the batches as a stream, because SQL "
        "functions in Python keep no state between batches. Its outputs leave as those of PyFlink "
        "per record.",
        "- Quix Streams, Bytewax and Pathway run as two processes with their own durable state and "
        "the same plain Python for windows, profiles, model and rules as all Python contestants. "
        "Pathway keeps what it read and computes it again after a failure: to keep the state of "
        "its operators takes a licence key, for which one has to register.",
        "- The kafka-python loop keeps its windows in memory: after a kill it starts again from "
        "the first record it has not committed, which is the first of all.",
        "",
    ]


def _missing(found: Sequence[Result]) -> list[str]:
    lines = [
        f"- {one['title']}: {one['error'].strip().splitlines()[0][:300]}"
        for one in found
        if "error" in one
    ]
    lines += [
        f"- {one['title']}, what follows its last figure: "
        f"{one['stopped'].strip().splitlines()[0][:300]}"
        for one in found
        if "stopped" in one
    ]
    names = {one["name"] for one in found}
    lines += [f"- {title}" for name, title in FIELD.items() if name not in names]
    if not lines:
        return []
    return ["## Not measured", "", "Nothing is claimed about these:", "", *lines, ""]
