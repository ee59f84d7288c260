"""Look for new paths through the decoder's kernels, then send what was found through machine code.

    python -m tests.fuzz.avro_coverage CORPUS --runs 200000

Coverage needs instrumented bytecode, so a child process runs the kernels as plain Python
(NUMBA_DISABLE_JIT) under libFuzzer and keeps each record that reached something new. Every record,
there and compiled, must be accepted or refused as the reference decoder says. Needs `atheris`,
which is not part of set-up: it has no wheel for every platform.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

__all__ = ["main"]

ROOT: Final = Path(__file__).resolve().parents[2]
SEEDS: Final = 40
BATCH: Final = 2_000


def _guided(corpus: str, runs: int, seed: int) -> None:
    """Run libFuzzer over the interpreted kernels; never returns."""
    import atheris  # noqa: PLC0415 - optional

    with atheris.instrument_imports(include=["schemas"]):
        _interpret_intrinsics()
        from tests.fuzz.decoders import Decoders  # noqa: PLC0415 - instrumented here
    decoders = Decoders()

    def one(data: bytes) -> None:
        decoders.judge([data])

    atheris.Setup(
        [
            sys.argv[0],
            corpus,
            f"-runs={runs}",
            f"-seed={seed}",
            "-max_len=512",
            "-timeout=20",
            f"-artifact_prefix={corpus}/",
        ],
        one,
    )
    atheris.Fuzz()


def _interpret_intrinsics() -> None:
    """Give the three loads and the bit count, which are machine code only, a Python form.

    Unlike the machine code they look at bounds: a read beyond the batch is found here.
    """
    import numpy as np  # noqa: PLC0415 - after the environment is set

    from schemas import _read_kernels  # noqa: PLC0415 - before whoever imports its names

    def loader(size: int, kind: Any) -> Any:
        def load(array: Any, index: int) -> Any:
            assert 0 <= index <= len(array) - size, f"read {size} bytes at {index} of {len(array)}"
            return kind(int.from_bytes(array[index : index + size].tobytes(), "little"))

        return load

    for name, size, kind in (
        ("load_u8", 1, np.uint8),
        ("load_u32", 4, np.uint32),
        ("load_u64", 8, np.uint64),
    ):
        setattr(_read_kernels, name, loader(size, kind))
    _read_kernels._trailing_zeros = lambda value: np.uint64(
        (int(value) & -int(value)).bit_length() - 1
    )


def _compiled(corpus: Path, mutations: int, seed: int) -> dict[str, int]:
    """Send the corpus and mutations of it through the compiled kernels."""
    from tests.fuzz.decoders import Decoders  # noqa: PLC0415 - compiled here
    from tests.property.avro_strategies import mutate  # noqa: PLC0415

    decoders, source = Decoders(), random.Random(seed)
    found = [path.read_bytes() for path in sorted(corpus.iterdir())]
    reasons: Counter[str] = Counter(decoders.judge(found))
    done = 0
    while done < mutations:
        some = [mutate(source, source.choice(found)) for _ in range(min(BATCH, mutations - done))]
        reasons.update(decoders.judge(some, compare_every=20))
        done += len(some)
    return dict(reasons)


def main() -> int:
    """Run from the command line; exit 1 when decoders disagree or something crashes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--runs", type=int, default=200_000, help="records under coverage")
    parser.add_argument("--mutations", type=int, default=1_000_000, help="records, compiled")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guided", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.guided:
        _guided(str(arguments.corpus), arguments.runs, arguments.seed)
    from tests.fuzz.decoders import Decoders  # noqa: PLC0415

    arguments.corpus.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(Decoders().samples(SEEDS, arguments.seed)):
        (arguments.corpus / f"seed-{number:03}").write_bytes(value)
    began = time.perf_counter()
    guided = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.avro_coverage", "--guided", *sys.argv[1:]],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    guided_seconds = time.perf_counter() - began
    lines = [line for line in guided.stderr.splitlines() if "cov:" in line]
    reasons = _compiled(arguments.corpus, arguments.mutations, arguments.seed)
    answer = {
        "guided_runs": arguments.runs,
        "guided_seconds": round(guided_seconds),
        "coverage_first": lines[0] if lines else guided.stderr[-2000:],
        "coverage_last": lines[-1] if lines else "",
        "exit": guided.returncode,
        "corpus": len(list(arguments.corpus.iterdir())),
        "compiled_records": sum(reasons.values()),
        "reasons": reasons,
    }
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    return 1 if guided.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
