"""A seeded simulator: correlated instruments, their quotes and trades, and a desk that trades them.

The same seed gives the same stream, ids included, however it is cut into batches. Prices are
geometric Brownian motions with one common factor, against which bonds move; quotes straddle the
price; trades happen at the quote; the desks' fills are some of the trades, leaning against their
inventory so that positions stay bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.reference import YEAR_MS, Instrument
from schemas.columns import Column, NumberColumn, StringColumn
from schemas.errors import ConfigurationError

__all__ = ["DEFAULT_START_MS", "DeskConfig", "MarketSimulator", "SimulatedBatch"]

DEFAULT_START_MS: Final = 1_577_836_800_000
"""2020-01-01, UTC."""

_DAY_MS: Final = 86_400_000
_STEP_MS: Final = 100
_STEPS: Final = 20  # steps drawn at once: part of the seeded sequence, so not a setting
_PRICE_SCALE: Final = 2
_KINDS: Final = ("equity", "equity", "future", "crypto", "fx", "option", "bond")
_CURRENCIES: Final = ("USD", "EUR", "USD", "USD", "USD", "USD", "EUR")


@dataclass(frozen=True, slots=True)
class DeskConfig:
    """What is simulated; ids of trades and fills begin with `prefix`."""

    instruments: int = 20
    accounts: int = 8
    desks: int = 2
    firm: str = "firm"
    start_ms: int = DEFAULT_START_MS
    trade_share: float = 0.3
    fill_share: float = 0.1
    repeat_share: float = 0.01
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class SimulatedBatch:
    """Events of some steps, each kind in order of event time, as columns of its contract."""

    ticks: dict[str, Column]
    quotes: dict[str, Column]
    fills: dict[str, Column]


class MarketSimulator:
    """An endless stream of batches.

    Raises:
        ConfigurationError: if there is nothing to simulate.
    """

    def __init__(self, seed: int, config: DeskConfig | None = None) -> None:
        self.config = config = config or DeskConfig()
        if min(config.instruments, config.accounts, config.desks) < 1:
            msg = f"simulating a market: expected instruments, accounts and desks, was {config!r}"
            raise ConfigurationError(msg)
        self._random = np.random.default_rng(seed)
        setup = np.random.default_rng([seed, 1])
        count = config.instruments
        self._volatility = setup.uniform(0.15, 0.6, count)
        self._beta = setup.uniform(0.3, 0.9, count)
        start = np.exp(setup.uniform(np.log(20), np.log(500), count))
        # Bonds are quoted clean for 100 of nominal, are quiet, and rise as the market falls.
        bonds = np.arange(count) % len(_KINDS) == _KINDS.index("bond")
        start = np.where(bonds, 90 + start / 25, start)
        self._volatility = np.where(bonds, self._volatility / 8, self._volatility)
        self._beta = np.where(bonds, -self._beta / 2, self._beta)
        self._log_price = np.log(start)
        self.terms = [self._describe(number, start) for number in range(count)]
        self.names = [terms.instrument_id for terms in self.terms]
        self._inventory = np.zeros((config.accounts, count))
        self._opened_ms = config.start_ms
        self._step = 0
        self._trade_number = 0
        self._fill_number = 0

    def reference(self, history: int = 250) -> dict[str, list[dict[str, Any]]]:
        """Return reference records by topic field: instruments, FX rates, scenarios and limits.

        `history` daily scenarios are drawn from the same factor model as the prices.
        """
        config = self.config
        random = np.random.default_rng([config.instruments, history])
        market = random.standard_t(5, (history, 1)) * np.sqrt(3 / 5)
        own = random.standard_normal((history, config.instruments))
        daily = self._volatility / np.sqrt(252)
        shocks = np.maximum(daily * (self._beta * market + np.sqrt(1 - self._beta**2) * own), -0.99)
        scenarios: list[dict[str, Any]] = [
            {
                "scenario_id": f"day-{row:04d}",
                "kind": "historical",
                "event_time_ms": config.start_ms - (history - row) * _DAY_MS,
                "shocks": dict(zip(self.names, shocks[row].tolist(), strict=True)),
            }
            for row in range(history)
        ]
        stress: list[tuple[str, dict[str, float]]] = [
            ("crash", {"kind:equity": -0.2, "kind:crypto": -0.5, "kind:bond": 0.03, "*": -0.1}),
            ("rally", {"kind:bond": -0.01, "*": 0.1}),
            ("rates-up-1-point", {"kind:bond": -0.07, "kind:equity": -0.03, "*": 0.0}),
        ]
        scenarios += [
            {
                "scenario_id": name,
                "kind": "stress",
                "event_time_ms": config.start_ms,
                "shocks": shocks_of,
            }
            for name, shocks_of in stress
        ]
        # A position comes to some 100,000 in a month: some limits hold, some are near or breached.
        gross = 1e5 * config.instruments * config.accounts
        share = gross / config.desks
        limits = [
            _limit(config.firm, "firm", config.firm, "gross", gross, 1.5 * gross),
            _limit(config.firm, "firm", config.firm, "var", gross / 200, gross / 100),
        ]
        limits += [
            _limit(config.firm, "desk", f"desk-{number}", "gross", share, 1.5 * share)
            for number in range(config.desks)
        ]
        limits += [
            _limit(config.firm, "account", f"account-{number}", "loss", 2e4, 1e5)
            for number in range(config.accounts)
        ]
        return {
            "instruments": [terms.to_record() for terms in self.terms],
            "fx_rates": [
                {
                    "currency": "EUR",
                    "base_currency": "USD",
                    "event_time_ms": config.start_ms,
                    "rate": 112_000_000,
                }
            ],
            "scenarios": scenarios,
            "limits": limits,
        }

    @property
    def now_ms(self) -> int:
        """Return the event time that the market has reached."""
        return self._opened_ms + self._step * _STEP_MS

    def next_day(self) -> None:
        """Close until the same hour of the next UTC day; prices move by a day's draw overnight."""
        config, random = self.config, self._random
        market = random.standard_t(5) * np.sqrt(3 / 5)
        own = random.standard_normal(config.instruments)
        moves = self._beta * market + np.sqrt(1 - self._beta**2) * own
        self._log_price = self._log_price + moves * self._volatility / np.sqrt(252)
        self._opened_ms += _DAY_MS
        self._step = 0

    def batches(self) -> Iterator[SimulatedBatch]:
        """Yield batches of `_STEPS` steps of `_STEP_MS`, for ever."""
        while True:
            yield self._draw()

    def _draw(self) -> SimulatedBatch:
        config, random, count = self.config, self._random, self.config.instruments
        years = _STEP_MS / YEAR_MS
        market = random.standard_normal((_STEPS, 1))
        own = random.standard_normal((_STEPS, count))
        moves = self._beta * market + np.sqrt(1 - self._beta**2) * own
        path = self._log_price + np.cumsum(moves * self._volatility * np.sqrt(years), axis=0)
        self._log_price = path[-1]
        cents = np.maximum(np.round(np.exp(path) * 10**_PRICE_SCALE), 2).astype(np.int64)
        half = np.maximum(cents // 5000, 1)
        times = self._opened_ms + (self._step + 1 + np.arange(_STEPS)) * _STEP_MS
        self._step += _STEPS
        step = np.repeat(np.arange(_STEPS), count)
        instrument = np.tile(np.arange(count), _STEPS)
        bid, ask = (cents - half)[step, instrument], (cents + half)[step, instrument]
        sizes = random.integers(1, 100, (2, len(step)))
        quotes: dict[str, Column] = {
            "instrument_id": self._names(instrument),
            "event_time_ms": _number(times[step]),
            "bid": _number(bid),
            "ask": _number(ask),
            "price_scale": _number(np.full(len(step), _PRICE_SCALE), np.int32),
            "bid_size": _number(sizes[0]),
            "ask_size": _number(sizes[1]),
            "quantity_scale": _number(np.zeros(len(step)), np.int32),
        }
        draws = random.random((3, len(step)))
        traded = np.flatnonzero(draws[0] < config.trade_share)
        buys = draws[1][traded] < 0.5
        price = np.where(buys, ask[traded], bid[traded])
        size = random.integers(1, 200, len(step))[traded]
        numbers = self._trade_number + np.arange(len(traded))
        self._trade_number += len(traded)
        ticks: dict[str, Column] = {
            "instrument_id": self._names(instrument[traded]),
            # A trade follows its quote by a millisecond.
            "event_time_ms": _number(times[step[traded]] + 1),
            "price": _number(price),
            "price_scale": _number(np.full(len(traded), _PRICE_SCALE), np.int32),
            "size": _number(size),
            "quantity_scale": _number(np.zeros(len(traded)), np.int32),
            "trade_id": StringColumn.from_texts(
                [f"{config.prefix}t{number}" for number in numbers.tolist()]
            ),
            "aggressor": _number(np.where(buys, 1, 2), np.int32),
        }
        ours = np.flatnonzero(draws[2][traded] < config.fill_share)
        fills = self._fills(
            instrument[traded][ours], times[step[traded][ours]] + 1, price[ours], size[ours]
        )
        return SimulatedBatch(ticks, quotes, fills)

    def _fills(
        self,
        instrument: NDArray[np.intp],
        times: NDArray[np.int64],
        price: NDArray[np.int64],
        size: NDArray[np.int64],
    ) -> dict[str, Column]:
        config, random = self.config, self._random
        account = random.integers(0, config.accounts, len(instrument))
        lean = random.random(len(instrument))
        signed = np.empty(len(instrument), np.int64)
        for row in range(len(instrument)):
            held = self._inventory[account[row], instrument[row]]
            # A position of 500 units halves the chance to add to it.
            sell = lean[row] < 0.5 + 0.5 * np.tanh(held / 1000)
            signed[row] = -size[row] if sell else size[row]
            self._inventory[account[row], instrument[row]] += signed[row]
        numbers = self._fill_number + np.arange(len(instrument))
        self._fill_number += len(instrument)
        # Venues repeat reports; the repetition directly follows.
        again = np.flatnonzero(random.random(len(instrument)) < config.repeat_share)
        rows = np.sort(np.concatenate([np.arange(len(instrument)), again]))
        text = StringColumn.from_texts
        return {
            "fill_id": text([f"{config.prefix}f{number}" for number in numbers[rows].tolist()]),
            "account_id": text([f"account-{number}" for number in account[rows].tolist()]),
            "desk_id": text([f"desk-{number % config.desks}" for number in account[rows].tolist()]),
            "firm_id": text([config.firm] * len(rows)),
            "instrument_id": self._names(instrument[rows]),
            "event_time_ms": _number(times[rows]),
            "quantity": _number(signed[rows]),
            "quantity_scale": _number(np.zeros(len(rows)), np.int32),
            "price": _number(price[rows]),
            "price_scale": _number(np.full(len(rows), _PRICE_SCALE), np.int32),
            "fee": _number(np.abs(signed[rows])),
        }

    def _describe(self, number: int, start: NDArray[np.float64]) -> Instrument:
        kind, currency = _KINDS[number % len(_KINDS)], _CURRENCIES[number % len(_KINDS)]
        name = f"{kind[:2].upper()}{number:04d}"
        common = {
            "instrument_id": name,
            "kind": kind,
            "currency": currency,
            # A bond's price is for 100 of nominal, and it is issued in pieces of 1,000.
            "multiplier": 10 if kind in ("bond", "future") else 1,
            "margin_rate": {"bond": 0.03, "crypto": 0.2, "future": 0.05}.get(kind, 0.1),
            # Days it takes to leave.
            "liquidity_days": {"crypto": 2.0, "option": 3.0}.get(kind, 1.0),
        }
        if kind == "bond":
            common["expiry_ms"] = self.config.start_ms + 10 * YEAR_MS
        if kind != "option":
            return Instrument(**common)  # type: ignore[arg-type]
        under = number - number % len(_KINDS)
        return Instrument(
            **common,  # type: ignore[arg-type]
            expiry_ms=self.config.start_ms + YEAR_MS // 4,
            underlying_id=f"EQ{under:04d}",
            strike=round(float(start[under]), 0),
            right="call" if number % 2 else "put",
            volatility=float(self._volatility[under]),
            rate=0.02,
        )

    def _names(self, codes: NDArray[np.intp]) -> StringColumn:
        return StringColumn.from_texts([self.names[code] for code in codes.tolist()])


def _number(values: NDArray[Any], kind: type[np.generic] = np.int64) -> NumberColumn:
    return NumberColumn(values.astype(kind), np.ones(len(values), np.bool_))


def _limit(
    firm: str, scope: str, scope_id: str, measure: str, warning: float, breach: float
) -> dict[str, Any]:
    return {
        "limit_id": f"{scope}-{scope_id}-{measure}",
        "firm_id": firm,
        "scope": scope,
        "scope_id": scope_id,
        "measure": measure,
        "warning": warning,
        "breach": breach,
    }
