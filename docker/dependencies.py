"""Print the runtime dependencies of pyproject.toml, one a line, for `pip install -r`.

Example: python docker/dependencies.py --without chdb
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

__all__ = ["dependencies"]


def dependencies(pyproject: Path, without: list[str]) -> list[str]:
    """Return the requirements in file order, but for the projects in `without`."""
    declared: list[str] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"][
        "dependencies"
    ]
    return [line for line in declared if re.split(r"[<>=!~;\[ ]", line)[0] not in without]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", action="append", default=[], metavar="PROJECT")
    parser.add_argument("--pyproject", type=Path, default=Path("pyproject.toml"))
    arguments = parser.parse_args()
    sys.stdout.write("\n".join(dependencies(arguments.pyproject, arguments.without)) + "\n")
