package riskstream.bridge;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.apache.flink.api.common.eventtime.TimestampAssigner;
import org.apache.flink.api.common.eventtime.TimestampAssignerSupplier;

/**
 * Event time of a frame, used only to keep partitions aligned: header {@code event_time_ms} (eight bytes,
 * little-endian) when present, else Kafka's timestamp.
 *
 * <p>Two kinds of frame have no event time ({@link TimestampAssigner#NO_TIMESTAMP}) and must not move
 * a watermark: control frames, which take effect when they are read, and frames dated more than a
 * day after they were read, one of which could otherwise hold its partition back for years.
 */
public final class FrameEventTime
    implements TimestampAssigner<byte[]>, TimestampAssignerSupplier<byte[]> {
  private static final long serialVersionUID = 1L;

  static final byte[] HEADER = "event_time_ms".getBytes(StandardCharsets.UTF_8);

  /** Clocks that are wrong by a time zone (at most 14 h) stay believable; a wrong year does not. */
  static final long MAX_AHEAD_MS = 24L * 3_600_000L;

  @Override
  public long extractTimestamp(byte[] frame, long kafkaTimestampMs) {
    return of(frame);
  }

  @Override
  public TimestampAssigner<byte[]> createTimestampAssigner(Context context) {
    return this;
  }

  /** Event time in ms since 1970 UTC, or NO_TIMESTAMP. */
  static long of(byte[] frame) {
    if (Frame.isControl(frame, 0)) {
      return NO_TIMESTAMP;
    }
    long time = Frame.i64(frame, Frame.TIMESTAMP);
    HeaderCursor cursor =
        new HeaderCursor(frame, Frame.headersAt(frame, 0), Frame.valueAt(frame, 0));
    while (cursor.next()) {
      if (cursor.valueLength == Long.BYTES
          && Arrays.equals(
              frame, cursor.nameAt, cursor.nameAt + cursor.nameLength, HEADER, 0, HEADER.length)) {
        time = Frame.i64(frame, cursor.valueAt);
      }
    }
    return time - Frame.i64(frame, Frame.INGESTED) > MAX_AHEAD_MS ? NO_TIMESTAMP : time;
  }
}
