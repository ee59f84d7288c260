package riskstream.bridge;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.flink.metrics.Counter;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.types.Row;

/**
 * After a shuffle, merges the batches of each shard that arrived while the operator below was busy.
 *
 * <p>The order of a shard's batches is the order of arrival. Python has a cost per call and a smaller
 * one per frame; merging turns a backlog into few large calls, and a quiet stream into small ones.
 */
public final class Gather extends BufferingOperator<Row, Row> {
  private static final long serialVersionUID = 1L;

  private final int maxBytes;
  private final int maxTotalBytes;
  private transient Map<Long, Held> held;
  private transient int totalBytes;
  private transient Counter batches;

  /** What waits of one shard. */
  private static final class Held {
    final List<byte[]> parts = new ArrayList<>();
    int bytes;
  }

  /**
   * @param tickMs the least time between two emissions, see {@link Pulse}
   * @param maxBytes a shard that holds this much is emitted at once
   * @param maxTotalBytes all shards together; everything is emitted when they hold this much
   */
  public Gather(long tickMs, int maxBytes, int maxTotalBytes) {
    super(tickMs);
    if (maxBytes < 1 || maxTotalBytes < maxBytes) {
      throw new IllegalArgumentException(
          "Building Gather: maximum bytes was " + maxBytes + " of a shard and " + maxTotalBytes
              + " in total, expected 1 or more and no less in total than of a shard");
    }
    this.maxBytes = maxBytes;
    this.maxTotalBytes = maxTotalBytes;
  }

  @Override
  public void open() throws Exception {
    super.open();
    held = new LinkedHashMap<>();
    batches = getMetricGroup().counter("riskstream_batches");
  }

  @Override
  public void processElement(StreamRecord<Row> element) {
    Row row = element.getValue();
    Long shardKey = (Long) row.getField(0);
    byte[] batch = (byte[]) ((Row) row.getField(1)).getField(1);
    Held shard = held.get(shardKey);
    if (shard != null && shard.bytes > maxBytes - batch.length) {
      emitShard(shardKey, held.remove(shardKey));
      shard = null;
    }
    if (shard == null) {
      shard = new Held();
      held.put(shardKey, shard);
    }
    shard.parts.add(batch);
    shard.bytes += batch.length;
    totalBytes += batch.length;
    if (shard.bytes >= maxBytes) {
      emitShard(shardKey, held.remove(shardKey));
    } else if (totalBytes >= maxTotalBytes) {
      emitAll();
    } else {
      touched();
    }
  }

  private void emitShard(Long shardKey, Held shard) {
    totalBytes -= shard.bytes;
    batches.inc();
    emit(BridgeTypes.keyedBatch(shardKey, Parts.join(shard.parts, shard.bytes)));
  }

  @Override
  void emitAll() {
    if (held.isEmpty()) {
      return;
    }
    Map<Long, Held> all = held;
    held = new LinkedHashMap<>();
    all.forEach(this::emitShard);
  }

  @Override
  void drop() {
    held = null;
  }
}
