-- The running account: what each `riskstream audit --watch` found, so that dashboards can show it.
CREATE TABLE IF NOT EXISTS accounts
(
    job LowCardinality(String),
    made_at DateTime64(3, 'UTC'),
    offsets_in UInt64,
    scored UInt64,
    dead_lettered UInt64,
    control UInt64,
    missing UInt64,
    doubled UInt64,
    unexpected UInt64,
    alerts_expected UInt64,
    alerts_found UInt64,
    alerts_wrong UInt64,
    clean Bool,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = MergeTree
ORDER BY (job, made_at)
TTL toDateTime(made_at) + INTERVAL 90 DAY;
