"""The PyFlink contestants of the benchmark still build their graphs on the bridge as it is.

They are submitted only by `make bench`, and the bridge is called by position: a parameter more, and
nobody would notice before somebody measures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.services import job_document
from connectors.flink import client_variables
from connectors.local.flink_lib import ROOT, assemble_lib, pyflink_folder
from connectors.settings import load_settings

# `execute_async` would look for a cluster; the plan is made of the same graph.
BUILD = """
import importlib, sys
from pyflink.datastream import StreamExecutionEnvironment
StreamExecutionEnvironment.execute_async = lambda self, name: print(self.get_execution_plan())
importlib.import_module(f"benchmarks.contestants.{sys.argv[1]}").main(*sys.argv[2:])
"""


@pytest.mark.parametrize("script", ["pyflink_job", "pyflink_sql"])
def test_a_pyflink_contestant_builds_its_graph(script: str, tmp_path: Path) -> None:
    nobody = "127.0.0.1:9"
    settings = load_settings(
        environment={},
        overrides=[
            f"home={tmp_path}",
            f"models.registry=file:{tmp_path}/models",
            f"kafka.bootstrap_servers={nobody}",
            f"redis.url=redis://{nobody}/0",
            f"clickhouse.url=http://{nobody}",
        ],
    )
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job_document(settings)), encoding="utf-8")
    built = subprocess.run(
        [sys.executable, "-c", BUILD, script, str(file), "process"],
        cwd=ROOT,
        env=client_variables(pyflink_folder(), assemble_lib(tmp_path / "flink-lib"), ROOT),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    plan = json.loads(built.stdout[built.stdout.index("{") :])
    kinds = [node["type"] for node in plan["nodes"]]
    assert any(kind.startswith("Source") for kind in kinds)
    assert "gather" in kinds
