"""What a change does to a job's state, features and readers, before anything is touched.

Pure: compares what is deployed with what is wanted. State is kept per shard and says which fields
its events have, so most changes to features are safe; what is not is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jobs.windows.delta import CHUNK_VERSION
from jobs.windows.durations import duration_ms
from jobs.windows.spec import Entity, FeatureSet

__all__ = ["EntityFacts", "Facts", "Finding", "compare", "facts_of", "reader_findings"]

Level = Literal["same", "change", "refused"]
"""`refused`: state would be lost, or a reader would break."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a change does; `area` is schemas, state, tables or dashboards."""

    area: str
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class EntityFacts:
    """One keyed stage: how far back its windows reach (ms) and which fields its events keep."""

    key: str
    reach_ms: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a job's state depends on."""

    shards: int
    max_parallelism: int
    parallelism: int
    delivery: str
    state_format: int
    feature_set: str
    features: tuple[str, ...]
    entities: Mapping[str, EntityFacts]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON knows them."""
        return asdict(self)

    @staticmethod
    def from_dict(facts: Mapping[str, Any]) -> Facts:
        """Read what `as_dict` wrote; fields of newer releases are ignored.

        Raises:
            KeyError: a field is missing.
        """
        entities = {
            name: EntityFacts(entity["key"], int(entity["reach_ms"]), tuple(entity["sources"]))
            for name, entity in facts["entities"].items()
        }
        return Facts(
            int(facts["shards"]),
            int(facts["max_parallelism"]),
            int(facts["parallelism"]),
            str(facts["delivery"]),
            int(facts["state_format"]),
            str(facts["feature_set"]),
            tuple(facts["features"]),
            entities,
        )


def facts_of(
    features: FeatureSet, *, shards: int, max_parallelism: int, parallelism: int, delivery: str
) -> Facts:
    """Return the facts of this release's feature set in a job of the given shape."""
    return Facts(
        shards,
        max_parallelism,
        parallelism,
        delivery,
        CHUNK_VERSION,
        features.version,
        tuple(features.names),
        {
            entity.name: EntityFacts(
                entity.key, _reach_ms(entity), tuple(features.sources_of(entity.name))
            )
            for entity in features.entities
        },
    )


def _reach_ms(entity: Entity) -> int:
    return max(
        duration_ms(window) + (duration_ms(aggregation.delay) if aggregation.delay else 0)
        for aggregation in entity.features
        for window in aggregation.windows
    )


def compare(deployed: Facts, wanted: Facts) -> list[Finding]:
    """Return what resuming the deployed job's state as the wanted job does, in a fixed order."""
    findings = [*_shape(deployed, wanted), *_entities(deployed, wanted)]
    if not findings:
        findings = [Finding("state", "same", "resumes as it is")]
    return findings + _features(deployed, wanted)


def _shape(deployed: Facts, wanted: Facts) -> Iterable[Finding]:
    for name, why in (
        ("shards", "each shard's windows are kept under its number, and keys would move"),
        ("max_parallelism", "Flink files state by key group, and the groups would differ"),
    ):
        old, new = getattr(deployed, name), getattr(wanted, name)
        if old != new:
            text = f"flink.{name} would change from {old} to {new}: {why}; set it back to {old}"
            yield Finding("state", "refused", text)
    if wanted.state_format < deployed.state_format:
        text = (
            f"state of format {deployed.state_format} cannot be read by this release (up to "
            f"{wanted.state_format}); use the newer release or an older savepoint"
        )
        yield Finding("state", "refused", text)
    elif wanted.state_format > deployed.state_format:
        text = (
            f"format {deployed.state_format} is upgraded to {wanted.state_format} as it is read; "
            "the older release cannot resume from it afterwards"
        )
        yield Finding("state", "change", text)
    if deployed.parallelism != wanted.parallelism:
        text = f"parallelism {deployed.parallelism} becomes {wanted.parallelism}; shards move whole"
        yield Finding("state", "change", text)
    if deployed.delivery != wanted.delivery:
        text = (
            f"delivery {deployed.delivery} becomes {wanted.delivery}: stop with a savepoint first, "
            "so that no transaction is left open"
        )
        yield Finding("state", "change", text)


def _entities(deployed: Facts, wanted: Facts) -> Iterable[Finding]:
    for name, old in deployed.entities.items():
        new = wanted.entities.get(name)
        if new is None:
            text = f"the windows of entity {name!r} would be dropped: it is no longer declared"
            yield Finding("state", "refused", text)
        elif new.key != old.key:
            text = (
                f"the windows of entity {name!r} are kept by {old.key!r} and would be looked up by "
                f"{new.key!r}; declare a new entity instead"
            )
            yield Finding("state", "refused", text)
        else:
            yield from _entity(name, old, new)
    for name in wanted.entities.keys() - deployed.entities.keys():
        yield Finding("state", "change", f"entity {name!r} is new and starts with empty windows")


def _entity(name: str, old: EntityFacts, new: EntityFacts) -> Iterable[Finding]:
    added = [source for source in new.sources if source not in old.sources]
    removed = [source for source in old.sources if source not in new.sources]
    if added:
        text = f"entity {name!r} keeps {added} from now on; earlier events have null there"
        yield Finding("state", "change", text)
    if removed:
        text = f"entity {name!r} keeps {removed} no longer; it leaves with its oldest segments"
        yield Finding("state", "change", text)
    if new.reach_ms > old.reach_ms:
        text = (
            f"entity {name!r} looks {_days(new.reach_ms)} back, was {_days(old.reach_ms)}: longer "
            "windows fill up as events arrive"
        )
        yield Finding("state", "change", text)


def _features(deployed: Facts, wanted: Facts) -> list[Finding]:
    if deployed.feature_set == wanted.feature_set:
        return []
    findings = []
    added = [name for name in wanted.features if name not in deployed.features]
    removed = [name for name in deployed.features if name not in wanted.features]
    if added:
        findings.append(Finding("tables", "change", f"new feature columns: {', '.join(added)}"))
    if removed:
        text = f"columns that stay and get no more values: {', '.join(removed)}"
        findings.append(Finding("tables", "change", text))
    text = (
        f"feature set {deployed.feature_set} becomes {wanted.feature_set}: models trained for "
        "another one are refused at activation"
    )
    return [*findings, Finding("state", "change", text)]


def reader_findings(deployed: Facts, wanted: Facts, readers: Mapping[str, str]) -> list[Finding]:
    """Return which readers (name to text of its queries) name features that would get no values."""
    removed = [name for name in deployed.features if name not in wanted.features]
    found = [
        Finding("dashboards", "change", f"{reader} shows {name!r}, which would get no more values")
        for reader, text in sorted(readers.items())
        for name in removed
        if name in text
    ]
    return found or [Finding("dashboards", "same", "no dashboard names a column that changes")]


def _days(milliseconds: int) -> str:
    return f"{milliseconds / 86_400_000:g} d"
