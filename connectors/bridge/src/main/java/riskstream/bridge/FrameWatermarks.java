package riskstream.bridge;

import java.time.Duration;
import org.apache.flink.api.common.eventtime.TimestampAssigner;
import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkGenerator;
import org.apache.flink.api.common.eventtime.WatermarkGeneratorSupplier;
import org.apache.flink.api.common.eventtime.WatermarkOutput;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;

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

  /** Flink's monotonous generator with idleness, shown only those frames that have an event time. */
  private static final class GeneratorSupplier implements WatermarkGeneratorSupplier<byte[]> {
    private static final long serialVersionUID = 1L;

    private final Duration idle;

    GeneratorSupplier(Duration idle) {
      this.idle = idle;
    }

    @Override
    public WatermarkGenerator<byte[]> createWatermarkGenerator(Context context) {
      return new Dated(
          WatermarkStrategy.<byte[]>forMonotonousTimestamps()
              .withIdleness(idle)
              .createWatermarkGenerator(context));
    }
  }

  /** Hides frames without event time, also from idleness: a control topic never holds others back. */
  private static final class Dated implements WatermarkGenerator<byte[]> {
    private final WatermarkGenerator<byte[]> inner;
    private final Started output = new Started();

    Dated(WatermarkGenerator<byte[]> inner) {
      this.inner = inner;
    }

    @Override
    public void onEvent(byte[] frame, long eventTimeMs, WatermarkOutput target) {
      if (eventTimeMs != TimestampAssigner.NO_TIMESTAMP) {
        inner.onEvent(frame, eventTimeMs, target);
      }
    }

    @Override
    public void onPeriodicEmit(WatermarkOutput target) {
      output.target = target;
      inner.onPeriodicEmit(output);
    }
  }

  /** Passes on all but the watermark of a partition that has shown no event time yet. */
  private static final class Started implements WatermarkOutput {
    private WatermarkOutput target;

    @Override
    public void emitWatermark(Watermark watermark) {
      if (watermark.getTimestamp() != Long.MIN_VALUE) {
        target.emitWatermark(watermark);
      }
    }

    @Override
    public void markIdle() {
      target.markIdle();
    }

    @Override
    public void markActive() {
      target.markActive();
    }
  }
}
