package riskstream.bridge;

/**
 * Bytes between two of our own operators do not have the agreed layout.
 *
 * <p>That is never bad input (whatever Kafka holds fits a frame) but a bug or a version mismatch between
 * the jar and the Python packages, so it fails the job.
 */
public final class MalformedBytesException extends IllegalArgumentException {
  private static final long serialVersionUID = 1L;

  MalformedBytesException(String message) {
    super(message);
  }
}
