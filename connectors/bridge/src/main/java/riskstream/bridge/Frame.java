package riskstream.bridge;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Header;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Headers;

/**
 * Layout of one frame, version 1: one Kafka record in one byte range, little-endian.
 *
 * <p>Offsets are relative to the first byte of the frame. Several frames one after another are a batch.
 */
final class Frame {
  static final byte VERSION = 1;

  /** Flags: the record had no key; the record had no value; every shard gets a copy. */
  static final int KEY_IS_NULL = 1;

  static final int VALUE_IS_NULL = 2;
  static final int CONTROL = 4;

  static final int LENGTH = 0;
  static final int VERSION_AT = 4;
  static final int FLAGS = 5;
  static final int TOPIC_LENGTH = 6;
  static final int PARTITION = 8;
  static final int ATTACHMENT_LENGTH = 12;
  static final int OFFSET = 16;
  static final int TIMESTAMP = 24;
  static final int INGESTED = 32;
  static final int KEY_LENGTH = 40;
  static final int HEADERS_LENGTH = 44;
  static final int VALUE_LENGTH = 48;
  static final int RESERVED = 52;
  static final int HEADER_BYTES = 56;

  private static final int MAX_U16 = 0xFFFF;
  private static final byte[] NO_HEADERS = new byte[0];
  private static final int FNV_BASIS = 0x811c9dc5;
  private static final int FNV_PRIME = 0x01000193;

  private static final VarHandle U16 =
      MethodHandles.byteArrayViewVarHandle(short[].class, ByteOrder.LITTLE_ENDIAN);
  private static final VarHandle I32 =
      MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.LITTLE_ENDIAN);
  private static final VarHandle I64 =
      MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);

  private Frame() {}

  static int u16(byte[] data, int at) {
    return (short) U16.get(data, at) & MAX_U16;
  }

  static int i32(byte[] data, int at) {
    return (int) I32.get(data, at);
  }

  static long i64(byte[] data, int at) {
    return (long) I64.get(data, at);
  }

  static void putU16(byte[] data, int at, int value) {
    U16.set(data, at, (short) value);
  }

  static void putI32(byte[] data, int at, int value) {
    I32.set(data, at, value);
  }

  static void putI64(byte[] data, int at, long value) {
    I64.set(data, at, value);
  }

  /** Whether every shard gets a copy of the frame at {@code at}. */
  static boolean isControl(byte[] data, int at) {
    return (data[at + FLAGS] & CONTROL) != 0;
  }

  static boolean keyIsNull(byte[] data, int at) {
    return (data[at + FLAGS] & KEY_IS_NULL) != 0;
  }

  static boolean valueIsNull(byte[] data, int at) {
    return (data[at + FLAGS] & VALUE_IS_NULL) != 0;
  }

  static int keyAt(byte[] data, int at) {
    return at + HEADER_BYTES + u16(data, at + TOPIC_LENGTH);
  }

  static int headersAt(byte[] data, int at) {
    return keyAt(data, at) + i32(data, at + KEY_LENGTH);
  }

  static int valueAt(byte[] data, int at) {
    return headersAt(data, at) + i32(data, at + HEADERS_LENGTH);
  }

  /**
   * Builds a frame without attachment.
   *
   * @param topic UTF-8 bytes of the topic's name, at most 65,535
   * @param headers a headers section, as {@link #headers} returns it
   */
  static byte[] write(
      byte[] topic,
      int flags,
      int partition,
      long offset,
      long timestampMs,
      long ingestedMs,
      byte[] key,
      byte[] headers,
      byte[] value) {
    int keyLength = key == null ? 0 : key.length;
    int valueLength = value == null ? 0 : value.length;
    byte[] frame =
        new byte[HEADER_BYTES + topic.length + keyLength + headers.length + valueLength];
    int allFlags =
        flags | (key == null ? KEY_IS_NULL : 0) | (value == null ? VALUE_IS_NULL : 0);
    putI32(frame, LENGTH, frame.length);
    frame[VERSION_AT] = VERSION;
    frame[FLAGS] = (byte) allFlags;
    putU16(frame, TOPIC_LENGTH, topic.length);
    putI32(frame, PARTITION, partition);
    putI64(frame, OFFSET, offset);
    putI64(frame, TIMESTAMP, timestampMs);
    putI64(frame, INGESTED, ingestedMs);
    putI32(frame, KEY_LENGTH, keyLength);
    putI32(frame, HEADERS_LENGTH, headers.length);
    putI32(frame, VALUE_LENGTH, valueLength);
    int at = HEADER_BYTES;
    System.arraycopy(topic, 0, frame, at, topic.length);
    at += topic.length;
    if (keyLength > 0) {
      System.arraycopy(key, 0, frame, at, keyLength);
      at += keyLength;
    }
    System.arraycopy(headers, 0, frame, at, headers.length);
    at += headers.length;
    if (valueLength > 0) {
      System.arraycopy(value, 0, frame, at, valueLength);
    }
    return frame;
  }

  /**
   * Packs headers in their order: u16 count, then name length, name, value length (-1 null), value.
   *
   * <p>A header whose name is longer than 65,535 bytes, and headers beyond the 65,535th, do not fit the
   * format and are left out; no headers give an empty section.
   */
  static byte[] headers(Headers headers) {
    Header[] all = headers.toArray();
    byte[][] names = new byte[all.length][];
    int kept = 0;
    int size = 2;
    for (int i = 0; i < all.length; i++) {
      byte[] name = all[i].key().getBytes(StandardCharsets.UTF_8);
      if (name.length <= MAX_U16 && kept < MAX_U16) {
        names[i] = name;
        kept++;
        byte[] value = all[i].value();
        size += 2 + name.length + 4 + (value == null ? 0 : value.length);
      }
    }
    if (kept == 0) {
      return NO_HEADERS;
    }
    byte[] section = new byte[size];
    putU16(section, 0, kept);
    int at = 2;
    for (int i = 0; i < all.length; i++) {
      byte[] name = names[i];
      if (name == null) {
        continue;
      }
      byte[] value = all[i].value();
      putU16(section, at, name.length);
      System.arraycopy(name, 0, section, at + 2, name.length);
      at += 2 + name.length;
      putI32(section, at, value == null ? -1 : value.length);
      at += 4;
      if (value != null) {
        System.arraycopy(value, 0, section, at, value.length);
        at += value.length;
      }
    }
    return section;
  }

  /**
   * Checks the frame at {@code at} against the bytes that hold it, and returns its length.
   *
   * @param end first byte after the range that must hold the frame
   * @throws MalformedBytesException with the position and what is wrong
   */
  static int checkedLength(byte[] data, int at, int end) {
    if (end - at < HEADER_BYTES) {
      throw new MalformedBytesException(
          "Reading a frame at byte " + at + ": " + (end - at) + " bytes are left, a frame has at least "
              + HEADER_BYTES);
    }
    int length = i32(data, at + LENGTH);
    if (length < HEADER_BYTES || length > end - at) {
      throw new MalformedBytesException(
          "Reading a frame at byte " + at + ": length was " + length + ", expected " + HEADER_BYTES
              + " to " + (end - at));
    }
    if (data[at + VERSION_AT] != VERSION) {
      throw new MalformedBytesException(
          "Reading a frame at byte " + at + ": version was " + data[at + VERSION_AT] + ", expected "
              + VERSION + "; the bridge jar and the Python packages must come from one release");
    }
    long sections =
        (long) u16(data, at + TOPIC_LENGTH)
            + Integer.toUnsignedLong(i32(data, at + KEY_LENGTH))
            + Integer.toUnsignedLong(i32(data, at + HEADERS_LENGTH))
            + Integer.toUnsignedLong(i32(data, at + VALUE_LENGTH))
            + Integer.toUnsignedLong(i32(data, at + ATTACHMENT_LENGTH));
    if (HEADER_BYTES + sections != length) {
      throw new MalformedBytesException(
          "Reading a frame at byte " + at + ": its sections take " + sections + " bytes, expected "
              + (length - HEADER_BYTES));
    }
    return length;
  }

  /** Continues FNV-1a 32 over a range. */
  private static int fnv(int hash, byte[] data, int from, int length) {
    int h = hash;
    for (int i = from; i < from + length; i++) {
      h = (h ^ (data[i] & 0xFF)) * FNV_PRIME;
    }
    return h;
  }

  /**
   * Routes the frame at {@code at}: by its key, or by topic and partition when the key is null.
   *
   * <p>Saved state depends on this function: it never changes within a major version.
   *
   * @return the shard, from 0 to {@code shards - 1}
   */
  static int shardOf(byte[] data, int at, int shards) {
    int hash;
    if (keyIsNull(data, at)) {
      hash = fnv(FNV_BASIS, data, at + HEADER_BYTES, u16(data, at + TOPIC_LENGTH));
      hash = fnv(hash, data, at + PARTITION, 4);
    } else {
      hash = fnv(FNV_BASIS, data, keyAt(data, at), i32(data, at + KEY_LENGTH));
    }
    hash ^= hash >>> 15;
    return Math.floorMod(hash, shards);
  }
}
