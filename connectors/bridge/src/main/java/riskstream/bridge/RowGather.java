package riskstream.bridge;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.apache.flink.metrics.Counter;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;

/**
 * Collects rows for an inserting stage, so that a database sees few large inserts.
 *
 * <p>An element is a u32 count of rows and then the rows, opaque; the output is the same: the sum of the
 * counts and the rows in order of arrival. Emitted on the {@link Pulse}, at {@code maxRows}, at
 * {@code maxBytes}, before a checkpoint barrier and at the end of input.
 *
 * <p>The stage below stores rows while the next are gathered. So that a checkpoint holds what is stored,
 * an element of no rows follows the last ones in front of a barrier and at the end of input: it asks to
 * wait until all that came before is stored.
 *
 * <p>Meanwhile it takes nothing, and who sends to it stands still. So up to {@code maxHeldBytes} that come after a
 * barrier are held until the checkpoint is complete or has failed.
 */
public final class RowGather extends BufferingOperator<byte[], byte[]> {
  private static final long serialVersionUID = 1L;

  private static final int COUNT_BYTES = 4;

  /** Longest hold for a checkpoint: Flink may lose its word that one is complete. */
  static final long MAX_HELD_MS = 2_000;

  private final long maxRows;
  private final int maxBytes;
  private final int maxHeldBytes;
  private transient List<byte[]> parts;
  private transient int bytes;
  private transient long rows;
  private transient boolean unsettled;
  private transient boolean storing;
  private transient long barrier;
  private transient long barrierAt;
  private transient Counter rowCounter;

  /**
   * @param maxMs the least time between two emissions, see {@link Pulse}
   * @param maxRows emitted at once when this many rows are held
   * @param maxBytes emitted at once when the rows take this much, and most of an element that joins packets
   * @param maxHeldBytes held while a checkpoint is under way; 0 holds nothing then
   */
  public RowGather(long maxMs, int maxRows, int maxBytes, int maxHeldBytes) {
    super(maxMs);
    if (maxRows < 1 || maxBytes < 1 || maxHeldBytes < 0) {
      throw new IllegalArgumentException(
          "Building RowGather: maximum was " + maxRows + " rows, " + maxBytes + " bytes and "
              + maxHeldBytes + " bytes held, expected 1 or more, and of those held 0 or more");
    }
    this.maxRows = maxRows;
    this.maxBytes = maxBytes;
    this.maxHeldBytes = maxHeldBytes;
  }

  @Override
  public void open() throws Exception {
    super.open();
    parts = new ArrayList<>();
    rowCounter = getMetricGroup().counter("riskstream_rows");
  }

  @Override
  public void processElement(StreamRecord<byte[]> element) {
    byte[] packet = element.getValue();
    if (packet.length < COUNT_BYTES) {
      throw new MalformedBytesException(
          "Gathering rows: the packet had " + packet.length + " bytes, expected a count of "
              + COUNT_BYTES + " bytes and the rows");
    }
    long count = Integer.toUnsignedLong(Frame.i32(packet, 0));
    int size = packet.length - COUNT_BYTES;
    if (count == 0) {
      if (size > 0) {
        throw new MalformedBytesException(
            "Gathering rows: the packet counts no rows but holds " + size + " bytes, expected 0");
      }
      return;
    }
    boolean holds = storing && bytes < maxHeldBytes;
    if (!holds && bytes > maxBytes - size) {
      emitEarly();
    }
    parts.add(packet);
    bytes += size;
    rows += count;
    rowCounter.inc(count);
    if (!holds && (rows >= maxRows || bytes >= maxBytes)) {
      emitEarly();
    } else {
      touched();
    }
  }

  private void emitEarly() {
    if (!parts.isEmpty()) {
      emitAll();
      leftEarly();
    }
  }

  @Override
  void emitOnPulse() {
    if (storing && getProcessingTimeService().getCurrentProcessingTime() - barrierAt < MAX_HELD_MS) {
      touched();
    } else {
      storing = false;
      emitAll();
    }
  }

  @Override
  void emitAll() {
    List<byte[]> all = parts;
    int from = 0;
    while (from < all.size()) {
      int size = all.get(from).length - COUNT_BYTES;
      int to = from + 1;
      while (to < all.size() && size <= maxBytes - (all.get(to).length - COUNT_BYTES)) {
        size += all.get(to).length - COUNT_BYTES;
        to++;
      }
      emit(joined(all.subList(from, to), size));
      unsettled = true;
      from = to;
    }
    parts = new ArrayList<>();
    bytes = 0;
    rows = 0;
  }

  private static byte[] joined(List<byte[]> packets, int size) {
    byte[] first = packets.get(0);
    if (packets.size() == 1) {
      return first;
    }
    byte[] all = Arrays.copyOf(first, COUNT_BYTES + size);
    int at = first.length;
    int count = Frame.i32(first, 0);
    for (byte[] packet : packets.subList(1, packets.size())) {
      System.arraycopy(packet, COUNT_BYTES, all, at, packet.length - COUNT_BYTES);
      at += packet.length - COUNT_BYTES;
      count += Frame.i32(packet, 0);
    }
    Frame.putI32(all, 0, count);
    return all;
  }

  private void settle() {
    if (unsettled) {
      unsettled = false;
      emit(new byte[COUNT_BYTES]);
    }
  }

  @Override
  public void prepareSnapshotPreBarrier(long checkpointId) throws Exception {
    super.prepareSnapshotPreBarrier(checkpointId);
    settle();
    storing = maxHeldBytes > 0;
    barrier = checkpointId;
    barrierAt = getProcessingTimeService().getCurrentProcessingTime();
  }

  @Override
  public void notifyCheckpointComplete(long checkpointId) throws Exception {
    super.notifyCheckpointComplete(checkpointId);
    stored(checkpointId);
  }

  @Override
  public void notifyCheckpointAborted(long checkpointId) throws Exception {
    super.notifyCheckpointAborted(checkpointId);
    stored(checkpointId);
  }

  private void stored(long checkpointId) {
    // Word of an earlier checkpoint may come after the next barrier.
    if (storing && checkpointId >= barrier) {
      storing = false;
      emitEarly();
    }
  }

  @Override
  public void finish() throws Exception {
    super.finish();
    settle();
  }

  @Override
  void drop() {
    parts = null;
  }
}
