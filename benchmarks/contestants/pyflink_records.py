"""PyFlink by record (`pyflink_job.py`), in both modes, and in SQL's batches (`pyflink_sql.py`)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from benchmarks.contestants.contestant import write_job
from benchmarks.contestants.on_flink import RECORD_BY_RECORD, OnFlink
from benchmarks.services import Services
from connectors.flink import CLIENT_JAVA_OPTIONS, client_variables
from connectors.local.flink_lib import ROOT, assemble_lib, pyflink_folder

__all__ = ["PyFlinkRecords", "PyFlinkSql"]

FOLDER: Final = Path(__file__).parent
SECONDS: Final = 300


class PyFlinkRecords(OnFlink):
    """`flink run -py` of a script of ours on a cluster of its own."""

    def __init__(self, mode: Literal["thread", "process"]) -> None:
        super().__init__("all")
        self.name = f"pyflink-{mode}"
        self.title = f"PyFlink per record, {mode} mode"
        self.equality_rate = 1_000.0 if mode == "thread" else 250.0
        self.warm_events = 20_000 if mode == "thread" else 4_000
        self._mode = mode
        self._script = FOLDER / "pyflink_job.py"

    def set_up(self) -> None:
        """Do nothing: pyflink is installed."""

    def start(self, services: Services) -> None:
        """Start the cluster and submit the script."""
        file = write_job(services, self.name)
        settings = self._start_cluster(services, RECORD_BY_RECORD)
        address = urlsplit(settings.flink.rest_url or "")
        folder, home = file.parent / "client", pyflink_folder()
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(
            f"rest.address: {address.hostname}\nrest.port: {address.port}\n"
            f"env.java.opts.all: {CLIENT_JAVA_OPTIONS}\n",
            encoding="utf-8",
        )
        shutil.copy(home / "conf" / "log4j-cli.properties", folder)
        result = subprocess.run(
            [
                *(str(home / "bin" / "flink"), "run", "-d"),
                *("-m", f"{address.hostname}:{address.port}"),
                *("-pyclientexec", sys.executable, "-pyexec", sys.executable),
                *("-py", str(self._script), str(file), self._mode),
            ],
            cwd=ROOT,
            env={
                **client_variables(home, assemble_lib(file.parent / "flink-lib"), ROOT),
                "FLINK_CONF_DIR": str(folder),
                "FLINK_LOG_DIR": str(folder),
            },
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        found = re.search(r"JobID ([0-9a-f]{32})", result.stdout)
        if result.returncode or found is None:
            msg = f"submitting the PyFlink job failed:\n{(result.stdout + result.stderr)[-3000:]}"
            raise RuntimeError(msg)
        self._job_id = found.group(1)
        self.cluster.wait_running(self._job_id)


class PyFlinkSql(PyFlinkRecords):
    """Micro-batches by a window of Flink SQL, process mode."""

    def __init__(self) -> None:
        super().__init__("process")
        self.name = "pyflink-sql"
        self.title = "PyFlink SQL micro-batches"
        self.equality_rate = 1_000.0
        self.warm_events = 20_000
        self._script = FOLDER / "pyflink_sql.py"
