package riskstream.bench;

/** The default rules of jobs/fraud/rules.yaml, by hand, and the order in which rules and score decide. */
final class Rules {
  static final String[] NAMES = {
    "extreme_amount_for_customer",
    "fraudulent_terminal",
    "amount_far_above_own_mean",
    "payment_burst",
    "high_risk_customer",
    "large_amount",
    "far_from_home",
    "cash_at_night",
  };
  private static final int BLOCK = 1;
  private static final int REVIEW = 0b111110;
  private static final int ATM = 4;

  private Rules() {}

  static int fired(Payment p) {
    double[] f = p.features;
    double amount = f[0];
    double mean = f[8];
    boolean known = f[5] >= 10;
    int fired = 0;
    if (amount >= 100 && known && amount > 5 * mean) {
      fired |= 1;
    }
    if (f[10] >= 3 && f[13] >= 0.5) {
      fired |= 1 << 1;
    }
    if (amount >= 50 && known && amount > 3 * mean) {
      fired |= 1 << 2;
    }
    if (f[3] >= 20) {
      fired |= 1 << 3;
    }
    if (p.customerRiskTier >= 3 && amount >= 200) {
      fired |= 1 << 4;
    }
    if (amount >= 2000) {
      fired |= 1 << 5;
    }
    // Comparisons with NaN are false, as rules on null are.
    double east = Math.abs(p.longitude - p.homeLongitude);
    if ((p.channel == 1 || p.channel == 2 || p.channel == ATM)
        && (Math.abs(p.latitude - p.homeLatitude) > 5 || (east >= 8 && east <= 352))) {
      fired |= 1 << 6;
    }
    if (p.channel == ATM && f[2] != 0 && amount >= 300) {
      fired |= 1 << 7;
    }
    return fired;
  }

  /** 0 approve, 1 review, 2 block. */
  static int decide(double score, int fired, double review, double block) {
    if ((fired & BLOCK) != 0) {
      return 2;
    }
    if (Double.isNaN(score)) {
      return 1;
    }
    if (score >= block) {
      return 2;
    }
    return (fired & REVIEW) != 0 || score >= review ? 1 : 0;
  }
}
