package riskstream.bench;

import java.util.Arrays;

/** The events of one key in order of time, with running sums: the state of a window stage. */
public class TimeLog {
  public long[] times = new long[8];
  /** {@code sums[i]} is the sum of all amounts before event i; integers, so that sums never drift. */
  public long[] sums = new long[9];
  public int first;
  public int size;

  /** For Flink. */
  public TimeLog() {}

  /** Inserts an event after those of the same or an earlier time. */
  void add(long timeMs, long amount) {
    if (first + size == times.length) {
      makeRoom();
    }
    int end = first + size;
    int at = end;
    while (at > first && times[at - 1] > timeMs) {
      at--;
    }
    System.arraycopy(times, at, times, at + 1, end - at);
    times[at] = timeMs;
    for (int i = end; i >= at; i--) {
      sums[i + 1] = sums[i] + amount;
    }
    size++;
  }

  /** Forgets events at or before a time; what is left keeps its order. */
  void forget(long throughMs) {
    int kept = firstAfter(throughMs);
    size -= kept - first;
    first = kept;
  }

  /** Index of the first event after a time. */
  int firstAfter(long timeMs) {
    int low = first;
    int high = first + size;
    while (low < high) {
      int middle = (low + high) >>> 1;
      if (times[middle] <= timeMs) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  private void makeRoom() {
    int capacity = first > times.length / 2 ? times.length : times.length * 2;
    long base = sums[first];
    long[] newTimes = new long[capacity];
    long[] newSums = new long[capacity + 1];
    System.arraycopy(times, first, newTimes, 0, size);
    for (int i = 0; i <= size; i++) {
      newSums[i] = sums[first + i] - base;
    }
    times = newTimes;
    sums = newSums;
    first = 0;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof TimeLog log
        && first == log.first
        && size == log.size
        && Arrays.equals(times, log.times)
        && Arrays.equals(sums, log.sums);
  }

  @Override
  public int hashCode() {
    return 31 * size + Arrays.hashCode(times);
  }
}
