package riskstream.bench;

import com.github.benmanes.caffeine.cache.Cache;
import com.github.benmanes.caffeine.cache.Caffeine;
import io.lettuce.core.KeyValue;
import io.lettuce.core.RedisClient;
import io.lettuce.core.api.StatefulRedisConnection;
import io.lettuce.core.codec.ByteArrayCodec;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.streaming.api.functions.async.ResultFuture;
import org.apache.flink.streaming.api.functions.async.RichAsyncFunction;

/** Looks both profiles up in Redis without blocking, behind a cache of the same size and age as ours. */
final class Profiles extends RichAsyncFunction<Payment, Payment> {
  private static final long serialVersionUID = 1L;

  private static final byte[] MISSING = new byte[0];
  private static final int CUSTOMER_BYTES = 40;

  private final Workload workload;
  private transient RedisClient client;
  private transient StatefulRedisConnection<byte[], byte[]> connection;
  private transient Cache<String, byte[]> cache;

  Profiles(Workload workload) {
    this.workload = workload;
  }

  @Override
  public void open(OpenContext context) {
    client = RedisClient.create(workload.redis());
    connection = client.connect(ByteArrayCodec.INSTANCE);
    cache =
        Caffeine.newBuilder()
            .maximumSize(workload.cacheEntries())
            .expireAfterWrite(Duration.ofMillis(workload.cacheTtlMs()))
            .build();
  }

  @Override
  public void close() {
    if (connection != null) {
      connection.close();
    }
    if (client != null) {
      client.shutdown(Duration.ZERO, Duration.ofSeconds(2));
    }
  }

  @Override
  public void asyncInvoke(Payment payment, ResultFuture<Payment> result) {
    String customerKey = "profile:customer:" + payment.customerId;
    String terminalKey = "profile:terminal:" + payment.terminalId;
    byte[] customer = cache.getIfPresent(customerKey);
    byte[] terminal = cache.getIfPresent(terminalKey);
    if (customer != null && terminal != null) {
      enrich(payment, customer, terminal);
      result.complete(List.of(payment));
      return;
    }
    connection
        .async()
        .mget(
            customerKey.getBytes(StandardCharsets.UTF_8),
            terminalKey.getBytes(StandardCharsets.UTF_8))
        .whenComplete(
            (found, error) -> {
              if (error != null) {
                result.completeExceptionally(error);
                return;
              }
              byte[] first = valueOf(found.get(0));
              byte[] second = valueOf(found.get(1));
              cache.put(customerKey, first);
              cache.put(terminalKey, second);
              enrich(payment, first, second);
              result.complete(List.of(payment));
            });
  }

  private static byte[] valueOf(KeyValue<byte[], byte[]> found) {
    return found.hasValue() ? found.getValue() : MISSING;
  }

  // u8 version, u8 risk tier, u16 flags, u32 chargebacks, i64 usual amount, f64 latitude, f64 longitude, i64 opened.
  private static void enrich(Payment payment, byte[] customer, byte[] terminal) {
    payment.profileMissing = customer.length < CUSTOMER_BYTES || terminal.length == 0;
    if (customer.length >= CUSTOMER_BYTES) {
      ByteBuffer packed = ByteBuffer.wrap(customer).order(ByteOrder.LITTLE_ENDIAN);
      payment.customerRiskTier = packed.get(1) & 0xFF;
      payment.homeLatitude = packed.getDouble(16);
      payment.homeLongitude = packed.getDouble(24);
    }
  }
}
