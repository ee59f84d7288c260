"""Score batches inside the operator, and change models between two batches without losing a record.

One engine belongs to one shard. It is told about changes by control records that arrive among the
events, so the row at which a version changes is the row after the record, exactly. Loaded models
are shared by all engines of a process through a `ModelCache`.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from models import routing
from models.control import MODEL_CONTROL_KINDS, ControlRecord
from models.errors import ModelError, ModelNotFoundError, ModelRefusedError, RefusalCode
from models.gate import admit
from models.manifest import Manifest
from models.session import LoadedModel

__all__ = ["ActiveSet", "ModelCache", "ModelSource", "Outcome", "Route", "Scores", "ScoringEngine"]

SNAPSHOT_FORMAT: Final = 1

_HISTORY: Final = 16
# Champions kept for rollback. Each costs a name; models themselves stay in the registry.

_REMEMBERED: Final = 64
# Control ids kept to recognise a repeat. Rollback is the one change that is not harmless when
# applied twice; repeats come within one replay, a few records apart.


class ModelSource(Protocol):
    """Where models come from; the registry is one."""

    def reference(self, manifest: Manifest) -> NDArray[np.float32] | None:
        """Return the sample of training rows kept with a model, None when there is none.

        Raises:
            ModelError: when it should be there and is not, or is another file.
        """
        ...

    def load(self, version: str) -> tuple[Manifest, bytes]:
        """Return manifest and file of a version.

        Raises:
            ModelNotFoundError: when there is no such version.
        """
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """Events whose `field` equals `value` are decided by `version`."""

    field: str
    value: str
    version: str


@dataclass(frozen=True, slots=True)
class ActiveSet:
    """Which models do what; the whole state of an engine."""

    champion: str
    previous: tuple[str, ...] = ()
    challengers: tuple[tuple[str, float], ...] = ()
    shadows: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    applied: tuple[str, ...] = field(default=())

    def versions(self) -> tuple[str, ...]:
        """Return every version in use, each once, those that decide first."""
        deciding = [self.champion, *(name for name, _ in self.challengers)]
        deciding += [route.version for route in self.routes]
        return tuple(dict.fromkeys([*deciding, *self.shadows]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a control record; `code` names the failed check when it was refused."""

    accepted: bool
    reason: str
    code: RefusalCode | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one batch of n rows.

    `model_index` points into `ScoringEngine.versions`; it may be shared between batches: do not
    write. `shadow` holds the scores of models that never decide. `unscored` counts rows whose score
    is not finite: they carry NaN, which no threshold reaches, and belong in review.
    """

    score: NDArray[np.float64]
    model_index: NDArray[np.int16]
    shadow: Mapping[str, NDArray[np.float64]]
    unscored: int


class ModelCache:
    """Models loaded in this process, each admitted once for all shards. Safe between threads.

    A model that one thread is loading is waited for by the others; none of them holds up scoring
    with models that are already there.
    """

    def __init__(
        self, source: ModelSource, latency_budget_us: int, clock_ns: Callable[[], int]
    ) -> None:
        """Read from `source`; `clock_ns` is a monotonic clock for the latency check."""
        self._source = source
        self._budget_us = latency_budget_us
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, tuple[str, ...]], Future[LoadedModel]] = {}

    def prepare(self, version: str, feature_names: tuple[str, ...]) -> None:
        """Begin to load a model in a thread of its own, so that `get` finds it done.

        A refusal is told by the `get` that follows.
        """
        future, mine = self._claim((version, feature_names), again=True)
        if mine:
            threading.Thread(
                target=self._load,
                args=(future, version, feature_names),
                name=f"load {version}",
                daemon=True,
            ).start()

    def get(self, version: str, feature_names: tuple[str, ...]) -> LoadedModel:
        """Return a model that passed the gate.

        A refusal holds until `prepare` tries again: every shard asks, and judging a slow model once
        holds up events for long enough.

        Raises:
            ModelError: when it is not found or refused.
        """
        future, mine = self._claim((version, feature_names), again=False)
        if mine:
            self._load(future, version, feature_names)
        return future.result()

    def _claim(
        self, key: tuple[str, tuple[str, ...]], *, again: bool
    ) -> tuple[Future[LoadedModel], bool]:
        with self._lock:
            known = self._loaded.get(key)
            refused = known is not None and known.done() and known.exception() is not None
            if known is not None and not (again and refused):
                return known, False
            self._loaded[key] = Future()
            return self._loaded[key], True

    def _load(
        self, future: Future[LoadedModel], version: str, feature_names: tuple[str, ...]
    ) -> None:
        try:
            manifest, data = self._source.load(version)
            if manifest.version != version:
                msg = f"loading {version!r}: its manifest says {manifest.version!r}"
                raise ModelRefusedError(msg, "bad_manifest")
            model = admit(manifest, data, feature_names, self._budget_us, self._clock_ns)
            # Made here, not at the first alert, where it would delay a decision.
            model.prepare_evidence(self._source.reference(manifest))
        except BaseException as e:
            future.set_exception(e)
            return
        future.set_result(model)


class ScoringEngine:
    """Champion, challengers, shadows and routes of one shard."""

    def __init__(
        self,
        cache: ModelCache,
        feature_names: Sequence[str],
        champion: str,
        route_fields: Collection[str] | None = None,
    ) -> None:
        """Start with one champion; raises ModelError when it is not found or refused.

        `feature_names` are the columns of every matrix that `score` will get, `route_fields` the
        fields that a route may name (any when None).
        """
        self._cache = cache
        self._route_fields = route_fields
        self._names = tuple(feature_names)
        self._set = ActiveSet(champion)
        self._index: dict[str, int] = {}
        self._models: dict[str, LoadedModel] = {}
        self._by_index: dict[int, LoadedModel] = {}
        self._shadows: list[LoadedModel] = []
        self._route_table: list[tuple[str, np.uint64, int]] = []
        self._simple = True
        self._champion_index = 0
        self._constant = np.zeros(0, np.int16)
        self._adopt(self._set)

    @property
    def active(self) -> ActiveSet:
        """The models in use and what they do."""
        return self._set

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions by `model_index`; grows, never reorders, while the engine lives."""
        return tuple(self._index)

    def model(self, version: str) -> LoadedModel:
        """Return a model in use, as for explaining an alert it caused."""
        return self._models[version]

    def thresholds(self) -> NDArray[np.float64]:
        """Return each version's own (review, block) thresholds by `model_index`, NaN where none."""
        table = np.full((len(self._index), 2), np.nan)
        for version, index in self._index.items():
            chosen = self._models[version].manifest.thresholds if version in self._models else None
            if chosen is not None:
                table[index] = (chosen.review, chosen.block)
        return table

    def score(
        self,
        features: NDArray[np.float64],
        entity_hash: NDArray[np.uint64],
        routes: Mapping[str, NDArray[np.uint64]] | None = None,
    ) -> Scores:
        """Score n rows, shape (n, k).

        A route beats a challenger, the first route that matches wins, and every payment of an
        entity meets the same challenger. `routes` holds `routing.hash_texts` of the routed fields,
        each of length n; a field that is absent matches nothing.
        """
        rows = len(features)
        if self._simple:
            score = self._champion.score(features)
            if rows > len(self._constant):
                self._constant = np.full(2 * rows, self._champion_index, np.int16)
            chosen = self._constant[:rows]
        else:
            chosen = self._choose(rows, entity_hash, routes or {})
            score = np.empty(rows, np.float64)
            for index in np.unique(chosen).tolist():
                mine = np.flatnonzero(chosen == index)
                score[mine] = self._by_index[index].score(features[mine])
        shadow = {model.version: model.score(features) for model in self._shadows}
        # One sum is the cheapest look at a whole batch: finite scores cannot overflow it.
        unscored = 0
        if not math.isfinite(np.add.reduce(score)):
            bad = ~np.isfinite(score)
            score[bad] = np.nan
            unscored = int(bad.sum())
        return Scores(score, chosen, shadow, unscored)

    def apply(self, control: ControlRecord) -> Outcome:
        """Apply a control record, or refuse it and change nothing.

        Applying the same record again is harmless. The rows scored after this call, and no earlier
        one, meet the new set.
        """
        if control.kind not in MODEL_CONTROL_KINDS:
            return Outcome(False, f"{control.kind!r} does not concern models", "bad_control")
        if control.kind == "prepare_model":
            self._cache.prepare(control.subject, self._names)
            return Outcome(True, "loading beside the models in use", version=control.subject)
        if control.control_id in self._set.applied:
            return Outcome(True, "already applied", version=control.subject)
        try:
            wanted = self._wanted(control)
            self._adopt(wanted)
        except ModelRefusedError as e:
            return Outcome(False, str(e), e.code, control.subject)
        except ModelNotFoundError as e:
            return Outcome(False, str(e), "not_found", control.subject)
        except ModelError as e:
            return Outcome(False, str(e), "bad_manifest", control.subject)
        return Outcome(True, f"{control.kind} applied", version=control.subject or wanted.champion)

    def snapshot(self) -> bytes:
        """Return the active set for the shard's state, a few hundred bytes of JSON."""
        state: dict[str, Any] = {
            "format": SNAPSHOT_FORMAT,
            "champion": self._set.champion,
            "previous": list(self._set.previous),
            "challengers": [list(pair) for pair in self._set.challengers],
            "shadows": list(self._set.shadows),
            "routes": [[route.field, route.value, route.version] for route in self._set.routes],
            "applied": list(self._set.applied),
        }
        return json.dumps(state, separators=(",", ":")).encode()

    def restore(self, state: bytes) -> None:
        """Take up a snapshot: the same models do the same things as when it was written.

        Raises:
            ModelError: when its format is newer, or a model in it is gone or refused; a job must
            not
                carry on with another model than the one its state names.
        """
        parsed = json.loads(state)
        if parsed.get("format") != SNAPSHOT_FORMAT:
            msg = (
                f"restoring scoring state of format {parsed.get('format')!r}: expected "
                f"{SNAPSHOT_FORMAT}; use the version of riskstream that wrote it"
            )
            raise ModelError(msg)
        self._adopt(
            ActiveSet(
                champion=parsed["champion"],
                previous=tuple(parsed["previous"]),
                challengers=tuple((name, float(share)) for name, share in parsed["challengers"]),
                shadows=tuple(parsed["shadows"]),
                routes=tuple(Route(*route) for route in parsed["routes"]),
                applied=tuple(parsed["applied"]),
            )
        )

    def _wanted(self, control: ControlRecord) -> ActiveSet:
        now = self._set
        subject = control.subject
        applied = (*now.applied, control.control_id)[-_REMEMBERED:]
        if control.kind == "activate_model":
            route = self._route_of(control)
            if route is not None:
                kept = tuple(old for old in now.routes if (old.field, old.value) != route)
                return replace(now, routes=(*kept, Route(*route, subject)), applied=applied)
            if subject == now.champion:
                return replace(now, applied=applied)
            return replace(
                _without(now, subject),
                champion=subject,
                previous=(*now.previous, now.champion)[-_HISTORY:],
                applied=applied,
            )
        if control.kind == "shadow_model":
            return replace(now, shadows=(*_drop(now.shadows, subject), subject), applied=applied)
        if control.kind == "challenge_model":
            others = tuple(pair for pair in now.challengers if pair[0] != subject)
            share = _share_of(control, sum(pair[1] for pair in others))
            return replace(now, challengers=(*others, (subject, share)), applied=applied)
        if control.kind == "retire_model":
            route = self._route_of(control)
            if route is not None:
                kept = tuple(old for old in now.routes if (old.field, old.value) != route)
                return replace(now, routes=kept, applied=applied)
            if subject == now.champion:
                msg = f"retiring {subject!r}: it is the champion; activate another model first"
                raise ModelRefusedError(msg, "bad_control")
            return replace(
                _without(now, subject), previous=_drop(now.previous, subject), applied=applied
            )
        target = subject or (now.previous[-1] if now.previous else "")
        if target not in now.previous:
            msg = f"rolling back to {target!r}: earlier champions are {list(now.previous)!r}"
            raise ModelRefusedError(msg, "bad_control")
        position = len(now.previous) - 1 - now.previous[::-1].index(target)
        return replace(
            _without(now, target),
            champion=target,
            previous=now.previous[:position],
            applied=applied,
        )

    def _route_of(self, control: ControlRecord) -> tuple[str, str] | None:
        name, value = control.arguments.get("route_field"), control.arguments.get("route_value")
        if name is None and value is None:
            return None
        if not name or not value:
            msg = (
                f"{control.kind}: route_field and route_value come together, was {name!r} and "
                f"{value!r}"
            )
            raise ModelRefusedError(msg, "bad_control")
        if self._route_fields is not None and name not in self._route_fields:
            msg = f"{control.kind}: route_field {name!r}, was not one of {list(self._route_fields)}"
            raise ModelRefusedError(msg, "bad_control")
        return name, value

    def _adopt(self, wanted: ActiveSet) -> None:
        # Everything that can fail comes before the first assignment.
        models = {version: self._cache.get(version, self._names) for version in wanted.versions()}
        for version in models:
            self._index.setdefault(version, len(self._index))
        self._set = wanted
        self._models = models
        self._champion = models[wanted.champion]
        self._champion_index = self._index[wanted.champion]
        # Handed out in slices, so that a batch of one model costs no new column.
        self._constant = np.full(1024, self._champion_index, np.int16)
        self._by_index = {self._index[version]: model for version, model in models.items()}
        self._shadows = [models[version] for version in wanted.shadows]
        self._simple = not wanted.challengers and not wanted.routes
        self._route_table = [
            (route.field, np.uint64(routing.hash_of_text(route.value)), self._index[route.version])
            for route in wanted.routes
        ]

    def _choose(
        self,
        rows: int,
        entity_hash: NDArray[np.uint64],
        routes: Mapping[str, NDArray[np.uint64]],
    ) -> NDArray[np.int16]:
        chosen = np.full(rows, self._champion_index, np.int16)
        if self._set.challengers:
            point = routing.unit_interval(np.ascontiguousarray(entity_hash, np.uint64))
            low = 0.0
            for version, share in self._set.challengers:
                chosen[(point >= low) & (point < low + share)] = self._index[version]
                low += share
        for field_name, value, index in reversed(self._route_table):
            if field_name in routes:
                chosen[routes[field_name] == value] = index
        return chosen


def _drop(versions: tuple[str, ...], version: str) -> tuple[str, ...]:
    return tuple(one for one in versions if one != version)


def _without(now: ActiveSet, version: str) -> ActiveSet:
    return replace(
        now,
        challengers=tuple(pair for pair in now.challengers if pair[0] != version),
        shadows=_drop(now.shadows, version),
        routes=tuple(route for route in now.routes if route.version != version),
    )


def _share_of(control: ControlRecord, taken: float) -> float:
    text = control.arguments.get("share", "")
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    if not 0 < share <= 1 - taken + 1e-12:
        msg = (
            f"challenging with {control.subject!r}: share must be above 0 and, with the other "
            f"challengers' {taken:g}, at most 1, was {text!r}"
        )
        raise ModelRefusedError(msg, "bad_control")
    return share
