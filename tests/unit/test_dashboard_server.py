"""Who may look at the dashboards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse

import dashboards.server as served
from connectors.settings import ClickHouseSettings
from dashboards.server import Dashboard
from jobs.fraud.features import FRAUD_FEATURES
from schemas.errors import ConfigurationError

# Nobody listens there: these tests are about who gets in, not about what there is to see.
NOWHERE = ClickHouseSettings(url="http://127.0.0.1:9", timeout_ms=200)


@pytest.fixture(autouse=True)
def _built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand-in files, so that the test needs no built libraries."""
    vendor = tmp_path / "static" / "vendor"
    vendor.mkdir(parents=True)
    (vendor / "versions.json").write_text("{}")
    (tmp_path / "static" / "page.html").write_text("<p>page</p>")
    monkeypatch.setattr(served, "_HERE", tmp_path)
    return


def answers(requests: list[dict[str, Any]], **options: Any) -> list[HTTPResponse]:
    async def ask() -> list[HTTPResponse]:
        dashboard = Dashboard(NOWHERE, FRAUD_FEATURES, **options)
        client = AsyncHTTPClient(force_instance=True)
        try:
            return [
                await client.fetch(
                    HTTPRequest(
                        f"http://127.0.0.1:{dashboard.port}{request.pop('path')}",
                        follow_redirects=False,
                        **request,
                    ),
                    raise_error=False,
                )
                for request in requests
            ]
        finally:
            client.close()
            await dashboard.close()

    with quiet():
        return asyncio.run(ask())


@contextmanager
def quiet() -> Iterator[None]:
    import logging

    logging.getLogger("tornado").setLevel(logging.CRITICAL)
    logging.getLogger("dashboards.feeds").setLevel(logging.CRITICAL)
    yield


def test_with_a_token_only_those_who_show_it_get_in_and_it_leaves_the_address() -> None:
    refused, wrong, bearer, link, asset = answers(
        [
            {"path": "/fraud"},
            {"path": "/fraud?token=guess"},
            {"path": "/fraud", "headers": {"Authorization": "Bearer secret"}},
            {"path": "/fraud?token=secret"},
            {"path": "/static/page.html"},
        ],
        token="secret",
    )
    assert (refused.code, wrong.code, bearer.code, asset.code) == (401, 401, 200, 401)
    assert (link.code, link.headers["Location"]) == (302, "/fraud")
    assert "HttpOnly" in link.headers["Set-Cookie"]
    assert "SameSite=Strict" in link.headers["Set-Cookie"]


def test_a_page_of_another_name_cannot_read_through_the_browser() -> None:
    foreign, own, socket = answers(
        [
            {"path": "/fraud", "headers": {"Host": "evil.example"}},
            {"path": "/fraud"},
            {
                "path": "/ws",
                "headers": {
                    "Upgrade": "websocket", "Connection": "Upgrade",
                    "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
                    "Origin": "http://evil.example",
                },
            },
        ]
    )  # fmt: skip
    assert (foreign.code, own.code, socket.code) == (403, 200, 403)
    assert "default-src 'none'" in own.headers["Content-Security-Policy"]


def test_a_database_that_is_away_is_said_so_and_mistakes_are_the_callers() -> None:
    away, mistaken, unknown = answers(
        [
            {"path": "/api/panels/fraud_totals"},
            {"path": "/api/panels/fraud_totals?window=2y"},
            {"path": "/api/panels/no_such_panel"},
        ]
    )
    assert (away.code, mistaken.code, unknown.code) == (503, 400, 404)
    assert b"expected one of" in mistaken.body


def test_other_machines_are_not_served_without_a_token() -> None:
    with pytest.raises(ConfigurationError, match="--token"):
        answers([], host="0.0.0.0")
