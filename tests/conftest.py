"""Fixtures shared by every rung of the test ladder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# CI judges a change, so it must judge the same change alike each time; all other runs search on.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return a function that finds a folder of real data, or skips the test and says so."""
    base = Path(os.environ.get("RISKSTREAM_SHARED_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        folder = base / name
        if not folder.is_dir():
            # Others' data: no part of the repository, so a clone elsewhere does without.
            pytest.skip(f"real data {name!r} is not at {base}; set RISKSTREAM_SHARED_DATA to it")
        return folder

    return find
