"""What the job knows about instruments and currencies, from reference records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.exposure import RATE_SCALE
from schemas.errors import RecordError

__all__ = ["YEAR_MS", "FxTable", "Instrument", "ReferenceError"]

YEAR_MS: Final = 365 * 86_400_000
"""Milliseconds of a year as options count it (actual/365)."""


class ReferenceError(RecordError):
    """A reference record cannot be used."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """Terms of one instrument, as in the contract `instrument`; by default an equity.

    An option needs underlying, strike, right, expiry and volatility; with less it is revalued as if
    it were its own underlying.
    """

    instrument_id: str
    kind: str = "equity"
    currency: str = ""
    multiplier: int = 1
    margin_rate: float = 0.02
    liquidity_days: float = 1.0
    expiry_ms: int | None = None
    underlying_id: str | None = None
    strike: float | None = None
    right: str | None = None
    volatility: float = 0.0
    rate: float = 0.0
    dividend_yield: float = 0.0

    def __post_init__(self) -> None:
        """Check the terms."""
        if self.multiplier < 1 or self.margin_rate < 0 or self.liquidity_days < 0:
            msg = (
                f"reading instrument {self.instrument_id!r}: expected a multiplier of 1 or more, "
                f"and no negative rate, was {self.multiplier!r}, {self.margin_rate!r} and "
                f"{self.liquidity_days!r}"
            )
            raise ReferenceError(msg)

    @property
    def is_option(self) -> bool:
        """Return whether it can be revalued as an option."""
        given = (self.underlying_id, self.strike, self.right, self.expiry_ms)
        return self.kind == "option" and None not in given and self.volatility > 0

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Instrument:
        """Read a decoded Avro record."""
        return Instrument(**{field.name: record[field.name] for field in fields(Instrument)})

    def to_record(self) -> dict[str, Any]:
        """Return the record to encode with the Avro contract."""
        return asdict(self)


class FxTable:
    """Prices of currencies in one base currency; the newest by event time counts."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._rates: dict[str, tuple[int, int]] = {base: (10**RATE_SCALE, 0)}

    def put(self, currency: str, base: str, rate: int, event_time_ms: int) -> bool:
        """Set a rate at `RATE_SCALE`; return False for one older than what is held.

        Raises:
            ReferenceError: if the base differs or the rate is not positive.
        """
        if base != self.base or rate <= 0 or currency == self.base:
            msg = (
                f"reading the rate of {currency!r}: expected a positive rate in {self.base!r}, "
                f"was {rate!r} in {base!r}"
            )
            raise ReferenceError(msg)
        if event_time_ms < self._rates.get(currency, (0, -1))[1]:
            return False
        self._rates[currency] = (rate, event_time_ms)
        return True

    def rate(self, currency: str) -> int:
        """Return the rate, 0 when it is not known; an unnamed currency is the base."""
        return self._rates.get(currency or self.base, (0, 0))[0]

    def rates(self, currencies: list[str]) -> NDArray[np.int64]:
        """Return the rate of each."""
        return np.array([self.rate(currency) for currency in currencies], np.int64)

    def state(self) -> dict[str, list[int]]:
        """Return what `from_state` continues from."""
        return {currency: list(entry) for currency, entry in sorted(self._rates.items())}

    @staticmethod
    def from_state(base: str, state: Mapping[str, list[int]]) -> FxTable:
        """Return the table that `state` described."""
        table = FxTable(base)
        table._rates = {currency: (rate, at) for currency, (rate, at) in state.items()}
        return table
