"""The fraud job's answers depend on the records alone: not on batches, shards or restarts."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from connectors.tables import SCORE_FLAGS
from tests.support.fraud import DAY_MS, START_MS, Fraud, control, label, offline_settings, payment

RULES = """
format: 1
name: second
rules:
  - id: all_above_five
    title: "An amount of {amount}."
    when: amount > 5
    then: review
    weight: 1
"""
EVENTS = 150
DAYS = 40
# Partitions are read within half a day of each other, so no batch may mix events further apart.
BATCH_MS = DAY_MS // 2


@cache
def home() -> Path:
    return Path(mkdtemp(prefix="riskstream-stages-"))


class Stream:
    """Forty days of payments of few customers at few terminals, with labels six days later."""

    def __init__(self) -> None:
        chance = random.Random(5)
        entries: list[tuple[int, bytes]] = []
        offsets = {"payment": 0, "label": 0}
        times = sorted(START_MS + chance.randrange(DAYS * DAY_MS) for _ in range(EVENTS))
        for at_ms in times:
            # Some events are late by up to an hour, some customers are busy.
            event_ms = at_ms - chance.choice([0, 0, 0, 3_600_000])
            customer, terminal = f"C{min(chance.randrange(12), 5)}", f"T{chance.randrange(4)}"
            offset = offsets["payment"]
            entries.append(
                (
                    at_ms,
                    payment(
                        offset,
                        customer,
                        terminal,
                        at_ms=event_ms,
                        timestamp_ms=at_ms,
                        amount_minor=chance.choice([0, 1, 700, 22_100, 900_000]),
                        country=chance.choice([None, "FR", "DE"]),
                    ),
                )
            )
            offsets["payment"] += 1
            if chance.random() < 0.4:
                verdict = label(
                    offsets["label"],
                    f"e0-{offset}",
                    customer,
                    terminal,
                    event_ms,
                    is_fraud=chance.random() < 0.7,
                )
                entries.append((event_ms + 6 * DAY_MS, verdict))
                offsets["label"] += 1
        entries.sort(key=lambda entry: entry[0])
        middle = len(entries) // 2
        at_ms = entries[middle][0]
        entries.insert(middle, (at_ms, control(0, "activate_rules", "rules", rules=RULES)))
        self.frames = [data for _, data in entries]
        # What a control record comes before and after is only defined between batches: events of
        # other shards overtake it inside one.
        self.forced = [
            index
            for index in range(1, len(entries))
            if index in (middle, middle + 1)
            or entries[index][0] // BATCH_MS != entries[index - 1][0] // BATCH_MS
        ]


@cache
def stream() -> Stream:
    return Stream()


@cache
def opened(shards: int) -> Fraud:
    return Fraud(offline_settings(home()), shards)


def fresh(shards: int) -> Fraud:
    return opened(shards).reset()


def answers(fraud: Fraud) -> dict[str, Any]:
    """Return all that must not change, without what the clock says.

    The flag "late" says in which order a terminal saw payments of different customers, which is
    not defined; what is computed from them does not depend on it.
    """
    rows = fraud.by_place()
    for row in rows.values():
        row["flags"] &= ~SCORE_FLAGS["late"]
    return {
        "rows": rows,
        "alerts": {
            alert["alert_id"]: {k: v for k, v in alert.items() if k not in {"decided_at_ms"}}
            for alert in fraud.alerts()
        },
        "labels": sorted((row["kafka_offset"], row["event_id"]) for row in fraud.label_rows()),
        "letters": sorted((one["topic"], one["offset"], one["reason"]) for one in fraud.letters()),
    }


@cache
def reference() -> dict[str, Any]:
    """Return the answers of one shard that sees one record at a time and never restarts."""
    fraud = fresh(1)
    fraud.send(stream().frames, range(1, len(stream().frames)))
    return answers(fraud)


def test_the_stream_of_these_tests_exercises_windows_labels_alerts_and_rules() -> None:
    rows = list(reference()["rows"].values())
    assert len(rows) == EVENTS
    assert len({row["rule_set_version"] for row in rows}) == 2
    assert len({row["terminal_fraud_rate_30d_delay_7d"] for row in rows}) > 5
    assert len({row["customer_count_7d"] for row in rows}) > 5
    assert 0 < len(reference()["alerts"]) < EVENTS
    assert reference()["letters"] == []


# An example costs a second, so failures are shown as they are found.
AS_FOUND = settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
    database=None,
)


@AS_FOUND
@given(
    cuts=st.sets(st.integers(1, EVENTS), max_size=60),
    restarts=st.sets(st.integers(1, EVENTS), max_size=3),
    shards=st.sampled_from([1, 2, 4, 8]),
)
def test_answers_do_not_depend_on_batches_shards_or_restarts(
    cuts: set[int], restarts: set[int], shards: int
) -> None:
    frames, forced = stream().frames, stream().forced
    fraud = fresh(shards)
    bounds = [0, *sorted(restarts), len(frames)]
    for low, high in pairwise(bounds):
        if low:
            fraud.restart()
        inside = sorted(at - low for at in {*cuts, *forced} if low < at < high)
        fraud.send(frames[low:high], inside)
    found = answers(fraud)
    wanted = reference()
    assert found["rows"] == wanted["rows"]
    assert found["alerts"] == wanted["alerts"]
    assert found["labels"] == wanted["labels"]
    assert found["letters"] == wanted["letters"]


@AS_FOUND
@given(checkpoint=st.integers(1, EVENTS - 1), beyond=st.integers(1, 120))
def test_a_replay_from_a_checkpoint_repeats_the_same_rows_and_alert_ids(
    checkpoint: int, beyond: int
) -> None:
    frames, forced = stream().frames, stream().forced
    fraud = fresh(4)
    fraud.send(frames[:checkpoint], [at for at in forced if at < checkpoint])
    kept = [
        {shard: dict(state.entries) for shard, state in stage.items()}
        for stage in fraud.pipeline.state
    ]
    crash = min(len(frames), checkpoint + beyond)
    fraud.send(
        frames[checkpoint:crash], [at - checkpoint for at in forced if checkpoint < at < crash]
    )
    # The crash: memory and state since the checkpoint are gone, what was sent out is not.
    fraud.restart()
    for stage, entries in zip(fraud.pipeline.state, kept, strict=True):
        for shard in list(stage):
            stage[shard].entries = dict(entries.get(shard, {}))
    fraud.send(frames[checkpoint:], [at - checkpoint for at in forced if at > checkpoint])
    found = answers(fraud)
    assert len(fraud.rows()) > EVENTS or crash == checkpoint or beyond < 3
    assert found["rows"] == reference()["rows"]
    assert found["alerts"] == reference()["alerts"]


def test_a_control_record_that_is_repeated_changes_nothing() -> None:
    frames = stream().frames
    index = next(at for at, data in enumerate(frames) if b"activate_rules" in data)
    fraud = fresh(4)
    fraud.send(
        [*frames[: index + 1], frames[index], *frames[index + 1 :]],
        [at + (at > index) for at in stream().forced],
    )
    assert answers(fraud)["rows"] == reference()["rows"]
