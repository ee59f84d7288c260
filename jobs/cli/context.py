"""Give each verb its settings: parsed once from file < environment < flags."""

from __future__ import annotations

from pathlib import Path

import click

from connectors.settings import Settings, load_settings

__all__ = ["settings_of"]


def settings_of(ctx: click.Context) -> Settings:
    """Return the settings for this command.

    Raises:
        ConfigurationError: with every mistake in file, environment and flags.
    """
    config_file, overrides = ctx.find_root().obj or (None, ())
    return load_settings(Path(config_file) if config_file else None, overrides=overrides)
