package riskstream.bridge;

/** Walks a headers section without copying it. */
final class HeaderCursor {
  int nameAt;
  int nameLength;
  int valueAt;

  /** -1 where the value is null. */
  int valueLength;

  private final byte[] data;
  private final int end;
  private int at;
  private int left;

  /**
   * @throws MalformedBytesException when the section is not empty and shorter than its count
   */
  HeaderCursor(byte[] data, int from, int to) {
    this.data = data;
    this.end = to;
    if (to > from) {
      need(from, 2);
      left = Frame.u16(data, from);
      at = from + 2;
    }
  }

  /**
   * Moves to the next header.
   *
   * @return false when there is none
   * @throws MalformedBytesException when a length points outside of the section
   */
  boolean next() {
    if (left == 0) {
      return false;
    }
    left--;
    need(at, 2);
    nameLength = Frame.u16(data, at);
    nameAt = at + 2;
    need(nameAt, nameLength + 4);
    valueLength = Frame.i32(data, nameAt + nameLength);
    valueAt = nameAt + nameLength + 4;
    if (valueLength < -1) {
      throw new MalformedBytesException(
          "Reading a header at byte " + at + ": value length was " + valueLength
              + ", expected -1 or more");
    }
    need(valueAt, Math.max(valueLength, 0));
    at = valueAt + Math.max(valueLength, 0);
    return true;
  }

  private void need(int from, int bytes) {
    if (bytes > end - from) {
      throw new MalformedBytesException(
          "Reading a header at byte " + from + ": " + bytes + " bytes are needed, " + (end - from)
              + " are left of its section");
    }
  }
}
