package riskstream.bridge;

import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.types.Row;

/** Chooses the key value under which the state of each shard is kept. */
public final class ShardKeys {
  private ShardKeys() {}

  /**
   * Returns one key value per shard, spread so that every parallelism that divides {@code shards} gives
   * each subtask the same number of shards.
   *
   * <p>Shard {@code i} gets the smallest value whose key group is the first one of subtask {@code i} at
   * parallelism {@code shards}; coarser parallelisms are unions of those ranges. Deterministic: state
   * is found again after a restart because the same values come out.
   *
   * @throws IllegalArgumentException unless {@code 1 <= shards <= maxParallelism}
   */
  public static long[] balanced(int shards, int maxParallelism) {
    if (shards < 1 || shards > maxParallelism) {
      throw new IllegalArgumentException(
          "Choosing shard keys: shards was " + shards + ", expected 1 to the maximum parallelism "
              + maxParallelism);
    }
    long[] keys = new long[shards];
    for (int shard = 0; shard < shards; shard++) {
      int wanted = (shard * maxParallelism + shards - 1) / shards;
      long candidate = 0;
      while (KeyGroupRangeAssignment.assignToKeyGroup(Row.of(candidate), maxParallelism) != wanted) {
        candidate++;
      }
      keys[shard] = candidate;
    }
    return keys;
  }
}
