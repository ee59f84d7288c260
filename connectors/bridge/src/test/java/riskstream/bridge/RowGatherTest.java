package riskstream.bridge;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.List;
import org.junit.jupiter.api.Test;

class RowGatherTest {
  private static Harness<byte[], byte[]> gather(long maxMs, int maxRows, int maxBytes)
      throws Exception {
    return new Harness<>(new RowGather(maxMs, maxRows, maxBytes, 0));
  }

  private static byte[] rows(int count, String text) {
    byte[] body = text.getBytes(UTF_8);
    byte[] packet = new byte[4 + body.length];
    Frame.putI32(packet, 0, count);
    System.arraycopy(body, 0, packet, 4, body.length);
    return packet;
  }

  private static List<String> shown(List<byte[]> packets) {
    return packets.stream()
        .map(p -> Frame.i32(p, 0) + " " + new String(p, 4, p.length - 4, UTF_8))
        .toList();
  }

  private static void assertLeavesAt(long ms, String packet, Harness<byte[], byte[]> gather)
      throws Exception {
    gather.setProcessingTime(ms - 1);
    assertEquals(List.of(), gather.taken(), "two inserts are never close to each other");
    gather.setProcessingTime(ms);
    assertEquals(List.of(packet), shown(gather.taken()));
  }

  @Test
  void countsAreAddedAndRowsJoinedInOrderAfterTheWait() throws Exception {
    try (var gather = gather(1_000, 100, 1_000)) {
      gather.send(rows(2, "ab"));
      gather.send(rows(0, ""));
      gather.send(rows(3, "cde"));
      gather.setProcessingTime(999);
      assertEquals(List.of(), gather.taken());

      gather.setProcessingTime(1_000);

      assertEquals(List.of("5 abcde"), shown(gather.taken()));
    }
  }

  @Test
  void enoughRowsOrBytesLeaveAtOnceAndAreNeverSplit() throws Exception {
    try (var gather = gather(1_000, 4, 10)) {
      gather.send(rows(3, "abc"));
      gather.send(rows(2, "de"));
      assertEquals(List.of("5 abcde"), shown(gather.taken()));

      gather.send(rows(1, "123456"));
      gather.send(rows(1, "7890123"));
      assertEquals(List.of("1 123456"), shown(gather.taken()));

      gather.send(rows(1, "12345678901234"));
      assertEquals(List.of("1 7890123", "1 12345678901234"), shown(gather.taken()));
    }
  }

  @Test
  void rowsThatComeAfterAnEarlyEmissionWaitFromThere() throws Exception {
    try (var gather = gather(1_000, 4, 1_000)) {
      gather.send(rows(1, "b"));
      gather.setProcessingTime(900);
      gather.send(rows(3, "cde"));
      assertEquals(List.of("4 bcde"), shown(gather.taken()));

      gather.send(rows(1, "f"));
      assertLeavesAt(1_900, "1 f", gather);
    }
  }

  @Test
  void rowsThatMadeRoomForOthersBeginTheWaitAnewToo() throws Exception {
    try (var gather = gather(1_000, 100, 10)) {
      gather.send(rows(1, "123456"));
      gather.setProcessingTime(900);
      gather.send(rows(1, "7890123"));
      assertEquals(List.of("1 123456"), shown(gather.taken()));
      assertLeavesAt(1_900, "1 7890123", gather);
    }
  }

  @Test
  void everythingLeavesBeforeTheBarrierAndAtTheEndOfInput() throws Exception {
    try (var gather = gather(1_000, 100, 1_000)) {
      gather.send(rows(1, "a"));
      gather.prepareSnapshotPreBarrier(1);
      assertEquals(List.of("1 a", "0 "), shown(gather.taken()));

      gather.send(rows(1, "b"));
      gather.snapshot(1, 1);
      assertEquals(List.of(), gather.taken());
      gather.endInput();
      gather.getOneInputOperator().finish();
      assertEquals(List.of("1 b", "0 "), shown(gather.taken()));
    }
  }

  @Test
  void rowsThatLeftOnTheirOwnAreSettledByTheNextBarrierAndOnce() throws Exception {
    try (var gather = gather(1_000, 1, 1_000)) {
      gather.prepareSnapshotPreBarrier(1);
      assertEquals(List.of(), gather.taken());

      gather.send(rows(1, "a"));
      assertEquals(List.of("1 a"), shown(gather.taken()));
      gather.prepareSnapshotPreBarrier(2);
      assertEquals(List.of("0 "), shown(gather.taken()));
      gather.prepareSnapshotPreBarrier(3);
      assertEquals(List.of(), gather.taken());
    }
  }

  private static Harness<byte[], byte[]> behindBarrier() throws Exception {
    var gather = new Harness<byte[], byte[]>(new RowGather(1_000, 4, 10, 20));
    gather.prepareSnapshotPreBarrier(7);
    gather.send(rows(3, "abc"));
    gather.send(rows(2, "de"));
    gather.send(rows(1, "fghijkl"));
    gather.setProcessingTime(1_500);
    assertEquals(List.of(), gather.taken(), "the stage below stores what came before the barrier");
    return gather;
  }

  @Test
  void rowsBehindABarrierAreHeldUntilTheCheckpointIsComplete() throws Exception {
    try (var gather = behindBarrier()) {
      gather.notifyOfCompletedCheckpoint(6);
      assertEquals(List.of(), gather.taken(), "an earlier checkpoint");

      gather.notifyOfCompletedCheckpoint(7);
      assertEquals(List.of("5 abcde", "1 fghijkl"), shown(gather.taken()));

      gather.send(rows(4, "m"));
      assertEquals(List.of("4 m"), shown(gather.taken()));
    }
  }

  @Test
  void rowsBehindABarrierLeaveWhenTheCheckpointHasFailed() throws Exception {
    try (var gather = behindBarrier()) {
      gather.getOneInputOperator().notifyCheckpointAborted(7);
      assertEquals(List.of("5 abcde", "1 fghijkl"), shown(gather.taken()));
    }
  }

  @Test
  void tooManyRowsBehindABarrierLeaveAtOnce() throws Exception {
    try (var gather = behindBarrier()) {
      gather.send(rows(1, "0123456789"));
      assertEquals(List.of(), gather.taken());
      gather.send(rows(1, "n"));
      assertEquals(
          List.of("5 abcde", "1 fghijkl", "1 0123456789"), shown(gather.taken()),
          "22 bytes are held, of at most 20");
    }
  }

  @Test
  void aCheckpointOfWhichNothingIsHeardHoldsRowsForABoundedTime() throws Exception {
    try (var gather = behindBarrier()) {
      gather.setProcessingTime(2_499);
      assertEquals(List.of(), gather.taken());
      gather.setProcessingTime(2_500);
      assertEquals(List.of("5 abcde", "1 fghijkl"), shown(gather.taken()));
    }
  }

  @Test
  void theNextBarrierTakesWhatIsHeldAlong() throws Exception {
    try (var gather = behindBarrier()) {
      gather.prepareSnapshotPreBarrier(8);
      assertEquals(List.of("5 abcde", "1 fghijkl", "0 "), shown(gather.taken()));
      gather.send(rows(1, "o"));
      gather.notifyOfCompletedCheckpoint(7);
      assertEquals(List.of(), gather.taken());
    }
  }

  @Test
  void theInputIsNotChanged() throws Exception {
    try (var gather = gather(1_000, 100, 1_000)) {
      byte[] first = rows(1, "a");
      gather.send(first);
      gather.send(rows(1, "b"));
      gather.prepareSnapshotPreBarrier(1);
      assertEquals(List.of("1 a"), shown(List.of(first)));
    }
  }

  @Test
  void packetsWithoutCountOrWithUncountedRowsAreRefused() throws Exception {
    try (var gather = gather(1_000, 100, 1_000)) {
      assertThrows(MalformedBytesException.class, () -> gather.send(new byte[3]));
      assertThrows(MalformedBytesException.class, () -> gather.send(rows(0, "x")));
    }
    assertThrows(IllegalArgumentException.class, () -> new RowGather(1, 0, 1, 0));
    assertThrows(IllegalArgumentException.class, () -> new RowGather(1, 1, 0, 0));
    assertThrows(IllegalArgumentException.class, () -> new RowGather(1, 1, 1, -1));
  }
}
