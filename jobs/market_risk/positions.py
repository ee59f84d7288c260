"""Positions and P&L from fills, in integers, by average cost and by FIFO at once.

Prices, quantities and multipliers are scaled integers declared for each instrument; money is their
product, so its scale is the sum of theirs and nothing is rounded. For every position, at any mark,

    realised + unrealised = cash + fees + quantity * mark * multiplier

holds to the last digit, by either method, in any order and cut of the fills.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.scaling import muldiv, product_fits
from jobs.market_risk.seen_ids import SeenIds, hash_ids
from jobs.market_risk.seen_ids import warm as warm_seen_ids
from schemas.columns import StringColumn
from schemas.errors import ConfigurationError

__all__ = ["AppliedFills", "PositionBook", "PositionRows", "warm"]

_SNAPSHOT_VERSION: Final = 1

# Columns of the integer state, one row for each position.
_QUANTITY, _CASH, _FEES, _COST, _REALISED, _FIFO_COST, _FIFO_REALISED = range(7)
_FILLS, _BOUGHT, _SOLD, _HEAD, _TAIL, _WIDTH = range(7, 13)
# Columns of a lot: signed open quantity, price, multiplier, next lot (-1 the last).
_LOT_QUANTITY, _LOT_PRICE, _LOT_MULTIPLIER, _LOT_NEXT = range(4)


@dataclass(frozen=True, slots=True)
class AppliedFills:
    """What became of a batch of fills.

    `fresh` is False for a repeated fill id, which changed nothing; `rejected` is True for a fill
    whose value does not fit 64 bits, which changed nothing either and belongs in the dead-letter
    topic. `changed` lists each position touched, ascending.
    """

    fresh: NDArray[np.bool_]
    rejected: NDArray[np.bool_]
    changed: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PositionRows:
    """Positions as integer columns of one length.

    `quantity` is signed. `cost` and `fifo_cost` are the signed cost of what is open (average cost
    is `cost / quantity / multiplier`); `cash` is what trading brought in, fees deducted.
    """

    quantity: NDArray[np.int64]
    cash: NDArray[np.int64]
    fees: NDArray[np.int64]
    cost: NDArray[np.int64]
    realised: NDArray[np.int64]
    fifo_cost: NDArray[np.int64]
    fifo_realised: NDArray[np.int64]
    fills: NDArray[np.int64]
    bought: NDArray[np.int64]
    sold: NDArray[np.int64]

    def market_value(
        self, mark: NDArray[np.int64], multiplier: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return `quantity * mark * multiplier`; unrealised P&L is this minus a cost."""
        value: NDArray[np.int64] = self.quantity * mark * multiplier
        return value


class PositionBook:
    """Hold positions, numbered from 0 by the caller, and the open lots behind them.

    Fills count in order of arrival. FIFO therefore matches lots as they became known; realised P&L
    under another order of the same fills may differ, realised + unrealised does not.
    """

    def __init__(self, retained_ids: int = 1_000_000) -> None:
        self._seen = SeenIds(retained_ids)
        self._state = np.zeros((0, _WIDTH), np.int64)
        self._lots = np.zeros((0, 4), np.int64)
        # Free lots form a list through _LOT_NEXT: [head, count].
        self._free = np.array([-1, 0], np.int64)

    def __len__(self) -> int:
        return len(self._state)

    def apply(
        self,
        position: NDArray[np.int32],
        quantity: NDArray[np.int64],
        price: NDArray[np.int64],
        multiplier: NDArray[np.int64],
        fee: NDArray[np.int64],
        fill_id: StringColumn | None = None,
    ) -> AppliedFills:
        """Add fills in order of arrival; all columns have one length.

        Args:
            position: which position each fill belongs to.
            quantity: signed, positive for a purchase; zero only charges the fee.
            price: may be negative (spreads, some futures).
            multiplier: positive.
            fee: money paid, in the money scale; negative for a rebate.
            fill_id: identity of the fill; None when the caller vouches that none repeats.
        """
        if len(position):
            self._grow(int(position.max()) + 1, len(position))
        fresh = np.ones(len(position), np.bool_)
        if fill_id is not None:
            fresh = self._seen.add(hash_ids(fill_id))
        rejected = np.zeros(len(position), np.bool_)
        _apply(
            self._state,
            self._lots,
            self._free,
            np.array(position, np.int32),
            np.array(quantity, np.int64),
            np.array(price, np.int64),
            np.array(multiplier, np.int64),
            np.array(fee, np.int64),
            fresh,
            rejected,
        )
        changed = np.unique(position[fresh & ~rejected]).astype(np.int64)
        return AppliedFills(fresh, rejected, changed)

    def rows(self, positions: NDArray[np.int64] | None = None) -> PositionRows:
        """Return the chosen positions, or all of them in order."""
        state = self._state if positions is None else self._state[positions]
        return PositionRows(*(state[:, column].copy() for column in range(_HEAD)))

    def open_lots(self, position: int) -> list[tuple[int, int]]:
        """Return the (signed quantity, price) of the open FIFO lots, oldest first."""
        lots = []
        place = int(self._state[position, _HEAD]) if position < len(self._state) else -1
        while place >= 0:
            lot = self._lots[place]
            lots.append((int(lot[_LOT_QUANTITY]), int(lot[_LOT_PRICE])))
            place = int(lot[_LOT_NEXT])
        return lots

    def snapshot(self) -> bytes:
        """Return the whole state; `restore` of it continues to the bit."""
        buffer = io.BytesIO()
        seen = {f"seen_{name}": array for name, array in self._seen.state().items()}
        np.savez(
            buffer,
            version=np.array([_SNAPSHOT_VERSION]),
            state=self._state,
            lots=self._lots,
            free=self._free,
            **seen,
        )
        return buffer.getvalue()

    @staticmethod
    def restore(blob: bytes) -> PositionBook:
        """Return the book that `snapshot` described.

        Raises:
            ConfigurationError: if another version wrote the blob.
        """
        with np.load(io.BytesIO(blob), allow_pickle=False) as saved:
            version = int(saved["version"][0])
            if version != _SNAPSHOT_VERSION:
                msg = (
                    f"restoring positions: expected snapshot version {_SNAPSHOT_VERSION}, "
                    f"was {version}"
                )
                raise ConfigurationError(msg)
            book = PositionBook(1)
            book._state, book._lots, book._free = saved["state"], saved["lots"], saved["free"]
            book._seen = SeenIds.from_state(
                {name: saved[f"seen_{name}"] for name in ("retained", "current", "previous")}
            )
        return book

    def _grow(self, positions: int, lots: int) -> None:
        held = len(self._state)
        if positions > held:
            added = np.zeros((positions - held, _WIDTH), np.int64)
            added[:, _HEAD : _TAIL + 1] = -1
            self._state = np.concatenate([self._state, added])
        if self._free[1] < lots:
            # Doubling keeps growth amortised; each fill opens at most one lot.
            first = len(self._lots)
            more = max(lots, first)
            added = np.zeros((more, 4), np.int64)
            added[:, _LOT_NEXT] = np.arange(first + 1, first + more + 1)
            added[-1, _LOT_NEXT] = self._free[0]
            self._lots = np.concatenate([self._lots, added])
            self._free[:] = (first, self._free[1] + more)


def warm() -> None:
    """Compile the kernels of this module, so that no event waits for the compiler."""
    warm_seen_ids()
    one = np.ones(2, np.int64)
    PositionBook(4).apply(np.zeros(2, np.int32), np.array([1, -1]), one, one, one)


@nb.njit(
    "void(i8[:,::1], i8[:,::1], i8[::1], i4[::1], i8[::1], i8[::1], i8[::1], i8[::1], b1[::1],"
    " b1[::1])",
    cache=True,
    nogil=True,
)
def _apply(
    state: NDArray[np.int64],
    lots: NDArray[np.int64],
    free: NDArray[np.int64],
    positions: NDArray[np.int32],
    quantities: NDArray[np.int64],
    prices: NDArray[np.int64],
    multipliers: NDArray[np.int64],
    fees: NDArray[np.int64],
    fresh: NDArray[np.bool_],
    rejected: NDArray[np.bool_],
) -> None:
    for index in range(len(positions)):
        if not fresh[index]:
            continue
        quantity = quantities[index]
        price = prices[index]
        multiplier = multipliers[index]
        row = state[positions[index]]
        fits = product_fits(price, multiplier)
        fits = fits and product_fits(price * multiplier, quantity)
        fits = fits and product_fits(price * multiplier, row[_QUANTITY] + quantity)
        value = quantity * price * multiplier if fits else 0
        # Cash and costs grow with every fill; refuse before one of them would wrap.
        if not fits or abs(float(row[_CASH])) + abs(float(value)) > 9.0e18:
            rejected[index] = True
            continue
        row[_FILLS] += 1
        row[_CASH] -= value + fees[index]
        row[_FEES] += fees[index]
        if quantity > 0:
            row[_BOUGHT] += quantity
        else:
            row[_SOLD] -= quantity
        held = row[_QUANTITY]
        row[_QUANTITY] = held + quantity
        if quantity == 0:
            continue
        opening = quantity
        if held != 0 and (held > 0) != (quantity > 0):
            closed = min(abs(held), abs(quantity))
            signed = closed if held > 0 else -closed
            opening = quantity + signed
            # What rounding takes from the released cost stays in the open cost: money is conserved.
            released = muldiv(row[_COST], closed, abs(held))
            row[_COST] -= released
            row[_REALISED] += signed * price * multiplier - released
            left = closed
            while left > 0:
                place = row[_HEAD]
                lot = lots[place]
                taken = min(left, abs(lot[_LOT_QUANTITY]))
                part = taken if lot[_LOT_QUANTITY] > 0 else -taken
                cost = part * lot[_LOT_PRICE] * lot[_LOT_MULTIPLIER]
                row[_FIFO_COST] -= cost
                row[_FIFO_REALISED] += part * price * multiplier - cost
                lot[_LOT_QUANTITY] -= part
                left -= taken
                if lot[_LOT_QUANTITY] == 0:
                    row[_HEAD] = lot[_LOT_NEXT]
                    if row[_HEAD] < 0:
                        row[_TAIL] = -1
                    lot[_LOT_NEXT] = free[0]
                    free[0] = place
                    free[1] += 1
        if opening != 0:
            row[_COST] += opening * price * multiplier
            row[_FIFO_COST] += opening * price * multiplier
            place = free[0]
            free[0] = lots[place, _LOT_NEXT]
            free[1] -= 1
            lots[place, _LOT_QUANTITY] = opening
            lots[place, _LOT_PRICE] = price
            lots[place, _LOT_MULTIPLIER] = multiplier
            lots[place, _LOT_NEXT] = -1
            if row[_TAIL] >= 0:
                lots[row[_TAIL], _LOT_NEXT] = place
            else:
                row[_HEAD] = place
            row[_TAIL] = place
