package riskstream.bench;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.io.IOException;
import java.io.Serializable;

/** What the bench tells every contestant: addresses, names, model, thresholds. Read from one JSON file. */
record Workload(
    String kafka,
    String group,
    String transactions,
    String alerts,
    String redis,
    String clickhouse,
    String database,
    String insert,
    String model,
    String modelInput,
    String modelOutput,
    double review,
    double block,
    String modelVersion,
    String ruleSetVersion,
    String featureSetVersion,
    int alertSchemaId,
    int parallelism,
    int cacheEntries,
    long cacheTtlMs,
    long gatherMs,
    int gatherRows,
    long checkpointMs,
    String checkpoints,
    long driftMs)
    implements Serializable {

  static Workload read(String path) throws IOException {
    JsonNode node = new ObjectMapper().readTree(new File(path));
    return new Workload(
        node.get("kafka").asText(),
        node.get("group").asText(),
        node.get("transactions").asText(),
        node.get("alerts").asText(),
        node.get("redis").asText(),
        node.get("clickhouse").asText(),
        node.get("database").asText(),
        node.get("insert").asText(),
        node.get("model").asText(),
        node.get("model_input").asText(),
        node.get("model_output").asText(),
        node.get("review").asDouble(),
        node.get("block").asDouble(),
        node.get("model_version").asText(),
        node.get("rule_set_version").asText(),
        node.get("feature_set_version").asText(),
        node.get("alert_schema_id").asInt(),
        node.get("parallelism").asInt(),
        node.get("cache_entries").asInt(),
        node.get("cache_ttl_ms").asLong(),
        node.get("gather_ms").asLong(),
        node.get("gather_rows").asInt(),
        node.get("checkpoint_ms").asLong(),
        node.get("checkpoints").asText(),
        node.get("drift_ms").asLong());
  }
}
