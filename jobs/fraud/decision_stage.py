"""Last stage of the fraud job: terminal windows, profiles, model, rules, decision, outputs.

In: frames from the customer stage with the customer's features attached, by terminal shard. Out:
alerts and dead letters for Kafka; a row for ClickHouse for every transaction, label and control
record.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np

from connectors.frames import attachments_matrix, kafka_packet, write_frame
from connectors.row_binary import NameSets, PackedValue
from connectors.tables import (
    SCORE_FLAGS,
    control_layout,
    label_layout,
    scored_layout,
    shadow_layout,
)
from jobs.control_rows import control_columns
from jobs.fraud.clickhouse_rows import (
    CONTROL_ROWS,
    LABEL_ROWS,
    SCORED_ROWS,
    SHADOW_ROWS,
    table_rows,
)
from jobs.fraud.customer_stage import event_batch
from jobs.fraud.intake import Refusal
from jobs.fraud.model_routes import route_hashes
from jobs.fraud.parts import now_ms
from jobs.fraud.reasons import ScoredRows
from jobs.fraud.rule_columns import PROFILE_KINDS
from jobs.fraud.shard import DecisionShard
from jobs.rules.decision import Decision, decide
from jobs.windows.event_features import event_features
from models.control import ControlRecord
from schemas.columns import Column, NumberColumn, StringColumn
from schemas.reasons import AvroRecordError
from schemas.strings import hash64

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from connectors.frames import FrameBatch
    from jobs.fraud.intake import Intake
    from jobs.fraud.parts import StageParts
    from jobs.stage import Metrics, StateMap
    from models.scorer import Scores

__all__ = ["DecisionStage"]

ENTITY: Final = "terminal"
TEXTS: Final = (
    "event_id",
    "customer_id",
    "terminal_id",
    "merchant_id",
    "currency",
    "country",
    "tenant",
)
MAX_RULE_NAMES: Final = 64


class DecisionStage:
    """Score and decide; every transaction that reaches this stage becomes a row."""

    def __init__(self, parts: StageParts, champion: str) -> None:
        """Take the parts, and the model that decides until a control record says otherwise."""
        self._parts = parts
        self._champion = champion

    def open(self, metrics: Metrics) -> None:
        """Load contracts, models and rules; compile and warm the kernels; connect to Redis."""
        parts = self._parts
        self._metrics = metrics
        self._features = parts.features
        self._attached = len(parts.features.names_of("customer")) + 1
        self._intake = parts.intake()
        self._alert_encoder = parts.encoder("alerts", "alert")
        self._alert_topic = parts.settings.kafka.topics.name("alerts")
        self._dead_letters = parts.dead_letters(ENTITY)
        self._profiles = {kind: parts.profiles(kind, metrics) for kind in PROFILE_KINDS}
        self._models = parts.models()
        self._rules = parts.rules()
        self._control = parts.control_decoder()
        self._scored_layout = scored_layout(parts.features.names)
        self._label_layout = label_layout()
        self._control_layout = control_layout()
        self._shadow_layout = shadow_layout()
        self._shards: dict[int, DecisionShard] = {}
        self._cache_counts = (0, 0)
        parts.warm()

    def process(self, shard: int, batch: bytes, state: StateMap) -> bytes:
        """Return packets: alerts, dead letters, and rows for ClickHouse."""
        began = time.perf_counter()
        unit = self._shards.get(shard)
        if unit is None:
            unit = self._shards[shard] = DecisionShard(
                self._parts.settings,
                self._features,
                self._models,
                self._champion,
                self._rules,
                state,
            )
        intake = self._intake.read(batch)
        windows = unit.store.process(event_batch(intake, ENTITY))
        if windows.delta:
            unit.log.append(windows.delta, unit.store.clock_ms)
        attached = attachments_matrix(intake.frames, self._attached)
        of_event = event_features(self._features, intake.number("event_time_ms"), intake.columns)
        own, before = of_event.shape[1], of_event.shape[1] + self._attached - 1
        features = np.empty((len(intake), before + windows.features.shape[1]))
        features[:, :own] = of_event
        features[:, own:before] = attached[:, :-1]
        features[:, before:] = windows.features
        passed = attached[:, -1]
        # A frame without an attachment (a control record) has NaN here, the only value not itself.
        flags = np.where(passed == passed, passed, 0).astype(np.uint16) | windows.flags
        packets: list[bytes] = []
        seen = unit.seen(len(intake), now_ms())
        done = 0
        for row in [*intake.controls.tolist(), len(intake)]:
            between = intake.transactions
            if len(intake.controls):
                between = between[(between >= done) & (between < row)]
            if len(between):
                packets += self._score(unit, intake, between, features, flags, seen)
            if row < len(intake):
                packets.append(self._apply(unit, intake, row, shard))
            done = row + 1
        if len(intake.labels):
            packets.append(self._label_rows(intake, seen))
        self._metrics.count("batches")
        self._metrics.observe_ms("decision_stage_ms", (time.perf_counter() - began) * 1000)
        return b"".join(packets)

    def forget(self, shard: int) -> None:
        """Drop what memory holds of a shard."""
        self._shards.pop(shard, None)

    def letter(self, frames: FrameBatch, row: int, reason: str, detail: str) -> bytes:
        """Return the frame of a dead letter."""
        return self._dead_letters.frame(frames, row, reason, detail)

    def _score(
        self,
        unit: DecisionShard,
        intake: Intake,
        rows: NDArray[np.intp],
        features: NDArray[np.float64],
        flags: NDArray[np.uint16],
        seen: NDArray[np.int64],
    ) -> list[bytes]:
        whole = len(rows) == len(intake)
        event = intake.columns if whole else _rows(intake.columns, rows)
        matrix = features if whole else features[rows]
        flags = flags if whole else flags[rows]
        customer = _text(event, "customer_id")
        profiles = {
            kind: lookup.lookup(_text(event, f"{kind}_id"))
            for kind, lookup in self._profiles.items()
        }
        for profile in profiles.values():
            if profile.found.all():
                continue
            missing = np.where(profile.found, 0, SCORE_FLAGS["profile_missing"])
            flags = flags | missing.astype(np.uint16)
            if profile.unavailable.any():
                flags |= np.where(
                    profile.unavailable, SCORE_FLAGS["scored_without_profile"], 0
                ).astype(np.uint16)
        routed = {route.field for route in unit.engine.active.routes}
        scores = unit.engine.score(matrix, hash64(customer), route_hashes(routed, event))
        if scores.unscored:
            flags = flags | np.where(
                np.isnan(scores.score), SCORE_FLAGS["scored_without_model"], 0
            ).astype(np.uint16)
        columns = unit.rule_columns.columns(event, matrix, scores.score, profiles)
        fired = unit.rules.evaluate(columns, len(rows))
        decision = _decide(unit, scores, fired)
        frames = intake.frames
        decided_at_ms = now_ms()
        packets = [
            table_rows(
                SCORED_ROWS,
                len(rows),
                self._scored_layout.pack(
                    {
                        "event_time_ms": _numbers(event, "event_time_ms"),
                        "amount_minor": _numbers(event, "amount_minor"),
                        "channel": _numbers(event, "channel"),
                        "score": scores.score,
                        "decision": decision.codes,
                        "flags": flags,
                        "kafka_partition": frames.partition[rows],
                        "kafka_offset": frames.offset[rows],
                        "published_at_ms": frames.timestamp_ms[rows],
                        "ingested_at_ms": frames.ingest_ms[rows],
                        "decided_at_ms": decided_at_ms,
                        "seen_order": seen[rows],
                        **{name: _text(event, name) for name in TEXTS},
                        "model_version": _versions(unit, scores),
                        "rule_set_version": unit.rules.version,
                        "feature_set_version": self._features.version,
                        "kafka_topic": frames.topic.take(rows),
                        "rules_fired": _fired_names(unit, fired),
                        "features": matrix,
                    },
                    len(rows),
                ),
            )
        ]
        if scores.shadow:
            packets.append(self._shadow_rows(event, frames, rows, scores, decided_at_ms))
        alerts = decision.alerts
        if len(alerts):
            scored = ScoredRows(
                {**event, **columns},
                matrix,
                scores.score,
                fired,
                decision,
                frames.topic.take(rows),
                frames.partition[rows],
                frames.offset[rows],
                frames.timestamp_ms[rows],
                frames.ingest_ms[rows],
            )
            packets.append(self._alerts(unit, scored, scores, alerts, decided_at_ms))
        self._count(frames.timestamp_ms[rows], decided_at_ms, len(alerts))
        return packets

    def _shadow_rows(
        self,
        event: Mapping[str, Column],
        frames: FrameBatch,
        rows: NDArray[np.intp],
        scores: Scores,
        decided_at_ms: int,
    ) -> bytes:
        same: dict[str, PackedValue] = {
            "event_time_ms": _numbers(event, "event_time_ms"),
            "kafka_partition": frames.partition[rows],
            "kafka_offset": frames.offset[rows],
            "decided_at_ms": decided_at_ms,
            "event_id": _text(event, "event_id"),
            "kafka_topic": frames.topic.take(rows),
        }
        return b"".join(
            table_rows(
                SHADOW_ROWS,
                len(rows),
                self._shadow_layout.pack(
                    {**same, "score": score, "model_version": version}, len(rows)
                ),
            )
            for version, score in scores.shadow.items()
        )

    def _alerts(
        self,
        unit: DecisionShard,
        scored: ScoredRows,
        scores: Scores,
        alerts: NDArray[np.int64],
        decided_at_ms: int,
    ) -> bytes:
        frames = []
        models = scores.model_index[alerts]
        for index in sorted(set(models.tolist())):
            mine = alerts[models == index]
            version, thresholds = unit.engine.versions[index], unit.thresholds(index)
            builder = unit.builder(thresholds)
            evidence = (
                unit.engine.model(version)
                .evidence()
                .of(
                    scored.features[mine],
                    builder.only_by_score(scored, mine),
                    thresholds.review,
                )
            )
            built = builder.build(scored, mine, evidence, version, decided_at_ms)
            frames += [
                write_frame(
                    self._alert_topic,
                    alert["entity_id"].encode(),
                    self._alert_encoder.encode(alert),
                    headers=(("alert_id", alert["alert_id"].encode()),),
                    timestamp_ms=decided_at_ms,
                )
                for alert in built
            ]
        return kafka_packet(frames)

    def _apply(self, unit: DecisionShard, intake: Intake, row: int, shard: int) -> bytes:
        frames = intake.frames
        try:
            control = ControlRecord.from_record(self._control.decode(frames.value.bytes_at(row)))
        except AvroRecordError as e:
            # Every shard has a copy of a control record; one of them writes the dead letter.
            if shard:
                return b""
            letter = self._dead_letters.frame(frames, row, Refusal.BAD_CONTROL.code, str(e))
            self._metrics.count("dead_letters")
            return kafka_packet([letter])
        outcome = unit.apply(control)
        self._metrics.count("control_applied" if outcome.accepted else "control_refused")
        columns = control_columns(frames, row, shard, control, outcome, now_ms())
        return table_rows(CONTROL_ROWS, 1, self._control_layout.pack(columns, 1))

    def _label_rows(self, intake: Intake, seen: NDArray[np.int64]) -> bytes:
        rows = intake.labels
        event = _rows(intake.columns, rows)
        frames = intake.frames
        packed = self._label_layout.pack(
            {
                "event_time_ms": _numbers(event, "event_time_ms"),
                "is_fraud": _numbers(event, "is_fraud"),
                "labelled_at_ms": _numbers(event, "labelled_at_ms"),
                "source": _numbers(event, "source"),
                "revision": _numbers(event, "revision"),
                "kafka_partition": frames.partition[rows],
                "kafka_offset": frames.offset[rows],
                "seen_order": seen[rows],
                **{name: _text(event, name) for name in ("event_id", "customer_id", "terminal_id")},
                "kafka_topic": frames.topic.take(rows),
            },
            len(rows),
        )
        self._metrics.count("labels", len(rows))
        return table_rows(LABEL_ROWS, len(rows), packed)

    def _count(self, published_ms: NDArray[np.int64], decided_at_ms: int, alerts: int) -> None:
        metrics = self._metrics
        metrics.count("scored", len(published_ms))
        metrics.count("alerts", alerts)
        # One observation a batch, of its slowest event, weighted by the batch: a histogram call for
        # every event would cost more than scoring it.
        oldest = int(published_ms.min())
        if oldest >= 0:
            metrics.observe_ms("publish_to_decision_ms", decided_at_ms - oldest, len(published_ms))
        hits = sum(lookup.counts.cache_hits for lookup in self._profiles.values())
        rows = sum(lookup.counts.rows for lookup in self._profiles.values())
        metrics.count("profile_cache_hits", hits - self._cache_counts[0])
        metrics.count("profile_lookups", rows - self._cache_counts[1])
        self._cache_counts = (hits, rows)


def _decide(unit: DecisionShard, scores: Scores, fired: NDArray[np.bool_]) -> Decision:
    rules = unit.rules
    first = int(scores.model_index[0])
    decision = decide(scores.score, fired, rules.actions, rules.order, unit.thresholds(first))
    others = scores.model_index != first
    if not others.any():
        return decision
    for index in np.unique(scores.model_index[others]).tolist():
        mine = np.flatnonzero(scores.model_index == index)
        other = decide(
            scores.score[mine], fired[mine], rules.actions, rules.order, unit.thresholds(index)
        )
        decision.codes[mine] = other.codes
        decision.causes[mine] = other.causes
        decision.rule[mine] = other.rule
    return decision


def _versions(unit: DecisionShard, scores: Scores) -> str | StringColumn:
    names = unit.engine.versions
    first = int(scores.model_index[0])
    if (scores.model_index == first).all():
        return names[first]
    table = StringColumn.from_texts(names)
    return table.take(scores.model_index.astype(np.intp))


def _fired_names(unit: DecisionShard, fired: NDArray[np.bool_]) -> NameSets:
    names = [rule.id for rule in unit.rules.rules]
    if len(names) <= MAX_RULE_NAMES:
        return NameSets(unit.rules.masks(fired), names)
    mask = np.zeros(len(fired), np.uint64)
    for number in range(min(len(names), MAX_RULE_NAMES)):
        mask |= fired[:, number].astype(np.uint64) << np.uint64(number)
    return NameSets(mask, names[:MAX_RULE_NAMES])


def _rows(columns: Mapping[str, Column], rows: NDArray[np.intp]) -> dict[str, Column]:
    return {
        name: NumberColumn(column.values[rows], column.valid[rows])
        if isinstance(column, NumberColumn)
        else column.take(rows)
        for name, column in columns.items()
    }


def _text(columns: Mapping[str, Column], name: str) -> StringColumn:
    column = columns[name]
    if not isinstance(column, StringColumn):
        msg = f"column {name!r} holds numbers, not text"
        raise TypeError(msg)
    return column


def _numbers(columns: Mapping[str, Column], name: str) -> NDArray[np.generic]:
    column = columns[name]
    if not isinstance(column, NumberColumn):
        msg = f"column {name!r} holds text, not numbers"
        raise TypeError(msg)
    return column.values
