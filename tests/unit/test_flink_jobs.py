"""A job is found by its id, or by its name while one of that name runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from connectors.flink import FlinkCluster, FlinkError


def job(job_id: str, name: str, state: str) -> dict[str, Any]:
    tasks = {"running": 1, "total": 1}
    return {"jid": job_id, "name": name, "state": state, "start-time": 0, "tasks": tasks}


JOBS = [
    job("a1", "fraud", "CANCELED"),
    job("a2", "fraud", "RUNNING"),
    job("b1", "market_risk", "RUNNING"),
    job("b2", "market_risk", "RESTARTING"),
]


@pytest.fixture
def cluster() -> Iterator[FlinkCluster]:
    class Overview(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"jobs": JOBS}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Overview)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found = FlinkCluster(f"http://127.0.0.1:{server.server_port}")
    try:
        yield found
    finally:
        found.close()
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_id_is_taken_as_it_is_also_of_a_job_that_ended(cluster: FlinkCluster) -> None:
    assert cluster.find("a1") == "a1"


def test_a_name_means_the_job_that_runs_under_it(cluster: FlinkCluster) -> None:
    assert cluster.find("fraud") == "a2"


@pytest.mark.parametrize(("name", "count"), [("market_risk", "2 running"), ("frauds", "0 running")])
def test_a_name_that_is_not_one_running_job_is_refused_with_those_that_run(
    cluster: FlinkCluster, name: str, count: str
) -> None:
    with pytest.raises(FlinkError, match=f"{count} jobs have that name.*fraud \\(a2\\)"):
        cluster.find(name)
