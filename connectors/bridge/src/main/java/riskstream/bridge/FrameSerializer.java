package riskstream.bridge;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Header;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.internals.RecordHeader;

/**
 * Turns one frame into one Kafka record of the frame's topic, key, headers, value and timestamp.
 *
 * <p>Kafka's partitioner chooses the partition from the key; a negative timestamp means the producer's
 * clock. Partition, offset, ingest time and attachment of the frame are not sent.
 */
public final class FrameSerializer implements KafkaRecordSerializationSchema<byte[]> {
  private static final long serialVersionUID = 1L;

  @Override
  public ProducerRecord<byte[], byte[]> serialize(
      byte[] frame, KafkaSinkContext context, Long ignoredTimestamp) {
    int length = Frame.checkedLength(frame, 0, frame.length);
    if (length != frame.length) {
      throw new MalformedBytesException(
          "Serialising a frame for Kafka: " + (frame.length - length) + " bytes follow it, expected 0");
    }
    String topic =
        new String(
            frame, Frame.HEADER_BYTES, Frame.u16(frame, Frame.TOPIC_LENGTH), StandardCharsets.UTF_8);
    int keyAt = Frame.keyAt(frame, 0);
    int headersAt = Frame.headersAt(frame, 0);
    int valueAt = Frame.valueAt(frame, 0);
    byte[] key = Frame.keyIsNull(frame, 0) ? null : Arrays.copyOfRange(frame, keyAt, headersAt);
    byte[] value =
        Frame.valueIsNull(frame, 0)
            ? null
            : Arrays.copyOfRange(
                frame, valueAt, valueAt + Frame.i32(frame, Frame.VALUE_LENGTH));
    long timestamp = Frame.i64(frame, Frame.TIMESTAMP);
    return new ProducerRecord<>(
        topic,
        null,
        timestamp < 0 ? null : Long.valueOf(timestamp),
        key,
        value,
        headers(frame, headersAt, valueAt));
  }

  private static List<Header> headers(byte[] frame, int from, int to) {
    List<Header> headers = new ArrayList<>();
    HeaderCursor cursor = new HeaderCursor(frame, from, to);
    while (cursor.next()) {
      String name =
          new String(frame, cursor.nameAt, cursor.nameLength, StandardCharsets.UTF_8);
      byte[] value =
          cursor.valueLength < 0
              ? null
              : Arrays.copyOfRange(frame, cursor.valueAt, cursor.valueAt + cursor.valueLength);
      headers.add(new RecordHeader(name, value));
    }
    return headers;
  }
}
