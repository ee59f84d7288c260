package riskstream.bench;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.EncoderFactory;
import org.apache.avro.specific.SpecificData;
import org.apache.avro.specific.SpecificDatumWriter;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.producer.ProducerRecord;
import riskstream.Alert;
import riskstream.AlertKind;
import riskstream.Reason;
import riskstream.ReasonKind;
import riskstream.Severity;
import riskstream.Source;

/** Writes the alert of a payment under the committed contract; reasons are the rules that fired. */
final class Alerts implements KafkaRecordSerializationSchema<Payment> {
  private static final long serialVersionUID = 1L;

  private static final String[] DECISIONS = {"approve", "review", "block"};

  private final Workload workload;
  private transient SpecificDatumWriter<Alert> writer;
  private transient BinaryEncoder encoder;

  Alerts(Workload workload) {
    this.workload = workload;
  }

  @Override
  public ProducerRecord<byte[], byte[]> serialize(
      Payment payment, KafkaSinkContext context, Long timestamp) {
    if (writer == null) {
      SpecificData.getForClass(Alert.class).setCustomCoders(true);
      writer = new SpecificDatumWriter<>(Alert.class);
    }
    ByteArrayOutputStream out = new ByteArrayOutputStream(512);
    out.writeBytes(ByteBuffer.allocate(5).put((byte) 0).putInt(workload.alertSchemaId()).array());
    encoder = EncoderFactory.get().directBinaryEncoder(out, encoder);
    try {
      writer.write(alert(payment), encoder);
      encoder.flush();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    return new ProducerRecord<>(
        workload.alerts(),
        null,
        payment.decidedAtMs,
        payment.customerId.getBytes(StandardCharsets.UTF_8),
        out.toByteArray());
  }

  private Alert alert(Payment payment) {
    boolean blocked = payment.decision == 2;
    List<Reason> reasons = new ArrayList<>();
    for (int rule = 0; rule < Rules.NAMES.length; rule++) {
      if ((payment.rules >> rule & 1) != 0) {
        reasons.add(
            new Reason(Rules.NAMES[rule], ReasonKind.rule, Rules.NAMES[rule], null, null, null));
      }
    }
    // The builder fills fields that the contract gained with a default.
    return Alert.newBuilder()
        .setAlertId(payment.eventId + ":fraud")
        .setKind(AlertKind.fraud)
        .setSeverity(blocked ? Severity.critical : Severity.warning)
        .setEntityType("customer")
        .setEntityId(payment.customerId)
        .setEventId(payment.eventId)
        .setEventTimeMs(payment.eventTimeMs)
        .setScore(payment.score)
        .setThreshold(blocked ? workload.block() : workload.review())
        .setDecision(DECISIONS[payment.decision])
        .setAmountMinor(payment.amountMinor)
        .setCurrency(payment.currency)
        .setReasons(reasons)
        .setModelVersion(workload.modelVersion())
        .setRuleSetVersion(workload.ruleSetVersion())
        .setFeatureSetVersion(workload.featureSetVersion())
        .setSource(new Source(workload.transactions(), payment.partition, payment.offset))
        .setPublishedAtMs(payment.publishedAtMs)
        .setIngestedAtMs(payment.ingestedAtMs)
        .setDecidedAtMs(payment.decidedAtMs)
        .setAttributes(Map.of("terminal_id", payment.terminalId))
        .build();
  }
}
