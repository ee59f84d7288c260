package riskstream.bench;

/** A payment on its way through the job: a Flink POJO, so that its serializer is generated, not Kryo. */
public class Payment {
  /** Features in the order of the feature set: 3 of the event, 6 of the customer, 6 of the terminal. */
  public static final int FEATURES = 15;

  public String eventId;
  public long eventTimeMs;
  public String customerId;
  public String terminalId;
  public long amountMinor;
  public String currency;
  public String merchantId;
  public int channel;
  public String country;
  /** NaN when unknown. */
  public double latitude;
  /** NaN when unknown. */
  public double longitude;
  public String tenant;
  public int partition;
  public long offset;
  public long publishedAtMs;
  public long ingestedAtMs;
  public double[] features;

  /** -1 without a profile. */
  public int customerRiskTier = -1;
  public double homeLatitude = Double.NaN;
  public double homeLongitude = Double.NaN;
  public boolean profileMissing;

  public double score = Double.NaN;
  public int decision;
  /** Bit n: rule n fired. */
  public int rules;
  public long decidedAtMs;

  /** For Flink. */
  public Payment() {}
}
