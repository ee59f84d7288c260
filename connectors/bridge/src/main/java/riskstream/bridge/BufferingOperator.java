package riskstream.bridge;

import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.runtime.watermarkstatus.WatermarkStatus;

/**
 * A stateless operator that holds elements back for a moment.
 *
 * <p>Whatever is held is emitted on the {@link Pulse}, before a checkpoint barrier and at the end of the
 * input. So a checkpoint contains either an element's effect downstream or the source position before
 * it, and the operator needs no state. After a failure {@link #close} drops what is held: the source
 * reads it again.
 */
abstract class BufferingOperator<IN, OUT> extends AbstractStreamOperator<OUT>
    implements OneInputStreamOperator<IN, OUT> {
  private static final long serialVersionUID = 1L;

  private final long tickMs;
  private transient Pulse pulse;

  BufferingOperator(long tickMs) {
    if (tickMs < 0) {
      throw new IllegalArgumentException(
          "Building " + getClass().getSimpleName() + ": tick was " + tickMs + " ms, expected 0 or more");
    }
    this.tickMs = tickMs;
  }

  /** Emits and forgets all that is held; must accept being called with nothing held. */
  abstract void emitAll();

  /** What the pulse asks for: all, unless a subclass has a reason to hold it. */
  void emitOnPulse() {
    emitAll();
  }

  /** Forgets all that is held. */
  abstract void drop();

  @Override
  public void open() throws Exception {
    super.open();
    pulse =
        new Pulse(
            tickMs,
            getProcessingTimeService(),
            getContainingTask()
                .getMailboxExecutorFactory()
                .createExecutor(getOperatorConfig().getChainIndex()),
            this::emitOnPulse);
  }

  /** Subclasses call this for each element that they hold. */
  final void touched() {
    pulse.touch();
  }

  /** Subclasses call this when all that they held has left before its time. */
  final void leftEarly() {
    pulse.emitted();
  }

  final void emit(OUT value) {
    output.collect(new StreamRecord<>(value));
  }

  /**
   * Watermarks end here. A batch has many event times and stages have no timers, so nobody below reads
   * them; passed on, fifty a second would each be sent to every task.
   */
  @Override
  public void processWatermark(Watermark mark) {}

  @Override
  public void processWatermarkStatus(WatermarkStatus status) {}

  @Override
  public void prepareSnapshotPreBarrier(long checkpointId) throws Exception {
    emitAll();
    super.prepareSnapshotPreBarrier(checkpointId);
  }

  @Override
  public void finish() throws Exception {
    pulse.stop();
    emitAll();
    super.finish();
  }

  @Override
  public void close() throws Exception {
    if (pulse != null) {
      pulse.stop();
    }
    drop();
    super.close();
  }
}
