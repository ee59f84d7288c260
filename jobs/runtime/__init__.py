"""Run stages on Flink; the only place that imports pyflink."""

from jobs.runtime import _worker_print

__all__: list[str] = []

_worker_print.mend()
