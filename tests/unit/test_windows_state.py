"""The durable form: golden bytes, interrupted folds, other versions, changed feature sets."""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jobs.windows import delta, state_log
from jobs.windows import store as store_module
from jobs.windows.batch import EventBatch, Kind, RowFlag
from jobs.windows.delta import CHUNK_VERSION, chunk_header, decode_keys, decode_rows, join_encoded
from jobs.windows.errors import StateFormatError
from jobs.windows.spec import Entity, FeatureSet, count, labelled, maximum, mean, ratio
from jobs.windows.state_log import MemoryLog, StateLog
from jobs.windows.store import ShardStore, warm
from schemas.columns import StringColumn
from tests.reference.windows_reference import Row
from tests.reference.windows_sets import EVERYTHING, FIELDS, batch_of

GOLDEN = Path(__file__).parents[1] / "contract" / "golden"
ROWS = [
    Row(Kind.EVENT, "anna", 1_000, "e1", {"amount_minor": 250, "terminal_id": "a"}),
    Row(Kind.EVENT, "bert", 1_500, "e2", {"amount_minor": None, "terminal_id": "b"}),
    Row(Kind.EVENT, "anna", 2_000, "e3", {"amount_minor": 1_250, "latitude": 52.5,
        "longitude": 13.4}),
    Row(Kind.LABEL, "anna", 1_000, "e1", is_fraud=True, revision=1),
    Row(Kind.LABEL, "carl", 1_700, "e9", is_fraud=True, revision=2),
]  # fmt: skip
PROBES = [
    Row(Kind.EVENT, "anna", 3_000, "p1", {"amount_minor": 500}),
    Row(Kind.EVENT, "carl", 3_000, "e9", {"amount_minor": 500}),
]


def small(*features: object) -> FeatureSet:
    return FeatureSet(
        name="small",
        fields=FIELDS,
        filters=(labelled("fraud"),),
        entities=(Entity("customer", "customer_id", features),),  # type: ignore[arg-type]
        allowed_lateness="5s",
    )


def chunk_of_rows() -> bytes:
    return ShardStore(EVERYTHING, "customer").process(batch_of(ROWS)).delta


@pytest.mark.parametrize("packed", ["", "_zstd"])
@pytest.mark.parametrize("version", range(1, CHUNK_VERSION + 1))
def test_state_written_by_every_earlier_version_still_reads(version: int, packed: str) -> None:
    store = ShardStore(EVERYTHING, "customer")
    assert store.restore([(GOLDEN / f"window_chunk_v{version}{packed}.bin").read_bytes()]) == len(
        ROWS
    )
    undisturbed = ShardStore(EVERYTHING, "customer")
    undisturbed.process(batch_of(ROWS))
    ours = store.process(batch_of(PROBES))
    theirs = undisturbed.process(batch_of(PROBES))
    assert ours.features.tobytes() == theirs.features.tobytes()


def test_what_is_written_today_is_the_golden_file() -> None:
    assert chunk_of_rows() == (GOLDEN / f"window_chunk_v{CHUNK_VERSION}.bin").read_bytes()


def test_state_of_an_older_version_is_upgraded_even_if_its_rows_took_more_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spare = bytes(16)
    rows, keys = decode_rows(chunk_of_rows()), decode_keys(chunk_of_rows())
    old = bytearray(chunk_of_rows())
    (body_bytes,) = struct.unpack_from("<I", old, 12)
    old[12:16] = struct.pack("<I", body_bytes + len(spare))
    old += spare
    monkeypatch.setattr(delta, "CHUNK_VERSION", CHUNK_VERSION + 1)
    monkeypatch.setitem(
        delta.UPGRADES, CHUNK_VERSION, lambda _, __, keys, body: (keys, body[: -len(spare)])
    )
    assert decode_rows(bytes(old)).raw.tobytes() == rows.raw.tobytes()
    assert decode_keys(bytes(old)).data.tobytes() == keys.data.tobytes()


@pytest.mark.parametrize("packed", ["", "_zstd"])
def test_a_fold_joins_state_of_an_older_version_with_that_of_today(packed: str) -> None:
    old = (GOLDEN / f"window_chunk_v1{packed}.bin").read_bytes()
    joined, today = join_encoded([old, chunk_of_rows()]), join_encoded([chunk_of_rows()] * 2)
    assert joined is not None
    assert joined == today
    assert chunk_header(joined).version == CHUNK_VERSION


def test_state_of_a_newer_version_is_refused_with_what_to_do() -> None:
    data = bytearray(chunk_of_rows())
    data[4] = CHUNK_VERSION + 1
    with pytest.raises(StateFormatError, match="run the job with the release that wrote"):
        ShardStore(EVERYTHING, "customer").restore([bytes(data)])


def test_a_fold_takes_no_keys_of_another_length_than_the_header_says() -> None:
    whole = chunk_of_rows()
    header = chunk_header(whole)
    keys_end = header.table_at + header.table_bytes + header.key_bytes
    shorter = bytearray(whole[: keys_end - 1] + whole[keys_end:])
    struct.pack_into("<I", shorter, 32, header.key_bytes - 1)
    with pytest.raises(StateFormatError, match="bytes of keys and rows"):
        join_encoded([bytes(shorter), whole])


@pytest.mark.parametrize("cut", [0, 3, 20, 33, 60, 300, -1])
def test_damaged_state_is_refused(cut: int) -> None:
    with pytest.raises(StateFormatError):
        ShardStore(EVERYTHING, "customer").restore([chunk_of_rows()[:cut]])


def test_a_batch_that_changes_nothing_leaves_no_delta() -> None:
    store = ShardStore(EVERYTHING, "customer")
    store.process(batch_of(ROWS))
    again = store.process(batch_of(ROWS[:1]))
    assert again.delta == b""
    assert again.flags[0] & RowFlag.DUPLICATE


@pytest.mark.parametrize("stop_after", range(1, 40))
def test_a_log_is_whole_after_every_single_write(stop_after: int) -> None:
    class Stopped(Exception):
        pass

    class Fragile(MemoryLog):
        writes = 0

        def _count(self) -> None:
            self.writes += 1
            if self.writes > stop_after:
                raise Stopped

        def put(self, key: int, value: bytes) -> None:
            self._count()
            super().put(key, value)

        def remove(self, key: int) -> None:
            self._count()
            super().remove(key)

    def row(number: int) -> Row:
        return Row(Kind.EVENT, "k", 1_000 * number, str(number), {"amount_minor": number})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_log, "FANOUT", 4)
        kept = Fragile()
        store = ShardStore(EVERYTHING, "customer")
        log = StateLog(kept, store.horizon_ms)
        list(log.chunks())
        durable = 0
        try:
            for number in range(20):
                log.append(store.process(batch_of([row(number)])).delta, store.clock_ms)
                durable += 1
        except Stopped:
            pass
        survived = MemoryLog()
        survived.entries = dict(kept.entries)
        again = ShardStore(EVERYTHING, "customer")
        rows = again.restore(StateLog(survived, store.horizon_ms).chunks())
        # The write that stopped may be part of a fold, after its own delta was put.
        assert rows in (durable, durable + 1)
        assert again.stats().events == rows


def test_folding_bounds_entries_and_expiry_removes_what_no_window_reaches() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_log, "FANOUT", 8)
        patch.setattr(state_log, "SEGMENT_BYTES", 2_000)
        kept = MemoryLog()
        store = ShardStore(EVERYTHING, "customer")
        log = StateLog(kept, store.horizon_ms)
        list(log.chunks())
        for number in range(400):
            row = Row(Kind.EVENT, "k", 1_000 * number, str(number), {"amount_minor": number})
            log.append(store.process(batch_of([row])).delta, store.clock_ms)
        oldest = min(chunk.time_ms.min() for chunk in map(decode_rows, kept.entries.values()))
        assert oldest > 399_000 - 3 * store.horizon_ms
        assert len(log) == len(kept.entries) < 40
        assert max(map(len, kept.entries.values())) < 4_000


def test_a_feature_added_to_a_running_job_keeps_the_state_of_the_others() -> None:
    before = small(mean("amount", ("20s",)), ratio("fraud", ("20s",)))
    after = small(
        count(("20s",)), mean("amount", ("20s",)), maximum("risk", ("20s",), default=-1.0),
        ratio("fraud", ("20s",)),
    )  # fmt: skip
    old = ShardStore(before, "customer")
    chunk = old.process(batch_of(ROWS)).delta
    new = ShardStore(after, "customer")
    new.restore([chunk])
    kept = old.process(batch_of(PROBES)).features
    grown = new.process(batch_of(PROBES)).features
    assert before.version != after.version
    assert grown[:, [1, 3]].tobytes() == kept.tobytes()
    assert grown[:, 0].tolist() == [3.0, 1.0]
    # No old event has the new field: it is null for them.
    assert grown[:, 2].tolist() == [-1.0, -1.0]


def test_folded_chunks_give_back_the_same_rows() -> None:
    store = ShardStore(EVERYTHING, "customer")
    deltas = [store.process(batch_of(ROWS[:2])).delta, store.process(batch_of(ROWS[2:])).delta]
    folded = join_encoded(deltas)
    assert folded is not None
    again, whole = decode_rows(folded), decode_rows(chunk_of_rows())
    keys, all_keys = decode_keys(folded), decode_keys(chunk_of_rows())
    assert chunk_header(folded).compressed
    assert keys.lengths.tobytes() == all_keys.lengths.tobytes()
    assert keys.data.tobytes() == all_keys.data.tobytes()
    for name in ("kind", "valid", "time_ms", "id_hash", "label", "raw"):
        assert np.array_equal(getattr(again, name), getattr(whole, name)), name
    assert (again.fields, again.clock_ms) == (whole.fields, whole.clock_ms)


def test_chunks_of_other_fields_are_not_folded_together() -> None:
    other = ShardStore(small(mean("amount", ("20s",))), "customer").process(batch_of(ROWS)).delta
    assert join_encoded([chunk_of_rows(), other]) is None


def test_a_fold_reads_nothing_back_that_it_wrote_a_moment_ago() -> None:
    """Each read of Flink's state crosses into the JVM."""

    class Counted(MemoryLog):
        reads = 0

        def get(self, key: int) -> bytes:
            self.reads += 1
            return super().get(key)

    kept, store = Counted(), ShardStore(EVERYTHING, "customer")
    log = StateLog(kept, store.horizon_ms)
    list(log.chunks())
    for number in range(state_log.FANOUT):
        row = Row(Kind.EVENT, "k", 1_000 * number, str(number), {"amount_minor": number})
        log.append(store.process(batch_of([row])).delta, store.clock_ms)
    assert len(log) == 1
    assert kept.reads == 0


def test_tasks_of_one_process_fold_at_the_same_time() -> None:
    """A compressor that several threads shared crashed the whole TaskManager."""

    def deltas(seed: int) -> list[bytes]:
        random = np.random.default_rng(seed)
        store = ShardStore(EVERYTHING, "customer")
        times = iter(np.sort(random.integers(0, 1 << 20, 2_000)).tolist())
        rows = [
            Row(Kind.EVENT, f"k{time % 97}", time, str(time), {"amount_minor": time % 1_013})
            for time in times
        ]
        return [store.process(batch_of(rows[at : at + 100])).delta for at in range(0, 2_000, 100)]

    groups = [deltas(seed) for seed in range(8)]
    expected = [join_encoded(group) for group in groups]

    def fold(number: int) -> bool:
        return join_encoded(groups[number % len(groups)]) == expected[number % len(groups)]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(fold, range(64)))


def test_a_process_that_holds_many_stores_can_fork() -> None:
    stores = [ShardStore(EVERYTHING, "customer") for _ in range(16)]
    child = os.fork()
    if not child:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert len(stores) == 16


def test_warming_twice_is_harmless() -> None:
    warm(EVERYTHING)
    warm(EVERYTHING)


def test_keys_that_fell_silent_leave_memory() -> None:
    store = ShardStore(EVERYTHING, "customer")
    store.process(batch_of([Row(Kind.EVENT, f"k{i}", 1_000, str(i)) for i in range(100)]))
    assert store.stats().keys == 100
    late = 1_000 + 2 * store.horizon_ms
    store.process(batch_of([Row(Kind.EVENT, "new", late, "n")]))
    store.prune()
    assert store.stats().keys == 1
    assert store.stats().events == 1


def test_views_and_read_only_arrays_are_taken_as_they_are() -> None:
    plain = batch_of(ROWS)
    doubled = np.repeat(plain.event_time_ms, 2)
    doubled.flags.writeable = False
    starts = np.repeat(plain.key.starts, 2)[::2]
    viewed = EventBatch(
        np.repeat(plain.kind, 2)[::2],
        StringColumn(plain.key.data, starts, np.repeat(plain.key.lengths, 2)[::2]),
        doubled[::2],
        plain.event_id,
        plain.fields,
    )
    one = ShardStore(EVERYTHING, "customer").process(plain)
    other = ShardStore(EVERYTHING, "customer").process(viewed)
    assert one.features.tobytes() == other.features.tobytes()
    assert one.delta == other.delta


def test_keys_that_share_a_hash_are_restored_as_keys_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_hash(column: StringColumn) -> np.ndarray:
        return np.where(column.lengths < 0, 0, 77).astype(np.int64)

    def batch_of_one_hash(*columns: np.ndarray) -> int:
        keys, ids = StringColumn(*columns[:3]), StringColumn(*columns[3:6])
        columns[6][:], columns[7][:] = one_hash(keys), one_hash(ids)
        return int(np.maximum(keys.lengths, 0).sum())

    monkeypatch.setattr(store_module, "hash_strings", one_hash)
    monkeypatch.setattr(store_module, "hash_batch", batch_of_one_hash)
    rows = [Row(Kind.EVENT, f"k{i}", 1_000 + i, None, {"amount_minor": 100}) for i in range(700)]
    undisturbed, restored = (ShardStore(EVERYTHING, "customer") for _ in range(2))
    restored.restore([undisturbed.process(batch_of(rows)).delta])
    assert restored.stats().keys == 700
    again = [Row(Kind.EVENT, row.key, 3_000, None, {"amount_minor": 7}) for row in rows]
    ours, theirs = (s.process(batch_of(again)) for s in (restored, undisturbed))
    assert ours.features.tobytes() == theirs.features.tobytes()


def test_a_log_of_many_keys_and_chunks_gives_back_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys outgrow the tables while they are found, and their rows come in several groups."""
    monkeypatch.setattr(state_log, "FANOUT", 3)
    monkeypatch.setattr(store_module, "RESTORE_ROWS", 700)
    random = np.random.default_rng(1)
    kept, store = MemoryLog(), ShardStore(EVERYTHING, "customer")
    log = StateLog(kept, store.horizon_ms)
    list(log.chunks())
    now = 100_000
    for number in range(40):
        now += store.horizon_ms // 15
        rows = [
            Row(
                Kind.EVENT,
                f"customer-{random.zipf(1.2) % 3_000}",
                now - int(random.integers(0, 9_000)),
                str(random.integers(0, 5_000)),
                {"amount_minor": int(random.integers(1, 500)), "terminal_id": f"t{number % 7}"},
            )
            for _ in range(150)
        ]
        rows += [
            Row(Kind.LABEL, row.key, row.time, row.event_id, is_fraud=True, revision=1)
            for row in rows[::9]
        ]
        log.append(store.process(batch_of(rows)).delta, store.clock_ms)
    restored = ShardStore(EVERYTHING, "customer")
    restored.restore(StateLog(kept, store.horizon_ms).chunks())
    probes = [Row(Kind.EVENT, f"customer-{k}", now, f"p{k}", {}) for k in range(3_000)]
    ours, theirs = (s.process(batch_of(probes)) for s in (restored, store))
    assert store.stats().keys > 1_000
    assert ours.features.tobytes() == theirs.features.tobytes()
    assert ours.flags.tobytes() == theirs.flags.tobytes()
    assert restored.clock_ms == store.clock_ms


def test_a_label_that_found_its_event_does_not_wait_for_another_after_a_restart() -> None:
    """Rows are restored key by key, and each goes by the clock that it met when it came."""
    store, horizon = (
        ShardStore(EVERYTHING, "customer"),
        ShardStore(EVERYTHING, "customer").horizon_ms,
    )
    now = 10 * horizon
    rows = [
        Row(Kind.EVENT, "old", now - 2 * horizon - 1, "e"),
        Row(Kind.LABEL, "old", now, "e", is_fraud=True),
        Row(Kind.EVENT, "new", now, "f"),
    ]
    done = store.process(batch_of(rows))
    assert done.flags.tolist() == [0, 0, 0]
    restored = ShardStore(EVERYTHING, "customer")
    restored.restore([done.delta])
    again = [Row(Kind.EVENT, "old", now + 1, "e"), Row(Kind.LABEL, "old", now, "g", is_fraud=True)]
    ours, theirs = (s.process(batch_of(again)) for s in (restored, store))
    assert ours.features.tobytes() == theirs.features.tobytes()
    assert ours.flags.tolist() == theirs.flags.tolist()


def restarted(rows: list[Row]) -> tuple[list[int], list[int]]:
    """Return the flags of the rows without a restart, and with one before every row.

    Each row is a segment of its own, which goes as soon as it may.
    """
    whole = ShardStore(EVERYTHING, "customer").process(batch_of(rows)).flags.tolist()
    kept, flags = MemoryLog(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_log, "SEGMENT_BYTES", 1)
        for row in rows:
            store = ShardStore(EVERYTHING, "customer")
            log = StateLog(kept, store.horizon_ms)
            store.restore(log.chunks())
            done = store.process(batch_of([row]))
            log.append(done.delta, store.clock_ms)
            flags += done.flags.tolist()
    return flags, whole


def fraud_share(rows: list[Row]) -> list[float]:
    """Return the share of frauds that the last row sees, after a restart before it and without."""
    place = EVERYTHING.names_of("customer").index("customer_fraud_rate_20s")
    shares, kept = [], MemoryLog()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_log, "SEGMENT_BYTES", 1)
        store = ShardStore(EVERYTHING, "customer")
        log = StateLog(kept, store.horizon_ms)
        list(log.chunks())
        for row in rows[:-1]:
            log.append(store.process(batch_of([row])).delta, store.clock_ms)
        again = ShardStore(EVERYTHING, "customer")
        again.restore(StateLog(kept, store.horizon_ms).chunks())
        for one in (again, store):
            shares.append(float(one.process(batch_of(rows[-1:])).features[0, place]))
    return shares


H = 30_000
"""The horizon of `EVERYTHING` in ms."""


def test_a_label_from_the_future_expires_no_event() -> None:
    """Labels do not move the clock, and the log goes by it too."""
    rows = [
        Row(Kind.EVENT, "k", 1_000, "e"),
        Row(Kind.LABEL, "k", 1_000 + 9 * H, "unknown", is_fraud=True),
        Row(Kind.EVENT, "k", 1_000, "e"),
    ]
    flags, whole = restarted(rows)
    assert flags == whole == [0, RowFlag.UNKNOWN_LABEL, RowFlag.DUPLICATE]


def test_a_label_leaves_the_log_with_the_event_that_it_was_applied_to() -> None:
    rows = [
        Row(Kind.EVENT, "k", 1_000, "e"),
        Row(Kind.LABEL, "k", 1_000 + 9 * H, "e", is_fraud=True),
        Row(Kind.EVENT, "k", 1_000 + 9 * H, "other"),
        Row(Kind.EVENT, "k", 1_000 + 9 * H, "e"),
    ]
    flags, whole = restarted(rows)
    assert flags == whole == [0, 0, 0, 0]
    assert fraud_share(rows) == [0.0, 0.0]


def test_a_label_that_waits_is_not_refused_for_one_whose_event_left_the_log() -> None:
    """The label of the old event, of a higher revision, has nothing to say about the new one."""
    rows = [
        Row(Kind.EVENT, "k", 1_000, "e"),
        # In the segment of what follows, so that it stays when its event goes.
        Row(Kind.LABEL, "k", 1_000, "e", revision=5),
        Row(Kind.EVENT, "k", 1_000 + H, "other"),
        Row(Kind.LABEL, "k", 1_000 + H, "e", is_fraud=True, revision=1),
        Row(Kind.EVENT, "k", 1_000 + 2 * H, "later"),
        Row(Kind.EVENT, "k", 1_000 + 2 * H - 1, "e"),
    ]
    store = ShardStore(EVERYTHING, "customer")
    deltas = [store.process(batch_of(part)).delta for part in (rows[:1], rows[1:5])]
    restored = ShardStore(EVERYTHING, "customer")
    restored.restore(deltas[1:])
    ours, theirs = (s.process(batch_of(rows[5:])) for s in (restored, store))
    place = EVERYTHING.names_of("customer").index("customer_fraud_rate_20s")
    assert theirs.features[0, place] == 1.0
    assert ours.features.tobytes() == theirs.features.tobytes()


def test_an_event_that_came_innocent_is_restored_innocent() -> None:
    """It takes no label of an older event of its id, which the log holds no more."""
    rows = [
        Row(Kind.EVENT, "k", 1_000, "e"),
        Row(Kind.LABEL, "k", 1_000, "e", is_fraud=True),
        Row(Kind.EVENT, "k", 1_000 + H, "other"),
        Row(Kind.EVENT, "k", 1_000 + H - 1, "e"),
        Row(Kind.EVENT, "elsewhere", 1_000 + 2 * H, "later"),
    ]
    store, restored = (ShardStore(EVERYTHING, "customer") for _ in range(2))
    deltas = [store.process(batch_of(part)).delta for part in (rows[:1], rows[1:])]
    restored.restore(deltas[1:])
    probe = batch_of([Row(Kind.EVENT, "k", 1_000 + H + 9_000, "probe")])
    ours, theirs = (s.process(probe) for s in (restored, store))
    place = EVERYTHING.names_of("customer").index("customer_fraud_rate_20s")
    assert theirs.features[0, place] == 0.0
    assert ours.features.tobytes() == theirs.features.tobytes()


def test_every_repeat_in_a_long_log_is_found_and_nothing_else() -> None:
    """Long logs have a filter of their own kind, which moves when they grow or are restored."""
    store, random = ShardStore(EVERYTHING, "customer"), np.random.default_rng(1)
    chosen = random.integers(0, 20_000, 12_000)
    rows = [Row(Kind.EVENT, "k", 1_000 + n, str(i)) for n, i in enumerate(chosen.tolist())]
    seen: set[int] = set()
    repeated = [i in seen or bool(seen.add(i)) for i in chosen.tolist()]  # type: ignore[func-returns-value]
    deltas, flags = [], []
    for at in range(0, len(rows), 1_000):
        if at == 8_000:
            store = ShardStore(EVERYTHING, "customer")
            store.restore(deltas)
        done = store.process(batch_of(rows[at : at + 1_000]))
        deltas.append(done.delta)
        flags.append(done.flags)
    found = (np.concatenate(flags) & RowFlag.DUPLICATE) != 0
    assert found.tolist() == repeated
    assert 2_000 < sum(repeated) < 6_000
