package riskstream.bridge;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import org.apache.flink.types.Row;
import org.junit.jupiter.api.Test;

class GatherTest {
  private static Harness<Row, Row> gather(long tickMs, int maxBytes, int maxTotalBytes)
      throws Exception {
    return new Harness<>(new Gather(tickMs, maxBytes, maxTotalBytes));
  }

  private static Row batch(long key, long... offsets) {
    List<byte[]> frames = new ArrayList<>();
    for (long offset : offsets) {
      frames.add(Frames.of("k", offset));
    }
    return BridgeTypes.keyedBatch(key, Frames.join(frames));
  }

  private static List<String> shown(List<Row> rows) {
    return rows.stream()
        .map(row -> Frames.keyOf(row) + ":" + Frames.offsets(Frames.batchOf(row)))
        .toList();
  }

  @Test
  void batchesOfAShardAreMergedInOrderAndShardsStayApart() throws Exception {
    try (var gather = gather(5, 1 << 20, 1 << 22)) {
      gather.send(batch(7, 1, 2));
      gather.send(batch(9, 10));
      gather.send(batch(7, 3));
      assertEquals(List.of(), gather.taken());

      gather.setProcessingTime(5);

      assertEquals(List.of("7:[1, 2, 3]", "9:[10]"), shown(gather.taken()));
    }
  }

  @Test
  void withoutTickAllThatArrivedTogetherLeavesTogether() throws Exception {
    try (var gather = gather(0, 1 << 20, 1 << 22)) {
      for (int i = 0; i < 5; i++) {
        gather.send(batch(7, i));
        gather.turn();
      }
      gather.turn();

      assertEquals(List.of("7:[0, 1, 2, 3, 4]"), shown(gather.taken()));
    }
  }

  @Test
  void aSingleBatchPassesUncopied() {
    byte[] only = {1, 2};

    assertSame(only, Parts.join(List.of(only), 2));
  }

  @Test
  void aFullShardLeavesAloneAndAFullTotalTakesAllAlong() throws Exception {
    int size = Frames.of("k", 0).length;
    try (var gather = gather(1_000, 2 * size, 3 * size)) {
      gather.send(batch(7, 1));
      gather.send(batch(8, 2));
      gather.send(batch(7, 3));
      assertEquals(List.of("7:[1, 3]"), shown(gather.taken()));

      gather.send(batch(9, 4));
      gather.send(batch(7, 5));
      assertEquals(List.of("8:[2]", "9:[4]", "7:[5]"), shown(gather.taken()));

      gather.send(batch(7, 6));
      gather.send(batch(7, 7, 8));
      assertEquals(List.of("7:[6]", "7:[7, 8]"), shown(gather.taken()));
    }
  }

  @Test
  void everythingLeavesBeforeTheBarrierAndAtTheEndOfInput() throws Exception {
    try (var gather = gather(1_000, 1 << 20, 1 << 22)) {
      gather.send(batch(7, 1));
      gather.prepareSnapshotPreBarrier(1);
      assertEquals(List.of("7:[1]"), shown(gather.taken()));

      gather.send(batch(7, 2));
      gather.snapshot(1, 1);
      assertEquals(List.of(), gather.taken());

      gather.endInput();
      gather.getOneInputOperator().finish();
      assertEquals(List.of("7:[2]"), shown(gather.taken()));
    }
  }

  @Test
  void closingAfterAFailureEmitsNothing() throws Exception {
    var gather = gather(0, 1 << 20, 1 << 22);
    gather.send(batch(7, 1));
    gather.getOneInputOperator().close();

    gather.turn();

    assertEquals(List.of(), gather.taken());
  }

  @Test
  void whateverTheArrivalEachShardKeepsItsBytesInOrder() throws Exception {
    Random random = new Random(42);
    for (int round = 0; round < 40; round++) {
      Map<Long, List<byte[]>> expected = new TreeMap<>();
      Map<Long, List<byte[]>> actual = new TreeMap<>();
      int maxBytes = 100 + random.nextInt(2_000);
      try (var gather = gather(random.nextInt(3), maxBytes, 3 * maxBytes)) {
        for (int i = 0; i < 200; i++) {
          long key = random.nextInt(5);
          byte[] bytes = Frames.join(Frames.random(random, 1 + random.nextInt(4)));
          expected.computeIfAbsent(key, k -> new ArrayList<>()).add(bytes);
          gather.send(BridgeTypes.keyedBatch(key, bytes));
          switch (random.nextInt(10)) {
            case 0 -> gather.prepareSnapshotPreBarrier(i);
            case 1 -> gather.setProcessingTime(gather.getProcessingTime() + 1);
            case 2, 3 -> gather.turn();
            default -> { }
          }
        }
        gather.endInput();
        gather.getOneInputOperator().finish();
        for (Row row : gather.taken()) {
          actual
              .computeIfAbsent(Frames.keyOf(row), k -> new ArrayList<>())
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
    assertThrows(IllegalArgumentException.class, () -> new Gather(-1, 1, 1));
    assertThrows(IllegalArgumentException.class, () -> new Gather(1, 0, 1));
    assertThrows(IllegalArgumentException.class, () -> new Gather(1, 2, 1));
  }
}
