"""The shape of the repository: who may import whom, what is exported, how long a file is."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "connectors", "models", "jobs", "dashboards", "benchmarks")
LONGEST_FILE = 600

# Core code gets bytes and numbers and returns bytes and numbers: no network, no clock, no settings.
CORE = (
    "jobs/windows/",
    "jobs/rules/",
    "jobs/market_risk/",
    "jobs/fraud/reasons.py",
    "schemas/",
    "models/scorer.py",
    "connectors/frames.py",
    "connectors/_frame_kernels.py",
    "connectors/row_binary.py",
)
# These stand at the edge of a core package: they read files, ask servers or talk to the user.
EDGES = (
    "schemas/http_registry.py",
    "jobs/market_risk/job.py",
    "jobs/market_risk/demo.py",
    "jobs/market_risk/parts.py",
    "jobs/market_risk/resources.py",
)
CLIENTS = {
    "chdb",
    "clickhouse_connect",
    "confluent_kafka",
    "httpx",
    "kafka",
    "prometheus_client",
    "pyflink",
    "redis",
    "requests",
    "socket",
    "tornado",
    "urllib3",
}
CLOCKS = {
    "time.time",
    "time.time_ns",
    "time.monotonic",
    "time.monotonic_ns",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "os.environ",
    "os.getenv",
}
# Which packages each layer may import, by the first matching prefix.
LAYERS = (
    ("schemas/", ("schemas",)),
    ("jobs/windows/", ("jobs.windows", "schemas")),
    ("jobs/rules/", ("jobs.rules", "schemas")),
    ("models/", ("models", "jobs.windows", "jobs.rules", "schemas", "connectors")),
    ("connectors/", ("connectors", "jobs.windows", "schemas", "models")),
)


@cache
def tracked() -> tuple[Path, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", "*.py"], cwd=ROOT, capture_output=True, check=False
    )
    names = [name for name in listed.stdout.decode().split("\0") if name]
    if not names:  # an unpacked archive has no git
        names = [str(path.relative_to(ROOT)) for path in ROOT.glob("*/**/*.py")]
    return tuple(path for name in sorted(names) if (path := ROOT / name).is_file())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources() -> list[Path]:
    return [path for path in tracked() if name_of(path).split("/")[0] in PACKAGES]


def core() -> list[Path]:
    return [p for p in sources() if name_of(p).startswith(CORE) and name_of(p) not in EDGES]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> set[str]:
    """Return what a module loads; what it only names in annotations is not loaded."""
    found: set[str] = set()
    for_types = {
        inner
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree_of(path)):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_only_the_runtime_imports_pyflink() -> None:
    # The contestants of the benchmarks are other people's ways of writing the job, PyFlink's among
    # them.
    outside = [
        name_of(path)
        for path in sources()
        if not name_of(path).startswith(("jobs/runtime/", "benchmarks/contestants/"))
        and any(within(module, "pyflink") for module in imports_of(path))
    ]
    assert outside == []


def test_the_core_imports_no_client_library() -> None:
    found = [
        f"{name_of(path)} imports {module}"
        for path in core()
        for module in sorted(imports_of(path))
        if module.split(".")[0] in CLIENTS
    ]
    assert found == []


def test_the_core_reads_neither_clock_nor_environment() -> None:
    found = [
        f"{name_of(path)}:{node.lineno} uses {ast.unparse(node)}"
        for path in core()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and any(ast.unparse(node) == c or ast.unparse(node).endswith("." + c) for c in CLOCKS)
    ]
    assert found == []


def test_imports_go_one_way() -> None:
    found = []
    for path in sources():
        allowed = next((a for prefix, a in LAYERS if name_of(path).startswith(prefix)), None)
        if allowed is None:
            continue
        for module in sorted(imports_of(path)):
            ours = module.split(".")[0] in PACKAGES
            if ours and not any(within(module, package) for package in (*allowed, "jobs")[:-1]):
                found.append(f"{name_of(path)} imports {module}")
    assert found == []


def test_nothing_but_the_command_and_the_runtime_imports_the_runtime() -> None:
    found = [
        f"{name_of(path)} imports {module}"
        for path in sources()
        if not name_of(path).startswith(("jobs/runtime/", "jobs/cli/", "benchmarks/"))
        and not name_of(path).endswith("/job.py")
        for module in sorted(imports_of(path))
        if within(module, "jobs.runtime") or within(module, "jobs.cli")
    ]
    assert found == []


def test_no_file_is_longer_than_one_concept() -> None:
    long = {
        name_of(path): count
        for path in tracked()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert long == {}


def test_no_module_is_called_utils() -> None:
    vague = ("utils", "util", "helpers", "misc", "common")
    assert [name_of(path) for path in sources() if path.stem in vague] == []


def exported(path: Path) -> list[str] | None:
    for node in tree_of(path).body:
        targets = (
            node.targets if isinstance(node, ast.Assign)
            else [node.target] if isinstance(node, ast.AnnAssign) else []
        )  # fmt: skip
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


def defined(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_every_module_says_what_it_exports_and_has_it() -> None:
    wrong = []
    for path in sources():
        if path.name == "__init__.py" or path.name == "__main__.py":
            continue
        names = exported(path)
        if names is None:
            wrong.append(f"{name_of(path)} has no __all__")
        elif len(set(names)) < len(names):
            wrong.append(f"{name_of(path)} exports a name twice")
        else:
            wrong += [f"{name_of(path)} exports {n!r}" for n in set(names) - defined(path)]
    assert wrong == []


@pytest.mark.parametrize("module", ["jobs.rules.ruleset", "schemas.columns", "connectors.settings"])
def test_what_is_exported_can_be_imported(module: str) -> None:
    loaded = importlib.import_module(module)
    assert all(hasattr(loaded, name) for name in loaded.__all__)


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name_of(path)
        for path in sources()
        if path.name != "__init__.py" and not ast.get_docstring(tree_of(path))
    ]
    assert silent == []


def test_nothing_is_left_to_be_done() -> None:
    # The one place where these words may stand, as what is looked for.
    marks = re.compile(r"#\s*(TODO|FIXME|XXX)\b|NotImplementedError")
    found = [
        f"{name_of(path)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


def test_every_verb_of_the_command_has_a_module() -> None:
    from jobs.cli.main import VERBS

    missing = []
    for verb, (module, _) in VERBS.items():
        path = ROOT / (module.replace(".", "/") + ".py")
        name = verb.replace("-", "_")
        if not path.is_file() or name not in (exported(path) or []):
            missing.append(f"{verb}: {name} of {module}")
    assert missing == []
