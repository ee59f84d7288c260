"""`riskstream models list`, `show`, `register` and the verbs that write to the control topic."""

from __future__ import annotations

import dataclasses
import getpass
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from connectors.settings import Settings
from jobs.cli.context import settings_of
from jobs.market_risk.breach import BREACH_FEATURES
from models.control import DEFAULT_JOB, ControlRecord, make_control
from models.manifest import MODEL_FILE
from models.registry import ModelFolder, Registry

__all__ = [
    "activate",
    "challenge",
    "check_model",
    "job_of",
    "list_models",
    "publish_order",
    "register",
    "retire",
    "rollback",
    "shadow",
    "show",
]

# As in jobs.market_risk.parts, which loads what only a running job needs.
JOB: Final = "market_risk"
CONTROL_TOPIC: Final = "market_control"
# Orders that need a model which the job may not have loaded yet.
_LOADING = ("activate_model", "shadow_model", "challenge_model", "rollback_model")

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_dry_run = click.option(
    "--dry-run", is_flag=True, help="Check and print the control record; publish nothing."
)


def _registry(ctx: click.Context) -> Registry:
    return Registry(settings_of(ctx).models.registry)


@click.command("list")
@_json
@click.pass_context
def list_models(ctx: click.Context, as_json: bool) -> None:
    """List the models of the registry, oldest first.

    The stage is the last one asked for through this registry; rows name the model that decided.

    Example: riskstream models list
    """
    listings = _registry(ctx).listings()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in listings]))
        return
    width = max([7, *(len(one.version) for one in listings)])
    click.echo(
        f"{'version':<{width}}  {'kind':<17} {'stage':<11} {'AUC':>6} {'AP':>6} {'CP@100':>6}"
    )
    for one in listings:
        measures = " ".join(
            f"{one.metrics[name]:6.3f}" if name in one.metrics else f"{'-':>6}"
            for name in ("auc_roc", "average_precision", "card_precision_at_100")
        )
        click.echo(f"{one.version:<{width}}  {one.kind:<17} {one.stage:<11} {measures}")


@click.command()
@click.argument("model")
@_json
@click.pass_context
def show(ctx: click.Context, model: str, as_json: bool) -> None:
    """Show the card of MODEL (a version, a name, or `default`), or its manifest with --json.

    Example: riskstream models show default
    """
    from models.card import model_card
    from models.errors import ModelNotFoundError

    registry = _registry(ctx)
    version = registry.resolve(model)
    manifest = registry.manifest(version)
    if as_json:
        click.echo(manifest.to_json().rstrip("\n"))
        return
    try:
        click.echo(registry.file(version, "card.md").decode())
    except ModelNotFoundError:
        click.echo(model_card(manifest))


@click.command()
@click.argument("source")
@click.option(
    "--manifest",
    "manifest_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What somebody wrote about the model; what it says is checked. No other option then.",
)
@click.option("--name", help="Name in the registry; the file's name by default.")
@click.option(
    "--features",
    help="Names of the inputs in order, separated by commas; x0,x1,... by default.",
)
@click.option(
    "--output", "output_name", help="Output that holds the score; found by itself when one fits."
)
@click.option(
    "--class-index",
    type=click.IntRange(0),
    help="Class whose probability is the score, where there are several.",
)
@click.option("--feature-set-version", default="external", show_default=True)
@click.option("--description", default="")
@click.option("--licence", default="")
@_json
@click.pass_context
def register(
    ctx: click.Context,
    source: str,
    manifest_file: Path | None,
    name: str | None,
    features: str | None,
    output_name: str | None,
    class_index: int | None,
    feature_set_version: str,
    description: str,
    licence: str,
    as_json: bool,
) -> None:
    """Register SOURCE: any ONNX classifier (a file), or mlflow:NAME[/VERSION or STAGE or @ALIAS].

    The model is run once on probe rows; their scores become its golden vectors. A folder with
    model.onnx and manifest.json, or --manifest, brings golden vectors and everything else along:
    what is written must be true of the file, what is left out is taken from it.

    Example: riskstream models register fraud.onnx --features distance,ratio,chip,pin,online
    """
    from models.external import describe_external
    from models.mlflow_source import fetch_mlflow
    from models.registry import MANIFEST_FILE
    from models.written import written_model

    settings = settings_of(ctx)
    folder_given = Path(source)
    if manifest_file is None and folder_given.is_dir():
        manifest_file, source = folder_given / MANIFEST_FILE, str(folder_given / MODEL_FILE)
    if source.startswith("mlflow:"):
        fetched = fetch_mlflow(source, settings.models.mlflow_uri)
        data, default_name, origin = fetched.data, fetched.name, fetched.origin
    else:
        path = Path(source)
        if not path.is_file():
            msg = f"SOURCE {source!r}: expected an ONNX file or mlflow:NAME"
            raise click.UsageError(msg)
        data, default_name, origin = path.read_bytes(), path.stem, path.name
    if manifest_file is not None:
        given = (name, features, output_name, class_index, description, licence)
        if any(one not in (None, "") for one in given):
            msg = "--manifest (or a folder) says everything itself: leave the other options out"
            raise click.UsageError(msg)
        if not manifest_file.is_file():
            msg = f"SOURCE {str(folder_given)!r}: expected manifest.json beside model.onnx"
            raise click.UsageError(msg)
        _registered(
            settings,
            written_model(data, manifest_file.read_bytes(), created_at_ms=_now_ms(), source=origin),
            as_json,
        )
        return
    folder = describe_external(
        data,
        name=name or default_name.lower().replace(" ", "-"),
        created_at_ms=_now_ms(),
        features=[one.strip() for one in features.split(",")] if features else None,
        output_name=output_name,
        class_index=class_index,
        feature_set_version=feature_set_version,
        description=description,
        licence=licence,
        source=origin,
    )
    _registered(settings, folder, as_json)


def _registered(settings: Settings, folder: ModelFolder, as_json: bool) -> None:
    version = Registry(settings.models.registry).register(folder)
    manifest = folder.manifest
    if as_json:
        click.echo(
            json.dumps(
                {
                    "version": version,
                    "features": list(manifest.features),
                    "output": manifest.output.model_dump(),
                    "score_kind": manifest.score_kind,
                    "golden_outputs": list(manifest.golden.outputs),
                }
            )
        )
        return
    click.echo(version)
    click.echo(
        f"output {manifest.output.name!r} ({manifest.output.form}), score kind "
        f"{manifest.score_kind}, {len(manifest.features)} features",
        err=True,
    )


def publish_order(
    settings: Settings,
    registry: Registry,
    kind: str,
    version: str,
    arguments: dict[str, str],
    *,
    dry_run: bool,
) -> ControlRecord:
    """Publish a control record about a model and remember it in the registry; return it."""
    job = job_of(registry.manifest(version).features)
    topic = "control" if job == DEFAULT_JOB else CONTROL_TOPIC
    named = {} if job == DEFAULT_JOB else {"job": job}
    if not dry_run:
        from connectors.control import publish_control
        from connectors.local.stack import resolved_settings

        if kind in _LOADING:
            # The job loads it beside the models in use; the order that follows finds it ready.
            first = make_control("prepare_model", version, getpass.getuser(), _now_ms(), named)
            publish_control(resolved_settings(settings), first.to_record(), topic)
            time.sleep(settings.models.prepare_ms / 1000)
    control = make_control(kind, version, getpass.getuser(), _now_ms(), arguments | named)
    if not dry_run:
        publish_control(resolved_settings(settings), control.to_record(), topic)
        registry.remember(control)
    return control


def job_of(features: Sequence[str]) -> str:
    """Return the job whose model has these inputs: limits' use for market risk, else fraud."""
    return JOB if set(features) <= set(BREACH_FEATURES) else DEFAULT_JOB


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _order(
    ctx: click.Context,
    kind: str,
    version: str,
    arguments: dict[str, str],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    control = publish_order(
        settings_of(ctx), _registry(ctx), kind, version, arguments, dry_run=dry_run
    )
    if as_json:
        click.echo(json.dumps(control.to_record()))
    else:
        click.echo(f"{control.control_id}  {kind}  {version}")
        where = (
            "not published (dry run)" if dry_run else "published; every shard applies it in order"
        )
        click.echo(where, err=True)


def check_model(settings: Settings, registry: Registry, version: str) -> None:
    """Pass a model through the operator's own gate, before anyone hears of it.

    Raises:
        ModelRefusedError: with the code of the check that failed.
    """
    from jobs.fraud.features import FRAUD_FEATURES
    from models.gate import admit

    manifest, data = registry.load(version)
    fraud = job_of(manifest.features) == DEFAULT_JOB
    names = FRAUD_FEATURES.names if fraud else BREACH_FEATURES
    admit(manifest, data, names, settings.models.latency_budget_us, time.perf_counter_ns)


def _route(field: str | None, value: str | None) -> dict[str, str]:
    if (field is None) != (value is None):
        msg = "--route-field and --route-value come together"
        raise click.UsageError(msg)
    return {"route_field": field, "route_value": value} if field and value else {}


def _routed(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--route-value", help="As in acme.")(command)
    return click.option(
        "--route-field", help="Only for events whose field has --route-value, as in tenant."
    )(command)


@click.command()
@click.argument("model")
@_routed
@_dry_run
@_json
@click.pass_context
def activate(
    ctx: click.Context,
    model: str,
    route_field: str | None,
    route_value: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make MODEL the champion (or, with a route, the model of one tenant or channel).

    It must pass the gate here first, and again in the running job.

    Example: riskstream models activate fraud-lightgbm
    """
    registry = _registry(ctx)
    version = registry.resolve(model)
    check_model(settings_of(ctx), registry, version)
    arguments = _route(route_field, route_value)
    _order(ctx, "activate_model", version, arguments, dry_run=dry_run, as_json=as_json)


@click.command()
@click.argument("model")
@_dry_run
@_json
@click.pass_context
def shadow(ctx: click.Context, model: str, dry_run: bool, as_json: bool) -> None:
    """Score every event with MODEL too and store the scores; it decides nothing.

    Example: riskstream models shadow fraud-xgboost
    """
    registry = _registry(ctx)
    version = registry.resolve(model)
    check_model(settings_of(ctx), registry, version)
    _order(ctx, "shadow_model", version, {}, dry_run=dry_run, as_json=as_json)


@click.command()
@click.argument("model")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    required=True,
    help="Share of customers it decides for, as in 0.05.",
)
@_dry_run
@_json
@click.pass_context
def challenge(ctx: click.Context, model: str, share: float, dry_run: bool, as_json: bool) -> None:
    """Let MODEL decide for a share of customers, chosen by hash.

    Example: riskstream models challenge fraud-xgboost --share 0.05
    """
    registry = _registry(ctx)
    version = registry.resolve(model)
    check_model(settings_of(ctx), registry, version)
    _order(
        ctx, "challenge_model", version, {"share": repr(share)}, dry_run=dry_run, as_json=as_json
    )


@click.command()
@click.argument("model")
@_routed
@_dry_run
@_json
@click.pass_context
def retire(
    ctx: click.Context,
    model: str,
    route_field: str | None,
    route_value: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take MODEL out of use as challenger, shadow or route; the champion cannot be retired.

    Example: riskstream models retire fraud-xgboost
    """
    version = _registry(ctx).resolve(model)
    arguments = _route(route_field, route_value)
    _order(ctx, "retire_model", version, arguments, dry_run=dry_run, as_json=as_json)


@click.command()
@click.argument("model", required=False)
@click.option(
    "--job",
    type=click.Choice([DEFAULT_JOB, JOB]),
    default=DEFAULT_JOB,
    show_default=True,
    help="Whose previous champion, where no MODEL is named.",
)
@_dry_run
@_json
@click.pass_context
def rollback(ctx: click.Context, model: str | None, job: str, dry_run: bool, as_json: bool) -> None:
    """Go back to the previous champion, or to MODEL if it was champion before.

    Example: riskstream models rollback
    """
    from models.errors import ModelError

    registry = _registry(ctx)
    if model:
        version: str | None = registry.resolve(model)
    elif job == DEFAULT_JOB:
        version = registry.previous_champion()
    else:
        shipped = settings_of(ctx).market_risk.breach_model
        version = registry.previous_champion(job, registry.resolve(shipped) if shipped else "")
    if not version:
        msg = "rolling back: no activation was ever asked for through this registry; name a model"
        raise ModelError(msg)
    _order(ctx, "rollback_model", version, {}, dry_run=dry_run, as_json=as_json)
