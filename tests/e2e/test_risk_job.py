"""The market risk job on a real cluster: a desk's days, limits that people acknowledge, lag."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from connectors.clickhouse import ClickHouseClient
from connectors.evidence import ranges_of, read_range
from connectors.flink import FlinkCluster
from connectors.kafka import librdkafka_config
from connectors.producers.publisher import KafkaPublisher
from connectors.settings import Settings
from dashboards.kafka_panels import kafka_panels
from jobs.cli.main import cli
from jobs.market_risk.breach_training import BreachRecipe, train_breach_model
from jobs.market_risk.demo import Market, RiskDemoResult, run_risk_demo
from jobs.market_risk.feed import MarketFeed
from jobs.market_risk.methods import METHODS
from jobs.market_risk.options import OptionTerms, option_price
from jobs.market_risk.recording import recorded_slices, write_recording
from jobs.market_risk.reference import YEAR_MS
from jobs.market_risk.simulator import DeskConfig, MarketSimulator
from jobs.market_risk.value_at_risk import tail_risk
from models.registry import Registry
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.registry import open_registry
from tests.support.pages import PATIENCE_MS, chromium, opened, served, shown

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]

WAIT_SECONDS = 240
LIMIT = {
    "limit_id": "tight", "firm_id": "firm", "scope": "firm", "scope_id": "firm",
    "measure": "gross", "warning": 500.0, "breach": 1_000.0,
}  # fmt: skip


class Risk:
    """What a market of a few seconds left behind, and the job that goes on."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        tree = settings.model_dump()
        tree["kafka"]["topics"]["prefix"] = "risk-"
        tree["clickhouse"]["database"] = "riskstream_risk"
        tree["models"]["registry"] = f"file:{folder}/models"
        self.settings = Settings.model_validate(tree)
        self.clickhouse = ClickHouseClient(self.settings.clickhouse)
        self.desk = DeskConfig(instruments=12, accounts=4, fill_share=0.5)
        files = write_recording(MarketSimulator(4, self.desk), folder, days=4, seconds=2)
        self.result: RiskDemoResult = run_risk_demo(
            self.settings,
            Market(
                seconds=6, seed=4, instruments=12, accounts=4,
                recorded=tuple(recorded_slices(files)),
            ),
            lambda text: None,
            lambda done, all_of: None,
        )  # fmt: skip

    def rows(self, query: str) -> list[dict[str, Any]]:
        return self.clickhouse.rows(query)

    @property
    def places(self) -> dict[str, object]:
        """Return the settings by which a command finds this stack."""
        return {
            "home": self.settings.home,
            "kafka.topics.prefix": "risk-",
            "clickhouse.database": "riskstream_risk",
            "schemas.registry": self.settings.schemas.registry,
            "models.registry": self.settings.models.registry,
            "market_risk.breach_model": self.settings.market_risk.breach_model,
        }

    def command(self, *arguments: str) -> str:
        given = [
            part for name, value in self.places.items() for part in ("--set", f"{name}={value}")
        ]
        result = CliRunner().invoke(cli, [*given, *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    def alerts(self) -> list[dict[str, Any]]:
        kafka = self.settings.kafka
        decoder = RecordDecoder(open_registry(self.settings.schemas), contract("alert"))
        found = ranges_of(kafka, kafka.topics.name("limit_alerts"))
        return [decoder.decode(one.value()) for one in read_range(kafka, found)]


@pytest.fixture(scope="module")
def risk(stack_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Risk]:
    made = Risk(stack_settings, tmp_path_factory.mktemp("recorded"))
    yield made
    FlinkCluster(stack_settings.flink.rest_url or "").cancel(made.result.job_id)


def wait_until(what: str, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not done():
        assert time.monotonic() < deadline, f"{what} did not happen in {WAIT_SECONDS} s"
        time.sleep(0.3)


def test_every_event_comes_out_and_positions_are_the_sum_of_their_fills(risk: Risk) -> None:
    result = risk.result
    assert result.dead_letters == 0
    assert result.positions_unlike_fills == 0
    assert result.repeated_fills > 0
    assert result.positions > 12
    assert {bar for bar, count in result.bars.items() if count} == {"1 s", "60 s", "300 s"}
    assert result.recorded_ticks > 1_000


def test_bars_in_clickhouse_are_those_of_the_trades_that_were_sent(risk: Risk) -> None:
    simulator = MarketSimulator(4, risk.desk)
    trades: dict[str, list[tuple[int, int]]] = {}
    ticks = next(simulator.batches()).ticks  # the two seconds of the first day
    names = [str(name) for name in ticks["instrument_id"].to_list()]
    prices, sizes = (ticks[name].values.tolist() for name in ("price", "size"))
    for name, price, size in zip(names, prices, sizes, strict=True):
        trades.setdefault(name, []).append((price, size))
    day_ms = simulator.config.start_ms
    found = risk.rows(
        "SELECT instrument_id, open, high, low, close, volume, trades FROM risk_bars "
        f"WHERE interval_ms = 60000 AND start_ms = {day_ms}"
    )
    assert {row["instrument_id"] for row in found} == set(trades)
    for row in found:
        prices = [price / 100 for price, _ in trades[row["instrument_id"]]]
        assert (row["open"], row["close"]) == (prices[0], prices[-1])
        assert (row["high"], row["low"]) == (max(prices), min(prices))
        assert row["volume"] == sum(size for _, size in trades[row["instrument_id"]])


def test_var_in_clickhouse_is_that_of_the_positions_it_shows(risk: Risk) -> None:
    """Positions revalued one by one under the published shocks give each account's VaR."""
    reference = MarketSimulator(4, risk.desk).reference(250)
    shocks = [one["shocks"] for one in reference["scenarios"] if one["kind"] == "historical"]
    terms = {one["instrument_id"]: one for one in reference["instruments"]}
    rows = risk.rows(
        "SELECT account_id, instrument_id, quantity, value, event_time_ms FROM risk_positions"
    )
    marks = {
        row["instrument_id"]: row["mid"]
        for row in risk.rows("SELECT instrument_id, mid FROM risk_marks")
    }
    now_ms = max(row["event_time_ms"] for row in rows)
    measured = {
        (row["scope_id"], row["method"]): row
        for row in risk.rows(
            "SELECT scope_id, method, argMax(value_at_risk, bucket_ms) AS v, "
            "argMax(expected_shortfall, bucket_ms) AS e FROM risk_var "
            "WHERE scope IN ('account', 'firm') AND level = 0.99 GROUP BY scope_id, method"
        )
    }
    assert {method for _, method in measured} == set(METHODS)
    firm = [measured["firm", method]["v"] for method in METHODS]
    assert min(firm) > 0.3 * max(firm) > 0
    accounts = {row["account_id"] for row in rows}
    assert len(accounts) == 4
    for account in accounts:
        pnl = np.zeros(len(shocks))
        for row in rows:
            if row["account_id"] == account:
                pnl += profits(row, terms[row["instrument_id"]], marks, shocks, now_ms)
        for method in ("plain", "age", "volatility", "ewma"):
            wanted = tail_risk(pnl, 0.99, method)
            found = measured[account, method]
            assert found["v"] == pytest.approx(wanted.value_at_risk, rel=2e-3)
            assert found["e"] == pytest.approx(wanted.expected_shortfall, rel=2e-3)


def profits(
    row: dict[str, Any],
    terms: dict[str, Any],
    marks: dict[str, float],
    shocks: list[dict[str, float]],
    now_ms: int,
) -> np.ndarray:
    """Return the profit of one position under each scenario."""
    under = terms["underlying_id"]
    if under is None:
        return row["value"] * np.array([day[row["instrument_id"]] for day in shocks])
    spot = marks[under] * (1 + np.array([0.0, *(day[under] for day in shocks)]))
    one = np.ones(len(spot))
    option = OptionTerms(
        terms["strike"] * one, (terms["expiry_ms"] - now_ms) / YEAR_MS * one,
        terms["rate"] * one, 0 * one, np.full(len(spot), terms["right"] == "call"),
    )  # fmt: skip
    prices = option_price(spot, terms["volatility"] * one, option)
    return row["quantity"] * (prices[1:] - prices[0])


def test_each_day_is_judged_by_every_method_and_level(risk: Risk) -> None:
    levels = risk.settings.market_risk.levels
    (row,) = risk.rows(
        "SELECT count() AS n, uniqExact(method) AS methods, uniqExact(day_ms) AS days, "
        "countIf(exception != (-pnl > forecast)) AS wrong FROM risk_forecasts"
    )
    assert int(row["methods"]) == len(METHODS)
    # Of four days and a fifth that goes on the first has no forecast.
    assert int(row["days"]) == 3
    assert int(row["n"]) == len(METHODS) * len(levels) * 3
    assert int(row["wrong"]) == 0


def test_the_model_gives_every_measured_limit_its_chance(risk: Risk) -> None:
    rows = risk.rows(
        "SELECT toString(status) AS status, breach_probability AS chance FROM risk_limits "
        "WHERE value > 0"
    )
    assert rows
    assert all(0 <= row["chance"] <= 1 for row in rows)
    assert all(row["chance"] == 1 for row in rows if row["status"] == "breach")


def test_the_breach_model_changes_on_the_running_job_and_goes_back(risk: Risk) -> None:
    other = Registry(risk.settings.models.registry).register(
        train_breach_model(BreachRecipe(runs=4, minutes=10, seed=5)).folder
    )
    (shipped,) = {row["model"] for row in models(risk)}
    assert shipped != other
    risk.command("models", "activate", other)
    wait_until("the other model", lambda: {row["model"] for row in models(risk)} == {other})
    outcomes = risk.rows(
        "SELECT outcome, uniqExact(shard) AS shards FROM control_outcomes "
        f"WHERE kind = 'activate_model' AND subject = '{other}' GROUP BY outcome"
    )
    shards = risk.settings.flink.shards
    assert [(one["outcome"], int(one["shards"])) for one in outcomes] == [("applied", shards)]
    risk.command("models", "rollback", shipped)
    wait_until("the first model", lambda: {row["model"] for row in models(risk)} == {shipped})


def models(risk: Risk) -> list[dict[str, Any]]:
    return risk.rows(
        "SELECT breach_model AS model FROM risk_limits WHERE NOT isNaN(breach_probability)"
    )


def publish(risk: Risk, *limits: dict[str, Any]) -> None:
    publisher = KafkaPublisher(librdkafka_config(risk.settings.kafka))
    feed = MarketFeed(risk.settings, publisher)
    try:
        feed.publish_records("limits", limits)
        feed.flush()
    finally:
        publisher.close()


def test_a_breach_is_alerted_once_and_acknowledged_on_the_running_job(risk: Risk) -> None:
    def state() -> dict[str, Any]:
        found = risk.rows(
            "SELECT toString(status) AS status, acknowledged FROM risk_limits "
            "WHERE limit_id = 'tight'"
        )
        return found[0] if found else {}

    def raised() -> list[dict[str, Any]]:
        return [one for one in risk.alerts() if one["attributes"].get("limit_id") == "tight"]

    publish(risk, LIMIT)
    wait_until("the breach", lambda: state().get("status") == "breach")
    wait_until("its alert", lambda: len(raised()) == 1)
    assert [(one["decision"], one["severity"]) for one in raised()] == [("breach", "critical")]
    # A person acknowledges with the command, as the docs say.
    risk.command("risk", "acknowledge", "tight", "--by", "ann")
    wait_until("the acknowledgement", lambda: bool(state().get("acknowledged")))
    assert state()["status"] == "breach"
    # A higher limit clears it, which is for the record only.
    publish(risk, LIMIT | {"revision": 2, "warning": 1e12, "breach": 2e12})
    wait_until("the end of the breach", lambda: state().get("status") == "within")
    wait_until("the second alert", lambda: len(raised()) == 2)
    assert [(one["decision"], one["severity"]) for one in raised()] == [
        ("breach", "critical"), ("within", "info"),
    ]  # fmt: skip
    assert len({one["alert_id"] for one in raised()}) == 2


def test_the_lag_panel_knows_what_the_job_has_read(risk: Risk) -> None:
    def lags() -> dict[str, int]:
        answer = asyncio.run(kafka_panels(risk.settings)["kafka_lag"]())
        found: dict[str, int] = {}
        for row in answer["rows"]:
            found[row["topic"]] = found.get(row["topic"], 0) + int(row["lag"])
        return found

    wait_until("a checkpoint after the last event", lambda: sum(lags().values()) == 0)
    topics = risk.settings.kafka.topics
    assert set(lags()) >= {topics.name(field) for field in ("ticks", "quotes", "fills")}


def test_the_pages_of_the_live_stack_show_what_the_job_wrote(risk: Risk) -> None:
    overrides = [f"{name}={value}" for name, value in risk.places.items()]
    with served(*overrides) as url, chromium() as browser:
        with opened(browser, f"{url}traders?window=1h") as page:
            (firm,) = risk.rows(
                "SELECT pnl, value_at_risk, positions FROM risk_measures_now WHERE scope = 'firm'"
            )
            (positions,) = shown(page, "trader_totals", "positions")
            (var,) = shown(page, "trader_totals", "value_at_risk")
            assert int(positions) == int(firm["positions"])
            assert float(var) == pytest.approx(firm["value_at_risk"])
            limits = risk.rows("SELECT count() AS n FROM risk_limits")[0]["n"]
            assert len(shown(page, "trader_limits", "status")) == int(limits)
            assert len(shown(page, "trader_backtests", "zone")) == len(METHODS) * 3
            page.locator(
                "#panel-trader_blotter perspective-viewer td", has_text="account-1"
            ).first.wait_for(timeout=PATIENCE_MS)
            held(page)
            picture(page, "traders")
        with opened(browser, f"{url}operators?window=1h") as page:
            topics = set(shown(page, "kafka_lag", "topic"))
            assert risk.settings.kafka.topics.name("fills") in topics
            (fills,) = shown(page, "operator_market", "fills")
            assert int(fills) >= risk.result.fills
            held(page)
            picture(page, "operators")


def held(page: Any) -> None:
    """Hold every panel of a page to saying how old it is and whether it is provisional."""
    page.wait_for_function(
        "() => [...document.querySelectorAll('.panel .mark')]"
        ".every((mark) => /provisional|settled|no data/.test(mark.textContent))",
        timeout=PATIENCE_MS,
    )
    for panel in page.query_selector_all(".panel"):
        if panel.query_selector(".mark").inner_text() != "no data":
            assert "old" in panel.query_selector(".age").inner_text()


def picture(page: Any, name: str) -> None:
    """Keep a screenshot where RISKSTREAM_SCREENSHOTS says; those of the docs are made so."""
    folder = os.environ.get("RISKSTREAM_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(3_000)  # for the charts to be drawn
        page.set_viewport_size({"width": 1600, "height": 1000})
        page.wait_for_timeout(2_000)
        page.screenshot(path=f"{folder}/dashboard-{name}.png", full_page=True)
        for width, height in ((1280, 800), (1920, 1080)):
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_timeout(2_000)
            page.screenshot(path=f"{folder}/{name}-{width}.png", full_page=True)
