"""Rows for the live pages, published beside those for ClickHouse: a page need not wait for those.

Each record of the topic `live` is an Arrow IPC stream with the columns of one streaming table of
the traders' page (`positions`, `fills`), or of the measures of firms (`firms`): its header `table`
says which. Its header `version` is the wall clock (ms) at which the rows were made: of two rows of
one key the greater version is newer. Unknown numbers are null. The rows are the same as those
written to ClickHouse, which stays the place of record; who missed some reads them there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from connectors.frames import write_frame
from jobs.market_risk.exposure import BASE_SCALE
from jobs.market_risk.revaluation import GREEKS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jobs.market_risk.engine import Evaluation, RiskEngine
    from jobs.market_risk.intake import Part

__all__ = ["LiveRows"]

# A record stays well below Kafka's limit of 1 MB.
_MOST_ROWS: Final = 2_000
_BASE: Final = 10.0**BASE_SCALE
_TIME: Final = pa.timestamp("ms")


class LiveRows:
    """Makes the frames of one shard.

    Args:
        topic: full name of the topic.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._keys: list[str] = []

    def positions(
        self, engine: RiskEngine, found: Evaluation, rows: NDArray[np.intp], stamp: int
    ) -> list[bytes]:
        """Return frames of those positions of an evaluation that changed."""
        if not len(rows):
            return []
        texts = [
            (names.texts, codes)
            for names, codes in (
                (engine.firms, found.firm),
                (engine.accounts, found.account),
                (engine.desks, found.desk),
                (engine.instruments, found.positions.instrument),
            )
        ]
        for place in range(len(self._keys), len(found.firm)):
            self._keys.append("/".join(names[int(codes[place])] for names, codes in texts))
        firm, account, desk, instrument = (
            pa.DictionaryArray.from_arrays(codes[rows], pa.array(names)) for names, codes in texts
        )
        money, value = found.positions, found.positions.value[rows] / _BASE
        marginal = np.divide(
            found.component_var[rows], value, out=np.zeros(len(rows)), where=value != 0
        )
        columns = {
            "position_key": pa.array([self._keys[row] for row in rows.tolist()]),
            "firm_id": firm,
            "desk_id": desk,
            "account_id": account,
            "instrument_id": instrument,
            "quantity": _real(money.quantity[rows]),
            "average_price": _real(found.average_price[rows]),
            "mark": _real(found.mark[rows]),
            "mark_time": pa.array(found.mark_ms[rows]).cast(_TIME),
            "value": _real(value),
            "realised": _real(money.realised[rows] / _BASE),
            "unrealised": _real(money.unrealised[rows] / _BASE),
            "fees": _real(money.fees[rows] / _BASE),
            "component_var": _real(found.component_var[rows]),
            "component_es": _real(found.component_es[rows]),
            "marginal_var": _real(marginal),
            **{name: _real(getattr(found.greeks, name)[rows]) for name in GREEKS},
            "priced": pa.DictionaryArray.from_arrays(
                np.where(money.priced, 1 + found.stale, 0)[rows].astype(np.int32),
                pa.array(["no", "yes", "stale"]),
            ),
        }
        return self._frames("positions", columns, stamp)

    def firms(
        self, engine: RiskEngine, found: Evaluation, groups: NDArray[np.intp], stamp: int
    ) -> list[bytes]:
        """Return the frame of those firms whose measures are among the groups that changed."""
        names = found.grouping.names
        rows = np.array([row for row in groups.tolist() if names[row][1] == "firm"], np.intp)
        measures = found.groups
        if not len(rows) or not len(measures.var):
            return []
        pnl = measures.realised + measures.unrealised - measures.fees
        gross = measures.gross[rows] / _BASE
        columns = {
            "firm_id": pa.array([names[row][0] for row in rows.tolist()]),
            "pnl": _real(pnl[rows] / _BASE),
            "value_at_risk": _real(measures.var[-1][rows]),
            "expected_shortfall": _real(measures.expected_shortfall[-1][rows]),
            "gross": _real(gross),
            "net": _real(measures.net[rows] / _BASE),
            "leverage": _real(gross / engine.config.equity),
            "margin": _real(measures.margin[rows]),
            "positions": pa.array(measures.positions[rows]),
            "unpriced": pa.array(measures.unpriced[rows]),
            "stale": pa.array(found.grouping.total(found.stale.astype(np.int64))[rows]),
        }
        return self._frames("firms", columns, stamp)

    def fills(self, fills: Part, stamp: int) -> list[bytes]:
        """Return frames of fills that were applied."""
        if not len(fills):
            return []
        price = np.power(10.0, fills.integers("price_scale"))
        size = np.power(10.0, fills.integers("quantity_scale"))
        quantity = fills.integers("quantity") / size
        texts = {
            name: pa.array(fills.text(name).to_list())
            for name in ("fill_id", "desk_id", "account_id", "instrument_id")
        }
        columns = {
            "fill_id": texts.pop("fill_id"),
            "event_time": pa.array(fills.integers("event_time_ms")).cast(_TIME),
            **texts,
            "side": pa.DictionaryArray.from_arrays(
                (quantity < 0).astype(np.int32), pa.array(["buy", "sell"])
            ),
            "quantity": _real(quantity),
            "price": _real(fills.integers("price") / price),
            "fee": _real(fills.integers("fee") / (price * size)),
        }
        return self._frames("fills", columns, stamp)

    def _frames(self, table: str, columns: dict[str, pa.Array], stamp: int) -> list[bytes]:
        batch = pa.record_batch(list(columns.values()), names=list(columns))
        headers = (("table", table.encode()), ("version", str(stamp).encode()))
        return [
            write_frame(
                self._topic,
                table.encode(),
                _stream(batch.slice(start, _MOST_ROWS)),
                headers=headers,
                timestamp_ms=stamp,
            )
            for start in range(0, batch.num_rows, _MOST_ROWS)
        ]


def _real(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, from_pandas=True)


def _stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    result: bytes = sink.getvalue().to_pybytes()
    return result
