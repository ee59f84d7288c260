"""Run stages on Flink; the only place that imports pyflink."""
