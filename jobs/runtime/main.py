"""Build one job's graph and submit it: the script that `flink run -py` starts.

Arguments: the job's name (a folder of `jobs/` with a `job` module) and the file that holds the
settings.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from connectors.settings import Settings
from jobs.runtime.graph import JobGraph

__all__ = ["main"]


def main(job: str, settings_file: str) -> None:
    """Submit `jobs.<job>.job.build` with the settings of the file."""
    settings = Settings.model_validate_json(Path(settings_file).read_text(encoding="utf-8"))
    graph = JobGraph(job.replace("_", "-"), settings)
    importlib.import_module(f"jobs.{job}.job").build(graph, settings)
    graph.submit()


if __name__ == "__main__":
    main(*sys.argv[1:])
