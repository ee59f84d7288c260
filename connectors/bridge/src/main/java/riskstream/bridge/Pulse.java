package riskstream.bridge;

import org.apache.flink.api.common.operators.MailboxExecutor;
import org.apache.flink.streaming.runtime.tasks.ProcessingTimeService;

/**
 * Decides when a buffering operator emits. Runs in the task's own thread, between elements.
 *
 * <p>With a tick: that many milliseconds after the first element, rounded up by Flink's timer by up to
 * one more.
 *
 * <p>With tick 0: as soon as the task finds no further element (group commit). A letter in the task's
 * mailbox alternates with its reading of input; when it comes round twice with no element between, what
 * is there is emitted. A quiet operator thus waits for nothing, and a busy one merges all that
 * came while it was busy. The price is one letter (below a microsecond) an element, so before an
 * operator with few elements tick 0 is right, and a source that reads single records wants a tick.
 */
final class Pulse {
  /**
   * Longest wait with tick 0, which input that never pauses would otherwise never end. Well under the
   * tens of milliseconds that a decision may take, well over the time to read what is at hand.
   */
  static final long MAX_HOLD_MS = 5;

  private final long tickMs;
  private final ProcessingTimeService time;
  private final MailboxExecutor mailbox;
  private final Runnable emit;

  private boolean armed;
  private boolean stopped;
  private boolean quiet;
  private long since;

  Pulse(long tickMs, ProcessingTimeService time, MailboxExecutor mailbox, Runnable emit) {
    this.tickMs = tickMs;
    this.time = time;
    this.mailbox = mailbox;
    this.emit = emit;
  }

  /** Says that an element was buffered. */
  void touch() {
    quiet = false;
    if (armed || stopped) {
      return;
    }
    armed = true;
    since = time.getCurrentProcessingTime();
    if (tickMs > 0) {
      time.registerTimer(since + tickMs, timestamp -> fire());
    } else {
      mailbox.execute(this::look, "riskstream: emit when idle");
    }
  }

  /** Never emits again; a letter or timer that is still under way does nothing. */
  void stop() {
    stopped = true;
  }

  private void look() {
    if (stopped) {
      return;
    }
    if (quiet || time.getCurrentProcessingTime() - since >= MAX_HOLD_MS) {
      fire();
    } else {
      quiet = true;
      mailbox.execute(this::look, "riskstream: emit when idle");
    }
  }

  private void fire() {
    armed = false;
    if (!stopped) {
      emit.run();
    }
  }
}
