"""Write the Grafana files anew, or say which are out of date.

Example: python -m dashboards.grafana --check
"""

from __future__ import annotations

from pathlib import Path

import click

from dashboards.grafana.generate import grafana_files

__all__ = ["main"]


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent,
    help="Folder to write to, instead of this package's.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when a file would change.")
def main(out: Path, check: bool) -> None:
    """Generate dashboards and provisioning files for Grafana from `dashboards/queries.py`."""
    changed = 0
    for name, text in grafana_files().items():
        path = out / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        changed += 1
        click.echo(f"{'out of date' if check else 'written'}: {name}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if check and changed:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
