package riskstream.bench;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;

/**
 * Scores with ONNX, evaluates the rules and decides.
 *
 * <p>With {@code rows} above 1 it waits up to {@code waitMs} for so many payments and scores them in one call. Nothing is held across a
 * checkpoint barrier, so it needs no state.
 */
final class Scorer extends AbstractStreamOperator<Payment>
    implements OneInputStreamOperator<Payment, Payment> {
  private static final long serialVersionUID = 1L;

  private final Workload workload;
  private final int rows;
  private final long waitMs;
  private transient OrtEnvironment environment;
  private transient OrtSession session;
  private transient FloatBuffer matrix;
  private transient List<Payment> held;
  private transient boolean timerIsSet;

  Scorer(Workload workload, int rows, long waitMs) {
    this.workload = workload;
    this.rows = rows;
    this.waitMs = waitMs;
  }

  @Override
  public void open() throws Exception {
    super.open();
    environment = OrtEnvironment.getEnvironment();
    OrtSession.SessionOptions options = new OrtSession.SessionOptions();
    options.setIntraOpNumThreads(1);
    options.setInterOpNumThreads(1);
    options.addConfigEntry("session.intra_op.allow_spinning", "0");
    session = environment.createSession(workload.model(), options);
    matrix =
        ByteBuffer.allocateDirect(rows * Payment.FEATURES * Float.BYTES)
            .order(ByteOrder.nativeOrder())
            .asFloatBuffer();
    held = new ArrayList<>(rows);
  }

  @Override
  public void processElement(StreamRecord<Payment> element) throws OrtException {
    held.add(element.getValue());
    if (held.size() >= rows) {
      emitAll();
    } else if (!timerIsSet) {
      timerIsSet = true;
      getProcessingTimeService()
          .registerTimer(
              getProcessingTimeService().getCurrentProcessingTime() + waitMs,
              time -> {
                timerIsSet = false;
                emitAll();
              });
    }
  }

  private void emitAll() throws OrtException {
    int count = held.size();
    if (count == 0) {
      return;
    }
    matrix.clear();
    for (Payment payment : held) {
      for (double value : payment.features) {
        matrix.put((float) value);
      }
    }
    matrix.flip();
    long[] shape = {count, Payment.FEATURES};
    try (OnnxTensor input = OnnxTensor.createTensor(environment, matrix, shape);
        OrtSession.Result result =
            session.run(Map.of(workload.modelInput(), input), Set.of(workload.modelOutput()))) {
      FloatBuffer scores = ((OnnxTensor) result.get(0)).getFloatBuffer();
      long now = System.currentTimeMillis();
      for (int i = 0; i < count; i++) {
        Payment payment = held.get(i);
        payment.score = scores.get(i);
        payment.rules = Rules.fired(payment);
        payment.decision =
            Rules.decide(payment.score, payment.rules, workload.review(), workload.block());
        payment.decidedAtMs = now;
        output.collect(new StreamRecord<>(payment));
      }
    }
    held.clear();
  }

  @Override
  public void processWatermark(Watermark mark) throws Exception {
    emitAll();
    super.processWatermark(mark);
  }

  @Override
  public void prepareSnapshotPreBarrier(long checkpointId) throws Exception {
    emitAll();
    super.prepareSnapshotPreBarrier(checkpointId);
  }

  @Override
  public void finish() throws Exception {
    emitAll();
    super.finish();
  }

  @Override
  public void close() throws Exception {
    if (session != null) {
      session.close();
    }
    super.close();
  }
}
