"""An endless, seeded stream of card transactions with frauds of several kinds.

Written from the published description of the fraud detection handbook's simulator (Le Borgne,
Siblini, Lebichot, Bontempi: "Reproducible Machine Learning for Credit Card Fraud Detection",
chapter 3):

* a customer lives in a square of 100 by 100, spends a mean amount from U(5, 100) with a deviation
  of half of it, and makes Poisson(U(0, 4)) transactions a day, at terminals within a radius of 5;
* times are normal around noon with a deviation of 20,000 s, what falls outside the day is dropped;
  a negative amount is drawn again from U(0, 2 * mean);
* scenario 1: every amount above 220 is a fraud;
* scenario 2: each day two terminals are compromised; all they take for 28 days is fraud;
* scenario 3: each day three customers are compromised; for 14 days a third of their transactions is
  five times as large, and a fraud.

Two scenarios are ours: 4, card testing, a burst of many small payments within minutes; 5,
impossible travel, a payment too far from the one before. The square lies on latitudes 40 to 50 and
longitudes 0 to 10.

Each day draws from its own random stream, so day d is the same whichever day a run starts at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from connectors.producers.labels import DAY_MS
from connectors.producers.source import CHANNELS, TransactionBatch
from connectors.producers.strings import from_arrow, repeat
from connectors.profile_loading import Profiles
from schemas.columns import NumberColumn, StringColumn
from schemas.errors import ConfigurationError

__all__ = ["DEFAULT_START_MS", "Population", "SimulatedDay", "Simulation"]

DEFAULT_START_MS: Final = 1_577_836_800_000
"""2020-01-01, UTC: years before today, so that a fast stream does not run into the future."""

_SIDE: Final = 100.0
_DEGREES: Final = 0.1
_COMPROMISED_TERMINALS_A_DAY: Final = 2
_TERMINAL_DAYS: Final = 28
_COMPROMISED_CUSTOMERS_A_DAY: Final = 3
_CUSTOMER_DAYS: Final = 14
_LARGE_MINOR: Final = 220_00
_COUNTRIES: Final = ("FR", "BE", "LU", "DE", "CH", "IT", "AT", "CZ")
# 60 units are about 600 km; in at most 20 minutes no one travels that.
_FAR: Final = 60.0
_TRAVEL_SECONDS: Final = (300, 1_200)
_BATCH_ROWS: Final = 16_384
# Streams of the random generator; the numbers name them for ever.
_POPULATION, _DAY, _TERMINALS, _CUSTOMERS, _EXTRAS = range(5)


@dataclass(frozen=True, slots=True)
class Population:
    """Who takes part.

    Attributes:
        seed: the same seed gives the same stream.
        customers: how many; about two transactions a day each.
        terminals: how many.
        radius: how far from home a customer pays.

    Raises:
        ConfigurationError: when a number is not positive.
    """

    seed: int = 1
    customers: int = 5_000
    terminals: int = 10_000
    radius: float = 5.0

    def __post_init__(self) -> None:
        if min(self.customers, self.terminals) < 1 or self.radius <= 0 or self.seed < 0:
            msg = f"describing a population: expected positive numbers, was {self!r}"
            raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True)
class SimulatedDay:
    """One day in order of time; `scenario` is 0 for honest transactions, else the fraud's kind."""

    batch: TransactionBatch
    scenario: NDArray[np.int8]


@dataclass(slots=True)
class _Draft:
    """Transactions before they are sorted and written as columns."""

    customer: NDArray[np.int64]
    terminal: NDArray[np.int64]
    seconds: NDArray[np.float64]
    amount_minor: NDArray[np.int64]
    channel: NDArray[np.int32]
    scenario: NDArray[np.int8]


class Simulation:
    """A source of simulated transactions; see the module for what they are like.

    Args:
        population: who takes part, and the seed.
        start_ms: first instant of day 0, UTC.
        days: stop after this many days; None never stops.
        limit: stop after this many transactions.
    """

    def __init__(
        self,
        population: Population,
        *,
        start_ms: int = DEFAULT_START_MS,
        days: int | None = None,
        limit: int | None = None,
    ) -> None:
        self._population = population
        self._start_ms = start_ms
        self._days = days
        self._limit = limit
        n, terminals = population.customers, population.terminals
        rng = self._random(_POPULATION, 0)
        self._home = rng.uniform(0, _SIDE, (n, 2))
        self._mean_minor = rng.uniform(5_00, 100_00, n)
        self._transactions_a_day = rng.uniform(0, 4, n)
        self._place = rng.uniform(0, _SIDE, (terminals, 2))
        near = cKDTree(self._place).query_ball_point(self._home, population.radius)
        self._near_counts = np.array([len(items) for items in near], np.int64)
        self._near = np.array([item for items in near for item in sorted(items)], np.int64)
        self._near_first = np.cumsum(self._near_counts) - self._near_counts
        # As in the handbook, who has no terminal nearby makes no transactions.
        self._transactions_a_day[self._near_counts == 0] = 0.0
        self._customer_ids = _names("c", n)
        self._terminal_ids = _names("t", terminals)
        self._merchant_ids = _names("m", terminals // 5 + 1)
        stripe = (self._place[:, 0] / _SIDE * len(_COUNTRIES)).astype(np.int64)
        self._terminal_country = np.minimum(stripe, len(_COUNTRIES) - 1)
        self._countries = StringColumn.from_texts(_COUNTRIES)
        codes = 5_000 + (np.arange(terminals // 5 + 1) * 37) % 1_000
        self._merchant_codes = codes
        self._category_texts = from_arrow(pa.array(codes))

    @property
    def total(self) -> int | None:
        """How many transactions there will be, where a limit says so."""
        return self._limit if self._days is None else None

    def batches(self) -> Iterator[TransactionBatch]:
        """Yield the stream in order of time."""
        done = 0
        for day in self.simulated_days():
            for start in range(0, len(day.batch), _BATCH_ROWS):
                stop = min(start + _BATCH_ROWS, len(day.batch))
                if self._limit is not None:
                    stop = min(stop, start + self._limit - done)
                yield day.batch.rows(start, stop)
                done += stop - start
                if self._limit is not None and done >= self._limit:
                    return

    def simulated_days(self) -> Iterator[SimulatedDay]:
        """Yield day after day, whatever `limit` says."""
        number = 0
        while self._days is None or number < self._days:
            yield self.day(number)
            number += 1

    def day(self, number: int) -> SimulatedDay:
        """Return one day; 0 is the first."""
        draft = self._honest(number)
        self._compromise(draft, number)
        extras = [self._bursts(number), self._impossible_travels(draft, number)]
        draft = _join([draft, *extras])
        order = np.lexsort((draft.customer, draft.seconds))
        return self._columns(draft, order, number)

    def profiles(self) -> list[Profiles]:
        """Return the profiles of all customers, terminals and merchants."""
        opened = self._start_ms - 365 * DAY_MS
        home, place = self._home * _DEGREES, self._place * _DEGREES
        merchants = len(self._merchant_ids)
        return [
            Profiles(
                "customer",
                self._customer_ids,
                {
                    "usual_amount_minor": np.rint(self._mean_minor).astype(np.int64),
                    "home_latitude": 40.0 + home[:, 1],
                    "home_longitude": home[:, 0],
                    "opened_at_ms": np.full(len(home), opened),
                },
            ),
            Profiles(
                "terminal",
                self._terminal_ids,
                {
                    "category_code": self._merchant_codes[np.arange(len(place)) // 5],
                    "latitude": 40.0 + place[:, 1],
                    "longitude": place[:, 0],
                    "opened_at_ms": np.full(len(place), opened),
                },
            ),
            Profiles(
                "merchant",
                self._merchant_ids,
                {
                    "category_code": self._merchant_codes,
                    "opened_at_ms": np.full(merchants, opened),
                },
            ),
        ]

    def _random(self, stream: int, day: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self._population.seed, stream, day]))

    def _honest(self, number: int) -> _Draft:
        rng = self._random(_DAY, number)
        customer = np.repeat(
            np.arange(self._population.customers), rng.poisson(self._transactions_a_day)
        )
        seconds = rng.normal(43_200, 20_000, len(customer))
        mean = self._mean_minor[customer]
        amount = rng.normal(mean, mean / 2)
        amount = np.where(amount < 0, rng.uniform(0, 2 * mean), amount)
        pick = (rng.random(len(customer)) * self._near_counts[customer]).astype(np.int64)
        terminal = self._near[self._near_first[customer] + pick]
        channel = 1 + np.searchsorted([0.35, 0.7, 0.95], rng.random(len(customer)), "right")
        inside = (seconds > 0) & (seconds < 86_400)
        amount_minor = np.rint(amount).astype(np.int64)[inside]
        return _Draft(
            customer[inside],
            terminal[inside],
            seconds[inside],
            amount_minor,
            channel[inside].astype(np.int32),
            np.where(amount_minor > _LARGE_MINOR, 1, 0).astype(np.int8),
        )

    def _compromise(self, draft: _Draft, number: int) -> None:
        terminals = np.zeros(self._population.terminals, np.bool_)
        for earlier in range(max(0, number - _TERMINAL_DAYS + 1), number + 1):
            count = min(_COMPROMISED_TERMINALS_A_DAY, len(terminals))
            drawn = self._random(_TERMINALS, earlier).choice(len(terminals), count, replace=False)
            terminals[drawn] = True
        draft.scenario[terminals[draft.terminal]] = 2
        customers = np.zeros(self._population.customers, np.bool_)
        for earlier in range(max(0, number - _CUSTOMER_DAYS + 1), number + 1):
            count = min(_COMPROMISED_CUSTOMERS_A_DAY, len(customers))
            drawn = self._random(_CUSTOMERS, earlier).choice(len(customers), count, replace=False)
            customers[drawn] = True
        rows = np.flatnonzero(customers[draft.customer])
        chosen = rows[self._random(_CUSTOMERS, number).random(len(rows)) < 1 / 3]
        draft.amount_minor[chosen] *= 5
        draft.scenario[chosen] = 3

    def _bursts(self, number: int) -> _Draft:
        rng = self._random(_EXTRAS, 2 * number)
        active = np.flatnonzero(self._near_counts)
        bursts = min(len(active), max(1, self._population.customers // 2_500))
        customers = rng.choice(active, bursts, replace=False)
        sizes = rng.integers(20, 60, bursts)
        customer = np.repeat(customers, sizes)
        n = len(customer)
        start = np.repeat(rng.uniform(0, 86_000, bursts), sizes)
        return _Draft(
            customer,
            rng.integers(0, self._population.terminals, n),
            start + rng.uniform(0, 300, n),
            rng.integers(50, 500, n),
            np.full(n, CHANNELS.index("ecommerce"), np.int32),
            np.full(n, 4, np.int8),
        )

    def _impossible_travels(self, draft: _Draft, number: int) -> _Draft:
        rng = self._random(_EXTRAS, 2 * number + 1)
        travels = min(len(draft.customer), max(1, self._population.customers // 2_500))
        rows = rng.choice(len(draft.customer), travels, replace=False)
        candidates = rng.integers(0, self._population.terminals, (travels, 64))
        offset = self._place[candidates] - self._place[draft.terminal[rows], None, :]
        distance = np.hypot(offset[:, :, 0], offset[:, :, 1])
        best = np.argmax(distance, axis=1)
        far = distance[np.arange(travels), best] >= _FAR
        rows, best, candidates = rows[far], best[far], candidates[far]
        n = len(rows)
        return _Draft(
            draft.customer[rows],
            candidates[np.arange(n), best],
            draft.seconds[rows] + rng.uniform(*_TRAVEL_SECONDS, n),
            np.rint(self._mean_minor[draft.customer[rows]] * rng.uniform(0.5, 2.0, n)).astype(
                np.int64
            ),
            np.full(n, CHANNELS.index("card_present"), np.int32),
            np.full(n, 5, np.int8),
        )

    def _columns(self, draft: _Draft, order: NDArray[np.intp], number: int) -> SimulatedDay:
        # What a burst or a journey would push over midnight is not part of this day.
        order = order[draft.seconds[order] < 86_400]
        customer, terminal = draft.customer[order], draft.terminal[order]
        n = len(order)
        present = np.ones(n, np.bool_)
        times = self._start_ms + number * DAY_MS + (draft.seconds[order] * 1000).astype(np.int64)
        online = draft.channel[order] == CHANNELS.index("ecommerce")
        place = self._place[terminal] * _DEGREES
        merchant = terminal // 5
        scenario = draft.scenario[order]
        batch = TransactionBatch(
            {
                "event_id": _names(f"s{self._population.seed}-{number}-", n),
                "event_time_ms": NumberColumn(times, present),
                "customer_id": self._customer_ids.take(customer),
                "terminal_id": self._terminal_ids.take(terminal),
                "amount_minor": NumberColumn(draft.amount_minor[order], present),
                "currency": repeat("EUR", n),
                "merchant_id": self._merchant_ids.take(merchant),
                "channel": NumberColumn(draft.channel[order], present),
                "country": self._countries.take(self._terminal_country[terminal]),
                # Someone who pays online shows no place.
                "latitude": NumberColumn(np.where(online, 0.0, 40.0 + place[:, 1]), ~online),
                "longitude": NumberColumn(np.where(online, 0.0, place[:, 0]), ~online),
                "merchant_category": self._category_texts.take(merchant),
            },
            scenario > 0,
        )
        return SimulatedDay(batch, scenario)


def _join(drafts: list[_Draft]) -> _Draft:
    return _Draft(
        np.concatenate([draft.customer for draft in drafts]),
        np.concatenate([draft.terminal for draft in drafts]),
        np.concatenate([draft.seconds for draft in drafts]),
        np.concatenate([draft.amount_minor for draft in drafts]),
        np.concatenate([draft.channel for draft in drafts]),
        np.concatenate([draft.scenario for draft in drafts]),
    )


def _names(prefix: str, count: int) -> StringColumn:
    numbers = pc.cast(pa.array(np.arange(count)), pa.string())
    return from_arrow(pc.binary_join_element_wise(prefix, numbers, ""))
