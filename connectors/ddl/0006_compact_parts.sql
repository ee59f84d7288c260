-- Parts up to this size keep all columns in one file. With a file for each of some eighty columns, an
-- insert and the first merges cost a fifth more, and that is where most rows are for their first minute.
ALTER TABLE scored_transactions_raw MODIFY SETTING min_bytes_for_wide_part = 134217728;
