"""The dashboards' web server: pages, panel answers as JSON, and Perspective's websocket."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import perspective
import tornado.web
from perspective.handlers.tornado import PerspectiveTornadoHandler
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from connectors.settings import ClickHouseSettings, Settings
from dashboards.drill import events_behind, scored_event
from dashboards.feeds import FeedPump
from dashboards.layout import page_layout
from dashboards.live import LiveTopic, Pushed
from dashboards.queries import FEEDS, FILTERS, PAGES, panel_named
from dashboards.reader import PanelReader
from dashboards.totals import LiveTotals
from jobs.windows.spec import FeatureSet
from schemas.errors import ConfigurationError, FatalError, RetryableError, RiskstreamError

__all__ = ["Dashboard", "ExtraPanel"]

_LOG: Final = logging.getLogger(__name__)
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_HERE: Final = Path(__file__).parent
_COOKIE: Final = "riskstream_dashboard"

# Scripts and sockets come from here alone. Perspective unpacks a loader of its own into a blob and
# compiles WebAssembly; it and ECharts set styles on elements; its fonts and icons are data
# addresses inside its style sheet.
_CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self' ws: wss: data:; "
    "worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

ExtraPanel = Callable[[], Awaitable[dict[str, Any]]]
"""Answers a panel that ClickHouse cannot; the keys are those of `PanelAnswer.as_dict`."""


@dataclass(frozen=True, slots=True)
class _Site:
    reader: PanelReader
    pump: FeedPump
    features: FeatureSet
    extras: Mapping[str, ExtraPanel]
    token: str | None
    loopback: bool
    base_currency: str


class Dashboard:
    """Serves the pages until closed; made and used inside a running event loop.

    Args:
        clickhouse: where the data is.
        features: what the drill-down explains.
        host: address to bind.
        port: 0 for any free one; see `port`.
        token: asked for by every request: as `?token=` once, which leaves a cookie, or as a bearer
            token. None asks for nothing and is for loopback only.
        extras: panels that are answered by something else than ClickHouse, by name.
        base_currency: what money of the market risk page is in.
        live: settings with the Kafka on which jobs publish rows for the pages; None reads
            everything from ClickHouse.

    Raises:
        ConfigurationError: when others than this machine could look without a token, or the
            browser's libraries were not built.
        OSError: when the port is taken.
    """

    def __init__(
        self,
        clickhouse: ClickHouseSettings,
        features: FeatureSet,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        extras: Mapping[str, ExtraPanel] | None = None,
        base_currency: str = "",
        live: Settings | None = None,
    ) -> None:
        if host not in _LOOPBACK and not token:
            msg = (
                f"serving the dashboards on {host!r}: anybody could read them; give --token, or "
                "bind to 127.0.0.1"
            )
            raise ConfigurationError(msg)
        if not (_HERE / "static" / "vendor" / "versions.json").is_file():
            msg = (
                "serving the dashboards: the browser's libraries are missing; run `npm ci "
                "--ignore-scripts && npm run build` in dashboards/web, or `make setup`"
            )
            raise ConfigurationError(msg)
        self.reader = PanelReader(clickhouse)
        self._perspective = perspective.Server()
        feeds = [feed for page in FEEDS.values() for feed in page]
        self._pump = FeedPump(self.reader, self._perspective, feeds)
        answered = dict(extras or {})
        self._live: LiveTopic | None = None
        if live is not None:
            totals = LiveTotals(self.reader)
            answered[totals.panel] = totals.answer

            def push(pushed: Pushed) -> None:
                self._pump.push(pushed)
                totals.push(pushed)

            self._live = LiveTopic(live, push)
        site = _Site(
            self.reader, self._pump, features, answered, token, host in _LOOPBACK, base_currency
        )
        shared = {"site": site}
        application = tornado.web.Application(
            [
                (r"/", _Home, shared),
                (r"/healthz", _Health, shared),
                ("/(" + "|".join(PAGES) + ")", _Page, shared),
                (r"/api/layout/(\w+)", _Layout, shared),
                (r"/api/panels/(\w+)", _Panel, shared),
                (r"/api/freshness/(\w+)", _Fresh, shared),
                (r"/api/choices/(\w+)", _Choices, shared),
                (r"/api/event", _Event, shared),
                (r"/api/event/feature", _Behind, shared),
                (r"/ws", _Socket, {**shared, "perspective_server": self._perspective}),
                (r"/static/(.*)", _Static, {"path": str(_HERE / "static"), **shared}),
            ],
            compress_response=True,
            websocket_max_message_size=64 * 1024 * 1024,
            log_function=lambda handler: None,
        )
        sockets = bind_sockets(port, host)
        self.port = int(sockets[0].getsockname()[1])
        self._server = HTTPServer(application)
        self._server.add_sockets(sockets)
        self._task = asyncio.ensure_future(self._pump.run())
        if self._live is not None:
            self._live.start()

    async def close(self) -> None:
        """Stop serving and close the connections."""
        self._server.stop()
        if self._live is not None:
            self._live.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._server.close_all_connections()
        self.reader.close()


class _Guarded(tornado.web.RequestHandler):
    """Lets in who has the token, or who comes from this machine where none is set."""

    site: _Site

    def initialize(self, site: _Site) -> None:
        self.site = site

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", _CONTENT_POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")

    def prepare(self) -> None:
        refusal = _refusal(self, self.site)
        if refusal is not None:
            self.set_status(403 if self.site.token is None else 401)
            self.finish(refusal + "\n")

    def asked(self) -> dict[str, str]:
        return {name: self.get_query_argument(name) for name in self.request.query_arguments}

    async def reply(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Answer with JSON; a mistake of ours or of the caller's comes with its words."""
        self.set_header("Content-Type", "application/json")
        try:
            body = await work()
        except RetryableError as e:
            self.set_status(503)
            body = {"error": str(e)}
        except (ConfigurationError, RiskstreamError, FatalError) as e:
            self.set_status(400)
            body = {"error": str(e)}
        if body is None:
            self.set_status(404)
            body = {"error": "there is none of that name"}
        self.finish(json.dumps(body))


class _Home(_Guarded):
    def get(self) -> None:
        self.redirect("/" + next(iter(PAGES)))


class _Health(_Guarded):
    def get(self) -> None:
        self.finish("ok\n")


class _Page(_Guarded):
    def get(self, page: str) -> None:
        if self.get_query_argument("token", None) is not None and self.site.token is not None:
            # Out of the address, where it would stay in histories and screenshots.
            self.set_cookie(_COOKIE, self.site.token, httponly=True, samesite="Strict")
            self.redirect(f"/{page}")
            return
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        self.finish((_HERE / "static" / "page.html").read_bytes())


class _Layout(_Guarded):
    async def get(self, page: str) -> None:
        async def work() -> dict[str, Any] | None:
            if page not in PAGES:
                return None
            return page_layout(page, frozenset(self.site.extras), self.site.base_currency)

        await self.reply(work)


class _Panel(_Guarded):
    async def get(self, name: str) -> None:
        async def work() -> dict[str, Any] | None:
            extra = self.site.extras.get(name)
            if extra is not None:
                return await extra()
            found = panel_named(name)
            if found is None:
                return None
            answer = await self.site.reader.panel(found[0], found[1], self.asked())
            return answer.as_dict()

        await self.reply(work)


class _Fresh(_Guarded):
    async def get(self, name: str) -> None:
        async def work() -> dict[str, Any] | None:
            for feeds in FEEDS.values():
                for feed in feeds:
                    if feed.name == name:
                        found = await self.site.reader.freshness(feed.source)
                        return found.since(self.site.pump.pushed_ms(feed)).as_dict()
            return None

        await self.reply(work)


class _Choices(_Guarded):
    async def get(self, page: str) -> None:
        async def work() -> dict[str, list[str]] | None:
            if page not in PAGES:
                return None
            return {choice.name: await self.site.reader.choices(choice) for choice in FILTERS[page]}

        await self.reply(work)


class _Event(_Guarded):
    async def get(self) -> None:
        event_id = self.get_query_argument("id", "")
        reader, features = self.site.reader, self.site.features
        await self.reply(
            lambda: reader.in_thread(lambda: scored_event(reader.rows, features, event_id))
        )


class _Behind(_Guarded):
    async def get(self) -> None:
        event_id = self.get_query_argument("id", "")
        feature = self.get_query_argument("feature", "")
        reader, features = self.site.reader, self.site.features
        await self.reply(
            lambda: reader.in_thread(
                lambda: events_behind(reader.rows, features, event_id, feature)
            )
        )


class _Static(tornado.web.StaticFileHandler):
    site: _Site

    def initialize(self, path: str, site: _Site) -> None:  # type: ignore[override]
        super().initialize(path)
        self.site = site

    def set_extra_headers(self, path: str) -> None:
        # Vendored files change with a release only; ours must not outlive a restart.
        kept = "private, max-age=3600" if path.startswith("vendor/") else "no-cache"
        self.set_header("Cache-Control", kept)
        self.set_header("X-Content-Type-Options", "nosniff")

    def prepare(self) -> None:
        refusal = _refusal(self, self.site)
        if refusal is not None:
            self.set_status(401)
            self.finish(refusal + "\n")


class _Socket(PerspectiveTornadoHandler):  # type: ignore[misc]  # it ships no types
    site: _Site

    def initialize(self, site: _Site, perspective_server: perspective.Server) -> None:
        super().initialize(perspective_server=perspective_server)
        self.site = site

    def prepare(self) -> None:
        refusal = _refusal(self, self.site)
        if refusal is not None:
            self.set_status(401)
            self.finish(refusal + "\n")

    def check_origin(self, origin: str) -> bool:
        return urlsplit(origin).netloc.lower() == (self.request.host or "").lower()

    def on_close(self) -> None:
        # A connection that was refused never got a session.
        if hasattr(self, "session"):
            super().on_close()


def _refusal(handler: tornado.web.RequestHandler, site: _Site) -> str | None:
    if site.loopback:
        # A foreign name that was pointed at this machine must not read through a browser here.
        host = urlsplit(f"//{handler.request.host}").hostname
        if host not in _LOOPBACK:
            return "Requests under another name than this machine's are not answered."
    if site.token is None:
        return None
    kind, _, bearer = handler.request.headers.get("Authorization", "").partition(" ")
    given = [
        handler.get_cookie(_COOKIE),
        handler.get_query_argument("token", None),
        bearer.strip() if kind.lower() == "bearer" else None,
    ]
    for one in given:
        if one is not None and hmac.compare_digest(one.encode(), site.token.encode()):
            return None
    return "A token is needed: add ?token=... to the address once, or send it as a bearer token."
