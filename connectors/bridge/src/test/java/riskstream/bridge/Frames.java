package riskstream.bridge;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.ByteArrayOutputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.apache.flink.types.Row;

/** Frames for tests. */
final class Frames {
  private static final byte[] NO_HEADERS = {};

  private Frames() {}

  static byte[] of(String key, long offset) {
    return of(0, key, offset, new byte[] {1});
  }

  static byte[] control(long offset) {
    return of(Frame.CONTROL, "rules", offset, new byte[] {2});
  }

  static byte[] of(int flags, String key, long offset, byte[] value) {
    return Frame.write(
        "topic".getBytes(UTF_8),
        flags,
        (int) (offset % 4),
        offset,
        1_000 + offset,
        2_000 + offset,
        key == null ? null : key.getBytes(UTF_8),
        NO_HEADERS,
        value);
  }

  /** Frames of 40 keys, some null, some control records, values of 0 to 200 bytes or null. */
  static List<byte[]> random(Random random, int count) {
    List<byte[]> frames = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      byte[] value = random.nextInt(10) == 0 ? null : new byte[random.nextInt(200)];
      if (value != null) {
        random.nextBytes(value);
      }
      String key = random.nextInt(10) == 0 ? null : "key-" + random.nextInt(40);
      frames.add(of(random.nextInt(50) == 0 ? Frame.CONTROL : 0, key, i, value));
    }
    return frames;
  }

  static byte[] join(List<byte[]> parts) {
    ByteArrayOutputStream all = new ByteArrayOutputStream();
    parts.forEach(all::writeBytes);
    return all.toByteArray();
  }

  static List<byte[]> split(byte[] batch) {
    List<byte[]> frames = new ArrayList<>();
    int at = 0;
    while (at < batch.length) {
      int length = Frame.checkedLength(batch, at, batch.length);
      frames.add(Arrays.copyOfRange(batch, at, at + length));
      at += length;
    }
    return frames;
  }

  static List<Long> offsets(byte[] batch) {
    return split(batch).stream().map(frame -> Frame.i64(frame, Frame.OFFSET)).toList();
  }

  static long keyOf(Row row) {
    return (Long) row.getField(0);
  }

  static byte[] batchOf(Row row) {
    Row inner = (Row) row.getField(1);
    if (!inner.getField(0).equals(row.getField(0))) {
      throw new AssertionError("the two copies of the shard key differ: " + row);
    }
    return (byte[]) inner.getField(1);
  }
}
