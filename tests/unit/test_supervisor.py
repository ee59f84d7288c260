"""How soon a part that ended starts again."""

from __future__ import annotations

from connectors.local.supervisor import (
    BACKOFF_SECONDS,
    FORGIVE_SECONDS,
    failures_in_a_row,
    pause_seconds,
)


def test_a_part_that_ran_for_long_starts_again_at_once() -> None:
    for before in range(10):
        after = failures_in_a_row(before, FORGIVE_SECONDS + 1)
        assert pause_seconds(after) == BACKOFF_SECONDS[0]


def test_a_part_that_keeps_failing_waits_longer_each_time_up_to_a_bound() -> None:
    failures, pauses = 0, []
    for _ in range(10):
        failures = failures_in_a_row(failures, 1.0)
        pauses.append(pause_seconds(failures))
    assert pauses == [*BACKOFF_SECONDS, *[BACKOFF_SECONDS[-1]] * 4]
