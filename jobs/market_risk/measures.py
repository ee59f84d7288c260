"""Exposure, P&L, VaR, stress and margin of every instrument, account, desk and firm at once.

Scenario P&L of portfolios is one matrix product: shocks (scenarios x instruments) times exposure
(instruments x groups), plus the fully revalued options. A single linear instrument needs no
scenarios of its own: its tail is the tail of its shocks times its exposure, so only the tails are
kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.exposure import BASE_SCALE
from jobs.market_risk.grouping import Grouping
from jobs.market_risk.methods import MethodKit, StreamMethod, method_risk
from jobs.market_risk.portfolio import fast_tail_risk
from jobs.market_risk.value_at_risk import tail_scenarios

__all__ = ["GroupMeasures", "Market", "PositionMoney", "ShockTails", "measure_groups"]


@dataclass(frozen=True, slots=True)
class ShockTails:
    """Tails of each instrument's own shocks, of a long and of a short unit of money.

    `var` and `shortfall` have shape (2, levels, instruments), long first; `worst` (2, instruments)
    is the greatest loss over all scenarios.
    """

    var: NDArray[np.float64]
    shortfall: NDArray[np.float64]
    worst: NDArray[np.float64]

    @staticmethod
    def of(shocks: NDArray[np.float64], history: int, levels: tuple[float, ...]) -> ShockTails:
        """Return tails of shocks, (scenarios, instruments), the first ones historical."""
        count = shocks.shape[1]
        used = levels if history >= 2 else ()
        var, shortfall = np.zeros((2, len(used), count)), np.zeros((2, len(used), count))
        worst = np.zeros((2, count))
        for side, sign in enumerate((1.0, -1.0)):
            if used:
                var[side], shortfall[side] = fast_tail_risk(sign * shocks[:history], levels)
            if len(shocks):
                worst[side] = np.maximum(-(sign * shocks).min(axis=0), 0.0)
        return ShockTails(var, shortfall, worst)


@dataclass(frozen=True, slots=True)
class Market:
    """Scenarios and prices of i instruments.

    `unit_value` is the base money one unit is worth, 0 when unknown. Columns of `options` are
    replaced by `option_pnl`, the base P&L of one unit under each scenario, shape (scenarios,
    options); `simulated_option_pnl` is the same for the Monte Carlo scenarios of `kit`.
    `liquidity_root` is the square root of the days it takes to leave each instrument, 1 or more.
    """

    shocks: NDArray[np.float64]
    history: int
    tails: ShockTails
    unit_value: NDArray[np.float64]
    options: NDArray[np.int64]
    option_pnl: NDArray[np.float64]
    simulated_option_pnl: NDArray[np.float64]
    margin_rate: NDArray[np.float64]
    liquidity_root: NDArray[np.float64]
    kit: MethodKit | None
    """None while there are fewer than two historical scenarios."""


@dataclass(frozen=True, slots=True)
class PositionMoney:
    """Columns of p positions: signed units, and base money at `BASE_SCALE`."""

    instrument: NDArray[np.int32]
    quantity: NDArray[np.float64]
    value: NDArray[np.int64]
    realised: NDArray[np.int64]
    unrealised: NDArray[np.int64]
    fees: NDArray[np.int64]
    priced: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class GroupMeasures:
    """Measures of g groups; integers are base money at `BASE_SCALE`, floats base units.

    `var` and `expected_shortfall` have shape (levels, g), or (0, g) while there are fewer than two
    historical scenarios; `stress` has shape (stress scenarios, g). `quantity` is the signed sum
    over positions, of use for single instruments. `method_var` and `method_shortfall` are by each
    of the chosen methods, shape (methods, levels, w), of the w groups after the single instruments.
    """

    gross: NDArray[np.int64]
    net: NDArray[np.int64]
    realised: NDArray[np.int64]
    unrealised: NDArray[np.int64]
    fees: NDArray[np.int64]
    positions: NDArray[np.int64]
    unpriced: NDArray[np.int64]
    quantity: NDArray[np.float64]
    var: NDArray[np.float64]
    expected_shortfall: NDArray[np.float64]
    stress: NDArray[np.float64]
    margin: NDArray[np.float64]
    method_var: NDArray[np.float64]
    method_shortfall: NDArray[np.float64]


def measure_groups(
    grouping: Grouping,
    positions: PositionMoney,
    market: Market,
    levels: tuple[float, ...],
    methods: tuple[StreamMethod, ...] = ("plain",),
) -> tuple[GroupMeasures, NDArray[np.float64]]:
    """Measure every group; also return each position's share of its firm's VaR and shortfall.

    The shares, shape (2, positions), are Euler's at the last level by the plain method: they sum to
    the VaR and the shortfall of the firm. Margin is the worst scenario loss, at least each
    position's gross value times its instrument's margin rate.
    """
    quantity, instrument = positions.quantity, positions.instrument
    gross = grouping.total(np.abs(positions.value))
    floor = grouping.total_real(
        np.abs(positions.value) / 10.0**BASE_SCALE * market.margin_rate[instrument]
    )
    units = grouping.total_real(quantity)
    single = _singles(grouping, units, market, levels)
    held, linear = _holdings(grouping, positions, market)
    pnl = market.shocks @ linear + market.option_pnl @ held
    past = pnl[: market.history]
    var, shortfall = single[0], single[1]
    component = np.zeros((2, len(quantity)))
    by_method = np.zeros((2, len(methods), 0, pnl.shape[1]))
    if market.history >= 2:
        more_var, more_shortfall = fast_tail_risk(past, levels)
        var = np.concatenate([var, more_var], axis=1)
        shortfall = np.concatenate([shortfall, more_shortfall], axis=1)
        firm = grouping.member[3] - grouping.instruments
        component = _components(firm, past, positions, market, levels[-1])
        by_method = _by_method(methods, levels, market, past, held, linear)
    else:
        var = shortfall = np.zeros((0, len(grouping.names)))
    worst = np.maximum(-pnl.min(axis=0), 0.0) if len(pnl) else np.zeros(pnl.shape[1])
    measures = GroupMeasures(
        gross=gross,
        net=grouping.total(positions.value),
        realised=grouping.total(positions.realised),
        unrealised=grouping.total(positions.unrealised),
        fees=grouping.total(positions.fees),
        positions=grouping.total(np.ones(len(quantity), np.int64)),
        unpriced=grouping.total((~positions.priced).astype(np.int64)),
        quantity=units,
        var=var,
        expected_shortfall=shortfall,
        stress=np.concatenate([single[3], pnl[market.history :]], axis=1),
        margin=np.maximum(np.concatenate([single[2], worst]), floor),
        method_var=by_method[0],
        method_shortfall=by_method[1],
    )
    return measures, component


def _singles(
    grouping: Grouping,
    units: NDArray[np.float64],
    market: Market,
    levels: tuple[float, ...],
) -> tuple[NDArray[np.float64], ...]:
    of = grouping.instrument_of
    held = units[: grouping.instruments]
    money = held * market.unit_value[of]
    side, size = (money < 0).astype(np.int64), np.abs(money)
    tails = market.tails
    var = tails.var[side, :, of].T * size
    shortfall = tails.shortfall[side, :, of].T * size
    worst = tails.worst[side, of] * size
    stress = market.shocks[market.history :, of] * money
    place = {int(code): column for column, code in enumerate(market.options.tolist())}
    mine = [group for group, code in enumerate(of.tolist()) if code in place] if place else []
    if mine:
        pnl = market.option_pnl[:, [place[int(of[group])] for group in mine]] * held[mine]
        if market.history >= 2:
            var[:, mine], shortfall[:, mine] = fast_tail_risk(pnl[: market.history], levels)
        worst[mine] = np.maximum(-pnl.min(axis=0), 0.0)
        stress[:, mine] = pnl[market.history :]
    return var, shortfall, worst, stress


def _holdings(
    grouping: Grouping, positions: PositionMoney, market: Market
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Units of each option, and money in everything else, by group after the single ones.
    count = len(grouping.names) - grouping.instruments
    held = np.zeros((len(market.unit_value), count))
    for groups in grouping.member[1:]:
        np.add.at(held, (positions.instrument, groups - grouping.instruments), positions.quantity)
    linear = held * market.unit_value[:, None]
    linear[market.options] = 0.0
    return held[market.options], linear


def _by_method(
    methods: tuple[StreamMethod, ...],
    levels: tuple[float, ...],
    market: Market,
    past: NDArray[np.float64],
    held: NDArray[np.float64],
    linear: NDArray[np.float64],
) -> NDArray[np.float64]:
    found = np.zeros((2, len(methods), len(levels), past.shape[1]))
    if market.kit is None:
        return found
    shocks, options = market.shocks[: market.history], market.option_pnl[: market.history]
    simulated = liquid = past[:0]
    if "montecarlo" in methods:
        # Without options a draw of shocks is the same draw of P&L.
        straight = past - options @ held if len(held) else past
        simulated = market.kit.draws @ straight + market.simulated_option_pnl @ held
    if "liquidity" in methods:
        root = market.liquidity_root
        liquid = past
        if np.any(root != 1):
            liquid = shocks @ (linear * root[:, None])
            liquid = liquid + options @ (held * root[market.options][:, None])
    for place, method in enumerate(methods):
        found[:, place] = method_risk(method, market.kit, levels, past, simulated, liquid)
    return found


def _components(
    firm: NDArray[np.int32],
    past: NDArray[np.float64],
    positions: PositionMoney,
    market: Market,
    level: float,
) -> NDArray[np.float64]:
    weights = np.full(len(past), 1 / len(past))
    component = np.zeros((2, len(positions.quantity)))
    for group in np.unique(firm).tolist():
        order, *functionals = tail_scenarios(past[:, group], weights, level)
        mine = firm == group
        for place, functional in enumerate(functionals):
            rows = np.flatnonzero(functional)
            loss = -(functional[rows] @ market.shocks[order[rows]]) * market.unit_value
            if len(market.options):
                loss[market.options] = -(functional[rows] @ market.option_pnl[order[rows]])
            component[place, mine] = loss[positions.instrument[mine]] * positions.quantity[mine]
    return component
