"""Profiles of customers, terminals and merchants, packed in Redis and looked up in batches.

A value is a packed struct that starts with its version. Later versions only append fields, so a
reader takes the prefix it knows; a shorter value counts as missing.

A lookup asks Redis once for the distinct keys of a batch that the cache does not hold. A profile
that does not exist is a value (`found` is False). When Redis is slow or away the policy decides:

* `wait` (default): try again, with growing pauses, for ever; back-pressure reaches the source;
* `score_without`: the keys that are not cached are marked `unavailable`, and Redis is left alone
  for a second before the next try, so that a dead Redis does not cost each batch a time-out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
import redis
from numpy.typing import NDArray

from connectors._profile_cache import ProfileCache, unique_rows
from connectors.settings import RedisSettings
from schemas.columns import StringColumn
from schemas.errors import ConfigurationError, FatalError, RetryableError
from schemas.strings import hash64

__all__ = [
    "PROFILE_TYPES",
    "PROFILE_VERSION",
    "LookupCounts",
    "ProfileBatch",
    "ProfileClient",
    "ProfileKind",
    "ProfileLookup",
    "ProfilesRefused",
    "ProfilesUnavailable",
    "profile_key",
    "redis_client",
    "warm",
]

ProfileKind = Literal["customer", "terminal", "merchant"]
"""Which entity a profile describes."""

PROFILE_VERSION: Final = 1
"""Version that is written; the first byte of every value."""

_COMMON: Final = [("version", "u1"), ("risk_tier", "u1")]

PROFILE_TYPES: Final[dict[ProfileKind, np.dtype[np.void]]] = {
    "customer": np.dtype(
        [
            *_COMMON,
            ("flags", "<u2"),
            ("chargebacks", "<u4"),
            ("usual_amount_minor", "<i8"),
            ("home_latitude", "<f8"),
            ("home_longitude", "<f8"),
            ("opened_at_ms", "<i8"),
        ]
    ),
    "terminal": np.dtype(
        [
            *_COMMON,
            ("category_code", "<u2"),
            ("chargebacks", "<u4"),
            ("latitude", "<f8"),
            ("longitude", "<f8"),
            ("opened_at_ms", "<i8"),
        ]
    ),
    "merchant": np.dtype(
        [
            *_COMMON,
            ("category_code", "<u2"),
            ("chargebacks", "<u4"),
            ("monthly_volume_minor", "<i8"),
            ("opened_at_ms", "<i8"),
        ]
    ),
}
"""The packed struct of each kind, little-endian, version 1. `risk_tier` is 0 (lowest) to 3."""

_MGET_KEYS: Final = 1_000
_FIRST_WAIT_SECONDS: Final = 0.05
_LONGEST_WAIT_SECONDS: Final = 2.0
_LEAVE_ALONE_MS: Final = 1_000


class ProfilesUnavailable(RetryableError):
    """Redis is slow or away, and the lookup was told not to wait any longer."""


class ProfilesRefused(FatalError):
    """Redis answered, and refused: wrong user, rights or type of key."""


class ProfileClient(Protocol):
    """The part of a Redis client that a lookup uses."""

    def mget(self, keys: Sequence[bytes]) -> object:
        """Return a list of the values of keys, None where there is none."""


@dataclass(frozen=True, slots=True)
class ProfileBatch:
    """Profiles of a batch, row by row.

    Attributes:
        columns: the fields of the profile by name; 0 where `found` is False.
        found: whether the profile exists and was read.
        unavailable: whether Redis could not be asked (policy `score_without`).
    """

    columns: Mapping[str, NDArray[np.generic]] | NDArray[np.void]
    found: NDArray[np.bool_]
    unavailable: NDArray[np.bool_]


@dataclass(slots=True)
class LookupCounts:
    """What a lookup did since it was made; metrics read it."""

    rows: int = 0
    cache_hits: int = 0
    asked: int = 0
    missing: int = 0
    malformed: int = 0
    retries: int = 0
    unavailable_rows: int = 0


def profile_key(kind: ProfileKind, entity_id: bytes) -> bytes:
    """Return the Redis key of a profile."""
    return b"profile:" + kind.encode() + b":" + entity_id


def redis_client(settings: RedisSettings) -> redis.Redis:
    """Return a client with bounded waits, TLS and user from the settings.

    Raises:
        ConfigurationError: when no address is set.
    """
    if settings.url is None:
        msg = "connecting to Redis: redis.url is not set; start the local stack or set it"
        raise ConfigurationError(msg)
    url = settings.url.get_secret_value()
    options: dict[str, object] = {
        "socket_timeout": settings.timeout_ms / 1000,
        "socket_connect_timeout": settings.timeout_ms / 1000,
    }
    if settings.username is not None:
        options["username"] = settings.username
    if settings.password is not None:
        options["password"] = settings.password.get_secret_value()
    if url.startswith("rediss://"):
        options["ssl_check_hostname"] = settings.verify_hostname
        for name, file in (
            ("ssl_ca_certs", settings.ca_file),
            ("ssl_certfile", settings.certificate_file),
            ("ssl_keyfile", settings.key_file),
        ):
            if file is not None:
                options[name] = str(file)
    return redis.Redis.from_url(url, **options)


class ProfileLookup:
    """Looks profiles of one kind up, a batch at a time. Not for several threads at once.

    Args:
        client_factory: makes the client on first use.
        kind: which profiles.
        policy: what to do while Redis is slow or away.
        cache_entries: how many profiles (and absences) are remembered.
        ttl_ms: for how long.
        clock_ms: milliseconds that never go backwards.
        sleep: waits (policy `wait`).
        on_wait: called with (attempt from 1, error) before each wait.
        give_up_after: with policy `wait`, raise after this many failed tries; None waits for ever.
    """

    def __init__(
        self,
        client_factory: Callable[[], ProfileClient],
        kind: ProfileKind,
        policy: Literal["wait", "score_without"] = "wait",
        cache_entries: int = 200_000,
        ttl_ms: int = 60_000,
        clock_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
        *,
        sleep: Callable[[float], None] = time.sleep,
        on_wait: Callable[[int, Exception], None] = lambda attempt, error: None,
        give_up_after: int | None = None,
    ) -> None:
        self.counts = LookupCounts()
        self._client_factory = client_factory
        self._client: ProfileClient | None = None
        self._type = PROFILE_TYPES[kind]
        self._prefix = profile_key(kind, b"")
        self._policy = policy
        self._cache = ProfileCache(cache_entries, self._type, ttl_ms)
        self._clock_ms = clock_ms
        self._sleep = sleep
        self._on_wait = on_wait
        self._give_up_after = give_up_after
        self._leave_alone_until_ms: int | None = None

    def lookup(self, keys: StringColumn) -> ProfileBatch:
        """Return the profile of each key; a null key has none.

        Raises:
            ProfilesRefused: when Redis will never answer this.
            ProfilesUnavailable: with policy `wait` and `give_up_after`.
        """
        now_ms = self._clock_ms()
        hashes = hash64(keys)
        places, hits = self._cache.probe(keys, hashes, now_ms)
        values, found = self._cache.values(places)
        n = len(keys)
        unavailable = np.zeros(n, np.bool_)
        self.counts.rows += n
        if hits < n:
            hits += self._add_absent(keys, hashes, places, values, found, unavailable)
        self.counts.cache_hits += hits
        self.counts.missing += n - int(np.count_nonzero(found))
        return ProfileBatch(values, found, unavailable)

    def _add_absent(
        self,
        keys: StringColumn,
        hashes: NDArray[np.uint64],
        places: NDArray[np.int64],
        values: NDArray[np.void],
        found: NDArray[np.bool_],
        unavailable: NDArray[np.bool_],
    ) -> int:
        """Fill in the rows that the cache did not have; return how many of them are null keys."""
        missed = places < 0
        values[missed] = np.zeros((), self._type)
        found[missed] = False
        absent = np.flatnonzero(missed & (keys.lengths >= 0))
        if len(absent):
            firsts, inverse = unique_rows(keys, hashes, absent)
            fetched = self._fetch(keys, firsts)
            if fetched is None:
                unavailable[absent] = True
                self.counts.unavailable_rows += len(absent)
                # Nobody knows whether these exist.
                self.counts.missing -= len(absent)
            else:
                new_values, new_found = fetched
                picked = StringColumn(keys.data, keys.starts[firsts], keys.lengths[firsts])
                # Time passed while waiting for Redis: the values are as old as their arrival.
                self._cache.put(picked, hashes[firsts], new_values, new_found, self._clock_ms())
                values[absent] = new_values[inverse]
                found[absent] = new_found[inverse]
        return int(np.count_nonzero(missed)) - len(absent)

    def _fetch(
        self, keys: StringColumn, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.void], NDArray[np.bool_]] | None:
        raw = keys.data
        starts = keys.starts[rows].tolist()
        ends = (keys.starts[rows] + keys.lengths[rows]).tolist()
        names = [
            self._prefix + raw[start:end].tobytes() for start, end in zip(starts, ends, strict=True)
        ]
        answers: list[bytes | None] = []
        for start in range(0, len(names), _MGET_KEYS):
            part = self._ask(names[start : start + _MGET_KEYS])
            if part is None:
                return None
            answers += part
        self.counts.asked += len(names)
        size = self._type.itemsize
        usable = [
            answer is not None and len(answer) >= size and answer[0] >= PROFILE_VERSION
            for answer in answers
        ]
        self.counts.malformed += sum(
            answer is not None and not good for answer, good in zip(answers, usable, strict=True)
        )
        blank = bytes(size)
        packed = b"".join(
            answer[:size] if good and answer is not None else blank
            for answer, good in zip(answers, usable, strict=True)
        )
        return np.frombuffer(packed, self._type).copy(), np.array(usable, np.bool_)

    def _ask(self, names: list[bytes]) -> list[bytes | None] | None:
        attempt = 0
        wait = _FIRST_WAIT_SECONDS
        if self._leave_alone_until_ms is not None and self._clock_ms() < self._leave_alone_until_ms:
            return None
        while True:
            try:
                if self._client is None:
                    self._client = self._client_factory()
                answer = self._client.mget(names)
                if not isinstance(answer, list):
                    msg = f"asking Redis for profiles: expected a list, was {answer!r:.80}"
                    raise ProfilesRefused(msg)
                self._leave_alone_until_ms = None
                return answer
            except redis.AuthenticationError as e:
                msg = f"asking Redis for profiles: {e}; check redis.username and redis.password"
                raise ProfilesRefused(msg) from e
            except (redis.ConnectionError, redis.TimeoutError, OSError) as e:
                self.counts.retries += 1
                attempt += 1
                if self._policy == "score_without":
                    self._leave_alone_until_ms = self._clock_ms() + _LEAVE_ALONE_MS
                    return None
                if self._give_up_after is not None and attempt >= self._give_up_after:
                    msg = f"asking Redis for {len(names)} profiles failed {attempt} times: {e}"
                    raise ProfilesUnavailable(msg) from e
                self._on_wait(attempt, e)
            except redis.ResponseError as e:
                msg = (
                    f"asking Redis for profiles: {e}; expected string values under {self._prefix!r}"
                )
                raise ProfilesRefused(msg) from e
            self._sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)


class _NoProfiles:
    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [None] * len(keys)


def warm() -> None:
    """Compile the kernels, so that the first batch does not wait for them."""
    lookup = ProfileLookup(_NoProfiles, "customer", cache_entries=8)
    lookup.lookup(StringColumn.from_texts(["a", "a", None]))
    lookup.lookup(StringColumn.from_texts(["a"]))
