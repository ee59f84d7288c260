"""The demo's traffic: flat out for the throughput, then steady for the latency."""

from __future__ import annotations

import numpy as np
import pytest

from connectors.producers.simulator import Population, Simulation
from jobs.demo import CutAt, StagedPace


@pytest.mark.parametrize("burst", [0, 1, 4_500, 16_384, 19_999, 20_000])
def test_the_pace_changes_exactly_where_the_burst_ends(burst: int) -> None:
    source = Simulation(Population(seed=1, customers=2_000), limit=20_000)
    drained: list[int] = []
    pace = StagedPace(burst, 2_000.0, drained.append)
    done, due, ids = 0, [], []
    for batch in CutAt(source, burst).batches():
        due.append(pace.due_seconds(done, batch.event_time_ms, 0))
        ids += batch.text("event_id").to_list()
        done += len(batch)
    whole = [one for batch in source.batches() for one in batch.text("event_id").to_list()]
    assert ids == whole
    moments = np.concatenate(due)
    assert not moments[:burst].any()
    assert np.allclose(np.diff(moments[burst:]), 1 / 2_000.0)
    assert drained == ([burst] if 0 < burst < len(whole) else [])
