"""Every query of the dashboards: the live pages and the Grafana dashboards are made from these.

Time runs by `inserted_at`, the clock of ClickHouse, because a replay of old events is watched as it
runs. A window is the last `window` seconds; a series has a point every `step` seconds.
"""

# ruff: noqa: S608 - every name in these queries is ours, and values are parameters

from __future__ import annotations

from typing import Final

from connectors.tables import SCORE_FLAGS, SCORED_TABLE, SCORED_VIEW
from dashboards._trader_queries import TRADER_FEEDS, TRADER_FILTERS, TRADER_PANELS, TRADER_SOURCES
from dashboards.panels import IN_WINDOW, Column, Feed, Filter, Panel, Source

__all__ = ["FEEDS", "FILTERS", "PAGES", "PANELS", "SOURCES", "panel_named"]

_BUCKET: Final = "toStartOfInterval(inserted_at, toIntervalSecond({step:UInt32}))"
_CHOSEN: Final = (
    "({channel:String} = 'all' OR toString(channel) = {channel:String}) "
    "AND ({model:String} = 'all' OR model_version = {model:String})"
)
_ALERTED: Final = "decision != 'approve'"
_FLAG_NAMES: Final = ", ".join(f"'{name}'" for name in SCORE_FLAGS)
_FLAG_BITS: Final = ", ".join(str(bit) for bit in SCORE_FLAGS.values())
_DECISION_MS: Final = "decided_at_ms - published_at_ms"
_ROW_MS: Final = "toUnixTimestamp64Milli(inserted_at) - published_at_ms"

SOURCES: Final[dict[str, Source]] = {
    "scored": Source(SCORED_TABLE),
    "labels": Source(
        "labels_raw",
        doubts="(SELECT count() FROM scored_transactions) - count()",
        doubts_from="labels",
        doubts_text="scored transactions have no label yet",
    ),
    "drift": Source("drift"),
    "control": Source("control_outcomes"),
    "accounts": Source("accounts"),
    **TRADER_SOURCES,
}
"""Where panels read, by name."""

_FRAUD: Final = (
    Panel(
        name="fraud_totals",
        title="Decisions in the window",
        kind="stat",
        source="scored",
        sql=f"SELECT count() AS events, countIf({_ALERTED}) AS alerts, "
        "countIf(decision = 'block') AS blocked, "
        f"if(count() = 0, 0, countIf({_ALERTED}) / count()) AS alert_share, "
        f"sumIf(amount_minor, {_ALERTED}) / 100 AS alerted_amount, "
        "quantileExactIf(0.99)(score, NOT isNaN(score)) AS score_p99 "
        f"FROM {SCORED_VIEW} WHERE {IN_WINDOW} AND {_CHOSEN}",
        columns=(
            Column("events", "Transactions"),
            Column("alerts", "Alerts"),
            Column("blocked", "Blocked"),
            Column("alert_share", "Alert rate", "share"),
            Column("alerted_amount", "Amount alerted", "money"),
            Column("score_p99", "Score, 99th percentile", "number"),
        ),
        help="Each transaction once. Amounts are added up as they are, whatever the currency.",
        width=12,
        height=1,
    ),
    Panel(
        name="fraud_decisions",
        title="Decisions over time",
        kind="bars",
        source="scored",
        sql=f"SELECT {_BUCKET} AS time, countIf(decision = 'approve') AS approve, "
        "countIf(decision = 'review') AS review, countIf(decision = 'block') AS block "
        f"FROM {SCORED_VIEW} WHERE {IN_WINDOW} AND {_CHOSEN} GROUP BY time ORDER BY time",
        columns=(
            Column("time", "Time", "time"),
            Column("approve", "Approve"),
            Column("review", "Review"),
            Column("block", "Block"),
        ),
        x="time",
        y=("approve", "review", "block"),
        stacked=True,
        width=5,
        help="Transactions by decision, by when they reached ClickHouse.",
    ),
    Panel(
        name="fraud_scores",
        title="Score distribution",
        kind="bars",
        source="scored",
        sql="SELECT least(floor(score * 20), 19) / 20 AS score_from, "
        "countIf(decision = 'approve') AS approve, countIf(decision = 'review') AS review, "
        "countIf(decision = 'block') AS block "
        f"FROM {SCORED_VIEW} WHERE {IN_WINDOW} AND {_CHOSEN} AND NOT isNaN(score) "
        "GROUP BY score_from ORDER BY score_from",
        columns=(
            Column("score_from", "Score from", "number"),
            Column("approve", "Approve"),
            Column("review", "Review"),
            Column("block", "Block"),
        ),
        x="score_from",
        y=("approve", "review", "block"),
        logarithmic=True,
        width=4,
        help="Twenty bins of 0.05, counts on a logarithmic axis, unscored ones left out.",
    ),
    Panel(
        name="fraud_rules",
        title="Rules fired",
        kind="table",
        source="scored",
        sql="SELECT rule, count() AS fired, countIf(decision = 'block') AS blocked "
        f"FROM {SCORED_VIEW} ARRAY JOIN rules_fired AS rule WHERE {IN_WINDOW} AND {_CHOSEN} "
        "GROUP BY rule ORDER BY fired DESC, rule LIMIT 20",
        columns=(
            Column("rule", "Rule", "text"),
            Column("fired", "Fired"),
            Column("blocked", "Blocked"),
        ),
        width=3,
        help="How often each rule fired, and how many of those transactions were blocked.",
    ),
    Panel(
        name="fraud_outcomes",
        title="Decisions against labels",
        kind="table",
        source="labels",
        sql="SELECT toString(s.decision) AS decision, count() AS labelled, "
        "countIf(l.is_fraud) AS fraud, countIf(l.is_fraud) / count() AS fraud_share "
        f"FROM (SELECT event_id, decision, channel, model_version FROM {SCORED_VIEW} "
        f"WHERE {IN_WINDOW} AND {_CHOSEN}) AS s "
        "INNER JOIN labels AS l ON s.event_id = l.event_id "
        "GROUP BY decision ORDER BY decision",
        columns=(
            Column("decision", "Decision", "text"),
            Column("labelled", "Labelled"),
            Column("fraud", "Fraud"),
            Column("fraud_share", "Share", "share"),
        ),
        width=4,
        refresh_ms=5000,
        help="Labels come days after the decision: what is not labelled is in no row here.",
    ),
    Panel(
        name="fraud_drift",
        title="Drift of features and scores",
        kind="table",
        source="drift",
        sql="SELECT feature, measure, value, threshold, breached, events, window_end AS until, "
        "model_version FROM drift FINAL "
        "WHERE {model:String} = 'all' OR model_version = {model:String} "
        "ORDER BY window_end DESC LIMIT 1 BY model_version, feature, measure",
        columns=(
            Column("feature", "Feature", "text"),
            Column("measure", "Measure", "text"),
            Column("value", "Value", "number"),
            Column("threshold", "Threshold", "number"),
            Column("breached", "Breached", "text"),
            Column("events", "Events"),
            Column("until", "Window until", "time"),
            Column("model_version", "Model", "text"),
        ),
        width=8,
        refresh_ms=5000,
        help="The newest window of each measure against what the model was trained on.",
    ),
)

_OPERATORS: Final = (
    Panel(
        name="operator_totals",
        title="The fraud job now",
        kind="stat",
        source="scored",
        sql="SELECT countIf(inserted_at > now64(3, 'UTC') - toIntervalSecond(30)) / 30 AS rate, "
        "count() AS rows, "
        f"quantileExactOrNull(0.5)({_DECISION_MS}) AS decision_p50, "
        f"quantileExactOrNull(0.99)({_DECISION_MS}) AS decision_p99, "
        f"quantileExactOrNull(0.99)({_ROW_MS}) AS row_p99, "
        "uniqExact(kafka_topic, kafka_partition) AS partitions "
        f"FROM {SCORED_TABLE} WHERE {IN_WINDOW}",
        columns=(
            Column("rate", "Rows a second, last 30 s", "rate"),
            Column("rows", "Rows in the window"),
            Column("decision_p50", "Decision, median", "ms"),
            Column("decision_p99", "Decision, p99", "ms"),
            Column("row_p99", "In ClickHouse, p99", "ms"),
            Column("partitions", "Partitions heard"),
        ),
        width=12,
        height=1,
        help="Rows that were delivered again after a failure count again. Latencies are from the "
        "Kafka timestamp and compare the clocks of several machines.",
    ),
    Panel(
        name="operator_throughput",
        title="Throughput",
        kind="lines",
        source="scored",
        sql=f"SELECT {_BUCKET} AS time, count() / {{step:UInt32}} AS rate, "
        f"countIf({_ALERTED}) / {{step:UInt32}} AS alerts "
        f"FROM {SCORED_TABLE} WHERE {IN_WINDOW} GROUP BY time ORDER BY time",
        columns=(
            Column("time", "Time", "time"),
            Column("rate", "Rows", "rate"),
            Column("alerts", "Alerts", "rate"),
        ),
        x="time",
        y=("rate", "alerts"),
        help="Rows and alerts a second, by when they reached ClickHouse.",
    ),
    Panel(
        name="operator_latency",
        title="Latency, publish to decision",
        kind="lines",
        source="scored",
        sql=f"SELECT {_BUCKET} AS time, "
        f"quantileExact(0.5)({_DECISION_MS}) AS p50, quantileExact(0.95)({_DECISION_MS}) AS p95, "
        f"quantileExact(0.99)({_DECISION_MS}) AS p99, max({_DECISION_MS}) AS max "
        f"FROM {SCORED_TABLE} WHERE {IN_WINDOW} GROUP BY time ORDER BY time",
        columns=(
            Column("time", "Time", "time"),
            Column("p50", "p50", "ms"),
            Column("p95", "p95", "ms"),
            Column("p99", "p99", "ms"),
            Column("max", "max", "ms"),
        ),
        x="time",
        y=("p50", "p95", "p99", "max"),
        logarithmic=True,
        help="Milliseconds from the Kafka timestamp to the decision.",
    ),
    Panel(
        name="operator_market",
        title="The market risk job now",
        kind="stat",
        source="measures",
        sql="SELECT rate, fills, row_p50, row_p99, evaluations, shown_p99, bars FROM ("
        "SELECT countIf(inserted_at > now64(3, 'UTC') - toIntervalSecond(30)) / 30 AS rate, "
        f"count() AS fills, quantileExactIfOrNull(0.5)({_ROW_MS}, published_at_ms > 0) AS row_p50, "
        f"quantileExactIfOrNull(0.99)({_ROW_MS}, published_at_ms > 0) AS row_p99 "
        f"FROM risk_fills_raw WHERE {IN_WINDOW}) AS f, ("
        "SELECT uniqExact(firm_id, sequence) AS evaluations, "
        "quantileExactIfOrNull(0.99)(toUnixTimestamp64Milli(inserted_at) - evaluated_at_ms, "
        "evaluated_at_ms > 0) AS shown_p99 "
        f"FROM risk_measures_raw WHERE scope = 'firm' AND {IN_WINDOW}) AS m, ("
        f"SELECT uniqExact(instrument_id, interval_ms, start_ms) AS bars FROM risk_bars_raw "
        f"WHERE {IN_WINDOW}) AS b",
        columns=(
            Column("rate", "Fills a second, last 30 s", "rate"),
            Column("fills", "Fills in the window"),
            Column("row_p50", "Fill in ClickHouse, median", "ms"),
            Column("row_p99", "Fill in ClickHouse, p99", "ms"),
            Column("evaluations", "Evaluations of risk"),
            Column("shown_p99", "Risk in ClickHouse, p99", "ms"),
            Column("bars", "Bars written"),
        ),
        width=12,
        height=1,
        help="Latencies of fills are from the Kafka timestamp, those of risk from the evaluation, "
        "until ClickHouse had the row.",
    ),
    Panel(
        name="operator_stages",
        title="Where the time goes",
        kind="table",
        source="scored",
        sql="SELECT part.1 AS stage, quantileExact(0.5)(part.2) AS p50, "
        "quantileExact(0.95)(part.2) AS p95, quantileExact(0.99)(part.2) AS p99, "
        "max(part.2) AS max "
        f"FROM {SCORED_TABLE} ARRAY JOIN ["
        "('1 publish to read', ingested_at_ms - published_at_ms), "
        "('2 read to decision', decided_at_ms - ingested_at_ms), "
        "('3 decision to row', toUnixTimestamp64Milli(inserted_at) - decided_at_ms), "
        f"('4 in all', {_ROW_MS})] AS part "
        f"WHERE {IN_WINDOW} GROUP BY stage ORDER BY stage",
        columns=(
            Column("stage", "Stage", "text"),
            Column("p50", "p50", "ms"),
            Column("p95", "p95", "ms"),
            Column("p99", "p99", "ms"),
            Column("max", "max", "ms"),
        ),
        width=5,
        help="Each stage's own percentiles; they do not add up.",
    ),
    Panel(
        name="operator_audit",
        title="Offsets accounted for",
        kind="table",
        source="scored",
        sql="SELECT kafka_topic AS topic, kafka_partition AS partition, "
        "min(kafka_offset) AS first, "
        "max(kafka_offset) AS last, uniqExact(kafka_offset) AS stored, "
        "max(kafka_offset) - min(kafka_offset) + 1 - uniqExact(kafka_offset) AS elsewhere, "
        "count() - uniqExact(kafka_offset) AS redelivered "
        f"FROM {SCORED_TABLE} GROUP BY topic, partition ORDER BY topic, partition",
        columns=(
            Column("topic", "Topic", "text"),
            Column("partition", "Partition"),
            Column("first", "First offset"),
            Column("last", "Last offset"),
            Column("stored", "Stored"),
            Column("elsewhere", "Not stored"),
            Column("redelivered", "Again"),
        ),
        width=7,
        refresh_ms=5000,
        help="`Not stored` are offsets between first and last without a row: dead letters, "
        "transaction markers, or a loss; `riskstream audit` tells them apart. `Again` are rows "
        "that were delivered again and are not merged yet.",
    ),
    Panel(
        name="operator_accounts",
        title="Running account",
        kind="table",
        source="accounts",
        sql="SELECT toString(made_at) AS made, if(clean, 'clean', 'NOT CLEAN') AS verdict, "
        "offsets_in, scored, dead_lettered, control, missing, doubled, unexpected, "
        "alerts_expected, alerts_found, alerts_wrong "
        "FROM accounts ORDER BY made_at DESC LIMIT 20",
        columns=(
            Column("made", "Made", "text"),
            Column("verdict", "Verdict", "text"),
            Column("offsets_in", "Offsets in"),
            Column("scored", "Scored"),
            Column("dead_lettered", "Dead letters"),
            Column("control", "Control"),
            Column("missing", "Missing"),
            Column("doubled", "Doubled"),
            Column("unexpected", "Unexpected"),
            Column("alerts_expected", "Alerts due"),
            Column("alerts_found", "Alerts found"),
            Column("alerts_wrong", "Alerts wrong"),
        ),
        width=12,
        refresh_ms=5000,
        help="What `riskstream audit --watch` found, newest first: each offset of Kafka once as a "
        "row, a dead letter or a control outcome, and each alert by its id. Empty while nobody "
        "watches.",
    ),
    Panel(
        name="operator_flags",
        title="Events that stand out",
        kind="table",
        source="scored",
        sql="SELECT bit.1 AS flag, countIf(bitAnd(flags, bit.2) != 0) AS events "
        f"FROM {SCORED_TABLE} ARRAY JOIN arrayZip([{_FLAG_NAMES}], [{_FLAG_BITS}]) AS bit "
        f"WHERE {IN_WINDOW} GROUP BY flag ORDER BY events DESC, flag",
        columns=(Column("flag", "Flag", "text"), Column("events", "Events")),
        width=3,
        help="Flags of scored transactions in the window; an event may have several.",
    ),
    Panel(
        name="operator_control",
        title="Model and rule changes",
        kind="table",
        source="control",
        sql="SELECT max(applied_at) AS applied, kind, subject, issued_by, "
        "countIf(outcome = 'applied') AS applied_shards, "
        "countIf(outcome != 'applied') AS other_shards, any(detail) AS detail "
        "FROM control_outcomes FINAL GROUP BY control_id, kind, subject, issued_by "
        "ORDER BY applied DESC LIMIT 50",
        columns=(
            Column("applied", "When", "time"),
            Column("kind", "Change", "text"),
            Column("subject", "Of", "text"),
            Column("issued_by", "By", "text"),
            Column("applied_shards", "Shards applied"),
            Column("other_shards", "Refused or ignored"),
            Column("detail", "Detail", "text"),
        ),
        width=9,
        refresh_ms=5000,
        help="What the shards made of each control record.",
    ),
)

_FRAUD_FILTERS: Final = (
    Filter(
        "channel",
        "Channel",
        "String",
        f"SELECT DISTINCT toString(channel) AS value FROM {SCORED_TABLE} ORDER BY value",
    ),
    Filter(
        "model",
        "Model",
        "String",
        f"SELECT DISTINCT model_version AS value FROM {SCORED_TABLE} WHERE value != '' "
        "ORDER BY value",
    ),
)

_FRAUD_FEEDS: Final = (
    Feed(
        name="fraud_alerts",
        title="Alert stream",
        source="scored",
        view=SCORED_TABLE,
        where=_ALERTED,
        select="event_id, toUnixTimestamp64Milli(decided_at) AS decided_at, "
        "event_time_ms AS event_time, toString(decision) AS decision, "
        "ifNotFinite(score, -1) AS score, amount_minor / 100 AS amount, currency, customer_id, "
        "terminal_id, merchant_id, country, toString(channel) AS channel, "
        "if(empty(rules_fired), 'the score alone', arrayStringConcat(rules_fired, ', ')) "
        "AS reasons, model_version AS model",
        columns=(
            ("event_id", "string"),
            ("decided_at", "datetime"),
            ("event_time", "datetime"),
            ("decision", "string"),
            ("score", "float"),
            ("amount", "float"),
            ("currency", "string"),
            ("customer_id", "string"),
            ("terminal_id", "string"),
            ("merchant_id", "string"),
            ("country", "string"),
            ("channel", "string"),
            ("reasons", "string"),
            ("model", "string"),
        ),
        shown=(
            "decided_at",
            "event_id",
            "decision",
            "score",
            "amount",
            "currency",
            "customer_id",
            "terminal_id",
            "channel",
            "reasons",
        ),
        index="event_id",
        limit=20_000,
        sort="decided_at",
        drill="event_id",
        help="Reviews and blocks as they come, newest first; click one for the events behind it. A "
        "score of -1 means that no model scored it.",
    ),
)

PAGES: Final[dict[str, str]] = {
    "fraud": "Fraud",
    "operators": "Operations",
    "traders": "Market risk",
}
"""Pages and their titles, in the order of the menu."""

PANELS: Final[dict[str, tuple[Panel, ...]]] = {
    "fraud": _FRAUD,
    "operators": _OPERATORS,
    "traders": TRADER_PANELS,
}
"""The panels of each page, in the order shown."""

FEEDS: Final[dict[str, tuple[Feed, ...]]] = {
    "fraud": _FRAUD_FEEDS,
    "operators": (),
    "traders": TRADER_FEEDS,
}
"""The streaming tables of each page."""

FILTERS: Final[dict[str, tuple[Filter, ...]]] = {
    "fraud": _FRAUD_FILTERS,
    "operators": (),
    "traders": TRADER_FILTERS,
}
"""The choices at the top of each page."""


def panel_named(name: str) -> tuple[str, Panel] | None:
    """Return the page and the panel of a name, or None when there is none."""
    for page, panels in PANELS.items():
        for panel in panels:
            if panel.name == name:
                return page, panel
    return None
