package riskstream.bridge;

import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.types.Row;
import org.apache.flink.util.OutputTag;

/** Types and side outputs of the edges between the bridge and Python. */
public final class BridgeTypes {
  private BridgeTypes() {}

  /** One frame, or packets, or rows. */
  public static TypeInformation<byte[]> bytes() {
    return PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO;
  }

  /** What PyFlink's {@code KeyByKeySelector} extracts from {@link #keyedBatch}. */
  public static TypeInformation<Row> key() {
    return Types.ROW(Types.LONG);
  }

  /** A batch of one shard in the shape PyFlink gives a keyed stream: {@code (key, (key, batch))}. */
  public static TypeInformation<Row> keyedBatch() {
    return Types.ROW(Types.LONG, Types.ROW(Types.LONG, bytes()));
  }

  /** Side output of {@link FrameRouter}: route 1, one frame an element. */
  public static OutputTag<byte[]> kafkaOutput() {
    return new OutputTag<>("riskstream-kafka", bytes());
  }

  /** Side output of {@link FrameRouter}: route 2, counted rows. */
  public static OutputTag<byte[]> rowOutput() {
    return new OutputTag<>("riskstream-rows", bytes());
  }

  static Row keyedBatch(Long shardKey, byte[] batch) {
    return Row.of(shardKey, Row.of(shardKey, batch));
  }
}
