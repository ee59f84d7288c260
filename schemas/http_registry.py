"""A Confluent-compatible schema registry over HTTP: cached reads, bounded retries, clear errors."""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from schemas.compatibility import Mode, Problem, check_compatibility
from schemas.errors import ConfigurationError, RetryableError
from schemas.model import SchemaError, parse_schema
from schemas.reasons import Limits
from schemas.registry import IncompatibleSchemaError, RegisteredSchema, UnknownSchemaError

__all__ = ["HttpRegistry", "RegistryUnavailableError"]

_ATTEMPTS: Final = 4
"""Tries per call. With pauses of 0.1, 0.2 and 0.4 s a restart behind a load balancer is bridged; a
longer outage surfaces as `RegistryUnavailableError` and becomes back-pressure."""

_UNKNOWN_SECONDS: Final = 10.0
"""How long an id stays unknown. Shorter, and poisoned records with invented ids become a request
each; longer, and events of a schema registered a moment ago are refused."""

_MAX_UNKNOWN: Final = 10_000
"""How many unknown ids are remembered; then the memory starts afresh (about 1 MB)."""

_TYPE: Final = "application/vnd.schemaregistry.v1+json"


class RegistryUnavailableError(RetryableError):
    """The registry does not answer, or answers with a server error."""


class HttpRegistry:
    """Speaks the REST interface that Confluent defined and Karapace, Apicurio and Redpanda serve.

    What an id means never changes, so schemas are cached for ever; lists of versions never are.

    Args:
        url: base address, `http` or `https`.
        username: for basic authentication, with `password`.
        password: its secret; never shown.
        ca_file: certificates to trust instead of the system's.
        timeout_seconds: of one attempt.
        limits: bounds on a schema's size and depth.
        clock: monotonic seconds; injected in tests.
        sleep: pauses between attempts; injected in tests.

    Raises:
        ConfigurationError: the address is not `http` or `https`, or the CA file cannot be read.
    """

    def __init__(
        self,
        url: str,
        username: str | None = None,
        password: str | None = None,
        ca_file: Path | None = None,
        *,
        timeout_seconds: float = 5.0,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            msg = f"schema registry {url!r}: expected file:FOLDER, http:// or https://"
            raise ConfigurationError(msg)
        self._url = url.rstrip("/")
        self._headers = {"Accept": _TYPE, "Content-Type": _TYPE}
        if username is not None:
            token = base64.b64encode(f"{username}:{password or ''}".encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        try:
            context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        except OSError as e:
            msg = f"schema registry: reading the CA file {str(ca_file)!r}: {e}"
            raise ConfigurationError(msg) from e
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        self._timeout = timeout_seconds
        self._limits = limits or Limits()
        self._clock = clock
        self._sleep = sleep
        self._known: dict[int, RegisteredSchema] = {}
        self._unknown: dict[int, float] = {}
        self._refused: dict[int, str] = {}

    def schema_by_id(self, schema_id: int) -> RegisteredSchema:
        """Return the schema with this id; see `schemas.registry.SchemaRegistry`."""
        known = self._known.get(schema_id)
        if known is not None:
            return known
        if schema_id in self._refused:
            raise SchemaError(self._refused[schema_id])
        now = self._clock()
        if self._unknown.get(schema_id, -1.0) > now:
            msg = f"looking up schema id {schema_id!r}: the registry does not have it"
            raise UnknownSchemaError(msg)
        answer = self._call("GET", f"/schemas/ids/{schema_id}") if schema_id >= 0 else None
        if answer is None:
            if len(self._unknown) >= _MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[schema_id] = now + _UNKNOWN_SECONDS
            msg = f"looking up schema id {schema_id!r}: the registry does not have it"
            raise UnknownSchemaError(msg)
        try:
            known = self._registered(answer, schema_id)
        except SchemaError as e:
            self._refused[schema_id] = str(e)
            raise
        self._known[schema_id] = known
        return known

    def register(self, subject: str, schema: str, mode: Mode | None = None) -> int:
        """Add a version and return the schema's id; see `schemas.registry.SchemaRegistry`.

        The server checks the mode that is configured there; `mode` is checked here beforehand.
        """
        parse_schema(schema, self._limits)
        if mode is not None:
            problems = self.check(subject, schema, mode)
            if problems:
                raise IncompatibleSchemaError(subject, mode, problems)
        path = f"/subjects/{quote(subject, safe='')}/versions"
        answer = self._call("POST", path, {"schema": schema, "schemaType": "AVRO"})
        if not isinstance(answer, dict) or not isinstance(answer.get("id"), int):
            msg = f"registering under {subject!r}: expected an id, was {answer!r}"
            raise ConfigurationError(msg)
        schema_id: int = answer["id"]
        return schema_id

    def latest(self, subject: str) -> RegisteredSchema | None:
        """Return the newest version, or None when the subject is unknown."""
        answer = self._call("GET", f"/subjects/{quote(subject, safe='')}/versions/latest")
        return None if answer is None else self._registered(answer, subject=subject)

    def versions(self, subject: str) -> list[RegisteredSchema]:
        """Return all versions, oldest first; empty when the subject is unknown."""
        base = f"/subjects/{quote(subject, safe='')}/versions"
        found = []
        for number in self._call("GET", base) or []:
            answer = self._call("GET", f"{base}/{number}")
            if answer is not None:  # deleted since the list was made
                found.append(self._registered(answer, subject=subject))
        return found

    def subjects(self) -> list[str]:
        """Return the subjects, sorted."""
        return sorted(self._call("GET", "/subjects") or [])

    def check(self, subject: str, schema: str, mode: Mode) -> list[Problem]:
        """Return what registering `schema` would break, by riskstream's own rules."""
        earlier = [(item.version, item.node) for item in self.versions(subject)]
        return check_compatibility(parse_schema(schema, self._limits), earlier, mode)

    def _registered(
        self, answer: Mapping[str, Any], schema_id: int = 0, subject: str = ""
    ) -> RegisteredSchema:
        kind = answer.get("schemaType", "AVRO")
        text = answer.get("schema")
        if kind != "AVRO" or not isinstance(text, str):
            msg = f"schema {answer.get('id', schema_id)} of the registry: not Avro, was {kind!r}"
            raise SchemaError(msg)
        if answer.get("references"):
            msg = f"schema {answer.get('id', schema_id)} refers to other schemas, which is not read"
            raise SchemaError(msg)
        return RegisteredSchema(
            answer.get("id", schema_id),
            text,
            parse_schema(text, self._limits),
            subject,
            answer.get("version", 0),
        )

    def _call(self, method: str, path: str, body: object | None = None) -> Any:
        """Return the JSON of an answer, or None for "not found"."""
        what = f"schema registry: {method} {path}"
        data = None if body is None else json.dumps(body).encode()
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._sleep(0.1 * 2 ** (attempt - 1))
            request = urllib.request.Request(  # noqa: S310 - the scheme was checked in __init__
                self._url + path, data, self._headers, method=method
            )
            try:
                with self._opener.open(request, timeout=self._timeout) as response:
                    return json.load(response)
            except urllib.error.HTTPError as e:
                with e:
                    if e.code == 404:
                        return None
                    if e.code < 500 and e.code != 429:
                        raise self._refusal(what, e) from e
                failure = e
            except (OSError, ValueError) as e:
                failure = e
        msg = f"{what} at {self._url!r}: no answer in {_ATTEMPTS} attempts: {failure}"
        raise RegistryUnavailableError(msg) from failure

    def _refusal(self, what: str, error: urllib.error.HTTPError) -> ConfigurationError:
        try:
            answer = json.load(error)
            detail = answer.get("message", "") if isinstance(answer, dict) else str(answer)
        except ValueError:
            detail = error.reason
        hint = {
            401: "; check schemas.username and schemas.password",
            403: "; this user may not do it",
            409: "; the server's compatibility rules refuse it",
        }.get(error.code, "")
        return ConfigurationError(f"{what} at {self._url!r}: {error.code} {detail}{hint}")
