"""The broker's identity: the same for the same place, and never what looks like an option."""

from __future__ import annotations

from pathlib import Path

from connectors.local.broker import format_command


def _cluster_id(place: str) -> str:
    command = format_command("java", Path("jars"), Path(place) / "kafka" / "server.properties")
    return command[command.index("--cluster-id") + 1]


def test_the_same_place_has_the_same_identity() -> None:
    assert _cluster_id("/tmp/a") == _cluster_id("/tmp/a") != _cluster_id("/tmp/b")


def test_no_identity_is_taken_for_an_option() -> None:
    # One in 64 began with a dash, /tmp/riskstream-d among them: Kafka refused to format its folder.
    places = ["/tmp/riskstream-d", *(f"/tmp/{number}" for number in range(1_000))]
    identities = [_cluster_id(place) for place in places]
    assert not [one for one in identities if one.startswith("-")]
    assert len(set(identities)) == len(places)
    assert {len(one) for one in identities} == {22}
