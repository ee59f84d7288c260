"""The contracts that ship with riskstream, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from schemas.errors import ConfigurationError

__all__ = ["contract", "contract_names"]

_FOLDER: Final = Path(__file__).resolve().parent / "contracts"


def contract_names() -> list[str]:
    """Return the names of all contracts, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.avsc"))


def contract(name: str) -> str:
    """Return the Avro schema of a contract as JSON text, as in `contract("card_transaction")`.

    Raises:
        ConfigurationError: there is no such contract.
    """
    try:
        return (_FOLDER / f"{name}.avsc").read_text(encoding="utf-8")
    except FileNotFoundError as e:
        msg = f"looking for contract {name!r}: expected one of {contract_names()}"
        raise ConfigurationError(msg) from e
