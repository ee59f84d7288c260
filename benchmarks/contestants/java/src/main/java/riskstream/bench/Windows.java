package riskstream.bench;

import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;

/** Exact sliding windows of one entity: each event sees those of its key in {@code (t - w, t]}. */
abstract class Windows extends KeyedProcessFunction<String, Payment, Payment> {
  private static final long serialVersionUID = 1L;

  static final long DAY_MS = 86_400_000L;
  static final long[] WINDOWS_MS = {DAY_MS, 7 * DAY_MS, 30 * DAY_MS};

  private transient ValueState<TimeLog> state;

  @Override
  public void open(OpenContext context) {
    state = getRuntimeContext().getState(new ValueStateDescriptor<>("log", TimeLog.class));
  }

  @Override
  public void processElement(Payment payment, Context context, Collector<Payment> out)
      throws Exception {
    TimeLog log = state.value();
    if (log == null) {
      log = new TimeLog();
    }
    process(payment, log);
    state.update(log);
    out.collect(payment);
  }

  abstract void process(Payment payment, TimeLog log);

  /** Counts and mean amounts of the customer, the payment itself included. */
  static final class OfCustomer extends Windows {
    private static final long serialVersionUID = 1L;

    @Override
    void process(Payment payment, TimeLog log) {
      long now = payment.eventTimeMs;
      log.forget(now - 31 * DAY_MS);
      log.add(now, payment.amountMinor);
      int end = log.firstAfter(now);
      for (int w = 0; w < WINDOWS_MS.length; w++) {
        int from = log.firstAfter(now - WINDOWS_MS[w]);
        int count = end - from;
        payment.features[3 + w] = count;
        payment.features[6 + w] = (double) (log.sums[end] - log.sums[from]) / (100L * count);
      }
    }
  }

  /** Counts of the terminal a week back; without labels its share of frauds is 0. */
  static final class OfTerminal extends Windows {
    private static final long serialVersionUID = 1L;

    private static final long DELAY_MS = 7 * DAY_MS;

    @Override
    void process(Payment payment, TimeLog log) {
      long until = payment.eventTimeMs - DELAY_MS;
      log.forget(until - 37 * DAY_MS);
      log.add(payment.eventTimeMs, 0);
      int end = log.firstAfter(until);
      for (int w = 0; w < WINDOWS_MS.length; w++) {
        payment.features[9 + w] = end - log.firstAfter(until - WINDOWS_MS[w]);
        payment.features[12 + w] = 0.0;
      }
    }
  }
}
