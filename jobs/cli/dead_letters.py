"""`riskstream dead-letters`: list, show and replay refused records."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any, Final

import click

from connectors.dead_letters import LETTER_LIMITS, DeadLetter, read_dead_letters, replay_headers
from connectors.kafka import librdkafka_config
from connectors.local.stack import resolved_settings
from connectors.producers.publisher import KafkaPublisher
from connectors.readers import Record, TopicReader
from connectors.settings import Settings
from jobs.cli._lines import time_text
from jobs.cli.context import settings_of
from jobs.cli.progress import progress_bar
from schemas.avro import RecordDecoder
from schemas.reasons import AvroRecordError
from schemas.registry import open_registry
from schemas.sensitivity import mask_record, sensitive_fields

__all__ = ["dead_letters"]

_TOPICS: Final = {"fraud": "dead_letters", "market_risk": "market_dead_letters"}


@click.group()
@click.option("--job", type=click.Choice(sorted(_TOPICS)), default="fraud", show_default=True,
              help="Whose dead letters.")  # fmt: skip
def dead_letters(job: str) -> None:
    """List, show and replay dead letters: records that could not be used.

    Example: riskstream dead-letters --job market_risk list --reason bad_scale
    """


@dead_letters.command(name="list")
@click.option("--reason", help="Only this reason, as in truncated.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="Time, UTC.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_context
def list_letters(
    ctx: click.Context, reason: str | None, since: datetime | None, limit: int | None, as_json: bool
) -> None:
    """List dead letters: where each came from and why, nothing of what it holds.

    Example: riskstream dead-letters list --limit 20
    """
    settings = _settings(ctx)
    counts: Counter[str] = Counter()
    for letter in _letters(settings, reason=reason, since=since):
        counts[letter.reason] += 1
        if as_json:
            click.echo(json.dumps(letter.summary()))
        else:
            size = "null" if letter.value is None else f"{len(letter.value)} bytes"
            click.echo(
                f"{letter.letter_id:<10} {time_text(letter.failed_at_ms)}  {letter.reason:<20} "
                f"{letter.place:<32} {size:<12} {letter.job}/{letter.stage}"
            )
        if limit is not None and counts.total() >= limit:
            break
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
    click.echo(f"dead letters: {listed}", err=True)


@dead_letters.command()
@click.argument("letter_id")
@click.option(
    "--raw", is_flag=True, help="Also the bytes in hexadecimal; they may be personal data."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(ctx: click.Context, letter_id: str, raw: bool, as_json: bool) -> None:
    """Show one dead letter; its contents are decoded where possible, sensitive fields masked.

    Example: riskstream dead-letters show 0:17
    """
    settings = _settings(ctx)
    found = next(iter(_letters(settings, ids=frozenset({letter_id}))), None)
    if found is None:
        click.echo(
            f"no dead letter {letter_id!r}; `riskstream dead-letters list` has them", err=True
        )
        ctx.exit(1)
    description = _describe(found, settings, raw=raw)
    if as_json:
        click.echo(json.dumps(description))
        return
    for name, value in description.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for inner, content in value.items():
                click.echo(f"  {inner:<20} {content}")
        else:
            click.echo(f"{name:<22} {value}")


@dead_letters.command()
@click.argument("letter_ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every letter (of --reason, if given).")
@click.option("--reason", help="Only this reason.")
@click.option("--max-attempts", type=click.IntRange(min=1), default=3, show_default=True,
              help="Leave alone what was sent again this often.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Send; without it only what would be sent is said.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def replay(
    ctx: click.Context,
    letter_ids: tuple[str, ...],
    everything: bool,
    reason: str | None,
    max_attempts: int,
    yes: bool,
    as_json: bool,
) -> None:
    """Send refused records again: same bytes, key and headers, to the topic they came from.

    A header counts the attempts. The letters themselves stay on their topic.

    Example: riskstream dead-letters replay --all --reason unknown_schema_id --yes
    """
    if bool(letter_ids) == everything:
        msg = "name dead letters, or give --all"
        raise click.UsageError(msg)
    settings = _settings(ctx)
    letters = list(_letters(settings, ids=frozenset(letter_ids), reason=reason))
    missing = sorted(set(letter_ids) - {letter.letter_id for letter in letters})
    if missing:
        click.echo(f"not found: {', '.join(missing)}; nothing was sent", err=True)
        ctx.exit(1)
    ready = [letter for letter in letters if letter.attempt < max_attempts]
    if yes and ready:
        publisher = KafkaPublisher(librdkafka_config(settings.kafka))
        with progress_bar("sending again", len(ready)) as advance:
            for letter in ready:
                publisher.send(letter.topic, letter.key, letter.value, replay_headers(letter))
                advance(1)
            publisher.flush()
    tired = len(letters) - len(ready)
    if as_json:
        counts = {
            "found": len(letters),
            "sent": len(ready) if yes else 0,
            "too_many_attempts": tired,
        }
        click.echo(json.dumps({**counts, "dry_run": not yes}))
        return
    for topic, count in Counter(letter.topic for letter in ready).items():
        click.echo(f"{'sent' if yes else 'would send'} {count} record(s) to {topic}")
    if tired:
        click.echo(f"left alone {tired} record(s) sent {max_attempts} times already")
    if not yes and ready:
        click.echo("nothing was sent; add --yes to send", err=True)


def _settings(ctx: click.Context) -> Settings:
    # Settings whose dead letters are those of the job that was named.
    settings = resolved_settings(settings_of(ctx))
    job = "fraud" if ctx.parent is None else ctx.parent.params.get("job", "fraud")
    topics = settings.kafka.topics
    chosen = topics.model_copy(update={"dead_letters": getattr(topics, _TOPICS[job])})
    kafka = settings.kafka.model_copy(update={"topics": chosen})
    return settings.model_copy(update={"kafka": kafka})


def _letters(
    settings: Settings,
    *,
    ids: frozenset[str] = frozenset(),
    reason: str | None = None,
    since: datetime | None = None,
) -> list[DeadLetter]:
    since_ms = None if since is None else int(since.replace(tzinfo=UTC).timestamp() * 1000)
    reader = TopicReader(settings.kafka, settings.kafka.topics.name("dead_letters"))
    try:
        with progress_bar("reading dead letters", reader.held) as advance:
            decoder = RecordDecoder(open_registry(settings.schemas), limits=LETTER_LIMITS)
            found = []
            for letter in read_dead_letters(
                reader,
                decoder,
                ids=ids,
                reason=reason,
                since_ms=since_ms,
                on_unreadable=_warn,
            ):
                found.append(letter)
                advance(1)
            return found
    finally:
        reader.close()


def _warn(record: Record, error: Exception) -> None:
    click.echo(f"letter {record.partition}:{record.offset} is itself unreadable: {error}", err=True)


def _describe(letter: DeadLetter, settings: Settings, *, raw: bool) -> dict[str, Any]:
    description = letter.summary()
    # The detail may quote a value of the record, so it is for those who may see the bytes.
    if raw:
        description["detail"] = letter.detail
    description["headers"] = [name for name, _ in letter.headers]
    value = letter.value or b""
    description["value_sha256"] = hashlib.sha256(value).hexdigest()
    registry = open_registry(settings.schemas)
    try:
        record = RecordDecoder(registry).decode(letter.value)
        node = registry.schema_by_id(int.from_bytes(value[1:5], "big")).node
        description["contents"] = mask_record(record, sensitive_fields(node))
    except AvroRecordError as e:
        description["contents"] = f"not readable: {e.reason.text}"
    if raw:
        description["key_hex"] = None if letter.key is None else letter.key.hex()
        description["value_hex"] = None if letter.value is None else letter.value.hex()
    return description
