"""A Flink DataStream job in Java, one record at a time: `contestants/java`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import requests

from benchmarks.contestants.contestant import write_job
from benchmarks.contestants.on_flink import RECORD_BY_RECORD, OnFlink
from benchmarks.services import Services, plain_schema
from schemas.contract import contract

__all__ = ["JavaFlink"]

MODULE: Final = Path(__file__).parent / "java"
JAR: Final = MODULE / "target" / "bench-java.jar"
SECONDS: Final = 120


class JavaFlink(OnFlink):
    """`rows` is how many payments one ONNX call scores at most; 1 scores each alone."""

    def __init__(self, rows: int = 1, wait_ms: int = 2, buffer_timeout_ms: int = 1) -> None:
        super().__init__("all")
        self.name = "java" if rows == 1 else "java-batched"
        self.title = "Java Flink" if rows == 1 else f"Java Flink, up to {rows} scored at once"
        self.equality_rate = 1_000.0
        self.warm_events = 100_000
        self._arguments = [str(rows), str(wait_ms), str(buffer_timeout_ms)]

    def set_up(self) -> None:
        """Build the module when it is older than its sources."""
        folder = MODULE / "target" / "contracts"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("card_transaction", "alert"):
            file, text = folder / f"{name}.avsc", plain_schema(contract(name))
            if not file.exists() or file.read_text(encoding="utf-8") != text:
                file.write_text(text, encoding="utf-8")
        sources = [MODULE / "pom.xml", *folder.glob("*.avsc"), *MODULE.glob("src/**/*.java")]
        newest = max(source.stat().st_mtime for source in sources)
        if not JAR.exists() or JAR.stat().st_mtime < newest:
            # Jars of a dependency's former version would come first on the class path.
            shutil.rmtree(MODULE / "target" / "lib", ignore_errors=True)
            command = ["mvn", "-q", "-B", "-ntp", "-f", str(MODULE / "pom.xml"), "package"]
            subprocess.run(command, check=True)
        self._jars = sorted((MODULE / "target" / "lib").glob("*.jar"))

    def start(self, services: Services) -> None:
        """Start the cluster, upload the job's jar and run it."""
        file = write_job(services, self.name)
        settings = self._start_cluster(services, RECORD_BY_RECORD)
        url = settings.flink.rest_url
        with JAR.open("rb") as jar:
            answer = requests.post(
                f"{url}/jars/upload",
                files={"jarfile": (JAR.name, jar, "application/x-java-archive")},
                timeout=SECONDS,
            )
        answer.raise_for_status()
        jar_id = answer.json()["filename"].rpartition("/")[2]
        answer = requests.post(
            f"{url}/jars/{jar_id}/run",
            json={
                "entryClass": "riskstream.bench.FraudJob",
                "programArgsList": [str(file), *self._arguments],
            },
            timeout=SECONDS,
        )
        if not answer.ok:
            msg = f"submitting the Java job: {answer.status_code} {answer.text[:3000]}"
            raise RuntimeError(msg)
        self._job_id = answer.json()["jobid"]
        self.cluster.wait_running(self._job_id)
