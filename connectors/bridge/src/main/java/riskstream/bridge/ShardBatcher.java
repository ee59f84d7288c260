package riskstream.bridge;

import java.util.Arrays;
import org.apache.flink.metrics.Counter;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.types.Row;

/**
 * Routes frames to shards and packs those of one shard into a batch; chained to the source.
 *
 * <p>Order within a shard is the order of arrival, so the records of one key keep their Kafka order.
 * Control frames are copied to every shard, in order with the frames around them. A batch is never
 * empty; it exceeds {@code maxBytes} only when one frame alone does.
 */
public final class ShardBatcher extends BufferingOperator<byte[], Row> {
  private static final long serialVersionUID = 1L;

  /** Enough for a quiet tick; buffers grow to what their shard needs. */
  private static final int FIRST_BYTES = 4 * 1024;

  private final int maxBytes;
  private final Long[] shardKeys;
  private transient byte[][] buffers;
  private transient int[] used;
  private transient Counter frames;
  private transient Counter batches;

  /**
   * @param maxBytes a shard that holds this much is emitted at once
   * @param tickMs the least time between two emissions, see {@link Pulse}
   * @param shardKeys key value of each shard, as {@link ShardKeys#balanced} returns them
   */
  public ShardBatcher(int maxBytes, long tickMs, long[] shardKeys) {
    super(tickMs);
    if (maxBytes < 1 || shardKeys.length < 1) {
      throw new IllegalArgumentException(
          "Building ShardBatcher: maximum bytes was " + maxBytes + " and shards was "
              + shardKeys.length + ", expected 1 or more of each");
    }
    this.maxBytes = maxBytes;
    this.shardKeys = Arrays.stream(shardKeys).boxed().toArray(Long[]::new);
  }

  @Override
  public void open() throws Exception {
    super.open();
    buffers = new byte[shardKeys.length][FIRST_BYTES];
    used = new int[shardKeys.length];
    frames = getMetricGroup().counter("riskstream_frames");
    batches = getMetricGroup().counter("riskstream_batches");
  }

  @Override
  public void processElement(StreamRecord<byte[]> element) {
    byte[] frame = element.getValue();
    frames.inc();
    if (Frame.isControl(frame, 0)) {
      for (int shard = 0; shard < shardKeys.length; shard++) {
        append(shard, frame);
      }
    } else {
      append(Frame.shardOf(frame, 0, shardKeys.length), frame);
    }
    touched();
  }

  private void append(int shard, byte[] frame) {
    if (used[shard] > maxBytes - frame.length) {
      emitShard(shard);
    }
    int needed = used[shard] + frame.length;
    if (needed > buffers[shard].length) {
      buffers[shard] =
          Arrays.copyOf(buffers[shard], Math.max(needed, 2 * buffers[shard].length));
    }
    System.arraycopy(frame, 0, buffers[shard], used[shard], frame.length);
    used[shard] = needed;
    if (needed >= maxBytes) {
      emitShard(shard);
    }
  }

  private void emitShard(int shard) {
    if (used[shard] == 0) {
      return;
    }
    byte[] batch = Arrays.copyOf(buffers[shard], used[shard]);
    used[shard] = 0;
    if (buffers[shard].length > Math.max(2L * maxBytes, FIRST_BYTES)) {
      // One oversized record must not keep its memory for the life of the job.
      buffers[shard] = new byte[FIRST_BYTES];
    }
    batches.inc();
    emit(BridgeTypes.keyedBatch(shardKeys[shard], batch));
  }

  @Override
  void emitAll() {
    for (int shard = 0; shard < shardKeys.length; shard++) {
      emitShard(shard);
    }
  }

  @Override
  void drop() {
    buffers = null;
    used = null;
  }
}
