package riskstream.bridge;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.api.common.eventtime.TimestampAssigner;
import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkGenerator;
import org.apache.flink.api.common.eventtime.WatermarkGeneratorSupplier;
import org.apache.flink.api.common.eventtime.WatermarkOutput;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Headers;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.flink.metrics.MetricGroup;
import org.apache.flink.metrics.groups.UnregisteredMetricsGroup;
import org.apache.flink.streaming.api.operators.util.PausableRelativeClock;
import org.apache.flink.util.InstantiationUtil;
import org.apache.flink.util.clock.Clock;
import org.apache.flink.util.clock.ManualClock;
import org.apache.flink.util.clock.RelativeClock;
import org.junit.jupiter.api.Test;

class FrameWatermarksTest {
  private static final long READ_AT = 1_750_000_000_000L;

  private final ManualClock time = new ManualClock();

  /** Time passes while somebody reads it, as it does outside tests. */
  private final PausableRelativeClock clock =
      new PausableRelativeClock(
          new Clock() {
            @Override
            public long absoluteTimeMillis() {
              return time.absoluteTimeMillis();
            }

            @Override
            public long relativeTimeMillis() {
              return time.relativeTimeMillis();
            }

            @Override
            public long relativeTimeNanos() {
              time.advanceTime(Duration.ofNanos(1));
              return time.relativeTimeNanos();
            }
          });

  private final List<String> seen = new ArrayList<>();
  private final WatermarkOutput output =
      new WatermarkOutput() {
        @Override
        public void emitWatermark(Watermark watermark) {
          seen.add("at " + watermark.getTimestamp());
        }

        @Override
        public void markIdle() {
          seen.add("idle");
        }

        @Override
        public void markActive() {
          seen.add("active");
        }
      };

  private static byte[] frame(int flags, long timestampMs, Headers headers) {
    return Frame.write(
        "t".getBytes(UTF_8), flags, 0, 0, timestampMs, READ_AT, null, Frame.headers(headers), null);
  }

  private static byte[] dated(long eventTimeMs) {
    byte[] value = new byte[8];
    Frame.putI64(value, 0, eventTimeMs);
    return frame(0, READ_AT, new RecordHeaders().add("x", value).add("event_time_ms", value));
  }

  private static WatermarkStrategy<byte[]> strategy() throws Exception {
    return InstantiationUtil.clone(FrameWatermarks.aligned("group", 3_600_000, 200, 1_000));
  }

  private WatermarkGenerator<byte[]> generator() throws Exception {
    return strategy()
        .createWatermarkGenerator(
            new WatermarkGeneratorSupplier.Context() {
              @Override
              public MetricGroup getMetricGroup() {
                return new UnregisteredMetricsGroup();
              }

              @Override
              public RelativeClock getInputActivityClock() {
                return clock;
              }
            });
  }

  private void show(WatermarkGenerator<byte[]> generator, byte[] frame) throws Exception {
    long time =
        strategy().createTimestampAssigner(UnregisteredMetricsGroup::new).extractTimestamp(frame, 1);
    generator.onEvent(frame, time, output);
  }

  @Test
  void theEventTimeIsTheHeadersElseThatOfKafka() {
    assertEquals(1_522_540_800_000L, FrameEventTime.of(dated(1_522_540_800_000L)));
    assertEquals(77, FrameEventTime.of(frame(0, 77, new RecordHeaders())));
    assertEquals(
        77,
        FrameEventTime.of(frame(0, 77, new RecordHeaders().add("event_time_ms", new byte[4]))),
        "a header of another size is not an event time");
    assertEquals(
        77, FrameEventTime.of(frame(0, 77, new RecordHeaders().add("event_time_ms", null))));
  }

  @Test
  void controlFramesAndTimesInTheFutureHaveNoEventTime() {
    long none = TimestampAssigner.NO_TIMESTAMP;
    assertEquals(none, FrameEventTime.of(frame(Frame.CONTROL, READ_AT, new RecordHeaders())));
    assertEquals(none, FrameEventTime.of(dated(READ_AT + FrameEventTime.MAX_AHEAD_MS + 1)));
    assertEquals(
        READ_AT + FrameEventTime.MAX_AHEAD_MS,
        FrameEventTime.of(dated(READ_AT + FrameEventTime.MAX_AHEAD_MS)));
  }

  @Test
  void theWatermarkFollowsTheLatestEventTime() throws Exception {
    WatermarkGenerator<byte[]> generator = generator();
    show(generator, dated(5_000));
    show(generator, dated(4_000));
    generator.onPeriodicEmit(output);

    assertEquals(List.of("at 4999"), seen);
  }

  @Test
  void framesWithoutEventTimeNeitherMoveTheWatermarkNorKeepAPartitionActive() throws Exception {
    WatermarkGenerator<byte[]> generator = generator();
    show(generator, frame(Frame.CONTROL, READ_AT, new RecordHeaders()));
    generator.onPeriodicEmit(output);
    assertEquals(List.of(), seen);

    for (int i = 0; i < 3; i++) {
      time.advanceTime(Duration.ofMillis(600));
      show(generator, frame(Frame.CONTROL, READ_AT, new RecordHeaders()));
      generator.onPeriodicEmit(output);
    }

    assertEquals("idle", seen.get(seen.size() - 1));
  }

  @Test
  void aPausedPartitionIsNotIdleHoweverLongItWasSilentBefore() throws Exception {
    WatermarkGenerator<byte[]> generator = generator();
    show(generator, dated(5_000));
    generator.onPeriodicEmit(output);
    generator.onPeriodicEmit(output);
    time.advanceTime(Duration.ofMillis(1_200));
    clock.pause();
    generator.onPeriodicEmit(output);
    show(generator, dated(6_000));
    generator.onPeriodicEmit(output);
    assertEquals(List.of("at 4999", "at 4999", "at 4999", "at 5999"), seen);

    clock.unPause();
    generator.onPeriodicEmit(output);
    generator.onPeriodicEmit(output);
    time.advanceTime(Duration.ofMillis(1_200));
    generator.onPeriodicEmit(output);
    assertEquals("idle", seen.get(seen.size() - 1), "silent while it might have been read");

    int before = seen.size();
    clock.pause();
    generator.onPeriodicEmit(output);
    assertEquals(before, seen.size(), "an idle partition stays idle until it shows a frame");
    show(generator, dated(7_000));
    generator.onPeriodicEmit(output);
    assertEquals("at 6999", seen.get(seen.size() - 1));
  }

  @Test
  void thePartitionsOfAGroupAreAligned() throws Exception {
    var parameters = strategy().getAlignmentParameters();
    assertEquals("group", parameters.getWatermarkGroup());
    assertEquals(3_600_000, parameters.getMaxAllowedWatermarkDrift());
    assertEquals(200, parameters.getUpdateInterval());
  }
}
