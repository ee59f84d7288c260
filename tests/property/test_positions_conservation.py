from __future__ import annotations

from collections import deque
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.market_risk.engine import EngineConfig, FillColumns, RiskEngine
from jobs.market_risk.exposure import BASE_SCALE, RATE_SCALE, values_in_base
from jobs.market_risk.positions import PositionBook
from jobs.market_risk.prices import MarkColumns
from jobs.market_risk.scaling import infer_scale, muldiv, mulshift, rescaled, to_scaled, unscale
from schemas.columns import StringColumn

fills = st.lists(
    st.tuples(
        st.integers(0, 2),  # position
        st.integers(-100, 100),  # quantity
        st.integers(-50, 5000),  # price
        st.sampled_from([1, 10, 50]),  # multiplier, by position below
        st.integers(-5, 9),  # fee
        st.integers(0, 40),  # id
    ),
    max_size=50,
)
MULTIPLIERS = np.array([1, 10, 50])


def add(book, rows, *, ids=True):
    rows = [(p, q, x, int(MULTIPLIERS[p]), f, i) for p, q, x, _, f, i in rows]
    columns = [np.array([row[c] for row in rows], np.int64) for c in range(5)]
    identity = StringColumn.from_texts([f"fill-{row[5]}" for row in rows]) if ids else None
    return book.apply(columns[0].astype(np.int32), *columns[1:], identity)


def reference(rows):
    """FIFO and average cost with lists and fractions, as a textbook does it."""
    state = {}
    seen = set()
    for position, quantity, price, _, fee, identity in rows:
        if identity in seen:
            continue
        seen.add(identity)
        multiplier = int(MULTIPLIERS[position])
        item = state.setdefault(
            position, {"lots": deque(), "fifo": 0, "cash": 0, "fees": 0, "quantity": 0}
        )
        item["cash"] -= quantity * price * multiplier + fee
        item["fees"] += fee
        item["quantity"] += quantity
        while quantity and item["lots"] and (item["lots"][0][0] > 0) != (quantity > 0):
            lot = item["lots"][0]
            taken = min(abs(quantity), abs(lot[0]))
            signed = taken if lot[0] > 0 else -taken
            item["fifo"] += signed * (price - lot[1]) * multiplier
            lot[0] -= signed
            quantity += signed
            if lot[0] == 0:
                item["lots"].popleft()
        if quantity:
            item["lots"].append([quantity, price])
    return state


@given(fills, st.lists(st.integers(0, 50), max_size=4))
@settings(max_examples=200, deadline=None)
def test_positions_equal_the_textbook_in_any_cut(rows, cuts):
    book = PositionBook(1000)
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for a, b in pairwise(edges):
        add(book, rows[a:b])
    found = book.rows()
    for position, item in reference(rows).items():
        assert found.quantity[position] == item["quantity"]
        assert found.cash[position] == item["cash"]
        assert found.fees[position] == item["fees"]
        assert found.fifo_realised[position] == item["fifo"]
        assert book.open_lots(position) == [tuple(lot) for lot in item["lots"]]


@given(fills, st.randoms(use_true_random=False), st.integers(-100, 6000))
@settings(max_examples=200, deadline=None)
def test_cash_and_shares_are_conserved_in_any_order(rows, random, mark):
    unique = list({row[5]: row for row in rows}.values())
    shuffled = unique.copy()
    random.shuffle(shuffled)
    books = PositionBook(1000), PositionBook(1000)
    for book, order in zip(books, (unique, shuffled), strict=True):
        add(book, order)
        found = book.rows()
        multiplier = MULTIPLIERS[: len(book)]
        value = found.market_value(np.full(len(book), mark), multiplier)
        kept = found.cash + found.fees + value
        assert np.array_equal(found.realised + value - found.cost, kept)
        assert np.array_equal(found.fifo_realised + value - found.fifo_cost, kept)
        assert np.array_equal(found.bought - found.sold, found.quantity)
        flat = found.quantity == 0
        assert not found.cost[flat].any()
        assert not found.fifo_cost[flat].any()
    one, other = books[0].rows(), books[1].rows()
    if len(books[0]) == len(books[1]):
        assert np.array_equal(one.quantity, other.quantity)
        assert np.array_equal(one.cash, other.cash)


@given(fills, st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_a_restored_book_continues_to_the_bit(rows, cut):
    straight, stopped = PositionBook(20), PositionBook(20)
    add(straight, rows[:cut])
    add(stopped, rows[:cut])
    stopped = PositionBook.restore(stopped.snapshot())
    one, other = add(straight, rows[cut:]), add(stopped, rows[cut:])
    assert np.array_equal(one.fresh, other.fresh)
    assert np.array_equal(straight._state[:, :11], stopped._state[:, :11])
    for position in range(len(straight)):
        assert straight.open_lots(position) == stopped.open_lots(position)


def test_average_cost_is_the_cost_of_what_is_open():
    book = PositionBook()
    add(book, [(0, 10, 100, 1, 0, 1), (0, 5, 101, 1, 0, 2), (0, -12, 103, 1, 0, 3)])
    found = book.rows()
    assert found.realised[0] == 12 * 103 - 12 * 1505 // 15
    assert found.cost[0] == 1505 - 1204


def test_a_fill_too_large_for_64_bits_is_refused_and_changes_nothing():
    book = PositionBook()
    one = np.ones(2, np.int64)
    applied = book.apply(
        np.zeros(2, np.int32), np.array([2**40, 3]), np.array([2**40, 7]), one, 0 * one
    )
    assert applied.rejected.tolist() == [True, False]
    assert book.rows().quantity.tolist() == [3]


def test_ids_are_remembered_at_least_as_long_as_promised():
    book = PositionBook(100)
    rows = [(0, 1, 1, 1, 0, i) for i in range(1000)]
    for start in range(0, 1000, 50):
        add(book, rows[start : start + 50])
        again = add(book, rows[max(0, start - 50) : start + 50])
        assert not again.fresh.any()
    assert book.rows().quantity[0] == 1000


@given(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62), st.integers(1, 2**62))
@settings(max_examples=300, deadline=None)
def test_muldiv_is_exact_wherever_the_result_fits(a, b, c):
    exact = abs(Fraction(a) * b / c)
    if exact >= 2**62:
        return
    rounded = int(exact + Fraction(1, 2))
    assert muldiv(a, b, c) == (-rounded if (a < 0) != (b < 0) else rounded)


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1), st.integers(0, 5))
def test_scales_are_the_least_that_hold_and_invert(numbers, scale):
    values = np.array([float(f"{n}e-{scale}") for n in numbers])
    found = infer_scale(values)
    assert found <= scale
    assert np.array_equal(unscale(to_scaled(values, found), found), values)


@pytest.mark.parametrize("dust", [0.00031099999999999997, 0.1 + 0.2])
def test_the_dust_of_binary_fractions_is_not_taken_for_decimals(dust):
    assert infer_scale(np.array([dust])) <= 6


whole = st.integers(-9_000_000_000_000_000_000, 9_000_000_000_000_000_000)


def away_from_zero(number):
    rounded = int(abs(number) + Fraction(1, 2))
    return rounded if number >= 0 else -rounded


@given(whole, st.integers(1, 10**12), st.integers(0, 32))
def test_money_is_converted_exactly_at_every_scale(money, rate, places):
    exact = away_from_zero(Fraction(money * rate, 10**places))
    if abs(exact) < 9 * 10**18:
        assert mulshift(money, rate, places) == exact


@given(
    st.integers(-(10**15), 10**15),
    st.integers(-(10**15), 10**15),
    st.integers(1, 1_000),
    st.integers(0, 24),
    st.integers(1, 10**10),
)
def test_values_are_exact_while_they_fit_and_near_beyond(quantity, twice, multiplier, scale, rate):
    columns = [np.array([one], np.int64) for one in (quantity, twice, multiplier, scale, rate)]
    (value,), (known,) = values_in_base(*columns)
    money = Fraction(quantity * twice * multiplier, 2 * 10**scale)
    exact = money * rate / 10 ** (RATE_SCALE - BASE_SCALE)
    if not known:
        assert value == 0
        assert abs(money) > 10**11
    elif abs(quantity * twice * multiplier) < 8 * 10**18:
        assert value == away_from_zero(exact)
    else:
        assert abs(value - exact) <= 1 + Fraction(rate, 10**RATE_SCALE)


def test_every_scale_that_is_accepted_can_be_measured():
    text, one = StringColumn.from_texts, np.ones(1, np.int64)
    for price_scale in range(13):
        for size_scale in range(13):
            engine = RiskEngine(EngineConfig())
            size, price = 10**size_scale * one, 3 * 10**price_scale * one
            fill = FillColumns(
                *(text([name]) for name in ("f", "firm", "desk", "account", "X")),
                one, size, size_scale * one, price, price_scale * one, 0 * one,
            )  # fmt: skip
            outcome = engine.add_fills(fill)
            engine.put_marks(
                MarkColumns(text(["X"]), price_scale * one, price, one, 2 * price, one)
            )
            found = engine.evaluate()
            # Beyond 64 bits a fill is refused; nothing stops.
            assert outcome.rejected[0] == (price_scale + size_scale > 18)
            if not outcome.rejected[0]:
                assert found.positions.value.tolist() == [3 * 10**BASE_SCALE]


@given(
    st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_a_number_at_another_scale_is_the_same_number_or_refused(values, scale, wanted):
    numbers = np.array(values, np.int64)
    found, exact = rescaled(numbers, np.full(len(values), scale), np.full(len(values), wanted))
    for value, result, kept in zip(values, found.tolist(), exact.tolist(), strict=True):
        same = Fraction(value, 10**scale) * 10**wanted
        assert kept == (same.denominator == 1 and abs(same) < 2**63)
        assert result == (same if kept else 0)
