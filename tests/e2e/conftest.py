"""A real local stack for the end-to-end tests: started once, in a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.local.stack import LocalStack, resolved_settings
from connectors.settings import Settings, load_settings


@pytest.fixture(scope="session")
def stack_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Return settings whose addresses are those of a running stack."""
    home = tmp_path_factory.mktemp("stack")
    # Jobs register subjects for the topics that they are given: in a copy, not in the repository.
    shutil.copytree(Path(__file__).resolve().parents[2] / "schemas/registry", home / "schemas")
    settings = load_settings(
        environment={},
        overrides=[
            f"home={home}",
            "kafka.topics.partitions=2",
            "flink.checkpoint_interval_ms=1000",
            f"models.registry=file:{home}/models",
            f"schemas.registry=file:{home}/schemas",
            "clickhouse.gather_ms=200",
        ],
    )
    stack = LocalStack(settings)
    stack.up()
    try:
        yield resolved_settings(settings)
    finally:
        stack.down(purge=True)
