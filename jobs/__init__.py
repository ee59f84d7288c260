"""Jobs and their pure core: windows, rules, one folder per job; only `jobs.runtime` imports pyflink."""
