"""One stack for all fault tests; each starts jobs of its own on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.local.stack import LocalStack
from connectors.settings import Settings
from tests.faults.stand import stack_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def faults_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Return the settings of a running stack with a schema registry of its own."""
    home: Path = tmp_path_factory.mktemp("faults")
    shutil.copytree(ROOT / "schemas" / "registry", home / "registry")
    settings = stack_settings(
        home, "local.high_availability=false", f"schemas.registry=file:{home}/registry"
    )
    stack = LocalStack(settings)
    stack.up()
    try:
        yield settings
    finally:
        stack.down(purge=True)
