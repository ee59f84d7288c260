"""The plots of the benchmark page, as SVG that is the same for the same results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["plot_latency", "plot_stages", "plot_throughput"]

Result = dict[str, Any]


def _figure(height: float) -> tuple[Any, Any]:
    import matplotlib as mpl  # noqa: PLC0415 - only where a plot is written

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "riskstream"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    return plt.subplots(figsize=(7, height))


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_throughput(found: Sequence[Result], path: Path) -> None:
    """Draw events/s of each contestant, on a logarithmic axis."""
    figure, axes = _figure(0.6 + 0.4 * len(found))
    shown = list(reversed(found))
    rates = [one["drained"]["events_per_second"] for one in shown]
    colours = ["tab:blue" if one["name"].startswith("riskstream") else "0.6" for one in shown]
    bars = axes.barh([one["title"] for one in shown], rates, color=colours)
    axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3)
    axes.set(xscale="log", xlabel="events/s, a backlog drained", xlim=(100, 4 * max(rates)))
    _save(figure, path)


def plot_latency(found: Sequence[Result], path: Path) -> None:
    """Draw the p99 from publication to alert by rate."""
    figure, axes = _figure(3.6)
    for one in found:
        points = [
            (run["rate"], run["alert_latency"]["p99_ms"])
            for run in one.get("at_rate", [])
            if "p99_ms" in run["alert_latency"]
        ]
        if points:
            rates, waits = zip(*points, strict=True)
            axes.loglog(rates, waits, "o-", label=one["title"])
    axes.set(xlabel="events/s, open loop", ylabel="ms to the alert, p99")
    axes.grid(True, which="both", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    _save(figure, path)


def plot_stages(stages: Result, path: Path) -> None:
    """Draw the cost of an event in both stages by batch size."""
    figure, axes = _figure(3.2)
    rows = [run["rows"] for run in stages["runs"]]
    axes.loglog(rows, [run["both_us_per_event"] for run in stages["runs"]], "o-", label="median")
    axes.loglog(
        rows, [run["fastest_us_per_event"] for run in stages["runs"]], "o:", label="fastest"
    )
    axes.set(xlabel="events in a batch", ylabel="CPU us an event", title="Both stages")
    axes.legend()
    axes.grid(True, which="both", alpha=0.3)
    _save(figure, path)
