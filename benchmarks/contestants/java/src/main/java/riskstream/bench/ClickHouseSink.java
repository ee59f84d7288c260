package riskstream.bench;

import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.concurrent.CompletableFuture;
import org.apache.flink.api.common.operators.ProcessingTimeService;
import org.apache.flink.api.connector.sink2.Sink;
import org.apache.flink.api.connector.sink2.SinkWriter;
import org.apache.flink.api.connector.sink2.WriterInitContext;

/**
 * Inserts rows as RowBinary over HTTP, gathered for the same time and number as ours.
 *
 * <p>One insert is under way while the next one is gathered; a checkpoint waits for both, so rows are stored at least once.
 */
final class ClickHouseSink implements Sink<Payment> {
  private static final long serialVersionUID = 1L;

  private final Workload workload;

  ClickHouseSink(Workload workload) {
    this.workload = workload;
  }

  @Override
  public SinkWriter<Payment> createWriter(WriterInitContext context) {
    return new Writer(workload, context.getProcessingTimeService());
  }

  private static final class Writer implements SinkWriter<Payment> {
    private final Workload workload;
    private final ProcessingTimeService clock;
    private final HttpClient client =
        HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private final URI uri;
    private final byte[] transactions;
    private final byte[] model;
    private final byte[] rules;
    private final byte[] features;
    private final byte[][] names;
    private ByteBuffer rows = buffer(1 << 20);
    private int count;
    private boolean timerIsSet;
    private CompletableFuture<HttpResponse<String>> underWay;

    Writer(Workload workload, ProcessingTimeService clock) {
      this.workload = workload;
      this.clock = clock;
      this.uri =
          URI.create(
              workload.clickhouse()
                  + "/?database="
                  + workload.database()
                  + "&query="
                  + URLEncoder.encode(workload.insert(), StandardCharsets.UTF_8));
      transactions = utf8(workload.transactions());
      model = utf8(workload.modelVersion());
      rules = utf8(workload.ruleSetVersion());
      features = utf8(workload.featureSetVersion());
      names = Arrays.stream(Rules.NAMES).map(Writer::utf8).toArray(byte[][]::new);
    }

    @Override
    public void write(Payment payment, Context context) throws IOException {
      add(payment);
      count++;
      if (count >= workload.gatherRows()) {
        send();
      } else if (!timerIsSet) {
        timerIsSet = true;
        clock.registerTimer(
            clock.getCurrentProcessingTime() + workload.gatherMs(),
            time -> {
              timerIsSet = false;
              send();
            });
      }
    }

    @Override
    public void flush(boolean endOfInput) throws IOException {
      send();
      await();
    }

    @Override
    public void close() {}

    private void send() throws IOException {
      if (count == 0) {
        return;
      }
      await();
      byte[] body = Arrays.copyOf(rows.array(), rows.position());
      rows.clear();
      count = 0;
      underWay =
          client.sendAsync(
              HttpRequest.newBuilder(uri)
                  .POST(HttpRequest.BodyPublishers.ofByteArray(body))
                  .build(),
              HttpResponse.BodyHandlers.ofString());
    }

    private void await() throws IOException {
      if (underWay == null) {
        return;
      }
      HttpResponse<String> response = underWay.join();
      underWay = null;
      if (response.statusCode() != 200) {
        throw new IOException("Inserting rows: " + response.statusCode() + " " + response.body());
      }
    }

    private void add(Payment p) {
      byte[][] texts = {
        utf8(p.eventId), utf8(p.customerId), utf8(p.terminalId), utf8(p.merchantId),
        utf8(p.currency), utf8(p.country), utf8(p.tenant), model, rules, features, transactions,
      };
      int size = 512;
      for (byte[] text : texts) {
        size += text.length + 5;
      }
      if (rows.remaining() < size) {
        ByteBuffer larger = buffer(rows.capacity() * 2);
        rows.flip();
        larger.put(rows);
        rows = larger;
      }
      rows.putLong(p.eventTimeMs).putLong(p.amountMinor).put((byte) p.channel);
      rows.putDouble(p.score).put((byte) p.decision);
      rows.putShort((short) (p.profileMissing ? 512 : 0));
      rows.putInt(p.partition).putLong(p.offset);
      rows.putLong(p.publishedAtMs).putLong(p.ingestedAtMs).putLong(p.decidedAtMs);
      for (double feature : p.features) {
        rows.putDouble(feature);
      }
      for (byte[] text : texts) {
        text(text);
      }
      rows.put((byte) Integer.bitCount(p.rules));
      for (int rule = 0; rule < names.length; rule++) {
        if ((p.rules >> rule & 1) != 0) {
          text(names[rule]);
        }
      }
    }

    private void text(byte[] text) {
      int length = text.length;
      while (length >= 0x80) {
        rows.put((byte) (length | 0x80));
        length >>>= 7;
      }
      rows.put((byte) length).put(text);
    }

    private static byte[] utf8(String text) {
      return text.getBytes(StandardCharsets.UTF_8);
    }

    private static ByteBuffer buffer(int bytes) {
      return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }
  }
}
