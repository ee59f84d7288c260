"""What follows the topic of live rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from connectors.readers import Record
from connectors.settings import load_settings
from dashboards.live import LiveTopic, Pushed


class _Reader:
    """Gives records, then ends the topic's thread."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = list(records)
        self.topic: LiveTopic | None = None

    def poll(self, seconds: float) -> Record | None:
        if self._records:
            return self._records.pop(0)
        assert self.topic is not None
        self.topic._ended.set()
        return None


def _record(table: str, version: bytes = b"1", value: bytes | None = b"rows") -> Record:
    headers = (("table", table.encode()), ("version", version))
    return Record("market-live", 0, 0, 0, None, value, headers)


def test_rows_that_cannot_be_shown_do_not_end_those_that_follow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown: list[str] = []

    def push(pushed: Pushed) -> None:
        if pushed.table == "broken":
            msg = "not Arrow"
            raise ValueError(msg)
        shown.append(pushed.table)

    reader = _Reader(
        [_record("broken"), _record("no version", b"x"), _record("empty", value=None), _record("p")]
    )
    topic = reader.topic = LiveTopic(load_settings(environment={}), push)
    with caplog.at_level(logging.ERROR):
        topic._follow(reader)  # type: ignore[arg-type]
    assert shown == ["p"]
    assert "'broken'" in caplog.text
