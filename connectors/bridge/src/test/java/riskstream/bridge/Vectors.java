package riskstream.bridge;

import java.io.File;
import java.io.IOException;
import java.util.HexFormat;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;

/** The golden vectors that the Python tests read too. */
final class Vectors {
  static final JsonNode ALL = load();

  private Vectors() {}

  private static JsonNode load() {
    try {
      return new ObjectMapper().readTree(new File(System.getProperty("riskstream.vectors")));
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }

  /** Bytes of a hexadecimal node, null for JSON null. */
  static byte[] bytes(JsonNode node) {
    return node.isNull() ? null : HexFormat.of().parseHex(node.textValue());
  }
}
