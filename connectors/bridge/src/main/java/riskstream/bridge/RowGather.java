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
 */
public final class RowGather extends BufferingOperator<byte[], byte[]> {
  private static final long serialVersionUID = 1L;

  private static final int COUNT_BYTES = 4;

  private final long maxRows;
  private final int maxBytes;
  private transient List<byte[]> parts;
  private transient int bytes;
  private transient long rows;
  private transient boolean unsettled;
  private transient Counter rowCounter;

  /**
   * @param maxMs the least time between two emissions, see {@link Pulse}
   * @param maxRows emitted at once when this many rows are held
   * @param maxBytes emitted at once when the rows take this much
   */
  public RowGather(long maxMs, int maxRows, int maxBytes) {
    super(maxMs);
    if (maxRows < 1 || maxBytes < 1) {
      throw new IllegalArgumentException(
          "Building RowGather: maximum was " + maxRows + " rows and " + maxBytes
              + " bytes, expected 1 or more of each");
    }
    this.maxRows = maxRows;
    this.maxBytes = maxBytes;
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
    if (bytes > maxBytes - size) {
      emitEarly();
    }
    parts.add(packet);
    bytes += size;
    rows += count;
    rowCounter.inc(count);
    if (rows >= maxRows || bytes >= maxBytes) {
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
  void emitAll() {
    if (parts.isEmpty()) {
      return;
    }
    byte[] all;
    if (parts.size() == 1) {
      all = parts.get(0);
    } else {
      all = Arrays.copyOf(parts.get(0), COUNT_BYTES + bytes);
      Frame.putI32(all, 0, (int) rows);
      int at = parts.get(0).length;
      for (byte[] part : parts.subList(1, parts.size())) {
        System.arraycopy(part, COUNT_BYTES, all, at, part.length - COUNT_BYTES);
        at += part.length - COUNT_BYTES;
      }
    }
    parts = new ArrayList<>();
    bytes = 0;
    rows = 0;
    unsettled = true;
    emit(all);
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
