-- The order in which a shard's windows saw transactions and labels, so that a second computation can
-- take them in the same order. 0 in rows that are older than this column.
ALTER TABLE scored_transactions_raw ADD COLUMN IF NOT EXISTS seen_order Int64 DEFAULT 0 COMMENT 'Grows with every record a shard of the deciding stage saw';
ALTER TABLE labels_raw ADD COLUMN IF NOT EXISTS seen_order Int64 DEFAULT 0 COMMENT 'Grows with every record a shard of the deciding stage saw';
CREATE OR REPLACE VIEW labels AS
SELECT *
FROM labels_raw FINAL
ORDER BY revision DESC, labelled_at_ms DESC, kafka_offset DESC
LIMIT 1 BY event_id;
