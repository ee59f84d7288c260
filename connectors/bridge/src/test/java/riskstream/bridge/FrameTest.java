package riskstream.bridge;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Header;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Headers;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.record.TimestampType;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.util.InstantiationUtil;
import org.junit.jupiter.api.Test;

class FrameTest {
  private static ConsumerRecord<byte[], byte[]> record(
      String topic, long timestamp, byte[] key, byte[] value, Headers headers) {
    return new ConsumerRecord<>(
        topic, 3, 17L, timestamp, TimestampType.CREATE_TIME, 0, 0, key, value, headers,
        Optional.empty());
  }

  private static byte[] read(FrameDeserializer reader, ConsumerRecord<byte[], byte[]> record) {
    List<byte[]> out = new ArrayList<>();
    reader.deserialize(record, new ListOf(out));
    assertEquals(1, out.size());
    return out.get(0);
  }

  private record ListOf(List<byte[]> list)
      implements org.apache.flink.util.Collector<byte[]> {
    @Override
    public void collect(byte[] frame) {
      list.add(frame);
    }

    @Override
    public void close() {}
  }

  private static RecordHeaders headersOf(JsonNode vector) {
    RecordHeaders headers = new RecordHeaders();
    for (JsonNode header : vector.get("headers")) {
      headers.add(header.get(0).textValue(), Vectors.bytes(header.get(1)));
    }
    return headers;
  }

  @Test
  void recordsBecomeTheFramesOfTheVectors() {
    for (JsonNode vector : Vectors.ALL.get("frames")) {
      if (vector.get("partition").intValue() < 0 || !vector.get("attachment").textValue().isEmpty()) {
        continue; // not what a consumer can return
      }
      long ingested = vector.get("ingested_at_ms").longValue();
      FrameDeserializer reader = new FrameDeserializer(List.of("fraud-control"), () -> ingested);
      ConsumerRecord<byte[], byte[]> record =
          new ConsumerRecord<>(
              vector.get("topic").textValue(),
              vector.get("partition").intValue(),
              vector.get("offset").longValue(),
              vector.get("timestamp_ms").longValue(),
              TimestampType.CREATE_TIME,
              0,
              0,
              Vectors.bytes(vector.get("key")),
              Vectors.bytes(vector.get("value")),
              headersOf(vector),
              Optional.empty());

      assertArrayEquals(Vectors.bytes(vector.get("frame")), read(reader, record));
    }
  }

  @Test
  void framesGoToTheShardsOfTheVectors() {
    for (JsonNode vector : Vectors.ALL.get("frames")) {
      byte[] frame = Vectors.bytes(vector.get("frame"));
      vector
          .get("shards")
          .fields()
          .forEachRemaining(
              entry ->
                  assertEquals(
                      entry.getValue().intValue(),
                      Frame.shardOf(frame, 0, Integer.parseInt(entry.getKey())),
                      () -> vector.get("topic") + " of " + entry.getKey()));
    }
  }

  @Test
  void framesBecomeRecordsWithKeyHeadersValueAndTimestamp() {
    for (JsonNode vector : Vectors.ALL.get("frames")) {
      ProducerRecord<byte[], byte[]> record =
          new FrameSerializer().serialize(Vectors.bytes(vector.get("frame")), null, 99L);

      long timestamp = vector.get("timestamp_ms").longValue();
      assertEquals(vector.get("topic").textValue(), record.topic());
      assertEquals(null, record.partition());
      assertEquals(timestamp < 0 ? null : Long.valueOf(timestamp), record.timestamp());
      assertArrayEquals(Vectors.bytes(vector.get("key")), record.key());
      assertArrayEquals(Vectors.bytes(vector.get("value")), record.value());
      assertEquals(headersOf(vector), record.headers());
    }
  }

  @Test
  void headersKeepTheirOrderRepeatedNamesAndNullValues() {
    RecordHeaders headers = new RecordHeaders();
    headers.add("b", new byte[] {1}).add("a", null).add("b", new byte[0]);
    byte[] frame =
        read(new FrameDeserializer(List.of()), record("t", 5, null, null, headers));

    Header[] back = new FrameSerializer().serialize(frame, null, null).headers().toArray();

    assertEquals(List.of("b", "a", "b"), Arrays.stream(back).map(Header::key).toList());
    assertArrayEquals(new byte[] {1}, back[0].value());
    assertEquals(null, back[1].value());
    assertArrayEquals(new byte[0], back[2].value());
  }

  @Test
  void headersThatDoNotFitTheFormatAreLeftOutAndTheRecordIsKept() {
    RecordHeaders headers = new RecordHeaders();
    headers.add("x".repeat(70_000), new byte[] {1}).add("kept", new byte[] {2});
    byte[] frame = read(new FrameDeserializer(List.of()), record("t", 5, null, null, headers));

    Header[] back = new FrameSerializer().serialize(frame, null, null).headers().toArray();

    assertEquals(List.of("kept"), Arrays.stream(back).map(Header::key).toList());
  }

  @Test
  void onlyControlTopicsAreMarkedForEveryShard() throws Exception {
    FrameDeserializer reader =
        InstantiationUtil.clone(new FrameDeserializer(List.of("control", "rules")));
    RecordHeaders none = new RecordHeaders();

    assertTrue(Frame.isControl(read(reader, record("control", 5, null, null, none)), 0));
    assertTrue(Frame.isControl(read(reader, record("rules", 5, null, null, none)), 0));
    assertTrue(!Frame.isControl(read(reader, record("payments", 5, null, null, none)), 0));
  }

  @Test
  void theIngestTimeIsTheClockOfTheReader() {
    long before = System.currentTimeMillis();
    byte[] frame =
        read(new FrameDeserializer(List.of()), record("t", 5, null, null, new RecordHeaders()));

    long ingested = Frame.i64(frame, Frame.INGESTED);
    assertTrue(before <= ingested && ingested <= System.currentTimeMillis());
  }

  @Test
  void bytesThatAreNotOneFrameAreRefusedByTheSerializer() {
    byte[] good = Frames.of("k", 1);
    byte[] version = good.clone();
    version[Frame.VERSION_AT] = 9;
    byte[] sections = good.clone();
    sections[Frame.VALUE_LENGTH] = 100;
    for (byte[] bad :
        List.of(
            new byte[0],
            Arrays.copyOf(good, good.length - 1),
            Arrays.copyOf(good, good.length + 1),
            Arrays.copyOf(good, 20),
            version,
            sections)) {
      assertThrows(
          MalformedBytesException.class, () -> new FrameSerializer().serialize(bad, null, null));
    }
  }

  @Test
  void headersCutShortAreRefused() {
    byte[] headers =
        Frame.headers(new RecordHeaders().add("name", "value".getBytes(UTF_8)));
    for (int length = 1; length < headers.length; length++) {
      byte[] frame =
          Frame.write(
              "t".getBytes(UTF_8), 0, 0, 0, 0, 0, null, Arrays.copyOf(headers, length), null);
      assertThrows(
          MalformedBytesException.class, () -> new FrameSerializer().serialize(frame, null, null));
    }
  }
}
