package riskstream.bridge;

import org.apache.flink.api.common.operators.MailboxExecutor;
import org.apache.flink.streaming.runtime.tasks.ProcessingTimeService;

/**
 * Decides when a buffering operator emits. Runs in the task's own thread, between elements.
 *
 * <p>From the beginning of one emission to the next passes at least a tick: this bounds the share of time that
 * the fixed cost of an emission can take. An element that comes sooner waits for that time. One that comes
 * later waits only until the task finds no further element (group commit): a letter in the task's mailbox
 * alternates with its reading of input, and when it comes round twice with no element between, what is
 * there is emitted. So a quiet operator waits for nothing, a steady one for the tick, and a busy one merges
 * all that came while it was busy.
 *
 * <p>The price of group commit is one letter (below a microsecond) an element.
 */
final class Pulse {
  /**
   * Longest wait for the input to pause, which it otherwise might never do. Well under the tens of
   * milliseconds that a decision may take, well over the time to read what is at hand.
   */
  static final long MAX_HOLD_MS = 5;

  private final long tickMs;
  private final ProcessingTimeService time;
  private final MailboxExecutor mailbox;
  private final Runnable emit;

  private boolean armed;
  private boolean stopped;
  private boolean quiet;
  private boolean postponed;
  private long since;
  private long dueAt;

  Pulse(long tickMs, ProcessingTimeService time, MailboxExecutor mailbox, Runnable emit) {
    this.tickMs = tickMs;
    this.time = time;
    this.mailbox = mailbox;
    this.emit = emit;
    dueAt = time.getCurrentProcessingTime() + tickMs;
  }

  /** Says that an element was buffered. */
  void touch() {
    quiet = false;
    if (armed || stopped) {
      return;
    }
    armed = true;
    since = time.getCurrentProcessingTime();
    if (since < dueAt) {
      await(since);
    } else {
      mailbox.execute(this::look, "riskstream: emit when idle");
    }
  }

  /** Says that what was buffered has left already: the next emission is a tick away from this one. */
  void emitted() {
    dueAt = time.getCurrentProcessingTime() + tickMs;
    postponed = armed;
  }

  /** Never emits again; a letter or timer that is still under way does nothing. */
  void stop() {
    stopped = true;
  }

  private void await(long now) {
    // No longer than a tick: the wall clock may have been set back since `dueAt` was chosen.
    long waitMs = Math.min(dueAt - now, tickMs);
    time.registerTimer(now + waitMs, timestamp -> fire());
  }

  private void look() {
    if (stopped) {
      return;
    }
    long heldMs = time.getCurrentProcessingTime() - since;
    if (quiet || heldMs >= MAX_HOLD_MS || heldMs < 0) {
      fire();
    } else {
      quiet = true;
      mailbox.execute(this::look, "riskstream: emit when idle");
    }
  }

  private void fire() {
    long began = time.getCurrentProcessingTime();
    if (postponed && !stopped) {
      postponed = false;
      await(began);
      return;
    }
    armed = false;
    if (!stopped) {
      // First: what is held for longer says so while it is asked to leave.
      dueAt = began + tickMs;
      emit.run();
    }
  }
}
