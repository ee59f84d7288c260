import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Properties;
import java.util.TreeSet;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.admin.Admin;

/** Lists the topics with the Kafka client inside Flink's connector; its properties come from stdin. */
public final class ShadedAdmin {
  private ShadedAdmin() {}

  public static void main(String[] arguments) throws Exception {
    Properties properties = new Properties();
    properties.load(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    try (Admin admin = Admin.create(properties)) {
      System.out.println(new TreeSet<>(admin.listTopics().names().get()));
    }
  }
}
