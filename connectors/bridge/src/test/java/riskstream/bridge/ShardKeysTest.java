package riskstream.bridge;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.stream.IntStream;
import java.util.stream.StreamSupport;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.streaming.api.functions.python.KeyByKeySelector;
import org.apache.flink.types.Row;
import org.junit.jupiter.api.Test;

class ShardKeysTest {
  @Test
  void everyParallelismThatDividesTheShardsIsBalanced() throws Exception {
    KeyByKeySelector selector = new KeyByKeySelector();
    for (int maxParallelism : new int[] {16, 17, 64, 100, 128, 200}) {
      for (int shards : new int[] {1, 2, 4, 6, 8, 12, 15, 16}) {
        long[] keys = ShardKeys.balanced(shards, maxParallelism);
        assertEquals(shards, IntStream.range(0, shards).mapToLong(i -> keys[i]).distinct().count());
        for (int parallelism = 1; parallelism <= shards; parallelism++) {
          if (shards % parallelism != 0) {
            continue;
          }
          int[] load = new int[parallelism];
          for (long key : keys) {
            Row row = BridgeTypes.keyedBatch(key, new byte[0]);
            load[
                KeyGroupRangeAssignment.assignKeyToParallelOperator(
                    selector.getKey(row), maxParallelism, parallelism)]++;
          }
          int[] even = new int[parallelism];
          java.util.Arrays.fill(even, shards / parallelism);
          assertArrayEquals(even, load, shards + " shards, parallelism " + parallelism);
        }
      }
    }
  }

  /** Saved state is found under these values: if this fails after an upgrade, state does not move. */
  @Test
  void theKeysAreThoseThatStateWasSavedUnder() {
    Vectors.ALL
        .get("shard_keys")
        .fields()
        .forEachRemaining(
            entry -> {
              String[] parts = entry.getKey().split("/");
              long[] expected =
                  StreamSupport.stream(entry.getValue().spliterator(), false)
                      .mapToLong(JsonNode::longValue)
                      .toArray();
              assertArrayEquals(
                  expected,
                  ShardKeys.balanced(Integer.parseInt(parts[0]), Integer.parseInt(parts[1])));
            });
  }

  @Test
  void moreShardsThanKeyGroupsAreRefused() {
    assertThrows(IllegalArgumentException.class, () -> ShardKeys.balanced(9, 8));
    assertThrows(IllegalArgumentException.class, () -> ShardKeys.balanced(0, 8));
  }
}
