"""People's pages in a real browser: what they show is what ClickHouse holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from connectors.clickhouse import ClickHouseClient
from connectors.settings import ClickHouseSettings
from tests.integration._clickhouse_process import clickhouse
from tests.support.dashboards import fill_fraud, fill_market_risk
from tests.support.pages import PATIENCE_MS, chromium, opened, served, shown


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with clickhouse(tmp_path_factory.mktemp("clickhouse")) as port:
        yield ClickHouseSettings(url=f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def client(database: ClickHouseSettings) -> Iterator[ClickHouseClient]:
    made = ClickHouseClient(database)
    fill_fraud(made)
    fill_market_risk(made)
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(client: ClickHouseClient, database: ClickHouseSettings) -> Iterator[str]:
    with served(f"clickhouse.url={database.url}") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def test_the_fraud_page_shows_the_numbers_of_clickhouse_and_filters_them(
    browser: Any, url: str, client: ClickHouseClient
) -> None:
    query = "SELECT count() AS n, countIf(decision != 'approve') AS a FROM scored_transactions"
    (every,) = client.rows(query)
    (some,) = client.rows(f"{query} WHERE toString(channel) = 'atm'")
    with opened(browser, f"{url}fraud?window=1h") as page:
        assert shown(page, "fraud_totals", "events") == [str(every["n"])]
        assert shown(page, "fraud_totals", "alerts") == [str(every["a"])]
        page.select_option("#filter-channel", "atm")
        page.wait_for_selector(
            f"#panel-fraud_totals [data-column=events][data-exact='{some['n']}']",
            timeout=PATIENCE_MS,
        )
        assert shown(page, "fraud_totals", "alerts") == [str(some["a"])]
        assert "provisional" in page.inner_text("#panel-fraud_outcomes .mark")


def test_a_click_on_an_alert_leads_to_the_events_behind_a_feature(
    browser: Any, url: str, client: ClickHouseClient
) -> None:
    with opened(browser, f"{url}fraud?window=1h") as page:
        cell = page.locator("#panel-fraud_alerts perspective-viewer td", has_text="e3").first
        cell.wait_for(timeout=PATIENCE_MS)
        cell.click()
        page.wait_for_selector("#drill tr.pick", timeout=PATIENCE_MS)
        event_id = page.inner_text("#drill h2 .mono")
        page.click("#drill tr[data-feature=customer_count_7d]")
        page.wait_for_selector("#behind-total", timeout=PATIENCE_MS)
        (event,) = client.rows(
            "SELECT customer_id, event_time_ms FROM scored_transactions "
            "WHERE event_id = {id:String}",
            {"id": event_id},
        )
        (counted,) = client.rows(
            "SELECT count() AS n FROM scored_transactions WHERE customer_id = {c:String} "
            "AND event_time_ms <= {t:Int64} AND event_time_ms > {t:Int64} - 7 * 86400000",
            {"c": event["customer_id"], "t": event["event_time_ms"]},
        )
        assert page.get_attribute("#behind-total", "data-exact") == str(counted["n"])
        page.keyboard.press("Escape")
        assert page.is_hidden("#drill")


def test_a_new_alert_appears_on_an_open_page(
    browser: Any, url: str, client: ClickHouseClient
) -> None:
    with opened(browser, f"{url}fraud?window=1h") as page:
        client.execute(
            "INSERT INTO scored_transactions_raw (event_id, event_time_ms, decision, kafka_topic, "
            "kafka_offset, decided_at_ms) VALUES ('just-now', 1, 'block', 'later', 1, "
            "toUnixTimestamp64Milli(now64(3, 'UTC')))"
        )
        page.locator(
            "#panel-fraud_alerts perspective-viewer td", has_text="just-now"
        ).first.wait_for(timeout=PATIENCE_MS)
        page.wait_for_function(
            "() => Number(document.querySelector('#panel-fraud_alerts .age').dataset.ageMs) < 6e4",
            timeout=PATIENCE_MS,
        )
    client.execute("ALTER TABLE scored_transactions_raw DELETE WHERE event_id = 'just-now'")


def test_operators_see_offsets_and_latency_as_clickhouse_counts_them(
    browser: Any, url: str, client: ClickHouseClient
) -> None:
    rows = client.rows(
        "SELECT uniqExact(kafka_offset) AS n FROM scored_transactions_raw "
        "WHERE kafka_topic = 'card-transactions' GROUP BY kafka_partition ORDER BY kafka_partition"
    )
    with opened(browser, f"{url}operators?window=1h") as page:
        stored = shown(page, "operator_audit", "stored")
        assert stored[: len(rows)] == [str(row["n"]) for row in rows]
        assert len(shown(page, "operator_stages", "p99")) == 4
        page.click("#theme")
        assert page.get_attribute("html", "data-theme") in ("dark", "light")


@pytest.mark.parametrize("name", ["fraud", "operators", "traders"])
def test_a_page_fits_a_narrow_window_and_a_dark_room(browser: Any, url: str, name: str) -> None:
    with opened(browser, f"{url}{name}?window=1h") as page:
        page.click("#theme")
        for width in (420, 1000, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(500)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            cut = page.evaluate(
                "[...document.querySelectorAll('.stats .value, .panel > h2 .fresh')]"
                ".filter((one) => one.scrollWidth > one.clientWidth + 1)"
                ".map((one) => one.innerText)"
            )
            assert not cut
        for grid in page.query_selector_all("perspective-viewer-datagrid"):
            card = page.query_selector(".panel")
            background = "(one) => getComputedStyle(one).backgroundColor"
            assert grid.evaluate(background) == card.evaluate(background)


def test_traders_see_the_limits_and_candles_of_the_chosen_instrument(
    browser: Any, url: str, client: ClickHouseClient
) -> None:
    (firm,) = client.rows("SELECT pnl FROM risk_measures_now WHERE scope = 'firm'")
    with opened(browser, f"{url}traders?window=1h") as page:
        (pnl,) = shown(page, "trader_totals", "pnl")
        assert float(pnl) == pytest.approx(firm["pnl"])
        assert shown(page, "trader_limits", "status")[0] == "breach"
        page.wait_for_selector("#panel-trader_candles[data-updates]", timeout=PATIENCE_MS)
        assert page.inner_text("#panel-trader_totals .note") == "USD"
        assert "1 min" in page.inner_text("#filter-interval")
        with page.expect_response(
            lambda answer: "trader_candles" in answer.url and "instrument=SPX" in answer.url,
            timeout=PATIENCE_MS,
        ) as waited:
            page.select_option("#filter-instrument", "SPX")
        assert waited.value.json()["rows"][-1]["close"] > 5000
        page.locator(
            "#panel-trader_positions perspective-viewer td", has_text="NIKKEI"
        ).first.wait_for(timeout=PATIENCE_MS)
        assert "provisional" in page.inner_text("#panel-trader_positions .mark")


def test_a_page_holds_sixty_updates_of_a_thousand_rows(
    browser: Any, url: str, client: ClickHouseClient
) -> None:
    """What it shows in between is newer each time, and at the end all of the last update."""
    rows = (
        "SELECT 'F', concat('desk-', toString(number % 5)), concat('a', toString(number % 20)), "
        "concat('I', toString(number)), number + 1, 100, 1e6 + {update}, 0, "
        "(number + 1) * (1e6 + {update}), 0, 0, 0, 0, true, 0, {update}, {update} + 1 "
        "FROM numbers(1000)"
    )
    insert = (
        "INSERT INTO risk_positions_raw (firm_id, desk_id, account_id, instrument_id, quantity, "
        "average_price, mark, mark_ms, value, realised, unrealised, fees, component_var, priced, "
        "event_time_ms, sequence, evaluated_at_ms) "
    )
    client.execute(insert + rows.format(update=0))
    with opened(browser, f"{url}traders") as page:
        # The greatest value is that of the last row: a thousand units at a million and the update.
        page.evaluate(NEWEST)
        page.wait_for_function("() => window.newest === 0", timeout=PATIENCE_MS)
        for update in range(1, 61):
            client.execute(insert + rows.format(update=update))
            page.wait_for_timeout(250)
        page.wait_for_function("() => window.newest === 60", timeout=PATIENCE_MS)
        order = page.evaluate("() => window.order")
        assert order == sorted(order)
        # It drew along, rather than once at the end.
        assert len(order) > 5
        marks = page.evaluate(
            "async () => { const viewer = document.querySelector("
            "'#panel-trader_positions perspective-viewer');"
            "const table = await viewer.getTable(); const view = await table.view("
            "{columns: ['mark'], filter: [['firm_id', '==', 'F'], ['desk_id', 'begins with', "
            "'desk-'], ['mark', '>=', 1e6]]});"
            "const found = (await view.to_columns()).mark; await view.delete(); return found; }"
        )
        assert marks == [1e6 + 60] * 1_000


NEWEST = """
() => {
  window.order = [];
  const cells = (node, found) => {
    for (const one of node.querySelectorAll("*")) {
      if (one.tagName === "TD") found.push(one.textContent);
      if (one.shadowRoot) cells(one.shadowRoot, found);
    }
    return found;
  };
  setInterval(() => {
    const found = cells(document.querySelector("#panel-trader_positions"), []);
    const numbers = found.map((text) => Number(text.replaceAll(",", "")));
    const most = Math.max(...numbers.filter(Number.isFinite));
    const update = Math.round(most / 1000 - 1e6);
    if (update >= 0 && update !== window.newest) {
      window.newest = update;
      window.order.push(update);
    }
  }, 20);
}
"""
