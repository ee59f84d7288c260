"""Write the benchmark page from the kept results: tables, one plot, and what is not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

__all__ = ["write_page"]

NOT_MEASURED: Final = (
    "PyFlink per record (thread and process mode) and PyFlink SQL micro-batches with this workload",
    "a Java Flink DataStream job, Quix Streams, Bytewax, Pathway",
    "bare costs of Kafka, Redis over a socket and ClickHouse inserts, so no efficiency figure yet",
    "key counts to 1e7, 256 cores, a tenfold surge",
)


def write_page(results: Path, page: Path) -> None:
    """Write `page` (Markdown) and the plots beside the results; a missing result is left out."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks.run` (`make bench`) from the files in `results/`; "
        "do not edit.",
        "",
    ]
    parts, stages = _read(results, "parts"), _read(results, "stages")
    engines = [one for mode in ("thread", "process") if (one := _read(results, f"engine_{mode}"))]
    newest = engines[0] if engines else stages or parts
    if newest:
        lines += _machine(newest)
    for engine in engines:
        lines += _engine(engine)
    demo = _read(results, "demo")
    if demo:
        lines += _demo(demo)
    if stages:
        lines += _stages(stages)
        _plot(stages, results / "stages.svg")
    if parts:
        lines += _parts(parts, stages)
    lines += [
        "## Not measured",
        "",
        "The comparison with the field is incomplete. These are missing, and nothing is claimed "
        "about them:",
        "",
        *[f"- {text}" for text in NOT_MEASURED],
        "",
    ]
    page.write_text("\n".join(lines), encoding="utf-8")


def _read(results: Path, name: str) -> dict[str, Any]:
    path = results / f"{name}.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _machine(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    load = " / ".join(f"{value:.1f}" for value in machine["load_average"])
    busy = machine["load_average"][0] > machine["cores"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; Python "
        f"{machine['python']}, {versions}. Load average when written: {load}; "
        f"{result['measured_at']}.",
        "",
    ]
    if busy:
        lines += [
            "**The machine was busy with other work**: these figures show that the programs run "
            "and what costs how much beside what; they are not what a quiet machine gives.",
            "",
        ]
    return lines


def _engine(engine: dict[str, Any]) -> list[str]:
    drained = engine["drained"]
    lines = [
        f"## riskstream, {engine['mode']} mode",
        "",
        f"Backlog of {drained['events']:,} events: "
        f"**{drained['events_per_second']:,.0f} events/s**, "
        f"{drained['cpu_us_per_event']} us of TaskManager CPU an event, "
        f"{drained['resident_mb']:,} MB resident; "
        f"the job ran {engine['job_start_seconds']} s after its submission; last checkpoint "
        f"{engine['state_bytes']} bytes.",
        "",
        "| events/s | alerts | p50 ms | p99 ms | p99.9 ms | generator late ms | CPU us/event |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in engine["at_rate"]:
        late = run["alert_latency"]
        figures = " | ".join(str(late.get(name, "-")) for name in ("p50_ms", "p99_ms", "p99_9_ms"))
        lines.append(
            f"| {run['rate']:,.0f} | {late['count']} | {figures} | {run['generator_latest_ms']} | "
            f"{run['cpu_us_per_event']} |"
        )
    return [*lines, ""]


def _demo(demo: dict[str, Any]) -> list[str]:
    """Return the end-to-end figures of `riskstream demo`, one row a run."""
    rows = [
        f"| {run['when']} | {run['code']} | {run['events_per_second']:,.0f} "
        f"| {run['decision_ms']['p50']:,} / {run['decision_ms']['p99']:,} "
        f"| {run['alert_ms']['p50']:,} / {run['alert_ms']['p99']:,} |"
        for run in demo["runs"]
    ]
    return [
        "## End to end",
        "",
        f"`{demo['command']}`, {demo['machine']}. Most goes out flat out (events/s), the rest at "
        "2,000/s (latency). The aims (30,000/s, p99 of 60 ms at 2,000/s) are **not met**. The runs "
        "are short, and both cores are busy with the JVMs' compilers for much of them.",
        "",
        "| run | code | events/s | publish to decision, ms | publish to alert, ms (p50 / p99) |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _stages(stages: dict[str, Any]) -> list[str]:
    model = stages["model"]
    lines = [
        "## Both Python stages, in process",
        "",
        "CPU microseconds, medians; frames in memory, profiles in a dictionary. Fitted: "
        f"{model['fixed_us_per_batch']} us a batch + {model['us_per_event']} us an event.",
        "",
        "| batch | customer stage | decision stage | an event | an event, fastest |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {run['rows']:,} | {run['customer_stage_us']:,} | {run['decision_stage_us']:,} | "
        f"{run['both_us_per_event']} | {run['fastest_us_per_event']} |"
        for run in stages["runs"]
    ]
    return [*lines, "", "![cost an event by batch size](results/stages.svg)", ""]


def _parts(parts: dict[str, Any], stages: dict[str, Any]) -> list[str]:
    equal = parts["equality"]
    bare, plain = parts["bare"], parts["per_record"]
    # Customer and terminal profiles are both looked up, and both stages read the frames.
    total = sum(bare.values()) + bare["decode_us"] + bare["profile_cache_us"]
    lines = [
        "## Parts alone, and one record at a time",
        "",
        f"Before any clock started, {equal['values_equal']:,} features and scores of "
        f"{equal['payments']:,} payments were equal, to the bit, between the stages and the "
        "per-record loop.",
        "",
        "| part, batches of 500 | us/event | per record, plain Python | us/event |",
        "|---|---|---|---|",
    ]
    left, right = list(bare.items()), list(plain.items())
    for index in range(max(len(left), len(right))):
        one = left[index] if index < len(left) else ("", "")
        other = right[index] if index < len(right) else ("", "")
        lines.append(f"| {one[0]} | {one[1]} | {other[0]} | {other[1]} |")
    lines += ["", f"Sum of the parts as the stages use them: {total:.2f} us an event."]
    if stages:
        best = min(run["fastest_us_per_event"] for run in stages["runs"])
        lines.append(
            f"The stages take {best} us at best: {total / best:.0%} of that is the parts, the rest "
            "is rules, decisions, alerts with their explanations, rows, state and Python."
        )
    return [*lines, ""]


def _plot(stages: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - only where a plot is written

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "riskstream"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(6, 3.2))
    rows = [run["rows"] for run in stages["runs"]]
    axes.loglog(rows, [run["both_us_per_event"] for run in stages["runs"]], "o-", label="median")
    axes.loglog(
        rows, [run["fastest_us_per_event"] for run in stages["runs"]], "o:", label="fastest"
    )
    axes.set(xlabel="events in a batch", ylabel="CPU us an event", title="Both stages")
    axes.legend()
    axes.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
