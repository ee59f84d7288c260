package riskstream.bridge;

import java.time.Duration;
import org.apache.flink.api.common.eventtime.AscendingTimestampsWatermarks;
import org.apache.flink.api.common.eventtime.TimestampAssigner;
import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkGenerator;
import org.apache.flink.api.common.eventtime.WatermarkGeneratorSupplier;
import org.apache.flink.api.common.eventtime.WatermarkOutput;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.eventtime.WatermarksWithIdleness;
import org.apache.flink.util.clock.RelativeClock;

/** Keeps the partitions of a replay near each other in event time. */
public final class FrameWatermarks {
  private FrameWatermarks() {}

  /**
   * Pauses a partition while it is ahead of the slowest one that has something to read.
   *
   * @param group name of the alignment group; sources with the same name wait for each other
   * @param maxDriftMs how far ahead a partition may be, in event time
   * @param updateIntervalMs how often the positions are compared, in wall-clock time
   * @param idleMs after this wall-clock time without a frame a partition no longer holds others back
   */
  public static WatermarkStrategy<byte[]> aligned(
      String group, long maxDriftMs, long updateIntervalMs, long idleMs) {
    WatermarkStrategy<byte[]> strategy =
        WatermarkStrategy.forGenerator(new GeneratorSupplier(Duration.ofMillis(idleMs)));
    return strategy
        .withTimestampAssigner(new FrameEventTime())
        .withWatermarkAlignment(
            group, Duration.ofMillis(maxDriftMs), Duration.ofMillis(updateIntervalMs));
  }

  private static final class GeneratorSupplier implements WatermarkGeneratorSupplier<byte[]> {
    private static final long serialVersionUID = 1L;

    private final Duration idle;

    GeneratorSupplier(Duration idle) {
      this.idle = idle;
    }

    @Override
    public WatermarkGenerator<byte[]> createWatermarkGenerator(Context context) {
      return new Dated(idle, context.getInputActivityClock());
    }
  }

  /**
   * Flink's monotonous generator with idleness, but for two things.
   *
   * <p>It hides frames without event time, also from idleness: a control topic never holds others back.
   *
   * <p>It calls no partition idle that is paused. Flink 2.3.0 never resumes one that it paused and then
   * was told is idle (FLINK-40093, mended in 2.3.1): its records wait for ever. Flink stops a paused
   * partition's clock, but what had passed before the pause can be enough, when the pause comes between
   * the end of the time and the next look at it.
   */
  private static final class Dated implements WatermarkGenerator<byte[]> {
    private final WatermarkGenerator<byte[]> always = new AscendingTimestampsWatermarks<>();
    private final WatermarkGenerator<byte[]> untilIdle;
    private final RelativeClock clock;
    private final Started output = new Started();

    Dated(Duration idle, RelativeClock clock) {
      this.clock = clock;
      untilIdle = new WatermarksWithIdleness<>(always, idle, clock);
    }

    @Override
    public void onEvent(byte[] frame, long eventTimeMs, WatermarkOutput target) {
      if (eventTimeMs != TimestampAssigner.NO_TIMESTAMP) {
        output.idle = false;
        untilIdle.onEvent(frame, eventTimeMs, target);
      }
    }

    @Override
    public void onPeriodicEmit(WatermarkOutput target) {
      output.target = target;
      if (!paused()) {
        untilIdle.onPeriodicEmit(output);
      } else if (!output.idle) {
        always.onPeriodicEmit(output);
      }
    }

    /** A paused clock shows the same nanosecond twice. */
    private boolean paused() {
      return clock.relativeTimeNanos() == clock.relativeTimeNanos();
    }
  }

  /** Passes on all but the watermark of a partition that has shown no event time yet. */
  private static final class Started implements WatermarkOutput {
    private WatermarkOutput target;
    private boolean idle;

    @Override
    public void emitWatermark(Watermark watermark) {
      if (watermark.getTimestamp() != Long.MIN_VALUE) {
        target.emitWatermark(watermark);
      }
    }

    @Override
    public void markIdle() {
      idle = true;
      target.markIdle();
    }

    @Override
    public void markActive() {
      target.markActive();
    }
  }
}
