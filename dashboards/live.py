"""Take rows for streaming tables from the topic on which a job publishes them as they are made."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from connectors.readers import Record, TopicReader, TopicUnknown
from connectors.settings import Settings
from schemas.errors import RetryableError

__all__ = ["LiveTopic", "Pushed"]

_LOG: Final = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.25
# After Kafka went away, or while no job has made the topic yet.
_RETRY_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Pushed:
    """One record: rows of a streaming table as an Arrow IPC stream.

    `version_ms` is the wall clock at which they were made.
    """

    table: str
    version_ms: int
    rows: bytes


class LiveTopic:
    """Follows the topic from now on in a thread of its own until closed.

    What came before is in ClickHouse. While Kafka is away or the topic does not exist nothing is
    pushed; both are tried again.

    Args:
        settings: where Kafka is, and the name of the topic.
        push: called with each record, on the thread; what it raises is logged and passed over.
    """

    def __init__(self, settings: Settings, push: Callable[[Pushed], None]) -> None:
        self._kafka = settings.kafka
        self._topic = settings.kafka.topics.name("live")
        self._push = push
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-topic", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        complained = False
        while not self._ended.is_set():
            try:
                with closing(TopicReader(self._kafka, self._topic)) as reader:
                    reader.start()
                    complained = False
                    self._follow(reader)
            except (RetryableError, TopicUnknown) as e:
                if not complained:
                    _LOG.warning("following live rows: %s", e)
                complained = True
                self._ended.wait(_RETRY_SECONDS)

    def _follow(self, reader: TopicReader) -> None:
        while not self._ended.is_set():
            record = reader.poll(_POLL_SECONDS)
            pushed = None if record is None else _read(record)
            if pushed is None:
                continue
            try:
                self._push(pushed)
            except Exception:
                # The rows are in ClickHouse too, which the page asks; those that follow still come.
                _LOG.exception("showing live rows of table %r failed", pushed.table)


def _read(record: Record) -> Pushed | None:
    headers = dict(record.headers)
    table, version = headers.get("table"), headers.get("version")
    if record.value is None or table is None or version is None or not version.isdigit():
        return None
    return Pushed(table.decode(), int(version), record.value)
