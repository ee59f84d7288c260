"""Write the benchmark page from the kept results: tables, plots, and the losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.plots import plot_latency, plot_stages, plot_throughput

__all__ = ["write_page"]

Result = dict[str, Any]
OURS: Final = "riskstream-thread"
MEASURED_RATES: Final = (500, 2_000, 5_000, 10_000, 20_000)
# What a user would pick instead; what did not run is listed all the same.
FIELD: Final = {
    "riskstream-process": "riskstream, process mode",
    "java": "Java Flink",
    "java-batched": "Java Flink, up to 64 scored at once",
    "pyflink-thread": "PyFlink per record, thread mode",
    "pyflink-process": "PyFlink per record, process mode",
    "quix": "Quix Streams",
    "bytewax": "Bytewax",
    "pyflink-sql": "PyFlink SQL micro-batches",
    "pathway": "Pathway",
}


def write_page(results: Path, page: Path) -> None:
    """Write `page` (Markdown) and the plots beside the results; a missing result is left out."""
    found = _contestants(results)
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
        lines += _latency(ran)
        lines += _life(ran)
        lines += _aims(ran, _read(results, "limits"))
        lines += _losses(ran)
        plot_throughput(ran, results / "throughput.svg")
        plot_latency(ran, results / "latency.svg")
    lines += _limits(_read(results, "limits"))
    lines += _scaling(_read(results, "scaling"))
    stages = _read(results, "stages")
    if stages:
        lines += _stages(stages)
        plot_stages(stages, results / "stages.svg")
    lines += _flames(results)
    demo = _read(results, "demo")
    if demo:
        lines += _demo(demo)
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


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
        "",
    ]


def _machine(found: Sequence[Result]) -> list[str]:
    machine = found[0]["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    first = min(one["measured_at"] for one in found)
    last = max(one["measured_at"] for one in found)
    loads = [one["load_before"] for one in found]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; Python "
        f"{machine['python']}, {versions}. Broker, Redis, ClickHouse, load generator and the "
        f"contestant share these cores. Measured {first} to {last}; load average before each: "
        f"{min(loads)} to {max(loads)}.",
        "",
    ]
    if max(loads) > machine["cores"]:
        lines += [
            "**The machine was busy with other work** (column load: runnable processes before the "
            "run, on these cores): the figures show that a contestant runs, agrees, and how much "
            "CPU it took. They are floors, say nothing of latency, and rank no one.",
            "",
        ]
    return lines


def _throughput(found: Sequence[Result]) -> list[str]:
    rows = []
    for one in found:
        drained = one["drained"]
        rows.append(
            (
                one["title"],
                f"{drained['events']:,}",
                f"**{drained['events_per_second']:,.0f}**",
                drained["cpu_us_per_event"],
                f"{1e6 / drained['cpu_us_per_event']:,.0f}",
                drained["cores_used"],
                f"{drained['resident_mb']:,}",
                one["load_before"],
            )
        )
    return [
        "## Throughput",
        "",
        "A backlog is sent at once and drained; events/s is the backlog over the time from the "
        "first publication to the last decision. CPU is that of the contestant's own processes "
        "(TaskManagers or workers), user and system; a million events take as many CPU seconds as "
        "one takes microseconds. All values of every contestant below were equal to the reference.",
        "",
        *_table(
            (
                *("contestant", "backlog", "events/s", "CPU us/event", "events/s per core used"),
                *("cores used", "resident MB", "load"),
            ),
            rows,
        ),
        "![throughput](results/throughput.svg)",
        "",
    ]


def _latency(found: Sequence[Result]) -> list[str]:
    lines = [
        "## Latency",
        "",
        "Open loop: every payment is due at a fixed time and stamped with it, also when the "
        "generator or the contestant is late. To the alert: until a consumer that polls record by "
        "record has it. To the decision: of every payment, by the row. p50 / p99 / p99.9 in ms; a "
        "dash: above what it was able to drain.",
        "",
    ]
    for kind, title in (("alert_latency", "to the alert"), ("decision_latency", "to the decision")):
        rows = []
        for one in found:
            by_rate = {run["rate"]: run[kind] for run in one.get("at_rate", [])}
            cells = [_three(by_rate.get(rate)) for rate in MEASURED_RATES]
            top = one.get("at_80_percent")
            last = f"{_three(top[kind])} (at {top['rate']:,}/s)" if top else "-"
            rows.append((one["title"], *cells, last))
        lines += _table(
            (title, *(f"{rate:,}/s" for rate in MEASURED_RATES), "80 % of its maximum"), rows
        )
    return [*lines, "![latency](results/latency.svg)", ""]


def _three(found: Result | None) -> str:
    if not found or "p50_ms" not in found:
        return "-"
    return " / ".join(f"{found[name]:,.0f}" for name in ("p50_ms", "p99_ms", "p99_9_ms"))


def _life(found: Sequence[Result]) -> list[str]:
    rows = []
    for one in found:
        back, surge = one.get("recovery"), one.get("surge")
        state = one.get("state_bytes")
        rows.append(
            (
                one["title"],
                one["first_row_seconds"],
                f"{back['gap_seconds']} (at {back['rate']:,}/s)" if back else "-",
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
        *_table(
            ("contestant", "start, s", "recovery, s", "surge over after, s", "state, MB"), rows
        ),
    ]


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
    # Under foreign load a comparison may flatter whoever ran at the calmer time.
    busy = any(one["load_before"] > one["machine"]["cores"] for one in found)

    def aim(what: str, value: str, *, met: bool) -> None:
        verdict = "not judged: busy machine" if busy else "met"
        rows.append((what, value, verdict if met else "**missed**"))

    records = [one for one in found if one["name"].startswith("pyflink")]
    if records:
        best = max(records, key=lambda one: float(one["drained"]["events_per_second"]))
        times = rate / best["drained"]["events_per_second"]
        aim("20 times PyFlink per record", f"{times:.1f} times {best['title']}", met=times >= 20)
    java = [one for one in found if one["name"].startswith("java")]
    if java:
        best = max(java, key=lambda one: 1e6 / float(one["drained"]["cpu_us_per_event"]))
        its = 1e6 / best["drained"]["cpu_us_per_event"]
        aim(
            "above the Java job in throughput per core",
            f"{core:,.0f} against {its:,.0f} events/s per core used ({best['title']})",
            met=core > its,
        )
    at = {run["rate"]: run["alert_latency"] for run in ours.get("at_rate", [])}
    if 5_000 in at:
        p99 = at[5_000]["p99_ms"]
        aim("p99 under 40 ms at 5,000/s", f"{p99:,.0f} ms", met=p99 < 40)
    top = ours.get("at_80_percent")
    if top:
        p99 = top["alert_latency"].get("p99_ms", float("inf"))
        aim("p99 under 100 ms at 80 % of maximum", f"{p99:,.0f} ms", met=p99 < 100)
    aim("60,000 events/s here, generator included", f"{rate:,.0f}", met=rate >= 60_000)
    if limits:
        share = limits["efficiency"]["efficiency"]
        aim("efficiency above 0.6", str(share), met=share > 0.6)
    return [*lines, *_table(("aim", "measured", ""), rows)]


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


def _limits(limits: Result) -> list[str]:
    if not limits:
        return []
    costs, share = limits["costs"], limits["efficiency"]
    return [
        "## Limits",
        "",
        "Each part alone, in batches, microseconds of CPU per event, the fastest of several; of "
        "Kafka, Redis and ClickHouse the client's side only.",
        "",
        *_table(("part", "us/event"), [(name, value) for name, value in costs.items()]),
        f"What every event needs adds up to {share['sum_us']} us; we use {share['ours_us']} us: "
        f"**efficiency {share['efficiency']}**. In the rest are rules, alerts with their "
        "explanations, state, JVM and two shuffles, and Python itself.",
        "",
        *_per_record(limits.get("per_record", {})),
    ]


def _per_record(costs: Result) -> list[str]:
    if not costs:
        return []
    listed = ", ".join(f"{name.removesuffix('_us')} {value}" for name, value in costs.items())
    return [f"The same parts one record at a time in plain Python, us/event: {listed}.", ""]


def _scaling(scaling: Result) -> list[str]:
    if not scaling:
        return []
    lines = ["## Scaling", ""]
    load = scaling.get("load")
    if load:
        errors = [abs(one["error"]) for one in load["left_out"]]
        lines += [
            f"CPU of the TaskManagers under load, fitted: {load['idle_cores']} cores + "
            f"{load['us_per_event']} us an event. Each rate predicted from the others is off by "
            f"{min(errors):.0%} to {max(errors):.0%}.",
            "",
        ]
    managers = scaling.get("task_managers", [])
    if managers:
        lines += _table(
            ("TaskManagers", "events/s", "CPU us/event"),
            [
                (one["task_managers"], f"{one['events_per_second']:,.0f}", one["cpu_us_per_event"])
                for one in managers
            ],
        )
    predicted = scaling.get("predicted", [])
    if predicted:
        lines += [
            "Predicted, not measured (`scaling.predict`): cores that do nothing else, two shards a "
            "core, 80 % busy; the network and the broker are not in it.",
            "",
            *_table(
                ("cores", "shards", "TaskManagers", "events/s", "per core"),
                [
                    (
                        one["cores"],
                        one["shards"],
                        one["task_managers"],
                        f"{one['events_per_second']:,}",
                        f"{one['events_per_second_per_core']:,}",
                    )
                    for one in predicted
                ],
            ),
        ]
    sweep = scaling.get("declarations")
    if sweep:
        lines += [
            "Windows alone, batches of 500, 5,000 keys:",
            "",
            *_table(
                ("features", "us/event", "window", "us/event"),
                [
                    (
                        *_swept(sweep["features"], at, "features"),
                        *_swept(sweep["windows"], at, "window"),
                    )
                    for at in range(max(len(sweep["features"]), len(sweep["windows"])))
                ],
            ),
        ]
    keys = scaling.get("keys", [])
    if keys:
        lines += [
            "By number of keys:",
            "",
            *_table(
                ("keys", "stored events", "us/event", "bytes a key"),
                [
                    (
                        f"{one['keys']:,}",
                        f"{one['stored_events']:,}",
                        round(one["us_per_batch_p50"] / one["batch"], 2),
                        one["bytes_per_key"],
                    )
                    for one in keys
                ],
            ),
        ]
    return lines


def _swept(found: Sequence[Result], at: int, name: str) -> tuple[object, object]:
    if at >= len(found):
        return ("", "")
    one = found[at]
    return (one[name], round(one["us_per_batch_p50"] / one["batch"], 2))


def _stages(stages: Result) -> list[str]:
    model = stages["model"]
    rows = [
        (
            f"{run['rows']:,}",
            f"{run['customer_stage_us']:,}",
            f"{run['decision_stage_us']:,}",
            run["both_us_per_event"],
            run["fastest_us_per_event"],
        )
        for run in stages["runs"]
    ]
    return [
        "## Both Python stages, in process",
        "",
        "CPU microseconds, medians; frames in memory, profiles in a dictionary. Fitted: "
        f"{model['fixed_us_per_batch']} us a batch + {model['us_per_event']} us an event.",
        "",
        *_table(
            ("batch", "customer stage", "decision stage", "an event", "an event, fastest"), rows
        ),
        "![cost an event by batch size](results/stages.svg)",
        "",
    ]


def _flames(results: Path) -> list[str]:
    found = sorted(results.glob("flame_*.svg"))
    if not found:
        return []
    return [
        "## Flame graphs",
        "",
        "Of a TaskManager under load; open them in a browser.",
        "",
        *(f"- [{path.stem.removeprefix('flame_')}](results/{path.name})" for path in found),
        "",
    ]


def _demo(demo: Result) -> list[str]:
    rows = [
        (
            run["when"],
            run["code"],
            f"{run['events_per_second']:,.0f}",
            f"{run['decision_ms']['p50']:,} / {run['decision_ms']['p99']:,}",
            f"{run['alert_ms']['p50']:,} / {run['alert_ms']['p99']:,}",
        )
        for run in demo["runs"]
    ]
    return [
        "## The demo",
        "",
        f"`{demo['command']}`, {demo['machine']}. Most goes out flat out (events/s), the rest at "
        "2,000/s (latency, ms, p50 / p99).",
        "",
        *_table(("run", "code", "events/s", "to decision", "to alert"), rows),
    ]


def _fairness() -> list[str]:
    return [
        "## What the contestants do alike, and what not",
        "",
        "- Same topics of four partitions, profiles in Redis behind a cache of the same size and "
        "age, ONNX model, rules, table, row gathering of a second, checkpoints every five seconds.",
        "- We also check every field, refuse duplicates by event id, write dead letters, take "
        "labels, control records and model changes, and explain each alert by the features behind "
        "it. The others do none of this; their alerts name the rules that fired.",
        "- The Java job runs with both JIT compilers, heap state, object reuse, Avro's generated "
        "decoders, a Caffeine cache before Lettuce; scoring each payment alone and, as a second "
        "contestant, up to 64 in one call.",
        "- PyFlink per record uses our bridge to read and write bytes, since it cannot read a "
        "record's coordinates or binary values from Kafka itself; heap state.",
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
    names = {one["name"] for one in found}
    lines += [f"- {title}" for name, title in FIELD.items() if name not in names]
    if not lines:
        return []
    return ["## Not measured", "", "Nothing is claimed about these:", "", *lines, ""]
