"""The columnar decoder and the reference, side by side over one contract."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from schemas.avro import RecordDecoder
from schemas.columns import StringColumn
from schemas.decoder import ColumnarDecoder
from schemas.reasons import AvroRecordError, Limits, Reason
from schemas.registry import FileRegistry
from schemas.wire import frame_value
from tests.property.avro_strategies import SchemaPairs, write_body

__all__ = ["Decoders"]

ROOT: Final = Path(__file__).resolve().parents[2]
LIMITS: Final = Limits(max_record_bytes=4_096, max_string_bytes=256, max_nesting=8, max_items=500)


class Decoders:
    """Both decoders of the payments' contract."""

    def __init__(self) -> None:
        registry = FileRegistry(ROOT / "schemas" / "registry")
        found = registry.latest("card-transactions-value")
        assert found is not None
        self._contract = found
        self._columnar = ColumnarDecoder(found.node, registry, LIMITS)
        self._reference = RecordDecoder(registry, found.node, LIMITS)

    def samples(self, count: int, seed: int) -> Iterator[bytes]:
        """Yield valid records."""
        draw, schema = SchemaPairs(seed), json.loads(self._contract.text)
        for _ in range(count):
            body = write_body(schema, draw.value(schema, {}))
            yield frame_value(self._contract.schema_id, body)

    def judge(self, values: Sequence[bytes], compare_every: int = 1) -> list[str]:
        """Decode the values as one batch; return each one's reason.

        Raises:
            AssertionError: the decoders disagree about a value.
        """
        status = self._columnar.decode(StringColumn.from_bytes(values)).status
        for row in range(0, len(values), compare_every):
            try:
                self._reference.decode(values[row])
            except AvroRecordError as e:
                accepted, why = False, e.reason.code
            else:
                accepted, why = True, Reason.OK.code
            said = Reason(int(status[row]))
            assert accepted == (said is Reason.OK), f"{values[row].hex()}: {said.code}, not {why}"
        return [Reason(int(code)).code for code in status]
