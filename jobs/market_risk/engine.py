"""Positions, P&L, exposure, VaR, stress and limits of the firms of one shard, in memory.

Fills and marks change the state at once; `evaluate` then measures risk once for a whole batch, on
the newest state: a trader wants the risk of now, and a price that came and went within a batch
moved no risk that anyone could have acted on. Everything is a pure function of the calls made, in
their order; there is no clock.

Money of positions is exact integers in the instrument's currency; totals are in the base currency
at `BASE_SCALE` decimal places, each position converted and rounded once at the newest FX rate. VaR,
shortfall, stress and margin are float64 in base units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.exposure import (
    BASE_SCALE,
    RATE_SCALE,
    to_base,
    values_in_base,
)
from jobs.market_risk.grouping import Grouping, GroupName, group_positions
from jobs.market_risk.limits import Limit, LimitBook, Measure, Transition
from jobs.market_risk.measures import (
    GroupMeasures,
    Market,
    PositionMoney,
    ShockTails,
    measure_groups,
)
from jobs.market_risk.methods import METHODS, MethodKit, StreamMethod
from jobs.market_risk.names import Names, text_rows
from jobs.market_risk.positions import PositionBook
from jobs.market_risk.prices import BLANK_MARK, MarkColumns, mark_prices, put_newest, twice_price
from jobs.market_risk.reference import FxTable, Instrument
from jobs.market_risk.revaluation import GREEKS, OptionIndex, UnitGreeks, option_pnl, unit_greeks
from jobs.market_risk.scaling import rescaled
from jobs.market_risk.stress import Scenario, ScenarioSet
from schemas.columns import StringColumn

__all__ = ["Described", "EngineConfig", "Evaluation", "FillColumns", "FillOutcome", "RiskEngine"]

_UNKNOWN_SCALE: Final = -1


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of the engine; `equity` is each firm's, in base units, for leverage.

    A price that is older than `stale_ms` of event time is stale. `methods` are those of VaR beside
    the plain one, which measures and limits go by; `simulated` is the number of Monte Carlo
    scenarios.
    """

    base_currency: str = "USD"
    mark_at: str = "mid"
    levels: tuple[float, ...] = (0.95, 0.975, 0.99)
    history: int = 500
    material_move: float = 0.0001
    equity: float = 100_000_000.0
    retained_fill_ids: int = 1_000_000
    stale_ms: int = 5_000
    methods: tuple[StreamMethod, ...] = METHODS
    simulated: int = 1_000


@dataclass(frozen=True, slots=True)
class FillColumns:
    """Fills as columns, in order of arrival; quantities signed, numbers scaled."""

    fill_id: StringColumn
    firm_id: StringColumn
    desk_id: StringColumn
    account_id: StringColumn
    instrument_id: StringColumn
    event_time_ms: NDArray[np.int64]
    quantity: NDArray[np.int64]
    quantity_scale: NDArray[np.int64]
    price: NDArray[np.int64]
    price_scale: NDArray[np.int64]
    fee: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.event_time_ms)


@dataclass(frozen=True, slots=True)
class FillOutcome:
    """What became of each fill of a batch.

    A `repeated`, `rejected` (its value does not fit 64 bits) or `foreign` one (its numbers do not
    fit its instrument's scales) changed nothing; the last two are dead letters. `position` is where
    it went (-1 for a foreign one), `multiplier` that of its instrument. `fills` are the fills at
    the scales of their instruments.
    """

    repeated: NDArray[np.bool_]
    rejected: NDArray[np.bool_]
    foreign: NDArray[np.bool_]
    position: NDArray[np.int32]
    multiplier: NDArray[np.int64]
    fills: FillColumns

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Return which fills changed a position."""
        return ~(self.repeated | self.rejected | self.foreign)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one evaluation found, as columns of p positions and measures of g groups.

    A position whose mark or FX rate is missing counts with value 0 in its groups, whose `unpriced`
    says how many there are. P&L of `positions` is by average cost, that by FIFO beside it; prices
    are in the instrument's currency, NaN unknown.
    """

    event_time_ms: int
    sequence: int
    firm: NDArray[np.int32]
    desk: NDArray[np.int32]
    account: NDArray[np.int32]
    positions: PositionMoney
    average_price: NDArray[np.float64]
    mark: NDArray[np.float64]
    mark_ms: NDArray[np.int64]
    stale: NDArray[np.bool_]
    """Which positions are open at a price that is old."""
    fifo_realised: NDArray[np.int64]
    fifo_unrealised: NDArray[np.int64]
    component_var: NDArray[np.float64]
    component_es: NDArray[np.float64]
    greeks: UnitGreeks
    """Of each position, in base units; `group_greeks` are the sums by group."""
    group_greeks: UnitGreeks
    groups: GroupMeasures
    grouping: Grouping
    stress_ids: tuple[str, ...]
    transitions: tuple[tuple[str, Transition], ...]
    """(firm, transition) of each limit that changed."""


@dataclass(frozen=True, slots=True)
class Described:
    """Terms and FX rates of each instrument; `rates` are 0 where unknown."""

    terms: list[Instrument]
    rates: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    margin_rate: NDArray[np.float64]
    liquidity_root: NDArray[np.float64]
    options: OptionIndex


@dataclass(frozen=True, slots=True)
class _Shocks:
    matrix: NDArray[np.float64]
    history: int
    tails: ShockTails
    kit: MethodKit | None
    simulated: NDArray[np.float64]
    """Monte Carlo shocks of each instrument, (simulated, instruments); none unless needed."""


class RiskEngine:
    """The risk of all firms of a shard."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.instruments, self.accounts, self.desks, self.firms = (Names() for _ in range(4))
        self.terms: dict[str, Instrument] = {}
        self.fx = FxTable(config.base_currency)
        self.limits: dict[str, LimitBook] = {}
        self.scenarios = ScenarioSet(config.history)
        self.book = PositionBook(config.retained_fill_ids)
        self.keys: dict[tuple[int, int, int, int], int] = {}
        self.scales = np.empty((0, 2), np.int64)  # price, quantity
        self.marks = np.empty((0, 4), np.int64)  # last, its time, twice mid, its time
        self.event_time_ms = -1
        self.sequence = 0
        self.measured = np.empty(0)  # the marks of the last evaluation
        self.dirty = False
        self._terms_cache: Described | None = None
        self._shocks_cache: _Shocks | None = None
        self._groups_cache: tuple[NDArray[np.int32], Grouping] | None = None

    def put_instrument(self, terms: Instrument) -> None:
        """Learn the terms of an instrument; a multiplier counts for fills that come after."""
        self.terms[terms.instrument_id] = terms
        self.forget_caches()

    def put_scenario(self, scenario: Scenario) -> None:
        """Add or replace a scenario."""
        self.scenarios.put(scenario)
        self.forget_caches()

    def put_rate(self, currency: str, base: str, rate: int, event_time_ms: int) -> bool:
        """Set an FX rate; return False for one older than what is held.

        Raises:
            ReferenceError: if the base differs or the rate is not positive.
        """
        taken = self.fx.put(currency, base, rate, event_time_ms)
        if taken:
            self.forget_caches()
        return taken

    def put_limit(self, firm: str, limit: Limit) -> bool:
        """Add or replace a limit; return False for a record no newer than what is held."""
        taken = self.limits.setdefault(firm, LimitBook()).put(limit)
        self.dirty |= taken
        return taken

    def add_fills(self, fills: FillColumns) -> FillOutcome:
        """Add fills in order and return what became of them.

        The first scales seen for an instrument are its own. A fill at others is read at its own; if
        it has more decimal places than that, it is not applied.
        """
        instrument = self.instruments.codes(fills.instrument_id)
        self._grow()
        self._learn_scales(instrument, fills.price_scale, fills.quantity_scale)
        fills, fits = _at_scales(fills, self.scales[instrument])
        foreign = ~fits
        keys = np.stack(
            [
                self.firms.codes(fills.firm_id),
                self.desks.codes(fills.desk_id),
                self.accounts.codes(fills.account_id),
                instrument,
            ],
            axis=1,
        )[~foreign]
        distinct, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        positions = np.empty(len(distinct), np.int32)
        for place in np.argsort(first).tolist():
            key = tuple(distinct[place].tolist())
            positions[place] = self.keys.setdefault(key, len(self.keys))
        position = np.full(len(fills), -1, np.int32)
        position[~foreign] = positions[inverse.ravel()]
        multiplier = self.described().multiplier[instrument]
        applied = self.book.apply(
            position[~foreign],
            fills.quantity[~foreign],
            fills.price[~foreign],
            multiplier[~foreign],
            fills.fee[~foreign],
            text_rows(fills.fill_id, ~foreign),
        )
        if len(applied.changed):
            self.dirty = True
        self._advance(fills.event_time_ms[~foreign])
        repeated, rejected = np.zeros(len(fills), np.bool_), np.zeros(len(fills), np.bool_)
        repeated[~foreign], rejected[~foreign] = ~applied.fresh, applied.rejected
        return FillOutcome(repeated, rejected, foreign, position, multiplier, fills)

    def put_marks(self, marks: MarkColumns) -> tuple[NDArray[np.int32], MarkColumns]:
        """Take prices of instruments, the newest by event time.

        Returns:
            the rows whose prices fit the scale of their instrument, at that scale, and their
            instruments.
        """
        instrument = self.instruments.codes(marks.instrument_id)
        self._grow()
        self._learn_scales(instrument, marks.price_scale)
        marks, fits = marks.at_scale(self.scales[instrument, 0])
        instrument, marks = instrument[fits], marks.take(fits)
        put_newest(self.marks, instrument, marks)
        self._advance(marks.last_ms)
        self._advance(marks.quote_ms)
        return instrument, marks

    def is_material(self) -> bool:
        """Return whether anything moved enough since the last evaluation to measure again."""
        if self.dirty:
            return True
        price, _ = mark_prices(self.marks, self.config.mark_at)
        before = np.full(len(price), np.nan)
        before[: len(self.measured)] = self.measured
        known = np.isfinite(price)
        if np.any(known & ~np.isfinite(before)):
            return True
        moved = np.abs(price[known] - before[known])
        return bool(np.any(moved > self.config.material_move * np.abs(before[known])))

    def evaluate(self) -> Evaluation | None:
        """Measure everything on the newest state; None while there is no position."""
        price, mark_ms = mark_prices(self.marks, self.config.mark_at)
        self.measured, self.dirty = price, False
        if len(self.book) == 0:
            return None
        described = self.described()
        keys, grouping = self.grouped()
        firm, desk, account, instrument = (keys[:, column] for column in range(4))
        rows = self.book.rows()
        known = (np.isfinite(price) & (described.rates > 0))[instrument]
        multiplier = described.multiplier[instrument]
        rate = np.maximum(described.rates, 1)[instrument]
        scale = self.scales[instrument].sum(axis=1)
        twice = twice_price(self.marks, self.config.mark_at)[instrument]
        value, fits = values_in_base(rows.quantity, twice, multiplier, scale, rate)
        priced = (known & fits) | (rows.quantity == 0)
        value = np.where(priced, value, 0)
        cost, realised, fifo_cost, fifo_realised, fees = (
            to_base(column, scale, rate)
            for column in (
                rows.cost,
                rows.realised,
                rows.fifo_cost,
                rows.fifo_realised,
                rows.fees,
            )
        )
        quantity = rows.quantity / np.power(10.0, self.scales[instrument, 1])
        spot = price / np.power(10.0, np.maximum(self.scales[:, 0], 0))
        positions = PositionMoney(
            instrument,
            quantity,
            value,
            realised,
            np.where(priced, value - cost, 0),
            fees,
            priced,
        )
        groups, component = measure_groups(
            grouping,
            positions,
            self.market(described, spot, self.event_time_ms),
            self.config.levels,
            self.config.methods,
        )
        greeks = self._greeks(described, spot, positions)
        self.sequence += 1
        held = quantity * multiplier
        paid = rows.cost / np.power(10.0, scale)
        return Evaluation(
            self.event_time_ms,
            self.sequence,
            firm,
            desk,
            account,
            positions,
            np.divide(paid, held, out=np.full(len(held), np.nan), where=held != 0),
            spot[instrument],
            mark_ms[instrument],
            priced
            & (rows.quantity != 0)
            & (self.event_time_ms - mark_ms[instrument] > self.config.stale_ms),
            fifo_realised,
            np.where(priced, value - fifo_cost, 0),
            component[0],
            component[1],
            greeks,
            UnitGreeks(*(grouping.total_real(getattr(greeks, name)) for name in GREEKS)),
            groups,
            grouping,
            tuple(one.scenario_id for one in self.scenarios.chosen("stress")),
            tuple(self._check_limits(groups, grouping)),
        )

    def forget_caches(self) -> None:
        """Derive everything anew from terms, rates and scenarios when next evaluating."""
        self._terms_cache = self._shocks_cache = None
        self.dirty = True

    def described(self) -> Described:
        """Return the terms of every instrument, at the newest FX rates."""
        count = len(self.instruments)
        if self._terms_cache is None or len(self._terms_cache.terms) != count:
            terms = [self.terms.get(name) or Instrument(name) for name in self.instruments.texts]
            self._terms_cache = Described(
                terms,
                self.fx.rates([item.currency for item in terms]),
                np.array([item.multiplier for item in terms], np.int64),
                np.array([item.margin_rate for item in terms]),
                np.sqrt(np.maximum([item.liquidity_days for item in terms], 1.0)),
                OptionIndex.of(terms, self.instruments.texts),
            )
            self._shocks_cache = None
        return self._terms_cache

    def grouped(self) -> tuple[NDArray[np.int32], Grouping]:
        """Return firm, desk, account and instrument of each position, and their groups."""
        # Positions are only ever added, so their number says whether the groups still hold.
        if self._groups_cache is None or len(self._groups_cache[0]) != len(self.book):
            keys = np.array(list(self.keys), np.int32)[: len(self.book)]
            self._groups_cache = (
                keys,
                group_positions(
                    keys,
                    self.firms.texts,
                    self.desks.texts,
                    self.accounts.texts,
                    self.instruments.texts,
                ),
            )
        return self._groups_cache

    def market(self, described: Described, spot: NDArray[np.float64], now_ms: int) -> Market:
        """Return scenarios and prices for these terms, rates and prices, options as of `now_ms`."""
        terms = described.terms
        if self._shocks_cache is None:
            self._shocks_cache = self._make_shocks(described)
        found = self._shocks_cache
        fx = described.rates / 10.0**RATE_SCALE * described.multiplier
        options, pnl = option_pnl(terms, described.options, spot, found.matrix, now_ms)
        simulated = np.zeros((len(found.simulated), 0))
        if len(options):
            _, simulated = option_pnl(terms, described.options, spot, found.simulated, now_ms)
        return Market(
            found.matrix,
            found.history,
            found.tails,
            np.where(np.isfinite(spot), spot, 0.0) * fx,
            options,
            pnl * fx[options],
            simulated * fx[options],
            described.margin_rate,
            described.liquidity_root,
            found.kit,
        )

    def _make_shocks(self, described: Described) -> _Shocks:
        names, kinds = self.instruments.texts, [one.kind for one in described.terms]
        shocks, history, _ = self.scenarios.matrix(names, kinds)
        kit = MethodKit.of(history, self.config.simulated) if history >= 2 else None
        simulated = np.zeros((0, len(names)))
        if kit is not None:
            simulated = np.zeros((len(kit.draws), len(names)))
            # Only underlyings of options need shocks; all else is drawn as P&L.
            under = np.unique(described.options.under)
            simulated[:, under] = np.maximum(kit.draws @ shocks[:history, under], -1.0)
        return _Shocks(
            shocks, history, ShockTails.of(shocks, history, self.config.levels), kit, simulated
        )

    def _greeks(
        self, described: Described, spot: NDArray[np.float64], positions: PositionMoney
    ) -> UnitGreeks:
        unit = unit_greeks(described.terms, described.options, spot, self.event_time_ms)
        fx = described.rates / 10.0**RATE_SCALE * described.multiplier
        held = positions.quantity * fx[positions.instrument]
        return UnitGreeks(*(getattr(unit, name)[positions.instrument] * held for name in GREEKS))

    def _check_limits(
        self, groups: GroupMeasures, grouping: Grouping
    ) -> list[tuple[str, Transition]]:
        base = 10.0**BASE_SCALE

        def measured(name: GroupName, measure: Measure) -> float | None:
            place = grouping.index.get(name)
            if place is None:
                return None
            if groups.unpriced[place]:
                # With a part of it unpriced a measure is a lower bound at best.
                return float("nan")
            if measure in ("var", "expected_shortfall"):
                column = groups.var if measure == "var" else groups.expected_shortfall
                return float(column[-1, place]) if len(column) else None
            pnl = groups.realised[place] + groups.unrealised[place] - groups.fees[place]
            return {
                "gross": int(groups.gross[place]) / base,
                "net": int(groups.net[place]) / base,
                "loss": -int(pnl) / base,
                "leverage": int(groups.gross[place]) / base / self.config.equity,
                "quantity": float(groups.quantity[place]),
            }[measure]

        return [
            (firm, transition)
            for firm, book in sorted(self.limits.items())
            for transition in book.check(
                lambda limit, firm=firm: measured(  # type: ignore[misc]
                    (firm, limit.scope, limit.scope_id), limit.measure
                ),
                self.event_time_ms,
            )
        ]

    def _advance(self, times: NDArray[np.int64]) -> None:
        if len(times):
            self.event_time_ms = max(self.event_time_ms, int(times.max()))

    def _grow(self) -> None:
        added = len(self.instruments) - len(self.scales)
        if added > 0:
            self.scales = np.concatenate([self.scales, np.full((added, 2), _UNKNOWN_SCALE)])
            blank = np.tile(np.array(BLANK_MARK), (added, 1))
            self.marks = np.concatenate([self.marks, blank])

    def _learn_scales(
        self,
        instrument: NDArray[np.int32],
        price: NDArray[np.int64],
        quantity: NDArray[np.int64] | None = None,
    ) -> None:
        # The first record of an instrument that names a scale sets it for good.
        known, first = np.unique(instrument, return_index=True)
        for column, scales in ((0, price), (1, quantity)):
            if scales is not None:
                held = self.scales[known, column]
                given = np.where(held == _UNKNOWN_SCALE, scales[first], held)
                self.scales[known, column] = given


def _at_scales(fills: FillColumns, own: NDArray[np.int64]) -> tuple[FillColumns, NDArray[np.bool_]]:
    # Fills at the scales of their instruments (price, quantity), and which lose nothing by that.
    price_scale, quantity_scale = own[:, 0], own[:, 1]
    price, whole = rescaled(fills.price, fills.price_scale, price_scale)
    quantity, fits = rescaled(fills.quantity, fills.quantity_scale, quantity_scale)
    fee, paid = rescaled(
        fills.fee, fills.price_scale + fills.quantity_scale, price_scale + quantity_scale
    )
    changed = replace(
        fills,
        price=price,
        price_scale=price_scale,
        quantity=quantity,
        quantity_scale=quantity_scale,
        fee=fee,
    )
    return changed, whole & fits & paid
