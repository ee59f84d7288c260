"""Where schema ids come from: a folder (the default) or a Confluent-compatible server.

`FileRegistry` holds the abstract operations' reference behaviour; `schemas.http_registry` speaks
to a server. Both name a topic's schema by the subject ``<topic>-value``.

The folder is append-only and meant to be committed::

    registry/schemas/<id>.avsc               the text as it was registered
    registry/subjects/<subject>/<version>    the id, in decimal; versions count from 1

An id is a pure function of the schema (31 bits of the SHA-256 of its normalised JSON), so two
branches that register the same schema agree, and files never need merging.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote, unquote

from schemas.compatibility import Mode, Problem, check_compatibility
from schemas.errors import ConfigurationError, RecordError
from schemas.model import Node, SchemaError, parse_schema
from schemas.reasons import Limits

__all__ = [
    "FileRegistry",
    "IncompatibleSchemaError",
    "RegisteredSchema",
    "RegistrySettings",
    "SchemaRegistry",
    "UnknownSchemaError",
    "normalised",
    "open_registry",
    "stable_schema_id",
    "value_subject",
]

_ID_MASK: Final = 2**31 - 1
_ROOT: Final = Path(__file__).resolve().parent.parent


class UnknownSchemaError(RecordError):
    """The registry has no schema with this id."""


class IncompatibleSchemaError(ConfigurationError):
    """A schema breaks the promise of its subject; `problems` lists every place."""

    def __init__(self, subject: str, mode: Mode, problems: list[Problem]) -> None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(
            f"registering under {subject!r}: breaks {mode} in {len(problems)} place(s):\n{listed}"
        )
        self.problems = problems


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """One schema as a registry knows it; `version` is 0 where it was found by id alone."""

    schema_id: int
    text: str
    node: Node
    subject: str = ""
    version: int = 0


class SchemaRegistry(Protocol):
    """What a registry can do. Reads may be cached: what an id means never changes."""

    def schema_by_id(self, schema_id: int) -> RegisteredSchema:
        """Return the schema with this id.

        Raises:
            UnknownSchemaError: there is none.
            SchemaError: there is one, but it is not valid Avro or exceeds the limits.
            RetryableError: the registry does not answer.
        """

    def register(self, subject: str, schema: str, mode: Mode | None = None) -> int:
        """Add a version and return the schema's id; a schema already there keeps its version.

        Raises:
            IncompatibleSchemaError: it breaks `mode` (None: what the registry demands).
        """

    def latest(self, subject: str) -> RegisteredSchema | None:
        """Return the newest version, or None when the subject is unknown."""

    def versions(self, subject: str) -> list[RegisteredSchema]:
        """Return all versions, oldest first; empty when the subject is unknown."""

    def subjects(self) -> list[str]:
        """Return the subjects, sorted."""

    def check(self, subject: str, schema: str, mode: Mode) -> list[Problem]:
        """Return what registering `schema` would break; empty when nothing."""


class RegistrySettings(Protocol):
    """The settings of a registry; `connectors.settings.SchemaSettings` has them."""

    @property
    def registry(self) -> str:
        """``file:FOLDER``, or the URL of a server."""

    @property
    def username(self) -> str | None:
        """User for basic authentication."""

    @property
    def password(self) -> SecretText | None:
        """Password of that user."""

    @property
    def ca_file(self) -> Path | None:
        """Certificates to trust instead of the system's."""


class SecretText(Protocol):
    """A secret that shows itself only when asked, as pydantic's does."""

    def get_secret_value(self) -> str:
        """Return the secret."""


def open_registry(settings: RegistrySettings, limits: Limits | None = None) -> SchemaRegistry:
    """Return the registry that the settings name.

    A relative folder starts at the repository's root, wherever the command was called from.

    Raises:
        ConfigurationError: neither ``file:FOLDER`` nor an http or https address.
    """
    address = settings.registry
    if address.startswith("file:"):
        return FileRegistry(_ROOT / address.removeprefix("file:"), limits=limits)
    from schemas.http_registry import HttpRegistry  # it builds on this module

    password = None if settings.password is None else settings.password.get_secret_value()
    return HttpRegistry(address, settings.username, password, settings.ca_file, limits=limits)


def value_subject(topic: str) -> str:
    """Return the subject of the values of a topic.

    >>> value_subject("card-transactions")
    'card-transactions-value'
    """
    return f"{topic}-value"


def normalised(schema: str) -> str:
    """Return the JSON of a schema without white space, keys sorted; documentation stays."""
    try:
        return json.dumps(json.loads(schema), sort_keys=True, separators=(",", ":"))
    except ValueError as e:
        msg = f"reading a schema: not JSON: {e}"
        raise SchemaError(msg) from e


def stable_schema_id(schema: str) -> int:
    """Return the id of a schema: positive, 31 bits, a pure function of its normalised JSON."""
    digest = hashlib.sha256(normalised(schema).encode()).digest()
    return max(1, int.from_bytes(digest[:4], "big") & _ID_MASK)


class FileRegistry:
    """A registry in a folder. Readers need no lock; two writers never overwrite each other.

    Args:
        folder: where it is; created by the first registration.
        mode: the promise that registrations are held to unless they name another.
        limits: bounds on a schema's size and depth.
    """

    def __init__(
        self, folder: Path, mode: Mode = Mode.FULL_TRANSITIVE, limits: Limits | None = None
    ) -> None:
        self._folder = folder
        self._mode = mode
        self._limits = limits or Limits()
        self._known: dict[int, RegisteredSchema] = {}

    def schema_by_id(self, schema_id: int) -> RegisteredSchema:
        """Return the schema with this id; see `SchemaRegistry`."""
        known = self._known.get(schema_id)
        if known is not None:
            return known
        path = self._folder / "schemas" / f"{schema_id}.avsc"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as e:
            msg = f"looking up schema id {schema_id!r}: not in {str(self._folder)!r}"
            raise UnknownSchemaError(msg) from e
        known = RegisteredSchema(schema_id, text, parse_schema(text, self._limits))
        self._known[schema_id] = known
        return known

    def register(self, subject: str, schema: str, mode: Mode | None = None) -> int:
        """Add a version and return the schema's id; see `SchemaRegistry`."""
        node = parse_schema(schema, self._limits)
        schema_id = stable_schema_id(schema)
        for _ in range(1_000):  # another writer may take the version: look again, then give up
            versions = self.versions(subject)
            if any(version.schema_id == schema_id for version in versions):
                return schema_id
            demanded = self._mode if mode is None else mode
            problems = check_compatibility(
                node, [(version.version, version.node) for version in versions], demanded
            )
            if problems:
                raise IncompatibleSchemaError(subject, demanded, problems)
            self._put_schema(schema_id, schema)
            number = versions[-1].version + 1 if versions else 1
            target = self._folder / "subjects" / quote(subject, safe="") / str(number)
            if _create(target, f"{schema_id}\n"):
                return schema_id
        msg = f"registering under {subject!r}: other writers took every version tried; try again"
        raise ConfigurationError(msg)

    def _put_schema(self, schema_id: int, schema: str) -> None:
        path = self._folder / "schemas" / f"{schema_id}.avsc"
        if not _create(path, schema):
            there = path.read_text(encoding="utf-8")
            if normalised(there) != normalised(schema):
                msg = f"registering a schema: id {schema_id} belongs to another one, {str(path)!r}"
                raise ConfigurationError(msg)

    def latest(self, subject: str) -> RegisteredSchema | None:
        """Return the newest version, or None when the subject is unknown."""
        versions = self.versions(subject)
        return versions[-1] if versions else None

    def versions(self, subject: str) -> list[RegisteredSchema]:
        """Return all versions, oldest first; empty when the subject is unknown."""
        folder = self._folder / "subjects" / quote(subject, safe="")
        numbers = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
        found = []
        for number in numbers:
            known = self.schema_by_id(int((folder / str(number)).read_text(encoding="ascii")))
            found.append(RegisteredSchema(known.schema_id, known.text, known.node, subject, number))
        return found

    def subjects(self) -> list[str]:
        """Return the subjects, sorted."""
        return sorted(unquote(path.name) for path in (self._folder / "subjects").glob("*"))

    def check(self, subject: str, schema: str, mode: Mode) -> list[Problem]:
        """Return what registering `schema` would break; empty when nothing."""
        earlier = [(item.version, item.node) for item in self.versions(subject)]
        return check_compatibility(parse_schema(schema, self._limits), earlier, mode)


def _create(path: Path, text: str) -> bool:
    """Create a file whole or not at all; return False when it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        # A link is atomic and, unlike a rename, fails when the name is taken.
        os.link(name, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
    return True
