"""The queries of the market risk page."""

# ruff: noqa: S608 - every name in these queries is ours, and values are parameters

from __future__ import annotations

from typing import Final

from dashboards.panels import Column, Feed, Filter, Panel, Source

__all__ = ["TRADER_FEEDS", "TRADER_FILTERS", "TRADER_PANELS", "TRADER_SOURCES"]


# The curves run over event time: a replay of years would else squeeze now into a corner.
_IN_EVENT_WINDOW: Final = (
    "bucket > (SELECT max(bucket) FROM {table}) - toIntervalSecond({{window:UInt32}})"
)

TRADER_SOURCES: Final[dict[str, Source]] = {
    "measures": Source(
        "risk_measures_raw",
        doubts="sum(unpriced + stale)",
        doubts_from="risk_measures_now WHERE scope = 'firm'",
        doubts_text="positions have no price or an old one",
    ),
    "positions": Source(
        "risk_positions_raw",
        doubts="countIf((stale OR NOT priced) AND quantity != 0)",
        doubts_from="risk_positions",
        doubts_text="positions have no price or an old one",
    ),
    # The newest bar is open until its minute is over.
    "bars": Source("risk_bars_raw", settle_seconds=60),
    "fills": Source("risk_fills_raw"),
    "var": Source("risk_var_raw"),
    "limits": Source("risk_limits_raw"),
    "forecasts": Source("risk_forecasts_raw"),
    "stress": Source("risk_stress_raw"),
}
"""Where the panels of this page read, by name."""

TRADER_FILTERS: Final = (
    Filter(
        "instrument",
        "Instrument",
        "String",
        "SELECT instrument_id AS value FROM risk_bars_raw GROUP BY value "
        "ORDER BY count() DESC, value LIMIT 500",
        default="",
    ),
    Filter(
        "interval",
        "Candle",
        "Int64",
        "SELECT DISTINCT interval_ms AS value FROM risk_bars_raw ORDER BY value",
        default="60000",
        shown="duration",
    ),
)
"""Choices of this page; the instrument with the most bars is taken when none was chosen."""

TRADER_PANELS: Final = (
    Panel(
        name="trader_totals",
        title="The firm now",
        kind="stat",
        source="measures",
        sql="SELECT sum(pnl) AS pnl, sum(value_at_risk) AS value_at_risk, "
        "sum(expected_shortfall) AS expected_shortfall, sum(gross) AS gross, sum(net) AS net, "
        "max(leverage) AS leverage, sum(margin) AS margin, sum(positions) AS positions "
        "FROM risk_measures_now WHERE scope = 'firm'",
        columns=(
            Column("pnl", "P&L", "money"),
            Column("value_at_risk", "VaR", "money"),
            Column("expected_shortfall", "Expected shortfall", "money"),
            Column("gross", "Gross exposure", "money"),
            Column("net", "Net exposure", "money"),
            Column("leverage", "Leverage", "ratio"),
            Column("margin", "Margin", "money"),
            Column("positions", "Positions"),
        ),
        width=12,
        height=1,
        refresh_ms=500,
        help="In the base currency. VaR and shortfall are at the highest level; of several "
        "firms they are added up.",
    ),
    Panel(
        name="trader_pnl",
        title="P&L of the firm",
        kind="lines",
        source="measures",
        sql="SELECT bucket AS time, pnl, realised, unrealised FROM ("
        "SELECT bucket, sum(pnl) AS pnl, sum(realised) AS realised, sum(unrealised) AS unrealised "
        f"FROM risk_measures WHERE scope = 'firm' "
        f"AND {_IN_EVENT_WINDOW.format(table='risk_measures_raw')} "
        "GROUP BY bucket ORDER BY bucket DESC LIMIT 3600) ORDER BY time",
        columns=(
            Column("time", "Time", "time"),
            Column("pnl", "P&L", "money"),
            Column("realised", "Realised", "money"),
            Column("unrealised", "Unrealised", "money"),
        ),
        x="time",
        y=("pnl", "realised", "unrealised"),
        help="Second by second over the last of event time, after fees.",
    ),
    Panel(
        name="trader_candles",
        title="Candles",
        kind="candles",
        source="bars",
        sql="SELECT start AS time, open, high, low, close, volume, vwap, moving_average FROM ("
        "SELECT * FROM risk_bars WHERE instrument_id = {instrument:String} "
        "AND interval_ms = {interval:Int64} ORDER BY start_ms DESC LIMIT 120) ORDER BY time",
        columns=(
            Column("time", "Time", "time"),
            Column("open", "Open", "number"),
            Column("high", "High", "number"),
            Column("low", "Low", "number"),
            Column("close", "Close", "number"),
            Column("volume", "Volume", "number"),
            Column("vwap", "VWAP", "number"),
            Column("moving_average", "Mean of 20", "number"),
        ),
        x="time",
        y=("open", "close", "low", "high"),
        refresh_ms=1000,
        help="The last 120 bars of the instrument and interval chosen above. The last bar is open "
        "until its time is over, and a late trade still changes it.",
    ),
    Panel(
        name="trader_var",
        title="Value at risk and expected shortfall",
        kind="lines",
        source="var",
        sql="SELECT bucket AS time, concat(kind, ' ', toString(level)) AS measure, "
        "sum(loss) AS value FROM risk_var "
        "ARRAY JOIN ['VaR', 'ES'] AS kind, [value_at_risk, expected_shortfall] AS loss "
        "WHERE scope = 'firm' AND method = 'plain' "
        f"AND {_IN_EVENT_WINDOW.format(table='risk_var_raw')} "
        "GROUP BY time, level, kind ORDER BY time, measure",
        columns=(
            Column("time", "Time", "time"),
            Column("measure", "Measure", "text"),
            Column("value", "Loss", "money"),
        ),
        x="time",
        y=("value",),
        by="measure",
        help="Losses at each level for the firm by historical simulation, over event time.",
    ),
    Panel(
        name="trader_backtest",
        title="VaR back-test",
        kind="backtest",
        source="forecasts",
        sql="SELECT day AS time, level, forecast, pnl, exception, exceptions, observations, "
        "kupiec_p, christoffersen_p, zone FROM risk_forecasts "
        "WHERE method = 'plain' AND level = (SELECT max(level) FROM risk_forecasts_raw) "
        "ORDER BY time",
        columns=(
            Column("time", "Day", "time"),
            Column("level", "Level", "number"),
            Column("forecast", "Forecast", "money"),
            Column("pnl", "P&L", "money"),
            Column("exception", "Exception", "text"),
            Column("exceptions", "Exceptions"),
            Column("observations", "Days"),
            Column("kupiec_p", "Kupiec p", "probability"),
            Column("christoffersen_p", "Christoffersen p", "probability"),
            Column("zone", "Zone", "text"),
        ),
        x="time",
        y=("pnl", "forecast"),
        refresh_ms=5000,
        help="What came each day against the loss forecast, at the highest level. Kupiec: is the "
        "number of exceptions right; Christoffersen: do they come alone. Zone: the traffic light "
        "of the Basel committee.",
    ),
    Panel(
        name="trader_methods",
        title="VaR and shortfall by method",
        kind="bars",
        source="var",
        sql="SELECT method, sum(v) AS value_at_risk, sum(e) AS expected_shortfall FROM ("
        "SELECT firm_id, method, argMax(value_at_risk, bucket_ms) AS v, "
        "argMax(expected_shortfall, bucket_ms) AS e FROM risk_var WHERE scope = 'firm' "
        "AND level = (SELECT max(level) FROM risk_var_raw) GROUP BY firm_id, method) "
        "GROUP BY method ORDER BY method",
        columns=(
            Column("method", "Method", "text"),
            Column("value_at_risk", "VaR", "money"),
            Column("expected_shortfall", "Expected shortfall", "money"),
        ),
        x="method",
        y=("value_at_risk", "expected_shortfall"),
        help="Of the firm now, at the highest level: plain, age- and volatility-weighted "
        "historical simulation, EWMA, Monte Carlo, and over each instrument's liquidity horizon.",
    ),
    Panel(
        name="trader_backtests",
        title="Back-tests of every method",
        kind="table",
        source="forecasts",
        sql="SELECT method, level, observations, exceptions, kupiec_p, christoffersen_p, "
        "coverage_p, zone, multiplier_increase FROM risk_forecasts "
        "ORDER BY day_ms DESC, level DESC, method LIMIT 1 BY firm_id, method, level",
        columns=(
            Column("method", "Method", "text"),
            Column("level", "Level", "number"),
            Column("observations", "Days"),
            Column("exceptions", "Exceptions"),
            Column("kupiec_p", "Kupiec p", "probability"),
            Column("christoffersen_p", "Independ. p", "probability"),
            Column("coverage_p", "Coverage p", "probability"),
            Column("zone", "Zone", "text"),
            Column("multiplier_increase", "Added to 3", "number"),
        ),
        refresh_ms=5000,
        help="Of the newest day judged, over at most 250 days. Kupiec: the number of exceptions; "
        "independence and coverage: Christoffersen's tests; zone and what it adds to the "
        "multiplier: Basel.",
    ),
    Panel(
        name="trader_exposure",
        title="Exposure by desk",
        kind="bars",
        source="measures",
        sql="SELECT scope_id AS desk, gross, net FROM risk_measures_now WHERE scope = 'desk' "
        "ORDER BY gross DESC LIMIT 30",
        columns=(
            Column("desk", "Desk", "text"),
            Column("gross", "Gross", "money"),
            Column("net", "Net", "money"),
        ),
        x="desk",
        y=("gross", "net"),
        width=3,
        help="In the base currency, as of the newest evaluation.",
    ),
    Panel(
        name="trader_stress",
        title="Stress scenarios",
        kind="bars",
        source="stress",
        sql="SELECT scenario_id AS scenario, sum(pnl) AS loss FROM risk_stress "
        "WHERE scope = 'firm' GROUP BY scenario ORDER BY loss LIMIT 20",
        columns=(Column("scenario", "Scenario", "text"), Column("loss", "P&L", "money")),
        x="scenario",
        y=("loss",),
        width=3,
        help="What each scenario would do to the firm now.",
    ),
    Panel(
        name="trader_greeks",
        title="Greeks",
        kind="table",
        source="measures",
        sql="SELECT scope, scope_id, delta, gamma, vega, theta, rho FROM risk_measures_now "
        "WHERE scope IN ('firm', 'desk', 'account') AND NOT isNaN(delta) "
        "ORDER BY indexOf(['firm', 'desk', 'account'], scope), abs(vega) DESC, scope_id LIMIT 100",
        columns=(
            Column("scope_id", "Of", "text"),
            Column("delta", "Delta", "money"),
            Column("gamma", "Gamma, 1 %", "money"),
            Column("vega", "Vega, 1 point", "money"),
            Column("theta", "Theta, a day", "money"),
            Column("rho", "Rho, 1 point", "money"),
        ),
        width=6,
        help="In money of the base currency. Delta: what moves as much in the underlyings; gamma: "
        "its change as they rise by 1 %; vega and rho: gain for one point; theta: for a day.",
    ),
    Panel(
        name="trader_limits",
        title="Limits",
        kind="table",
        source="limits",
        sql="SELECT concat(scope, ' ', scope_id) AS of, measure, value, warning, breach, "
        "if(breach = 0, 0, value / breach) AS used, toString(status) AS status, "
        "if(acknowledged, 'yes', '') AS seen, breach_probability "
        "FROM risk_limits ORDER BY risk_limits.status DESC, used DESC LIMIT 200",
        columns=(
            Column("of", "Of", "text"),
            Column("measure", "Measure", "text"),
            Column("value", "Value", "money"),
            Column("warning", "Warning", "money"),
            Column("breach", "Breach", "money"),
            Column("used", "Used", "share"),
            Column("status", "Status", "text"),
            Column("seen", "Seen", "text"),
            Column("breach_probability", "Breach soon", "share"),
        ),
        width=8,
        help="Worst first. `Breach soon` is the model's chance of a breach in the next minutes, "
        "`seen` whether somebody acknowledged the breach.",
    ),
    Panel(
        name="trader_breach",
        title="Likeliest breaches",
        kind="table",
        source="limits",
        sql="SELECT concat(scope, ' ', scope_id) AS of, breach_probability, limit_id "
        "FROM risk_breach WHERE breached = 0 ORDER BY breach_probability DESC, of LIMIT 20",
        columns=(
            Column("of", "Of", "text"),
            Column("breach_probability", "Chance", "share"),
            Column("limit_id", "Limit", "text"),
        ),
        width=4,
        help="Accounts, desks and firms within their limits, by the model's chance that the "
        "likeliest of their limits is breached in the next minutes.",
    ),
)
"""The panels of this page, in the order shown."""

TRADER_FEEDS: Final = (
    Feed(
        name="trader_positions",
        title="Positions",
        source="positions",
        view="risk_positions_raw",
        select="concat(firm_id, '/', account_id, '/', desk_id, '/', instrument_id) "
        "AS position_key, "
        "firm_id, desk_id, account_id, instrument_id, quantity, average_price, mark, "
        "mark_ms AS mark_time, value, realised, unrealised, fees, component_var, component_es, "
        "ifNotFinite(marginal_var, 0) AS marginal_var, delta, gamma, vega, theta, rho, "
        "multiIf(NOT priced, 'no', stale, 'stale', 'yes') AS priced",
        columns=(
            ("position_key", "string"),
            ("firm_id", "string"),
            ("desk_id", "string"),
            ("account_id", "string"),
            ("instrument_id", "string"),
            ("quantity", "float"),
            ("average_price", "float"),
            ("mark", "float"),
            ("mark_time", "datetime"),
            ("value", "float"),
            ("realised", "float"),
            ("unrealised", "float"),
            ("fees", "float"),
            ("component_var", "float"),
            ("component_es", "float"),
            ("marginal_var", "float"),
            ("delta", "float"),
            ("gamma", "float"),
            ("vega", "float"),
            ("theta", "float"),
            ("rho", "float"),
            ("priced", "string"),
        ),
        shown=(
            "desk_id",
            "account_id",
            "instrument_id",
            "quantity",
            "average_price",
            "mark",
            "value",
            "realised",
            "unrealised",
            "component_var",
            "mark_time",
            "priced",
        ),
        index="position_key",
        limit=0,
        sort="value",
        live="positions",
        version="evaluated_at_ms",
        width=7,
        help="Every position as it now stands; group, filter and add columns as you like.",
    ),
    Feed(
        name="trader_blotter",
        title="Blotter",
        source="fills",
        view="risk_fills_raw",
        where="outcome = 'applied'",
        select="fill_id, event_time_ms AS event_time, desk_id, account_id, instrument_id, "
        "if(quantity < 0, 'sell', 'buy') AS side, quantity, price, fee",
        columns=(
            ("fill_id", "string"),
            ("event_time", "datetime"),
            ("desk_id", "string"),
            ("account_id", "string"),
            ("instrument_id", "string"),
            ("side", "string"),
            ("quantity", "float"),
            ("price", "float"),
            ("fee", "float"),
        ),
        shown=("event_time", "account_id", "instrument_id", "side", "quantity", "price", "fee"),
        index="fill_id",
        limit=20_000,
        sort="event_time",
        live="fills",
        width=5,
        help="Every fill once, newest first.",
    ),
)
"""The streaming tables of this page."""
