package riskstream.bench;

import java.time.Duration;
import java.util.concurrent.TimeUnit;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.streaming.api.datastream.AsyncDataStream;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * The fraud workload as a Flink DataStream job, one record at a time.
 *
 * <p>Arguments: the workload's JSON file, how many payments are scored in one call (1: each alone), how many ms a payment waits for
 * others, and the buffer timeout in ms.
 */
public final class FraudJob {
  private FraudJob() {}

  public static void main(String[] arguments) throws Exception {
    Workload workload = Workload.read(arguments[0]);
    int rows = Integer.parseInt(arguments[1]);
    long waitMs = Long.parseLong(arguments[2]);
    Configuration configuration = new Configuration();
    configuration.setString("state.backend.type", "hashmap");
    configuration.setString("pipeline.object-reuse", "true");
    configuration.setString("pipeline.generic-types", "false");
    configuration.setString("pipeline.auto-watermark-interval", "20ms");
    configuration.setString("execution.buffer-timeout.interval", arguments[3] + "ms");
    configuration.setString("execution.checkpointing.interval", workload.checkpointMs() + "ms");
    configuration.setString("execution.checkpointing.dir", workload.checkpoints());
    StreamExecutionEnvironment flink =
        StreamExecutionEnvironment.getExecutionEnvironment(configuration);
    flink.setParallelism(workload.parallelism());

    KafkaSource<Payment> source =
        KafkaSource.<Payment>builder()
            .setBootstrapServers(workload.kafka())
            .setTopics(workload.transactions())
            .setGroupId(workload.group())
            .setStartingOffsets(OffsetsInitializer.earliest())
            .setDeserializer(new PaymentReader())
            .setProperty("fetch.max.wait.ms", "5")
            .build();
    // Partitions stay near each other in event time, as they do in ours: results do not depend on who reads faster.
    WatermarkStrategy<Payment> watermarks =
        WatermarkStrategy.<Payment>forMonotonousTimestamps()
            .withTimestampAssigner((payment, time) -> payment.eventTimeMs)
            .withIdleness(Duration.ofMillis(250))
            .withWatermarkAlignment(
                "payments", Duration.ofMillis(workload.driftMs()), Duration.ofMillis(20));
    DataStream<Payment> windowed =
        flink
            .fromSource(source, watermarks, "payments")
            .keyBy(payment -> payment.customerId)
            .process(new Windows.OfCustomer())
            .name("customer windows")
            .keyBy(payment -> payment.terminalId)
            .process(new Windows.OfTerminal())
            .name("terminal windows");
    DataStream<Payment> enriched =
        AsyncDataStream.unorderedWait(
            windowed, new Profiles(workload), 10, TimeUnit.SECONDS, 1_000);
    DataStream<Payment> scored =
        enriched.transform(
            "score and decide",
            TypeInformation.of(Payment.class),
            new Scorer(workload, rows, waitMs));
    scored
        .filter(payment -> payment.decision != 0)
        .sinkTo(
            KafkaSink.<Payment>builder()
                .setBootstrapServers(workload.kafka())
                .setRecordSerializer(new Alerts(workload))
                .setDeliveryGuarantee(DeliveryGuarantee.AT_LEAST_ONCE)
                .setProperty("linger.ms", "0")
                .build())
        .name("alerts");
    scored.sinkTo(new ClickHouseSink(workload)).name("scored transactions");
    flink.executeAsync("payments-java");
  }
}
