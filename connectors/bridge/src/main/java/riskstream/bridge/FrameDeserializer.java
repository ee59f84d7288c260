package riskstream.bridge;

import java.io.Serializable;
import java.nio.charset.StandardCharsets;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.function.LongSupplier;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.util.Collector;

/**
 * Turns each Kafka record into one frame and stamps when it was read.
 *
 * <p>Key and value are opaque, either may be null, headers keep their order. Nothing is parsed, so no
 * record can fail here: bad ones are found, and become dead letters, where they are decoded.
 */
public final class FrameDeserializer implements KafkaRecordDeserializationSchema<byte[]> {
  private static final long serialVersionUID = 1L;

  /** A clock that travels with the job graph. */
  interface Clock extends LongSupplier, Serializable {}

  private final HashSet<String> controlTopics;
  private final Clock clock;
  private transient Map<String, byte[]> topicBytes;

  /**
   * @param controlTopics topics whose records go to every shard (rule changes, model activations)
   */
  public FrameDeserializer(Collection<String> controlTopics) {
    this(controlTopics, System::currentTimeMillis);
  }

  FrameDeserializer(Collection<String> controlTopics, Clock clock) {
    this.controlTopics = new HashSet<>(controlTopics);
    this.clock = clock;
  }

  @Override
  public void deserialize(ConsumerRecord<byte[], byte[]> message, Collector<byte[]> out) {
    if (topicBytes == null) {
      topicBytes = new HashMap<>();
    }
    byte[] topic =
        topicBytes.computeIfAbsent(
            message.topic(), name -> name.getBytes(StandardCharsets.UTF_8));
    out.collect(
        Frame.write(
            topic,
            controlTopics.contains(message.topic()) ? Frame.CONTROL : 0,
            message.partition(),
            message.offset(),
            message.timestamp(),
            clock.getAsLong(),
            message.key(),
            Frame.headers(message.headers()),
            message.value()));
  }

  @Override
  public TypeInformation<byte[]> getProducedType() {
    return BridgeTypes.bytes();
  }
}
