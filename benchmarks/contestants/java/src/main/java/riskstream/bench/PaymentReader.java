package riskstream.bench;

import java.io.IOException;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.specific.SpecificData;
import org.apache.avro.specific.SpecificDatumReader;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.util.Collector;
import riskstream.CardTransaction;

/** Decodes values in the Confluent wire format with Avro's generated decoder, one object reused. */
final class PaymentReader implements KafkaRecordDeserializationSchema<Payment> {
  private static final long serialVersionUID = 1L;

  private static final int HEADER_BYTES = 5;
  private static final long DAY_MS = 86_400_000L;

  private transient SpecificDatumReader<CardTransaction> reader;
  private transient BinaryDecoder decoder;
  private transient CardTransaction reused;

  @Override
  public void deserialize(ConsumerRecord<byte[], byte[]> message, Collector<Payment> out)
      throws IOException {
    if (reader == null) {
      SpecificData.getForClass(CardTransaction.class).setCustomCoders(true);
      reader = new SpecificDatumReader<>(CardTransaction.class);
    }
    byte[] value = message.value();
    decoder =
        DecoderFactory.get()
            .binaryDecoder(value, HEADER_BYTES, value.length - HEADER_BYTES, decoder);
    reused = reader.read(reused, decoder);
    CardTransaction read = reused;
    Payment payment = new Payment();
    payment.eventId = read.getEventId();
    payment.eventTimeMs = read.getEventTimeMs();
    payment.customerId = read.getCustomerId();
    payment.terminalId = read.getTerminalId();
    payment.amountMinor = read.getAmountMinor();
    payment.currency = read.getCurrency();
    payment.merchantId = orEmpty(read.getMerchantId());
    payment.channel = read.getChannel().ordinal();
    payment.country = orEmpty(read.getCountry());
    payment.latitude = orNan(read.getLatitude());
    payment.longitude = orNan(read.getLongitude());
    payment.tenant = orEmpty(read.getTenant());
    payment.partition = message.partition();
    payment.offset = message.offset();
    payment.publishedAtMs = message.timestamp();
    payment.ingestedAtMs = System.currentTimeMillis();
    double[] features = new double[Payment.FEATURES];
    features[0] = payment.amountMinor / 100.0;
    features[1] = (payment.eventTimeMs / DAY_MS + 3) % 7 >= 5 ? 1 : 0;
    features[2] = payment.eventTimeMs % DAY_MS / 3_600_000 <= 6 ? 1 : 0;
    payment.features = features;
    out.collect(payment);
  }

  @Override
  public TypeInformation<Payment> getProducedType() {
    return TypeInformation.of(Payment.class);
  }

  private static String orEmpty(String text) {
    return text == null ? "" : text;
  }

  private static double orNan(Double number) {
    return number == null ? Double.NaN : number;
  }
}
