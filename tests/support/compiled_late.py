"""Print every kernel that the fraud job still compiles for a batch, after `make setup` warmed all.

Run in a process of its own with an empty cache:

    NUMBA_CACHE_DIR=EMPTY python -m tests.support.compiled_late HOME
"""

from __future__ import annotations

import sys
from pathlib import Path

from numba.core.event import RecordingListener, install_listener

from jobs import warm
from tests.support.fraud import DAY_MS, START_MS, Fraud, label, offline_settings, payment


def main(home: Path) -> None:
    """Warm as the set-up does, then send payments, a label, alerts and bad records."""
    warm.main()
    listener = RecordingListener()
    with install_listener("numba:compile", listener):
        fraud = Fraud(offline_settings(home), shards=2)
        for first in range(0, 60, 20):
            fraud.send([payment(n, f"C{n % 7}", f"T{n % 5}") for n in range(first, first + 20)])
        fraud.send([payment(60, "C1", "T1", amount_minor=90_000_000), payment(61, key=None)])
        fraud.send([label(0, "e0-0", "C0", "T0", START_MS)])
        fraud.send([payment(62, "C0", "T0", at_ms=START_MS + 9 * DAY_MS)])
        assert fraud.alerts()
    late = {str(event.data["dispatcher"]) for _, event in listener.buffer if event.is_start}
    sys.stdout.write("\n".join(sorted(late)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
