"""Users of the local ClickHouse: who may connect, with what secret, to read or to write."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import ConfigurationError

__all__ = ["User", "Users"]


@dataclass(frozen=True, slots=True)
class User:
    """One user; `digest` is the SHA-256 of the password in hexadecimal, empty for none."""

    name: str
    digest: str = ""
    read_only: bool = False


class Users:
    """Check names and passwords; the password of a known user is compared in constant time."""

    def __init__(self, users: Mapping[str, User]) -> None:
        self._users = dict(users)

    @property
    def all_have_passwords(self) -> bool:
        """Say whether nobody gets in without a secret: required off loopback."""
        return all(user.digest for user in self._users.values())

    def check(self, name: str, password: str) -> User | None:
        """Return the user, or None when name or password is wrong."""
        user = self._users.get(name)
        digest = hashlib.sha256(password.encode()).hexdigest()
        if user is None:
            # Same work for unknown names, so that the time tells nothing.
            hmac.compare_digest(digest, "0" * 64)
            return None
        if not user.digest:
            return user if not password else None
        return user if hmac.compare_digest(digest, user.digest) else None

    @classmethod
    def from_file(cls, path: Path) -> Users:
        """Read `{"name": {"password_sha256_hex": "...", "read_only": true}}`.

        Raises:
            ConfigurationError: when the file is not of that form.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            users = {
                name: User(
                    name,
                    str(entry["password_sha256_hex"]).lower(),
                    bool(entry.get("read_only", False)),
                )
                for name, entry in tree.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            msg = (
                f"reading the users of ClickHouse from {str(path)!r}: {e!r}; expected "
                '{"name": {"password_sha256_hex": "...", "read_only": false}}'
            )
            raise ConfigurationError(msg) from e
        if not users:
            msg = f"reading the users of ClickHouse from {str(path)!r}: expected at least one user"
            raise ConfigurationError(msg)
        return cls(users)

    @classmethod
    def only_default(cls, password: str = "") -> Users:
        """Return the one user `default`, with a password or without."""
        digest = hashlib.sha256(password.encode()).hexdigest() if password else ""
        return cls({"default": User("default", digest)})
