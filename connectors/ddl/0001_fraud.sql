-- Every scored transaction, once per Kafka record. A record that is scored again after a failure has
-- the same key and replaces its earlier row, whichever was decided last; read through the view.
CREATE TABLE IF NOT EXISTS scored_transactions_raw
(
    event_id String,
    event_time_ms Int64,
    event_time DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(event_time_ms, 'UTC'),
    customer_id String,
    terminal_id String,
    merchant_id String COMMENT 'Empty when the event named none',
    amount_minor Int64 COMMENT 'Minor units (hundredths) of currency',
    currency LowCardinality(String),
    channel Enum8('unknown' = 0, 'card_present' = 1, 'contactless' = 2, 'ecommerce' = 3, 'atm' = 4),
    country LowCardinality(String) COMMENT 'Empty when the event named none',
    tenant LowCardinality(String) COMMENT 'Empty when the event named none',
    score Float64 COMMENT 'Probability of fraud, NaN where no model scored',
    decision Enum8('approve' = 0, 'review' = 1, 'block' = 2),
    flags UInt16 COMMENT 'Bits: see SCORE_FLAGS in connectors/tables.py',
    rules_fired Array(LowCardinality(String)),
    model_version LowCardinality(String),
    rule_set_version LowCardinality(String),
    feature_set_version LowCardinality(String),
    kafka_topic LowCardinality(String),
    kafka_partition Int32,
    kafka_offset Int64,
    published_at_ms Int64 COMMENT 'Kafka timestamp',
    ingested_at_ms Int64 COMMENT 'Read by the job',
    decided_at_ms Int64 COMMENT 'Decision made',
    published_at DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(published_at_ms, 'UTC'),
    ingested_at DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(ingested_at_ms, 'UTC'),
    decided_at DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(decided_at_ms, 'UTC'),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    -- What looks at the last seconds skips all older parts.
    INDEX by_insertion inserted_at TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(decided_at_ms)
PARTITION BY toYYYYMM(event_time)
ORDER BY (event_id, kafka_topic, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000;

-- What became known about transactions, once per Kafka record.
CREATE TABLE IF NOT EXISTS labels_raw
(
    event_id String,
    event_time_ms Int64 COMMENT 'Of the transaction',
    event_time DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(event_time_ms, 'UTC'),
    customer_id String,
    terminal_id String,
    is_fraud Bool,
    labelled_at_ms Int64,
    labelled_at DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(labelled_at_ms, 'UTC'),
    source Enum8('unknown' = 0, 'chargeback' = 1, 'analyst' = 2, 'customer' = 3, 'simulator' = 4),
    revision Int32,
    kafka_topic LowCardinality(String),
    kafka_partition Int32,
    kafka_offset Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(inserted_at)
PARTITION BY toYYYYMM(event_time)
ORDER BY (event_id, kafka_topic, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000;

-- The label that counts for each event: the highest revision, the latest word among equals.
CREATE OR REPLACE VIEW labels AS
SELECT *
FROM labels_raw FINAL
ORDER BY revision DESC, labelled_at_ms DESC, kafka_offset DESC
LIMIT 1 BY event_id;

-- What each shard made of each control record (model and rule changes).
CREATE TABLE IF NOT EXISTS control_outcomes
(
    control_id String,
    kind LowCardinality(String),
    subject String,
    issued_by String,
    issued_at_ms Int64,
    shard Int32,
    outcome LowCardinality(String) COMMENT 'applied, refused or ignored',
    detail String,
    applied_at_ms Int64,
    applied_at DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(applied_at_ms, 'UTC'),
    kafka_topic LowCardinality(String),
    kafka_partition Int32,
    kafka_offset Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(inserted_at)
ORDER BY (kafka_topic, kafka_partition, kafka_offset, shard);

-- How far live features and scores are from what the model was trained on, window by window.
CREATE TABLE IF NOT EXISTS drift
(
    model_version LowCardinality(String),
    feature LowCardinality(String) COMMENT 'Feature, or score',
    measure LowCardinality(String) COMMENT 'psi, ks, missing_rate, population, ...',
    window_start DateTime64(3, 'UTC'),
    window_end DateTime64(3, 'UTC'),
    value Float64,
    threshold Float64,
    breached Bool,
    events UInt64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(inserted_at)
PARTITION BY toYYYYMM(window_start)
ORDER BY (model_version, feature, measure, window_start);
