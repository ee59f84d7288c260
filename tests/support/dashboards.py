"""Generated rows for the dashboards: the tables as jobs fill them, without running the jobs."""

from __future__ import annotations

from typing import Final

from connectors.clickhouse import ClickHouseClient
from connectors.migrations import migrate
from jobs.fraud.features import FRAUD_FEATURES

__all__ = ["fill_fraud", "fill_market_risk"]

EVENT_TIME_MS: Final = 1_530_000_000_000
"""When the first event happened: far in the past, as in a replay."""


def fill_fraud(client: ClickHouseClient, rows: int = 4000) -> None:
    """Migrate and insert `rows` scored transactions over the last ten minutes, and what goes along.

    Row i is event `e<i>` of customer `c<i % 50>` at terminal `t<i % 20>`, at offset i // 2 (with a
    hole every 400) of partition i % 2, a minute of event time after the one before.
    """
    migrate(client, list(FRAUD_FEATURES.names))
    features = ", ".join(f"`{name}`" for name in FRAUD_FEATURES.names)
    values = ", ".join(
        f"toFloat64(number % {place + 7})" for place in range(len(FRAUD_FEATURES.names))
    )
    client.execute(
        "INSERT INTO scored_transactions_raw (event_id, event_time_ms, customer_id, terminal_id, "
        "merchant_id, amount_minor, currency, channel, country, tenant, score, decision, flags, "
        "rules_fired, model_version, rule_set_version, feature_set_version, kafka_topic, "
        "kafka_partition, kafka_offset, published_at_ms, ingested_at_ms, decided_at_ms, "
        f"inserted_at, {features}) "
        "WITH toUnixTimestamp64Milli(now64(3, 'UTC')) - toInt64((1 - number / "
        f"{rows}) * 600000) AS at_ms, pow((cityHash64(number) % 10000) / 10000, 6) AS chance "
        f"SELECT concat('e', toString(number)), {EVENT_TIME_MS} + number * 60000, "
        "concat('c', toString(number % 50)), concat('t', toString(number % 20)), '', "
        "100 + cityHash64(number, 1) % 30000, 'EUR', 1 + number % 4, 'BE', '', "
        "chance, multiIf(chance > 0.9, 2, chance > 0.6, 1, 0), "
        "if(number % 97 = 0, 2, if(number % 61 = 0, 16, 0)), "
        "if(chance > 0.6, arraySlice(['large_amount', 'fraudulent_terminal', 'payment_burst'], "
        "1 + number % 3, 1 + number % 2), []), "
        "if(number % 10 < 8, 'fraud/7', 'fraud/8'), 'r1', 'f1', 'card-transactions', number % 2, "
        "intDiv(number, 2) + intDiv(number, 400), at_ms - 60 - cityHash64(number, 2) % 80, "
        f"at_ms - 40, at_ms - 20, fromUnixTimestamp64Milli(at_ms, 'UTC'), {values} "
        f"FROM numbers({rows})"
    )
    client.execute(
        "INSERT INTO labels_raw (event_id, event_time_ms, customer_id, terminal_id, is_fraud, "
        "labelled_at_ms, source, revision, kafka_topic, kafka_partition, kafka_offset) "
        f"SELECT concat('e', toString(number)), {EVENT_TIME_MS} + number * 60000, "
        "concat('c', toString(number % 50)), concat('t', toString(number % 20)), "
        "pow((cityHash64(number) % 10000) / 10000, 6) > 0.8, 0, 1, 0, 'labels', 0, number "
        f"FROM numbers({rows // 2})"
    )
    client.execute(
        "INSERT INTO drift (model_version, feature, measure, window_start, window_end, value, "
        "threshold, breached, events) SELECT 'fraud/7', "
        "arrayElement(['score', 'amount', 'customer_count_7d'], 1 + number % 3), "
        "if(number < 3, 'psi', 'missing_rate'), now64(3, 'UTC') - toIntervalMinute(10), "
        "now64(3, 'UTC') - toIntervalMinute(5), if(number = 1, 0.31, 0.04), 0.2, number = 1, 2000 "
        "FROM numbers(6)"
    )
    client.execute(
        "INSERT INTO control_outcomes (control_id, kind, subject, issued_by, issued_at_ms, shard, "
        "outcome, detail, applied_at_ms, kafka_topic, kafka_partition, kafka_offset) "
        "SELECT 'k1', 'activate_model', 'fraud/8', 'ann', 0, number, 'applied', '', "
        "toUnixTimestamp64Milli(now64(3, 'UTC')) - 300000, 'control', 0, 0 FROM numbers(4)"
    )
    client.execute(
        "INSERT INTO accounts (job, made_at, offsets_in, scored, clean) "
        "VALUES ('fraud', now64(3, 'UTC'), 10, 10, true)"
    )


def fill_market_risk(client: ClickHouseClient) -> None:
    """Insert bars, fills, positions, measures, VaR, limits, stress and 250 days of forecasts."""
    firm = "'alpha'"
    client.execute(
        "INSERT INTO risk_bars_raw (instrument_id, interval_ms, start_ms, open, high, low, close, "
        "volume, trades, vwap, moving_average, realised_volatility, ewma_volatility) "
        "WITH ['EURUSD', 'BUND', 'SPX'] AS names, [1.1, 131.5, 5400.] AS levels, "
        "levels[1 + number % 3] AS level, intDiv(number, 3) AS i, "
        "level * (1 + 0.01 * sin(i / 9) + 0.002 * cos(i)) AS o, "
        "level * (1 + 0.01 * sin((i + 1) / 9) + 0.002 * cos(i + 1)) AS c "
        "SELECT names[1 + number % 3], 60000, 1700000000000 - 1700000000000 % 60000 + i * 60000, "
        "o, "
        "greatest(o, c) * 1.0006, least(o, c) * 0.9994, c, 100 + cityHash64(number) % 900, 10, "
        "(o + c) / 2, level * (1 + 0.01 * sin((i - 10) / 9)), 0.001, 0.001 FROM numbers(540)"
    )
    client.execute(
        "INSERT INTO risk_fills_raw (fill_id, firm_id, desk_id, account_id, instrument_id, "
        "event_time_ms, quantity, price, fee, outcome, kafka_topic, kafka_partition, kafka_offset, "
        "published_at_ms, ingested_at_ms) WITH ['EURUSD', 'BUND', 'SPX'] AS names "
        f"SELECT concat('f', toString(number)), {firm}, if(number % 2 = 0, 'rates', 'equity'), "
        "concat('a', toString(number % 5)), names[1 + number % 3], 1700000000000 + number * 7000, "
        "toInt64(cityHash64(number) % 2000) - 1000, 100 + number % 17, 0.5, 0, 'fills', 0, number, "
        "toUnixTimestamp64Milli(now64(3)) - 40 - number % 60, 0 FROM numbers(1500)"
    )
    client.execute(
        "INSERT INTO risk_positions_raw (firm_id, desk_id, account_id, instrument_id, quantity, "
        "average_price, mark, mark_ms, value, realised, unrealised, fifo_realised, "
        "fifo_unrealised, fees, component_var, priced, event_time_ms, sequence, evaluated_at_ms) "
        "WITH ['EURUSD', 'BUND', 'SPX', 'WTI', 'GOLD', 'NIKKEI'] AS names, "
        "toInt64(cityHash64(number) % 2000) - 1000 AS q "
        f"SELECT {firm}, if(number % 2 = 0, 'rates', 'equity'), concat('a', toString(number % 5)), "
        "names[1 + number % 6], q, 100, 101.25, 1700010000000, q * 101.25, number * 11., q * 1.25, "
        "number * 11., q * 1.25, 3.5, q * 0.4, number != 7, 1700010000000, number, 1700010000000 "
        "FROM numbers(30)"
    )
    for scope, names in (("firm", "'alpha'"), ("desk", "'rates', 'equity'")):
        client.execute(
            "INSERT INTO risk_measures_raw (firm_id, scope, scope_id, bucket_ms, gross, net, "
            "leverage, realised, unrealised, fees, pnl, value_at_risk, expected_shortfall, margin, "
            "positions, unpriced, sequence, evaluated_at_ms, delta, gamma, vega, theta, rho) "
            f"WITH [{names}] AS ids, intDiv(number, length(ids)) AS i, "
            "100000 * sin(i / 60) + i * 250. AS p "
            f"SELECT {firm}, '{scope}', ids[1 + number % length(ids)], 1700000000000 + i * 1000, "
            "9.5e6 + i * 1000, 2.1e6 - i * 500, 0.95, p * 0.4, p * 0.6, i * 1., p, "
            "180000 + 9000 * cos(i / 40), 240000 + 12000 * cos(i / 40), 700000, 30, "
            f"if(i = 599 AND '{scope}' = 'firm', 1, 0), i, "
            "toUnixTimestamp64Milli(now64(3)) - 640 + i, 2e6, 3e4, 900, -250, 120 "
            f"FROM numbers(600 * {len(names.split(','))})"
        )
    client.execute(
        "INSERT INTO risk_var_raw (firm_id, scope, scope_id, level, method, bucket_ms, "
        "value_at_risk, expected_shortfall, evaluated_at_ms) "
        "WITH [0.95, 0.975, 0.99] AS levels, intDiv(number, 3) AS i "
        f"SELECT {firm}, 'firm', 'alpha', levels[1 + number % 3], "
        "arrayJoin(['plain', 'age', 'ewma']), 1700000000000 + i * 5000, "
        "(120000 + 9000 * cos(i / 8)) * (1 + 0.25 * (number % 3)), "
        "(150000 + 9000 * cos(i / 8)) * (1 + 0.25 * (number % 3)), i FROM numbers(360)"
    )
    client.execute(
        "INSERT INTO risk_stress_raw (firm_id, scope, scope_id, scenario_id, pnl, evaluated_at_ms) "
        "WITH ['rates +100 bp', 'equity -20 %', 'USD +10 %', 'volatility x 2', 'credit 2008'] AS s "
        f"SELECT {firm}, 'firm', 'alpha', s[1 + number], 120000. - number * 95000, 1 "
        "FROM numbers(5)"
    )
    client.execute(
        "INSERT INTO risk_limits_raw (firm_id, limit_id, scope, scope_id, measure, value, warning, "
        "breach, status, acknowledged, breach_probability, event_time_ms, evaluated_at_ms) "
        f"SELECT {firm}, concat('limit-', toString(number)), 'desk', "
        "if(number % 2 = 0, 'rates', 'equity'), if(number % 3 = 0, 'gross', 'value_at_risk'), "
        "1e5 * (number + 1), 8e5, 1e6, multiIf(number >= 9, 2, number >= 7, 1, 0), false, "
        "number / 12, 0, 0 FROM numbers(11)"
    )
    client.execute(
        "INSERT INTO risk_limits_raw (firm_id, limit_id, scope, scope_id, measure, value, warning, "
        "breach, status, acknowledged, breach_probability, event_time_ms, evaluated_at_ms) "
        f"SELECT {firm}, concat('loss-', toString(number)), 'account', "
        "concat('a', toString(number)), 'loss', 1e3 * number, 8e3, 1e4, 0, false, "
        "number / 20, 0, 0 FROM numbers(5)"
    )
    client.execute(
        "INSERT INTO risk_forecasts_raw (firm_id, level, method, day_ms, forecast, pnl, exception, "
        "observations, exceptions, kupiec_lr, kupiec_p, christoffersen_lr, christoffersen_p, zone, "
        "evaluated_at_ms) WITH 150000 + 20000 * sin(number / 20) AS forecast, "
        "if(number % 83 = 40, -forecast * 1.2, 90000 * sin(number * 1.7)) AS pnl "
        f"SELECT {firm}, 0.99, arrayJoin(['plain', 'age']), "
        "1650000000000 - 1650000000000 % 86400000 + number * 86400000, "
        "forecast, pnl, pnl < -forecast, number + 1, intDiv(number + 43, 83), 0.09, 0.758, 0.07, "
        "0.789, 'green', number FROM numbers(250)"
    )
