package riskstream.bridge;

import java.util.ArrayList;
import java.util.List;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.runtime.tasks.mailbox.Mail;
import org.apache.flink.streaming.util.OneInputStreamOperatorTestHarness;

/** Flink's operator harness, with the mailbox turned by hand. */
final class Harness<IN, OUT> extends OneInputStreamOperatorTestHarness<IN, OUT> {
  Harness(OneInputStreamOperator<IN, OUT> operator) throws Exception {
    super(operator);
    open();
  }

  void send(IN value) throws Exception {
    processElement(new StreamRecord<>(value));
  }

  /** Runs the letters that are there now, as the task does before it reads its next element. */
  int turn() throws Exception {
    int letters = 0;
    getTaskMailbox().createBatch();
    while (true) {
      var mail = getTaskMailbox().tryTakeFromBatch();
      if (mail.isEmpty()) {
        return letters;
      }
      Mail letter = mail.get();
      letter.run();
      letters++;
    }
  }

  /** Returns and forgets what was emitted to the main output. */
  List<OUT> taken() {
    List<OUT> values = new ArrayList<>(extractOutputValues());
    getOutput().clear();
    return values;
  }
}
