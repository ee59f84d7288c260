package riskstream.bridge;

import java.util.Arrays;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.types.Row;
import org.apache.flink.util.OutputTag;

/**
 * Splits what a Python stage returned into its outputs; chained after that stage.
 *
 * <p>A packet is {@code u8 route, u8 0, u16 0, u32 shard, u32 length} and the payload. Route 0 leaves by
 * the main output, keyed for the next stage; route 1 by {@link BridgeTypes#kafkaOutput}, one element
 * per frame; route 2 by {@link BridgeTypes#rowOutput} as it is. Empty payloads are skipped. Bytes that are
 * not packets fail the job: they are a bug of ours, never bad input.
 */
public final class FrameRouter extends AbstractStreamOperator<Row>
    implements OneInputStreamOperator<byte[], Row> {
  private static final long serialVersionUID = 1L;

  static final int TO_STAGE = 0;
  static final int TO_KAFKA = 1;
  static final int TO_ROWS = 2;
  static final int PACKET_HEADER_BYTES = 12;

  private final Long[] shardKeys;
  private transient OutputTag<byte[]> kafka;
  private transient OutputTag<byte[]> rows;

  /**
   * @param shardKeys key value of each shard of the next stage; empty for a last stage, whose packets
   *     have no route 0
   */
  public FrameRouter(long[] shardKeys) {
    this.shardKeys = Arrays.stream(shardKeys).boxed().toArray(Long[]::new);
  }

  @Override
  public void open() throws Exception {
    super.open();
    kafka = BridgeTypes.kafkaOutput();
    rows = BridgeTypes.rowOutput();
  }

  @Override
  public void processElement(StreamRecord<byte[]> element) {
    byte[] packets = element.getValue();
    int at = 0;
    while (at < packets.length) {
      if (packets.length - at < PACKET_HEADER_BYTES) {
        throw malformed(packets, at, "the header is cut short");
      }
      int route = packets[at];
      int shard = Frame.i32(packets, at + 4);
      int length = Frame.i32(packets, at + 8);
      int from = at + PACKET_HEADER_BYTES;
      if (packets[at + 1] != 0 || packets[at + 2] != 0 || packets[at + 3] != 0) {
        throw malformed(packets, at, "reserved bytes are not 0");
      }
      if (length < 0 || length > packets.length - from) {
        throw malformed(packets, at, "its length was " + Integer.toUnsignedString(length));
      }
      if (length > 0) {
        route(packets, at, route, shard, from, from + length);
      }
      at = from + length;
    }
  }

  private void route(byte[] packets, int at, int route, int shard, int from, int to) {
    switch (route) {
      case TO_STAGE -> {
        if (shard < 0 || shard >= shardKeys.length) {
          throw malformed(
              packets, at, "its shard was " + shard + ", expected less than " + shardKeys.length);
        }
        byte[] batch = Arrays.copyOfRange(packets, from, to);
        output.collect(new StreamRecord<>(BridgeTypes.keyedBatch(shardKeys[shard], batch)));
      }
      case TO_KAFKA -> {
        int frameAt = from;
        while (frameAt < to) {
          int length = Frame.checkedLength(packets, frameAt, to);
          byte[] frame = Arrays.copyOfRange(packets, frameAt, frameAt + length);
          output.collect(kafka, new StreamRecord<>(frame));
          frameAt += length;
        }
      }
      case TO_ROWS ->
          output.collect(rows, new StreamRecord<>(Arrays.copyOfRange(packets, from, to)));
      default -> throw malformed(packets, at, "its route was " + route + ", expected 0, 1 or 2");
    }
  }

  private static MalformedBytesException malformed(byte[] packets, int at, String what) {
    return new MalformedBytesException(
        "Routing packets of a Python stage: in the packet at byte " + at + " of " + packets.length
            + ", " + what + "; build packets with connectors/frames.py of the same release");
  }
}
