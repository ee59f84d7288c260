"""Jobs, one folder each, and their pure core; only `jobs.runtime` imports pyflink."""
