"""Send damaged records through the columnar decoder and hold it to the reference.

    python -m tests.fuzz.avro_fuzz --records 1000000

Damage is mutation of valid records of our contracts and of random schemas (numba's machine code
cannot be instrumented for coverage, so structure takes the place of it: lengths, counts, branches
and continuation bits are what the mutations aim at). Every record must end in a decoded row or a
reason; a sample is decoded by the reference too and must agree.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from schemas.avro import RecordDecoder
from schemas.columns import StringColumn
from schemas.decoder import ColumnarDecoder
from schemas.model import Node, parse_schema
from schemas.reasons import AvroRecordError, Limits, Reason
from schemas.registry import FileRegistry, RegisteredSchema, UnknownSchemaError
from schemas.wire import frame_value
from tests.property.avro_strategies import SchemaPairs, mutate, write_body

__all__ = ["Outcome", "fuzz", "main"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_LIMITS: Final = Limits(max_record_bytes=4_096, max_string_bytes=256, max_nesting=8, max_items=500)
_BATCH: Final = 2_000


@dataclass
class Outcome:
    """What came of a run: records per reason, how many the reference saw, and disagreements."""

    records: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    disagreements: list[str] = field(default_factory=list)


class _Schemas:
    def __init__(self, nodes: dict[int, Node]) -> None:
        self._nodes = nodes

    def schema_by_id(self, schema_id: int) -> RegisteredSchema:
        if schema_id not in self._nodes:
            msg = f"no schema {schema_id!r}"
            raise UnknownSchemaError(msg)
        return RegisteredSchema(schema_id, "", self._nodes[schema_id])


def _targets(seed: int) -> Iterator[tuple[dict[int, Node], Node, list[bytes]]]:
    """Yield (schemas by id, reader, valid records) without end: a contract, then random pairs."""
    registry = FileRegistry(_ROOT / "schemas" / "registry")
    contract = registry.latest("card-transactions-value")
    draw = SchemaPairs(seed)
    while True:
        if contract is not None:
            text = json.loads(contract.text)
            bodies = [write_body(text, draw.value(text, {})) for _ in range(20)]
            seeds = [frame_value(contract.schema_id, body) for body in bodies]
            yield {contract.schema_id: contract.node}, contract.node, seeds
        for _ in range(3):
            writer, reader = draw.pair()
            nodes = {1: parse_schema(writer), 2: parse_schema(reader)}
            seeds = []
            for schema_id, schema in ((1, writer), (2, reader)):
                seeds += [
                    frame_value(schema_id, write_body(schema, draw.value(schema, {})))
                    for _ in range(10)
                ]
            yield nodes, nodes[2], seeds


def fuzz(records: int, seed: int, compare_every: int = 50) -> Outcome:
    """Decode `records` damaged values; every `compare_every`-th is decoded by the reference too."""
    outcome = Outcome()
    source = random.Random(seed)
    for nodes, reader, seeds in _targets(seed):
        schemas = _Schemas(nodes)
        decoder = ColumnarDecoder(reader, schemas, _LIMITS)  # type: ignore[arg-type]
        reference = RecordDecoder(schemas, reader, _LIMITS)  # type: ignore[arg-type]
        values = [
            mutate(source, source.choice(seeds), 0 if source.random() < 0.1 else 5)
            for _ in range(min(_BATCH, records - outcome.records))
        ]
        decoded = decoder.decode(StringColumn.from_bytes(values))
        counts = np.bincount(decoded.status, minlength=len(Reason))
        for reason in Reason:
            outcome.reasons[reason.code] += int(counts[reason])
        for row in range(0, len(values), compare_every):
            outcome.compared += 1
            try:
                reference.decode(values[row])
            except AvroRecordError as e:
                accepted, why = False, e.reason.code
            else:
                accepted, why = True, Reason.OK.code
            status = Reason(int(decoded.status[row]))
            if accepted != (status is Reason.OK):
                outcome.disagreements.append(f"{values[row].hex()}: {status.code}, not {why}")
        outcome.records += len(values)
        if outcome.records >= records:
            return outcome
    return outcome


def main() -> int:
    """Run from the command line; exit 1 when the decoders disagree or a record vanished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compare-every", type=int, default=50)
    arguments = parser.parse_args()
    started = time.perf_counter()
    outcome = fuzz(arguments.records, arguments.seed, arguments.compare_every)
    answer = {
        "records": outcome.records,
        "accounted": sum(outcome.reasons.values()),
        "reasons": {name: count for name, count in outcome.reasons.items() if count},
        "compared": outcome.compared,
        "disagreements": outcome.disagreements[:20],
        "seconds": round(time.perf_counter() - started, 1),
    }
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    return 1 if outcome.disagreements or answer["accounted"] != outcome.records else 0


if __name__ == "__main__":
    sys.exit(main())
