"""The verb `schema`: list, show, check and register Avro contracts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from jobs.cli.context import settings_of
from schemas.compatibility import Mode, Problem, check_compatibility
from schemas.errors import ConfigurationError
from schemas.model import Node, parse_schema
from schemas.registry import SchemaRegistry, open_registry, value_subject
from schemas.sensitivity import sensitive_fields

__all__ = ["schema"]

_CONTRACTS: Final = Path(__file__).resolve().parents[2] / "schemas" / "contracts"
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")


@click.group()
def schema() -> None:
    """List, show, check and register Avro contracts.

    Example: riskstream schema check schemas/contracts/alert.avsc --against fraud-alerts-value
    """


def _registry(ctx: click.Context) -> SchemaRegistry:
    return open_registry(settings_of(ctx).schemas)


@schema.command("list")
@_JSON
@click.pass_context
def list_command(ctx: click.Context, *, as_json: bool) -> None:
    """List the subjects of the registry with their versions.

    Example: riskstream schema list --json
    """
    registry = _registry(ctx)
    rows = [
        {
            "subject": subject,
            "version": item.version,
            "schema_id": item.schema_id,
            "name": item.node.label(),
            "fields": len(item.node.fields),
        }
        for subject in registry.subjects()
        for item in registry.versions(subject)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max((len(str(row["subject"])) for row in rows), default=7)
    click.echo(f"{'SUBJECT':<{width}}  VERSION          ID  FIELDS  NAME")
    for row in rows:
        click.echo(
            f"{row['subject']:<{width}}  {row['version']:>7}  {row['schema_id']:>10}  "
            f"{row['fields']:>6}  {row['name']}"
        )


@schema.command("show")
@click.argument("name")
@click.option("--version", type=int, help="Version of the subject (the newest by default).")
@_JSON
@click.pass_context
def show_command(ctx: click.Context, name: str, version: int | None, *, as_json: bool) -> None:
    """Show one schema: NAME is a subject, a topic, a schema id or a file.

    Example: riskstream schema show card-transactions
    """
    node, text, title = _find(_registry(ctx), name, version)
    if as_json:
        click.echo(json.dumps(json.loads(text), indent=2))
        return
    click.echo(f"{node.label()}  ({title})")
    if node.doc:
        click.echo(f"{node.doc}\n")
    sensitive = sensitive_fields(node)
    for field in node.fields:
        mark = f"  [{sensitive[field.name]}]" if field.name in sensitive else ""
        click.echo(f"  {field.name}: {field.type.label()}{mark}")
        if field.doc:
            click.echo(f"      {field.doc}")


@schema.command("check")
@click.argument("names", metavar="[SUBJECT_OR_FILE]...", nargs=-1)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice([mode.value for mode in Mode], case_sensitive=False),
    help="Promise to check (repeatable); all six by default.",
)
@click.option("--against", help="Subject, topic, schema id or file to compare with.")
@_JSON
@click.pass_context
def check_command(
    ctx: click.Context,
    names: tuple[str, ...],
    modes: tuple[str, ...],
    against: str | None,
    *,
    as_json: bool,
) -> None:
    """Check schemas against the registered versions; exit 1 when a promise would be broken.

    A file is compared with the subject in --against, or with every subject whose newest version has
    its name. A subject is checked version by version against those before it. Without arguments all
    contracts of the repository are checked, as CI does.

    Example: riskstream schema check schemas/contracts/label.avsc --mode FULL_TRANSITIVE
    """
    registry = _registry(ctx)
    wanted = [Mode(mode.upper()) for mode in modes] or [mode for mode in Mode if mode != Mode.NONE]
    targets = names or tuple(str(path) for path in sorted(_CONTRACTS.glob("*.avsc")))
    results: list[dict[str, object]] = []
    for name in targets:
        for subject, node, earlier in _comparisons(registry, name, against):
            for mode in wanted:
                problems = check_compatibility(node, earlier, mode)
                results.append(
                    {
                        "schema": name,
                        "subject": subject,
                        "mode": mode.value,
                        "versions": len(earlier),
                        "compatible": not problems,
                        "problems": [_as_json(problem) for problem in problems],
                    }
                )
                if not as_json:
                    _print_check(name, subject, mode, problems)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    ctx.exit(0 if all(result["compatible"] for result in results) else 1)


def _print_check(name: str, subject: str, mode: Mode, problems: list[Problem]) -> None:
    verdict = f"{len(problems)} problem(s)" if problems else "ok"
    click.echo(f"{name} against {subject}: {mode.value}: {verdict}")
    for problem in problems:
        click.echo(f"  - {problem}")


def _as_json(problem: Problem) -> dict[str, object]:
    return {
        "path": problem.path,
        "text": problem.text,
        "direction": problem.direction,
        "version": problem.version,
    }


@schema.command("register")
@click.argument("subject")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode], case_sensitive=False),
    help="Promise to hold the schema to (the registry's own by default).",
)
@click.option("--dry-run", is_flag=True, help="Check only; register nothing.")
@_JSON
@click.pass_context
def register_command(
    ctx: click.Context, subject: str, file: Path, mode: str | None, *, dry_run: bool, as_json: bool
) -> None:
    """Register the schema in FILE under SUBJECT, or under TOPIC-value for the name of a topic.

    Example: riskstream schema register card-labels schemas/contracts/label.avsc
    """
    registry = _registry(ctx)
    text = file.read_text(encoding="utf-8")
    subject = _subject(subject)
    promise = Mode(mode.upper()) if mode else None
    answer: dict[str, object] = {"subject": subject, "dry_run": dry_run}
    if dry_run:
        problems = registry.check(subject, text, promise or Mode.FULL_TRANSITIVE)
        answer["problems"] = [_as_json(problem) for problem in problems]
        words = f"{subject}: " + ("; ".join(map(str, problems)) or "would be registered")
    else:
        problems = []
        answer["schema_id"] = registry.register(subject, text, promise)
        words = f"{subject}: schema id {answer['schema_id']}"
    click.echo(json.dumps(answer) if as_json else words)
    ctx.exit(1 if problems else 0)


def _subject(name: str) -> str:
    return name if name.endswith(("-value", "-key")) else value_subject(name)


def _find(registry: SchemaRegistry, name: str, version: int | None) -> tuple[Node, str, str]:
    path = Path(name)
    if path.suffix in (".avsc", ".json") or path.is_file():
        if not path.is_file():
            msg = f"reading a schema: there is no file {name!r}"
            raise ConfigurationError(msg)
        text = path.read_text(encoding="utf-8")
        return parse_schema(text), text, name
    if name.isdigit():
        known = registry.schema_by_id(int(name))
        return known.node, known.text, f"id {name}"
    for subject in (name, value_subject(name)):
        for item in reversed(registry.versions(subject)):
            if version is None or item.version == version:
                title = f"{subject} version {item.version}, id {item.schema_id}"
                return item.node, item.text, title
    known_subjects = ", ".join(registry.subjects())
    msg = f"finding schema {name!r}: no such subject, topic, id or file; there are {known_subjects}"
    raise ConfigurationError(msg)


def _comparisons(
    registry: SchemaRegistry, name: str, against: str | None
) -> list[tuple[str, Node, list[tuple[int, Node]]]]:
    """Return (other side, schema, earlier versions) for each comparison that `name` asks for."""
    node, _, _ = _find(registry, name, None)
    if against is not None:
        for subject in (against, value_subject(against)):
            versions = [(item.version, item.node) for item in registry.versions(subject)]
            if versions:
                return [(subject, node, versions)]
        return [(against, node, [(1, _find(registry, against, None)[0])])]
    if not (Path(name).is_file() or name.isdigit()):
        subject = name if registry.latest(name) else value_subject(name)
        versions = [(item.version, item.node) for item in registry.versions(subject)]
        return [
            (f"{subject} before version {number}", newer, versions[:index])
            for index, (number, newer) in enumerate(versions)
        ]
    found = []
    for subject in registry.subjects():
        versions = [(item.version, item.node) for item in registry.versions(subject)]
        if versions and versions[-1][1].name == node.name:
            found.append((subject, node, versions))
    if not found:
        msg = f"checking {name!r}: no subject has {node.label()}; name one with --against"
        raise ConfigurationError(msg)
    return found
