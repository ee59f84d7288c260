"""Run the benchmarks; write `benchmarks/results/*.json` and the page `benchmarks/README.md`.

From the head of the tree:

    python -m benchmarks.run                     # everything, about 40 minutes
    python -m benchmarks.run --quick             # this engine only, small: about a minute
    python -m benchmarks.run --only java --only riskstream-thread
    python -m benchmarks.run --page              # write the page again from what is there
"""

from __future__ import annotations

import datetime as dt
import json
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.bare import per_record_costs
from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.java_flink import JavaFlink
from benchmarks.contestants.ours import Ours
from benchmarks.contestants.payments import Job
from benchmarks.contestants.pyflink_records import PyFlinkRecords, PyFlinkSql
from benchmarks.contestants.python_engines import Bytewax, KafkaLoop, Pathway, Quix
from benchmarks.floor import measure_floor
from benchmarks.host import await_calm
from benchmarks.limits import efficiency, measure_limits
from benchmarks.measure import RECOVERY_RATE, Plan, measure
from benchmarks.page import write_page
from benchmarks.processes import code_version, machine
from benchmarks.reference import Reference
from benchmarks.scaling import check_load, fit_load, predict, sweep_declarations
from benchmarks.services import Services, job_document
from benchmarks.session import LEAD_SECONDS
from benchmarks.stage_profile import fit_cost, measure_stages
from benchmarks.sustained import LOADED, MOST_TRIED
from benchmarks.workload import SEED, Record, Workload
from connectors.local.flink_lib import ROOT
from connectors.producers.simulator import DEFAULT_START_MS
from connectors.profiles import redis_client
from connectors.settings import load_settings
from jobs.fraud.resources import prepare

__all__ = ["RESULTS", "contestants", "main", "store"]

RESULTS: Final = Path(__file__).parent / "results"
RATES: Final = (500.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0)
EQUALITY_EVENTS: Final = 4_000
QUICK_EQUALITY_EVENTS: Final = 2_000
# 4,000 payments of so few last for 39 days: all windows fill, those a week back too.
EQUALITY_CUSTOMERS: Final = 60
# Weeks after the last of the compared stream, so that no window holds events of both.
TIMED_START_MS: Final = DEFAULT_START_MS + 400 * 86_400_000
OURS: Final = "riskstream-thread"
LEAST_DRAINED: Final = 3_000
MOST_DRAINED: Final = 300_000
# Events/s; a faster contestant meets a shorter surge and a lower last rate.
MOST_EXPECTED: Final = 110_000
FLOOR_SECONDS: Final = 4.0
# Kafka's second compiler is busy for some 40 s of load: 12 us of CPU an event at 30,000/s before,
# 8 to 9 from then on.
BROKER_RATE: Final = 20_000.0
BROKER_SECONDS: Final = 40.0
BROKER_EVENTS: Final = int(BROKER_RATE * BROKER_SECONDS)
# No contestant warms up in less.
WARM_SECONDS: Final = 1.0


def contestants() -> list[Contestant]:
    """Return all contestants, in the order in which they run."""
    return [
        Ours("thread"),
        Ours("process"),
        Ours("thread", task_managers=1),
        Ours("thread", tasks=2),
        JavaFlink(),
        JavaFlink(rows=64),
        PyFlinkRecords("thread"),
        PyFlinkRecords("process"),
        PyFlinkSql(),
        KafkaLoop(),
        Quix(),
        Bytewax(),
        Pathway(),
    ]


def store(name: str, result: dict[str, Any]) -> None:
    """Keep a result beside what machine it was measured on, and when."""
    RESULTS.mkdir(exist_ok=True)
    kept = {
        "measured_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "code": code_version(ROOT),
        "machine": machine(),
        "seed": SEED,
        **result,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def equality_stream(events: int) -> Sequence[Record]:
    """Return weeks of few customers at few terminals, so that all windows fill."""
    return Workload(
        events, seed=SEED + 1, customers=EQUALITY_CUSTOMERS, terminals=2 * EQUALITY_CUSTOMERS
    ).records


def needed(contestant: Contestant, plan: Plan) -> int:
    """Return how long a timed stream the contestant can use at most."""
    # Rates around a maximum that is not known yet, the surge and the sampling of stacks.
    fastest = min(MOST_EXPECTED, contestant.warm_events / WARM_SECONDS)
    unknown = (MOST_TRIED + LOADED) * (plan.seconds + LEAD_SECONDS) + 2.25 * plan.surge_seconds
    unknown += 10 if plan.flames else 0
    drained = min(plan.most_drained, max(plan.least_drained, int(fastest * plan.drain_seconds)))
    rates = sum(rate for rate in plan.rates if rate <= fastest)
    known = contestant.warm_events + drained + rates * (plan.seconds + LEAD_SECONDS)
    return int(known + fastest * unknown + RECOVERY_RATE * plan.recovery_seconds)


@click.command()
@click.option("--quick", is_flag=True, help="This engine only, small sizes: about a minute.")
@click.option("--only", multiple=True, help="Only this contestant (may be repeated).")
@click.option("--rate", "rates", multiple=True, type=float, help="Rates instead of the usual.")
@click.option("--seconds", default=10.0, show_default=True, help="How long each rate counts.")
@click.option("--drain", default=10.0, show_default=True, help="Seconds that a backlog lasts.")
@click.option("--most", default=MOST_DRAINED, show_default=True, help="Longest backlog, events.")
@click.option("--compared", type=int, help="Compare this many payments instead of 4,000.")
@click.option("--recovery", default=8.0, show_default=True, help="Load around a kill; 0: none.")
@click.option("--surge", default=1.5, show_default=True, help="Seconds of surge; 0: none.")
@click.option("--flames/--no-flames", default=True, help="Sample this engine's stacks under load.")
@click.option("--calm", default=0.0, help="Minutes to wait for a calm host before each at most.")
@click.option("--page", "only_page", is_flag=True, help="Only write the page from kept results.")
@click.option("--without-stack", is_flag=True, help="Only what needs no servers.")
@click.option("--home", default="/tmp/riskstream-bench", show_default=True)
@click.option("--set", "overrides", multiple=True, help="A setting of riskstream, KEY=VALUE.")
@click.option("--out", default="", help="Suffix of the result files, for a run beside others.")
def main(
    quick: bool,
    only: Sequence[str],
    rates: Sequence[float],
    seconds: float,
    drain: float,
    most: int,
    compared: int | None,
    recovery: float,
    surge: float,
    flames: bool,
    calm: float,
    only_page: bool,
    without_stack: bool,
    home: str,
    overrides: Sequence[str],
    out: str,
) -> None:
    """Measure; a contestant whose results differ gets no figures.

    Example: python -m benchmarks.run --quick
    """
    if not only_page:
        chosen = contestants()
        if quick:
            only, rates, seconds, drain = (OURS,), (500.0,), 4.0, 2.0
            most, recovery, surge = 20_000, 0, 0
        if only:
            named = {one.name: one for one in chosen}
            chosen = [named[name] for name in only]
        plan = Plan(
            equality=equality_stream(
                compared or (QUICK_EQUALITY_EVENTS if quick else EQUALITY_EVENTS)
            ),
            timed=(),
            least_drained=min(most, LEAST_DRAINED),
            most_drained=most,
            drain_seconds=drain,
            rates=rates or RATES,
            seconds=seconds,
            recovery_seconds=recovery,
            surge_seconds=surge,
            flames=RESULTS if flames and not quick else None,
        )
        if not without_stack:
            _measure_all(chosen, plan, home, overrides, out, quick, calm)
        if without_stack or not (quick or only):
            _without_servers(out)
    _extend(out)
    write_page(RESULTS, Path(__file__).parent / "README.md")


def _measure_all(
    chosen: Sequence[Contestant],
    plan: Plan,
    home: str,
    overrides: Sequence[str],
    out: str,
    quick: bool,
    calm: float,
) -> None:
    # Slow contestants need fewer records than the broker does to be warm.
    events = [needed(one, plan) for one in chosen] + [0 if quick else BROKER_EVENTS]
    workload = Workload(max(events), start_ms=TIMED_START_MS)
    plan = replace(plan, timed=workload.records)
    services = Services(
        load_settings(
            environment={},
            overrides=[f"home={home}", f"models.registry=file:{home}/models", *overrides],
        )
    )
    try:
        services.up(workload)
        if not quick:
            _warm_broker(services, workload)
        settings = services.settings_of("reference")
        assert settings.redis.url is not None
        reference = Reference(Job(**job_document(settings)), redis_client(settings.redis))
        for contestant in chosen:
            result: dict[str, Any] = {
                "name": contestant.name,
                "title": contestant.title,
                "short": plan.most_drained < MOST_DRAINED,
            }
            wanted = replace(plan, flames=plan.flames if contestant.name == OURS else None)
            await_calm(calm, _say)
            try:
                measure(contestant, services, wanted, reference, _say, result)
            except Exception as e:  # noqa: BLE001 - the others are measured all the same
                _say(f"{contestant.title}: {e}")
                reason = "".join(traceback.format_exception_only(e))[:2000]
                # What was measured before it failed stands.
                result["stopped" if "drained" in result else "error"] = reason
            except KeyboardInterrupt:
                result["stopped" if "drained" in result else "error"] = "interrupted"
                store(f"contestant_{contestant.name}{out}", result)
                raise
            if not quick:
                store(f"contestant_{contestant.name}{out}", result)
                if contestant.name == OURS and "drained" in result:
                    _limits(services, workload, result, out)
            click.echo(json.dumps(result, indent=1))
    finally:
        services.down()


def _warm_broker(services: Services, workload: Workload) -> None:
    """Have Kafka take and give records until its second compiler has little left to do."""
    settings = services.settings_of("warm")
    prepare(settings)
    measure_floor(settings, workload.records, [BROKER_RATE], BROKER_SECONDS - LEAD_SECONDS)


def _limits(services: Services, workload: Workload, ours: dict[str, Any], out: str) -> None:
    """Measure the parts alone, in the same run."""
    costs = measure_limits(services, workload)
    store(
        f"limits{out}",
        {
            "costs": costs,
            "efficiency": efficiency(costs, ours["drained"]["cpu_us_per_event"]),
            "per_record": per_record_costs(Workload(2_000)),
            "floor": measure_floor(
                services.settings_of("limits"), workload.records, RATES, FLOOR_SECONDS
            ),
        },
    )


def _without_servers(out: str) -> None:
    """Measure both stages and the windows in process."""
    runs = measure_stages(sizes=(5, 50, 500, 5_000), batches=60)
    stages: dict[str, Any] = {"runs": [run.summary() for run in runs], "model": fit_cost(runs)}
    store(f"stages{out}", stages)
    store(f"scaling{out}", {"declarations": sweep_declarations()})


def _extend(out: str) -> None:
    """Fit the cost model on the kept results, check it and extend it to more cores."""
    files = [RESULTS / f"scaling{out}.json", RESULTS / f"contestant_{OURS}{out}.json"]
    if not all(file.exists() for file in files):
        return
    scaling, ours = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    points = [(run["rate"], run["cores_used"]) for run in ours.get("at_rate", [])]
    if len(points) < 3 or "at_80_percent" not in ours:
        return
    scaling["load"] = fit_load(points)
    scaling["check"] = check_load(ours["drained"], ours["at_80_percent"])
    cost = ours["drained"]["cpu_us_per_event"]
    scaling["predicted"] = [predict(cores, cost) for cores in (2, 16, 256)]
    files[0].write_text(json.dumps(scaling, indent=1) + "\n", encoding="utf-8")


def _say(text: str) -> None:
    click.echo(f"  {text}", err=True)


if __name__ == "__main__":
    main()
