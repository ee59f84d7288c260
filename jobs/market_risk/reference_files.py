"""Reference records that people write: read and checked before anything is published."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.market_risk.feed import CONTRACTS
from jobs.market_risk.files import InputFileError
from jobs.market_risk.limits import Limit
from jobs.market_risk.reference import Instrument
from jobs.market_risk.stress import Scenario
from schemas.avro import RecordEncoder
from schemas.contract import contract
from schemas.errors import RecordError

__all__ = ["newest_limit", "reference_records"]


def reference_records(path: Path, topic: str) -> list[dict[str, Any]]:
    """Read records of a reference topic from a JSON file: a list of objects, or one a line.

    Raises:
        InputFileError: if the file is no JSON, or the job could not use one of its records.
    """
    text = path.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            records = list(json.loads(text))
        else:
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as e:
        msg = f"reading {path.name!r}: expected a JSON list of objects, or one object a line: {e}"
        raise InputFileError(msg) from e
    encoder = RecordEncoder(contract(CONTRACTS[topic]), 0)
    for number, record in enumerate(records, start=1):
        try:
            _use(topic, record, encoder)
        except (RecordError, TypeError, AttributeError) as e:
            msg = (
                f"reading record {number} of {path.name!r}: {e}; the fields of {topic} are in "
                f"schemas/contracts/{CONTRACTS[topic]}.avsc"
            )
            raise InputFileError(msg) from e
    return records


def newest_limit(
    records: Iterable[Mapping[str, Any]], limit_id: str, firm_id: str | None = None
) -> Mapping[str, Any]:
    """Return the limit in force among records in order of arrival: the greatest revision.

    Raises:
        InputFileError: if there is none, or several firms have one.
    """
    found: dict[str, Mapping[str, Any]] = {}
    known = set()
    for record in records:
        known.add(str(record["limit_id"]))
        firm = str(record["firm_id"])
        if record["limit_id"] != limit_id or firm_id not in (None, firm):
            continue
        if firm not in found or record["revision"] > found[firm]["revision"]:
            found[firm] = record
    if len(found) != 1:
        if found:
            msg = (
                f"finding limit {limit_id!r}: firms {', '.join(sorted(found))} have one; say which "
                "with --firm"
            )
        else:
            msg = (
                f"finding limit {limit_id!r}: expected one of "
                f"{', '.join(sorted(known)) or 'no limit, as none was published'}"
            )
        raise InputFileError(msg)
    return next(iter(found.values()))


def _use(topic: str, record: dict[str, Any], encoder: RecordEncoder) -> None:
    # Both what can be written and what the job can use: a wrong limit must not wait unseen.
    encoder.encode(record)
    if topic == "limits":
        Limit(**{name: value for name, value in record.items() if name != "firm_id"})
    elif topic == "scenarios":
        Scenario(**record)
    elif topic == "instruments":
        Instrument(**record)
