"""Open what a producer needs from the settings: topics, and encoders with their schema ids."""

from __future__ import annotations

from contextlib import suppress

from connectors.producers.replay import Route
from connectors.settings import Settings
from schemas.contract import contract
from schemas.encoder import ColumnarEncoder
from schemas.registry import (
    FileRegistry,
    SchemaRegistry,
    UnknownSchemaError,
    open_registry,
    stable_schema_id,
    value_subject,
)

__all__ = ["label_route", "transaction_route"]


def transaction_route(settings: Settings) -> Route:
    """Return where card transactions go, in the contract of this release.

    Raises:
        IncompatibleSchemaError: when the registry refuses the contract.
        RetryableError: when the registry does not answer.
    """
    return _route(settings, settings.kafka.topics.name("transactions"), "card_transaction")


def label_route(settings: Settings) -> Route:
    """Return where labels go, in the contract of this release; raises as `transaction_route`."""
    return _route(settings, settings.kafka.topics.name("labels"), "label")


def _route(settings: Settings, topic: str, name: str) -> Route:
    text = contract(name)
    schema_id = _schema_id(open_registry(settings.schemas), topic, text)
    encoder = ColumnarEncoder(text, schema_id)
    encoder.warm()
    return Route(topic, encoder)


def _schema_id(registry: SchemaRegistry, topic: str, text: str) -> int:
    # In a folder the id follows from the schema alone, and the folder is committed: a topic with a
    # prefix of its own must not add files to it.
    if isinstance(registry, FileRegistry):
        with suppress(UnknownSchemaError):
            return registry.schema_by_id(stable_schema_id(text)).schema_id
    return registry.register(value_subject(topic), text)
