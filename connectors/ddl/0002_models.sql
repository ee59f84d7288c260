-- What models that do not decide made of transactions: one row a model and Kafka record.
CREATE TABLE IF NOT EXISTS shadow_scores_raw
(
    event_id String,
    event_time_ms Int64,
    event_time DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(event_time_ms, 'UTC'),
    model_version LowCardinality(String),
    score Float64 COMMENT 'NaN where the model did not score',
    kafka_topic LowCardinality(String),
    kafka_partition Int32,
    kafka_offset Int64,
    decided_at_ms Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(decided_at_ms)
PARTITION BY toYYYYMM(event_time)
ORDER BY (model_version, event_id, kafka_topic, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW shadow_scores AS SELECT * FROM shadow_scores_raw FINAL;

-- Precision and recall of a model's decisions, window by window, as far as labels have come.
CREATE TABLE IF NOT EXISTS model_quality
(
    model_version LowCardinality(String),
    window_start DateTime64(3, 'UTC'),
    window_end DateTime64(3, 'UTC'),
    as_of DateTime64(3, 'UTC') COMMENT 'Newest event when it was computed',
    events UInt64,
    mature UInt64 COMMENT 'Old enough for their labels to be in',
    flagged UInt64 COMMENT 'Mature events that were not approved',
    precision Float64 COMMENT 'Of mature events; NaN when none was flagged',
    recall Float64 COMMENT 'Of mature events; NaN when none was fraud',
    precision_corrected Float64 COMMENT 'Of all events, for frauds whose labels are still out',
    recall_corrected Float64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(inserted_at)
PARTITION BY toYYYYMM(window_start)
ORDER BY (model_version, window_start);
