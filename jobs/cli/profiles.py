"""`riskstream profiles`: load and show profiles in Redis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

import click
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from connectors.local.stack import resolved_settings
from connectors.producers.simulator import Population, Simulation
from connectors.producers.source import FileSource
from connectors.profile_loading import (
    derive_profiles,
    load_profiles,
    profiles_from_table,
)
from connectors.profiles import PROFILE_TYPES, ProfileKind, ProfileLookup, redis_client
from jobs.cli.context import settings_of
from jobs.cli.progress import progress_bar
from schemas.columns import StringColumn
from schemas.errors import ConfigurationError

__all__ = ["profiles"]


@click.group()
def profiles() -> None:
    """Load customer, terminal and merchant profiles into Redis, and look at them.

    Example: riskstream profiles load customers.parquet --kind customer
    """


@profiles.command()
@click.argument("file", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["customer", "terminal", "merchant", "transactions"]),
    default="transactions",
    show_default=True,
    help="What FILE holds; from transactions, customers and terminals are derived.",
)
@click.option("--simulated", is_flag=True, help="Load the population of `riskstream simulate`.")
@click.option("--seed", type=int, default=1, show_default=True, help="With --simulated.")
@click.option("--customers", type=click.IntRange(min=1), default=5_000, show_default=True)
@click.option("--terminals", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Derive from this many transactions only."
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object.")
@click.pass_context
def load(
    ctx: click.Context,
    file: Path | None,
    kind: Literal["customer", "terminal", "merchant", "transactions"],
    simulated: bool,
    seed: int,
    customers: int,
    terminals: int,
    limit: int | None,
    as_json: bool,
) -> None:
    """Fill Redis with the profiles in FILE (Parquet or CSV), or with simulated ones.

    Example: riskstream profiles load transactions.parquet
    """
    if (file is None) != simulated:
        msg = "give a FILE or --simulated"
        raise click.UsageError(msg)
    settings = resolved_settings(settings_of(ctx))
    if file is None:
        found = Simulation(Population(seed, customers, terminals)).profiles()
    elif kind == "transactions":
        source = FileSource(file, limit=limit)
        with progress_bar(f"reading {file.name}", source.total) as advance:
            found = derive_profiles(source, advance)
    else:
        found = [profiles_from_table(kind, _read(file))]
    client = redis_client(settings.redis)
    counts: dict[str, int] = {}
    with progress_bar("writing profiles", sum(len(item) for item in found)) as advance:
        for item in found:
            counts[item.kind] = load_profiles(client, item, advance)
    client.close()
    if as_json:
        click.echo(json.dumps({"loaded": counts}))
    else:
        click.echo("loaded " + ", ".join(f"{n:,} {name} profiles" for name, n in counts.items()))


@profiles.command()
@click.argument("kind", type=click.Choice(list(get_args(ProfileKind))))
@click.argument("entity_id")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(ctx: click.Context, kind: ProfileKind, entity_id: str, as_json: bool) -> None:
    """Show one profile; exit 1 when there is none.

    Example: riskstream profiles show customer 596
    """
    settings = resolved_settings(settings_of(ctx))
    client = redis_client(settings.redis)
    lookup = ProfileLookup(lambda: client, kind, cache_entries=8, give_up_after=3)
    batch = lookup.lookup(StringColumn.from_texts([entity_id]))
    client.close()
    if not batch.found[0]:
        click.echo(f"no {kind} profile for {entity_id!r}", err=True)
        ctx.exit(1)
    names = PROFILE_TYPES[kind].names or ()
    fields = {name: batch.columns[name][0].item() for name in names if name != "version"}
    if as_json:
        click.echo(json.dumps({"kind": kind, "id": entity_id, **fields}))
        return
    for name, value in fields.items():
        click.echo(f"{name:<20} {value}")


def _read(file: Path) -> pa.Table:
    try:
        if file.name.lower().endswith((".csv", ".csv.gz")):
            return pyarrow.csv.read_csv(file)
        return pq.read_table(file)
    except (OSError, pa.ArrowException) as e:
        msg = f"reading profiles {str(file)!r}: {e}; expected Parquet or CSV"
        raise ConfigurationError(msg) from e
