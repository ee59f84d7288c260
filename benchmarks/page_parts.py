"""The parts of the benchmark page that are about this engine alone: limits, scaling, stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["demo_part", "flames_part", "limits_part", "scaling_part", "stages_part", "table"]

Result = dict[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a Markdown table and the empty line after it."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
        "",
    ]


def limits_part(limits: Result) -> list[str]:
    if not limits:
        return []
    costs, share = limits["costs"], limits["efficiency"]
    return [
        "## Limits",
        "",
        "Each part alone, in batches, microseconds of CPU per event, the fastest of several; of "
        "Kafka, Redis and ClickHouse the client's side only.",
        "",
        *table(("part", "us/event"), [(name, value) for name, value in costs.items()]),
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


def scaling_part(scaling: Result, managers: Sequence[Result], keys: Sequence[Result]) -> list[str]:
    if not scaling:
        return []
    lines = ["## Scaling", ""]
    load = scaling.get("load")
    if load:
        errors = [abs(one["error"]) for one in load["left_out"]]
        lines += [
            "CPU of the TaskManagers while there is some to spare, fitted: "
            f"{load['idle_cores']} cores + {load['us_per_event']} us an event (the floor is "
            "batches, which come with every tick). Each rate predicted from the others is off by "
            f"{min(errors):.0%} to {max(errors):.0%}.",
            "",
        ]
    check = scaling.get("check")
    if check:
        lines += [
            f"At full load batches merge until only their events cost: from the backlog's cost the "
            f"model predicts {check['predicted_cores']} cores at {check['rate']:,} events/s (80 % "
            f"of what it sustains); measured were {check['measured_cores']} "
            f"({check['error']:+.0%}).",
            "",
        ]
    if len(managers) > 1:
        lines += table(
            ("shape", "TaskManagers", "events/s", "CPU us/event", "cores used"),
            [
                (
                    one["title"],
                    one["task_managers"],
                    f"{one['drained']['events_per_second']:,.0f}",
                    one["drained"]["cpu_us_per_event"],
                    one["drained"]["cores_used"],
                )
                for one in managers
            ],
        )
    predicted = scaling.get("predicted", [])
    if predicted:
        lines += [
            "Predicted, not measured (`scaling.predict`): cores that do nothing else, two shards a "
            "core, 80 % busy; the network and the broker are not in it.",
            "",
            *table(
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
            *table(
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
    if keys:
        lines += [
            "By number of keys (`benchmarks.windows`):",
            "",
            *table(
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


def stages_part(stages: Result) -> list[str]:
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
        *table(
            ("batch", "customer stage", "decision stage", "an event", "an event, fastest"), rows
        ),
        "![cost an event by batch size](results/stages.svg)",
        "",
    ]


def flames_part(results: Path) -> list[str]:
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


def demo_part(demo: Result) -> list[str]:
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
        *table(("run", "code", "events/s", "to decision", "to alert"), rows),
    ]
