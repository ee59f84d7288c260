package riskstream.bridge;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.types.Row;
import org.apache.flink.util.OutputTag;
import org.junit.jupiter.api.Test;

class FrameRouterTest {
  private static final long[] KEYS = {50, 51, 52, 53};

  private static Harness<byte[], Row> router() throws Exception {
    return new Harness<>(new FrameRouter(KEYS));
  }

  private static byte[] packet(int route, int shard, byte[] payload) {
    byte[] packet = new byte[FrameRouter.PACKET_HEADER_BYTES + payload.length];
    packet[0] = (byte) route;
    Frame.putI32(packet, 4, shard);
    Frame.putI32(packet, 8, payload.length);
    System.arraycopy(payload, 0, packet, 12, payload.length);
    return packet;
  }

  private static List<byte[]> side(Harness<byte[], Row> router, OutputTag<byte[]> tag) {
    var queue = router.getSideOutput(tag);
    List<byte[]> values = new ArrayList<>();
    if (queue != null) {
      queue.forEach(record -> values.add(record.getValue()));
    }
    return values;
  }

  @Test
  void eachRouteLeavesByItsOwnOutput() throws Exception {
    byte[] a = Frames.of("a", 1);
    byte[] b = Frames.of("b", 2);
    byte[] rows = {1, 0, 0, 0, 9};
    try (var router = router()) {
      router.send(
          Frames.join(
              List.of(
                  packet(0, 3, Frames.join(List.of(a, b))),
                  packet(1, 0, Frames.join(List.of(b, a))),
                  packet(2, 0, rows),
                  packet(0, 1, a))));

      List<Row> main = router.taken();
      assertEquals(List.of(53L, 51L), main.stream().map(Frames::keyOf).toList());
      assertArrayEquals(Frames.join(List.of(a, b)), Frames.batchOf(main.get(0)));
      assertArrayEquals(a, Frames.batchOf(main.get(1)));
      List<byte[]> kafka = side(router, BridgeTypes.kafkaOutput());
      assertEquals(2, kafka.size());
      assertArrayEquals(b, kafka.get(0));
      assertArrayEquals(a, kafka.get(1));
      assertArrayEquals(rows, side(router, BridgeTypes.rowOutput()).get(0));
    }
  }

  @Test
  void thePacketsThatPythonWritesAreRouted() throws Exception {
    JsonNode frames = Vectors.ALL.get("frames");
    for (JsonNode vector : Vectors.ALL.get("packets")) {
      List<byte[]> payload = new ArrayList<>();
      vector.path("frames").forEach(i -> payload.add(Vectors.bytes(frames.get(i.intValue()).get("frame"))));
      try (var router = router()) {
        router.send(Vectors.bytes(vector.get("packet")));
        switch (vector.get("route").intValue()) {
          case 0 -> {
            Row row = router.taken().get(0);
            assertEquals(KEYS[vector.get("shard").intValue()], Frames.keyOf(row));
            assertArrayEquals(Frames.join(payload), Frames.batchOf(row));
          }
          case 1 ->
              assertArrayEquals(
                  Frames.join(payload), Frames.join(side(router, BridgeTypes.kafkaOutput())));
          default -> {
            byte[] rows = side(router, BridgeTypes.rowOutput()).get(0);
            assertEquals(vector.get("rows").intValue(), Frame.i32(rows, 0));
            assertArrayEquals(
                Vectors.bytes(vector.get("payload")), Arrays.copyOfRange(rows, 4, rows.length));
          }
        }
      }
    }
  }

  @Test
  void nothingComesOfNothing() throws Exception {
    try (var router = router()) {
      router.send(new byte[0]);
      router.send(packet(0, 0, new byte[0]));
      router.send(packet(1, 0, new byte[0]));
      router.send(packet(2, 0, new byte[0]));

      assertEquals(List.of(), router.taken());
      assertNull(router.getSideOutput(BridgeTypes.kafkaOutput()));
      assertNull(router.getSideOutput(BridgeTypes.rowOutput()));
    }
  }

  @Test
  void bytesThatAreNotPacketsFailTheJobAndSayWhere() throws Exception {
    byte[] frame = Frames.of("a", 1);
    byte[] good = packet(0, 0, frame);
    byte[] reserved = good.clone();
    reserved[2] = 1;
    byte[] negative = good.clone();
    negative[11] = (byte) 0x80;
    try (var router = router()) {
      for (byte[] bad :
          List.of(
              Arrays.copyOf(good, 11),
              Arrays.copyOf(good, good.length - 1),
              packet(3, 0, frame),
              packet(0, 4, frame),
              packet(0, -1, frame),
              packet(1, 0, Arrays.copyOf(frame, frame.length - 1)),
              packet(1, 0, new byte[10]),
              reserved,
              negative)) {
        var e =
            assertThrows(
                MalformedBytesException.class,
                () -> router.send(Frames.join(List.of(good, bad))));
        assertTrue(e.getMessage().contains("at byte"), e.getMessage());
      }
    }
  }

  @Test
  void theLastStageHasNoNextStage() throws Exception {
    try (var router = new Harness<>(new FrameRouter(new long[0]))) {
      assertThrows(
          MalformedBytesException.class, () -> router.send(packet(0, 0, Frames.of("a", 1))));
      router.send(packet(1, 0, Frames.of("a", 1)));
      assertEquals(1, side(router, BridgeTypes.kafkaOutput()).size());
    }
  }
}
