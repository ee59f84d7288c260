"""`riskstream config`: the settings in force."""

from __future__ import annotations

import json

import click

from jobs.cli.context import settings_of

__all__ = ["config"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def config(ctx: click.Context, as_json: bool) -> None:
    """Show the settings in force, secrets masked, with their fingerprint.

    Example: riskstream --set flink.shards=4 config
    """
    settings = settings_of(ctx)
    tree = json.loads(settings.masked_json())
    if as_json:
        click.echo(json.dumps({"fingerprint": settings.fingerprint(), "settings": tree}))
        return
    click.echo(f"# fingerprint {settings.fingerprint()}")
    for path, value in _leaves(tree, ()):
        click.echo(f"{'.'.join(path)} = {json.dumps(value)}")


def _leaves(tree: dict[str, object], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], object]]:
    found: list[tuple[tuple[str, ...], object]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _leaves(value, (*path, key))
        else:
            found.append(((*path, key), value))
    return found
