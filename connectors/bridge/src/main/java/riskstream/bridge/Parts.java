package riskstream.bridge;

import java.util.List;

/** Joins byte arrays. */
final class Parts {
  private Parts() {}

  /** Returns the parts one after another; a single part is returned as it is, not copied. */
  static byte[] join(List<byte[]> parts, int totalBytes) {
    if (parts.size() == 1) {
      return parts.get(0);
    }
    byte[] all = new byte[totalBytes];
    int at = 0;
    for (byte[] part : parts) {
      System.arraycopy(part, 0, all, at, part.length);
      at += part.length;
    }
    return all;
  }
}
