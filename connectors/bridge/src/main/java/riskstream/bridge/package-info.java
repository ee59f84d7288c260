/**
 * The Java side of riskstream: it moves bytes and parses nothing but its own framing.
 *
 * <p>Records of Kafka become frames, frames become batches of one shard, batches cross to Python, and
 * packets come back. Every operator is stateless: what it buffers it emits before a checkpoint barrier
 * passes and at the end of the input. The frame and packet formats are in {@code docs/architecture.md};
 * {@code connectors/frames.py} is their other implementation.
 */
package riskstream.bridge;
