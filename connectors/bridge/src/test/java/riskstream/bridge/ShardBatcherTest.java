package riskstream.bridge;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.types.Row;
import org.junit.jupiter.api.Test;

class ShardBatcherTest {
  private static final long[] KEYS = {70, 71, 72, 73};

  private static Harness<byte[], Row> batcher(int maxBytes, long tickMs) throws Exception {
    return new Harness<>(new ShardBatcher(maxBytes, tickMs, KEYS));
  }

  private static List<Long> offsets(List<Row> rows) {
    List<Long> all = new ArrayList<>();
    rows.forEach(row -> all.addAll(Frames.offsets(Frames.batchOf(row))));
    return all.stream().sorted().toList();
  }

  @Test
  void framesWaitForTheTickAndThenLeaveInOneBatchPerShard() throws Exception {
    try (var batcher = batcher(1 << 20, 2)) {
      for (int i = 0; i < 50; i++) {
        batcher.send(Frames.of("key-" + i % 20, i));
      }
      batcher.setProcessingTime(1);
      assertEquals(List.of(), batcher.taken());

      batcher.setProcessingTime(2);

      List<Row> rows = batcher.taken();
      assertEquals(List.of(70L, 71L, 72L, 73L), rows.stream().map(Frames::keyOf).toList());
      assertEquals(50, offsets(rows).size());
    }
  }

  @Test
  void aQuietTickEmitsNothingAndArmsNothing() throws Exception {
    try (var batcher = batcher(1 << 20, 2)) {
      batcher.setProcessingTime(100);
      assertEquals(0, batcher.getProcessingTimeService().getNumActiveTimers());
      assertEquals(List.of(), batcher.taken());

      batcher.send(Frames.of("k", 1));
      batcher.prepareSnapshotPreBarrier(1);
      batcher.taken();
      batcher.setProcessingTime(200);

      assertEquals(List.of(), batcher.taken());
    }
  }

  @Test
  void aWallClockThatIsSetBackHoldsNothingUp() throws Exception {
    try (var batcher = batcher(1 << 20, 2)) {
      batcher.setProcessingTime(3_600_000);
      batcher.send(Frames.of("k", 1));
      batcher.turn();
      batcher.turn();
      assertEquals(List.of(1L), offsets(batcher.taken()));

      batcher.setProcessingTime(1_000);
      batcher.send(Frames.of("k", 2));
      batcher.setProcessingTime(1_002);

      assertEquals(List.of(2L), offsets(batcher.taken()));
    }
  }

  @Test
  void withoutTickFramesLeaveWhenTheTaskFindsNoFurtherElement() throws Exception {
    try (var batcher = batcher(1 << 20, 0)) {
      batcher.send(Frames.of("k", 1));
      batcher.turn();
      batcher.send(Frames.of("k", 2));
      batcher.turn();
      assertEquals(List.of(), batcher.taken(), "elements still come between the turns");

      batcher.turn();

      assertEquals(List.of(1L, 2L), offsets(batcher.taken()));
      assertEquals(0, batcher.turn(), "a quiet operator leaves no letter behind");
    }
  }

  @Test
  void withoutTickInputThatNeverPausesIsHeldForABoundedTime() throws Exception {
    try (var batcher = batcher(1 << 20, 0)) {
      for (int i = 0; i < Pulse.MAX_HOLD_MS; i++) {
        batcher.setProcessingTime(i);
        batcher.send(Frames.of("k", i));
        batcher.turn();
        assertEquals(List.of(), batcher.taken());
      }
      batcher.setProcessingTime(Pulse.MAX_HOLD_MS);
      batcher.send(Frames.of("k", 99));
      batcher.turn();

      assertEquals((int) Pulse.MAX_HOLD_MS + 1, offsets(batcher.taken()).size());
    }
  }

  @Test
  void everythingLeavesBeforeTheBarrier() throws Exception {
    try (var batcher = batcher(1 << 20, 1_000)) {
      for (int i = 0; i < 30; i++) {
        batcher.send(Frames.of("key-" + i, i));
      }
      batcher.prepareSnapshotPreBarrier(1);
      assertEquals(30, offsets(batcher.taken()).size());

      batcher.send(Frames.of("k", 30));
      batcher.snapshot(1, 1);
      assertEquals(List.of(), batcher.taken(), "a frame after the barrier must not leave with it");
    }
  }

  @Test
  void everythingLeavesAtTheEndOfInput() throws Exception {
    for (long tick : new long[] {0, 1_000}) {
      try (var batcher = batcher(1 << 20, tick)) {
        for (int i = 0; i < 30; i++) {
          batcher.send(Frames.of(null, i));
        }
        batcher.endInput();
        batcher.getOneInputOperator().finish();
        assertEquals(30, offsets(batcher.taken()).size());

        batcher.turn();
        batcher.setProcessingTime(5_000);
        assertEquals(List.of(), batcher.taken());
      }
    }
  }

  @Test
  void closingAfterAFailureEmitsNothing() throws Exception {
    var batcher = batcher(1 << 20, 0);
    batcher.send(Frames.of("k", 1));
    batcher.getOneInputOperator().close();

    batcher.turn();

    assertEquals(List.of(), batcher.taken());
  }

  @Test
  void watermarksEndHereAndHurryNothing() throws Exception {
    try (var batcher = batcher(1 << 20, 1_000)) {
      batcher.send(Frames.of("k", 1));
      batcher.processWatermark(new Watermark(5));

      assertEquals(List.of(), new ArrayList<>(batcher.getOutput()));
    }
  }

  @Test
  void afterAQuietTickAFrameLeavesWithoutWaitingForTheNext() throws Exception {
    try (var batcher = batcher(1 << 20, 10)) {
      batcher.setProcessingTime(10);
      batcher.send(Frames.of("k", 1));
      batcher.turn();
      batcher.turn();
      assertEquals(List.of(1L), offsets(batcher.taken()));

      batcher.setProcessingTime(12);
      batcher.send(Frames.of("k", 2));
      batcher.turn();
      batcher.turn();
      batcher.setProcessingTime(19);
      assertEquals(List.of(), batcher.taken(), "a tick lies between two emissions");

      batcher.setProcessingTime(20);
      assertEquals(List.of(2L), offsets(batcher.taken()));
    }
  }

  @Test
  void controlFramesGoToEveryShardInOrderWithTheirNeighbours() throws Exception {
    try (var batcher = batcher(1 << 20, 1_000)) {
      batcher.send(Frames.of("key-a", 1));
      batcher.send(Frames.control(2));
      batcher.send(Frames.of("key-a", 3));
      batcher.prepareSnapshotPreBarrier(1);

      Map<Long, List<Long>> byShard = new TreeMap<>();
      for (Row row : batcher.taken()) {
        byShard.put(Frames.keyOf(row), Frames.offsets(Frames.batchOf(row)));
      }
      int shard = Frame.shardOf(Frames.of("key-a", 1), 0, KEYS.length);
      for (int i = 0; i < KEYS.length; i++) {
        assertEquals(i == shard ? List.of(1L, 2L, 3L) : List.of(2L), byShard.get(KEYS[i]));
      }
    }
  }

  @Test
  void aFullShardLeavesAtOnceAndNoBatchExceedsTheMaximum() throws Exception {
    int size = Frames.of("k", 0).length;
    try (var batcher = batcher(3 * size + 1, 1_000)) {
      for (int i = 0; i < 7; i++) {
        batcher.send(Frames.of("k", i));
      }
      List<Row> rows = batcher.taken();
      assertEquals(2, rows.size());
      assertEquals(List.of(0L, 1L, 2L), Frames.offsets(Frames.batchOf(rows.get(0))));
      assertEquals(List.of(3L, 4L, 5L), Frames.offsets(Frames.batchOf(rows.get(1))));
    }
  }

  @Test
  void aFrameAboveTheMaximumTravelsAloneAndItsMemoryIsGivenBack() throws Exception {
    try (var batcher = batcher(1_000, 1_000)) {
      batcher.send(Frames.of("k", 1));
      batcher.send(Frames.of(0, "k", 2, new byte[3_000_000]));
      batcher.send(Frames.of("k", 3));
      batcher.endInput();
      batcher.getOneInputOperator().finish();

      List<List<Long>> batches =
          batcher.taken().stream().map(row -> Frames.offsets(Frames.batchOf(row))).toList();
      assertEquals(List.of(List.of(1L), List.of(2L), List.of(3L)), batches);
    }
  }

  @Test
  void whateverTheInputEachShardGetsItsFramesInOrderAndNothingElse() throws Exception {
    Random random = new Random(20260601);
    for (int round = 0; round < 40; round++) {
      long tick = random.nextInt(3);
      List<byte[]> frames = Frames.random(random, 400);
      Map<Long, List<byte[]>> expected = new TreeMap<>();
      Map<Long, List<byte[]>> actual = new TreeMap<>();
      try (var batcher = batcher(100 + random.nextInt(5_000), tick)) {
        for (byte[] frame : frames) {
          for (int shard = 0; shard < KEYS.length; shard++) {
            if (Frame.isControl(frame, 0) || Frame.shardOf(frame, 0, KEYS.length) == shard) {
              expected.computeIfAbsent(KEYS[shard], key -> new ArrayList<>()).add(frame);
            }
          }
          batcher.send(frame);
          switch (random.nextInt(20)) {
            case 0 -> batcher.prepareSnapshotPreBarrier(round);
            case 1 -> batcher.setProcessingTime(batcher.getProcessingTime() + 1);
            case 2, 3, 4 -> batcher.turn();
            default -> { }
          }
        }
        batcher.endInput();
        batcher.getOneInputOperator().finish();
        for (Row row : batcher.taken()) {
          assertTrue(Frames.batchOf(row).length > 0);
          actual
              .computeIfAbsent(Frames.keyOf(row), key -> new ArrayList<>())
              .add(Frames.batchOf(row));
        }
      }
      assertEquals(expected.keySet(), actual.keySet());
      expected.forEach(
          (key, parts) -> assertArrayEquals(Frames.join(parts), Frames.join(actual.get(key))));
    }
  }

  @Test
  void meaninglessParametersAreRefused() {
    assertThrows(IllegalArgumentException.class, () -> new ShardBatcher(0, 1, KEYS));
    assertThrows(IllegalArgumentException.class, () -> new ShardBatcher(1, -1, KEYS));
    assertThrows(IllegalArgumentException.class, () -> new ShardBatcher(1, 1, new long[0]));
  }
}
