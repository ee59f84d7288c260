package riskstream.bridge;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import org.apache.flink.types.Row;
import org.junit.jupiter.api.Test;

/**
 * Damaged frames and packets are refused as such or pass whole; nothing else is thrown and nothing
 * hangs. {@code -Driskstream.damaged=N} sets how many.
 */
class DamagedBytesTest {
  private static final int COUNT = Integer.getInteger("riskstream.damaged", 20_000);
  private static final byte[] EDGES = {0, 1, 2, 4, 0x7f, (byte) 0x80, (byte) 0xfe, (byte) 0xff};

  private static byte[] damaged(Random random, byte[] data) {
    byte[] bytes = data.clone();
    for (int change = random.nextInt(3); change >= 0 && bytes.length > 0; change--) {
      // Most changes hit the headers, where lengths are.
      int at = random.nextInt(random.nextInt(4) == 0 ? bytes.length : Math.min(bytes.length, 68));
      switch (random.nextInt(4)) {
        case 0 -> bytes = Arrays.copyOf(bytes, at);
        case 1 -> bytes[at] ^= (byte) (1 << random.nextInt(8));
        case 2 -> bytes = Arrays.copyOf(bytes, bytes.length + random.nextInt(20));
        default -> bytes[at] = EDGES[random.nextInt(EDGES.length)];
      }
    }
    return bytes;
  }

  private static byte[] packet(int route, int shard, byte[] payload) {
    byte[] packet = new byte[FrameRouter.PACKET_HEADER_BYTES + payload.length];
    packet[0] = (byte) route;
    Frame.putI32(packet, 4, shard);
    Frame.putI32(packet, 8, payload.length);
    System.arraycopy(payload, 0, packet, FrameRouter.PACKET_HEADER_BYTES, payload.length);
    return packet;
  }

  @Test
  void damagedFramesAreRefusedOrBecomeRecords() {
    Random random = new Random(1);
    List<byte[]> frames = Frames.random(random, 200);
    FrameSerializer serializer = new FrameSerializer();
    int refused = 0;
    int taken = 0;
    for (int i = 0; i < COUNT; i++) {
      byte[] frame = damaged(random, frames.get(random.nextInt(frames.size())));
      try {
        serializer.serialize(frame, null, null);
        taken++;
      } catch (MalformedBytesException e) {
        refused++;
      }
    }
    assertEquals(COUNT, refused + taken);
    assertTrue(refused > COUNT / 4 && taken > COUNT / 20, refused + " refused, " + taken + " taken");
  }

  @Test
  void damagedPacketsAreRefusedOrRouted() throws Exception {
    Random random = new Random(2);
    List<byte[]> frames = Frames.random(random, 200);
    int refused = 0;
    try (var router = new Harness<byte[], Row>(new FrameRouter(new long[] {50, 51, 52, 53}))) {
      for (int i = 0; i < COUNT; i++) {
        Collections.shuffle(frames, random);
        byte[] packets =
            Frames.join(
                List.of(
                    packet(random.nextInt(3), random.nextInt(4), Frames.join(frames.subList(0, 3))),
                    packet(random.nextInt(3), random.nextInt(4), frames.get(3))));
        try {
          router.send(damaged(random, packets));
        } catch (MalformedBytesException e) {
          refused++;
        }
        router.taken();
      }
    }
    assertTrue(refused > COUNT / 4, refused + " refused");
  }
}
