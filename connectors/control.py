"""Publish control records: orders to a running job, in one order with its events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import schemas
from connectors.confirmed import Message, publish_confirmed
from connectors.settings import Settings
from schemas.avro import RecordEncoder
from schemas.registry import FileRegistry, open_registry, stable_schema_id, value_subject

__all__ = ["encode_control", "publish_control"]

_CONTRACT: Final = Path(schemas.__file__).parent / "contracts" / "control.avsc"


def encode_control(
    settings: Settings, record: Mapping[str, object], topic: str = "control"
) -> bytes:
    """Return a record of contract `control` with its wire header.

    `topic` is the settings field of the topic it goes to.

    Raises:
        EncodeError: when the record does not fit the contract.
    """
    text = _CONTRACT.read_text(encoding="utf-8")
    registry = open_registry(settings.schemas)
    # In a folder the id follows from the schema alone, and ours is committed there.
    schema_id = (
        stable_schema_id(text)
        if isinstance(registry, FileRegistry)
        else registry.register(value_subject(settings.kafka.topics.name(topic)), text)
    )
    return RecordEncoder(text, schema_id).encode(record)


def publish_control(
    settings: Settings, record: Mapping[str, object], topic: str = "control"
) -> None:
    """Publish one control record and return when Kafka has confirmed it.

    `settings` name a running Kafka, `topic` the settings field of the job's topic of orders;
    repeating a record is harmless.

    Raises:
        RetryableError: when Kafka did not confirm it within half a minute.
    """
    message = Message(str(record["subject"]).encode(), encode_control(settings, record, topic))
    name = settings.kafka.topics.name(topic)
    publish_confirmed(settings.kafka, name, [message], "a control record")
