"""The page of settings is generated and up to date."""

from __future__ import annotations

from pathlib import Path

from connectors.settings import Settings
from connectors.settings_page import configuration_page

PAGE = Path(__file__).resolve().parents[2] / "docs/guide/configuration.md"


def test_the_configuration_page_shows_the_settings_as_they_are() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == configuration_page(), (
        "run: python -m connectors.settings_page > docs/guide/configuration.md"
    )


def test_every_section_and_key_is_on_the_page() -> None:
    page = configuration_page()
    for name, field in Settings.model_fields.items():
        assert f"## {name}" in page or f"`{name}`" in page
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"`{name}.{key}`" in page or f"## {name}.{key}" in page
