-- Market risk: what traders and risk officers watch. Every table replaces: a row that is written again
-- after a restart has the same key. Read through the views, which deduplicate.

-- Open, high, low, close and volume by interval; a late trade writes the bar again with more trades.
CREATE TABLE IF NOT EXISTS risk_bars_raw
(
    instrument_id String,
    interval_ms Int64,
    start_ms Int64,
    start DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(start_ms, 'UTC'),
    open Float64,
    high Float64,
    low Float64,
    close Float64,
    volume Float64,
    trades Int64,
    vwap Float64,
    moving_average Float64 COMMENT 'Mean close of up to 20 bars',
    realised_volatility Float64 COMMENT 'Of up to 20 bars, not annualised',
    ewma_volatility Float64 COMMENT 'Per bar, decay 0.94',
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    INDEX by_insertion inserted_at TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(trades)
PARTITION BY toYYYYMM(start)
ORDER BY (instrument_id, interval_ms, start_ms);

CREATE OR REPLACE VIEW risk_bars AS SELECT * FROM risk_bars_raw FINAL;

-- The newest market of each instrument.
CREATE TABLE IF NOT EXISTS risk_marks_raw
(
    instrument_id String,
    last Float64 COMMENT 'NaN when nothing traded yet',
    bid Float64 COMMENT 'NaN when there is none',
    ask Float64 COMMENT 'NaN when there is none',
    mid Float64 COMMENT 'NaN unless both sides are there and do not cross',
    spread Float64,
    last_ms Int64,
    quote_ms Int64,
    volatility Float64 COMMENT 'EWMA of log returns from trade to trade',
    revision Int64 COMMENT 'Trades and quotes seen',
    ingested_at_ms Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY instrument_id;

CREATE OR REPLACE VIEW risk_marks AS SELECT * FROM risk_marks_raw FINAL;

-- The blotter: every fill once.
CREATE TABLE IF NOT EXISTS risk_fills_raw
(
    fill_id String,
    firm_id LowCardinality(String),
    desk_id LowCardinality(String),
    account_id String,
    instrument_id String,
    event_time_ms Int64,
    event_time DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(event_time_ms, 'UTC'),
    quantity Float64,
    price Float64,
    fee Float64 COMMENT 'In the currency of the instrument',
    outcome Enum8('applied' = 0, 'repeated' = 1),
    kafka_topic LowCardinality(String),
    kafka_partition Int32,
    kafka_offset Int64,
    published_at_ms Int64,
    ingested_at_ms Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    INDEX by_insertion inserted_at TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(inserted_at)
PARTITION BY toYYYYMM(event_time)
ORDER BY (fill_id, kafka_topic, kafka_partition, kafka_offset);

CREATE OR REPLACE VIEW risk_fills AS SELECT * FROM risk_fills_raw FINAL WHERE outcome = 'applied';

-- Every position as it now stands.
CREATE TABLE IF NOT EXISTS risk_positions_raw
(
    firm_id LowCardinality(String),
    desk_id LowCardinality(String),
    account_id String,
    instrument_id String,
    quantity Float64,
    average_price Float64 COMMENT 'NaN when flat',
    mark Float64 COMMENT 'NaN when unknown',
    mark_ms Int64 COMMENT 'Event time of the mark: how stale it is',
    value Float64 COMMENT 'Base currency, as all money below',
    realised Float64 COMMENT 'By average cost',
    unrealised Float64,
    fifo_realised Float64,
    fifo_unrealised Float64,
    fees Float64,
    component_var Float64 COMMENT 'Share of the VaR of the firm at the highest level',
    priced Bool,
    event_time_ms Int64,
    sequence Int64,
    evaluated_at_ms Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(evaluated_at_ms)
ORDER BY (firm_id, account_id, desk_id, instrument_id);

CREATE OR REPLACE VIEW risk_positions AS SELECT * FROM risk_positions_raw FINAL;

-- Exposure, profit and risk of each instrument, account, desk and firm, second by second: the P&L curve.
CREATE TABLE IF NOT EXISTS risk_measures_raw
(
    firm_id LowCardinality(String),
    scope LowCardinality(String),
    scope_id String,
    bucket_ms Int64 COMMENT 'Event time, whole seconds',
    bucket DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(bucket_ms, 'UTC'),
    gross Float64,
    net Float64,
    leverage Float64 COMMENT 'Gross over the equity of the firm',
    realised Float64,
    unrealised Float64,
    fees Float64,
    pnl Float64 COMMENT 'Realised and unrealised less fees',
    value_at_risk Float64 COMMENT 'At the highest level; NaN while there are no scenarios',
    expected_shortfall Float64,
    margin Float64,
    positions Int64,
    unpriced Int64 COMMENT 'Positions without a price: while there are any, numbers are provisional',
    sequence Int64,
    evaluated_at_ms Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    INDEX by_insertion inserted_at TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(evaluated_at_ms)
PARTITION BY toYYYYMM(bucket)
ORDER BY (firm_id, scope, scope_id, bucket_ms);

CREATE OR REPLACE VIEW risk_measures AS SELECT * FROM risk_measures_raw FINAL;

CREATE OR REPLACE VIEW risk_measures_now AS
SELECT * FROM risk_measures_raw FINAL
ORDER BY bucket_ms DESC LIMIT 1 BY firm_id, scope, scope_id;

-- VaR and expected shortfall at each level.
CREATE TABLE IF NOT EXISTS risk_var_raw
(
    firm_id LowCardinality(String),
    scope LowCardinality(String),
    scope_id String,
    level Float64,
    bucket_ms Int64,
    bucket DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(bucket_ms, 'UTC'),
    value_at_risk Float64,
    expected_shortfall Float64,
    evaluated_at_ms Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(evaluated_at_ms)
PARTITION BY toYYYYMM(bucket)
ORDER BY (firm_id, scope, scope_id, level, bucket_ms);

CREATE OR REPLACE VIEW risk_var AS SELECT * FROM risk_var_raw FINAL;

-- What each stress scenario would cost each account, desk and firm now.
CREATE TABLE IF NOT EXISTS risk_stress_raw
(
    firm_id LowCardinality(String),
    scope LowCardinality(String),
    scope_id String,
    scenario_id String,
    pnl Float64,
    evaluated_at_ms Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(evaluated_at_ms)
ORDER BY (firm_id, scope, scope_id, scenario_id);

CREATE OR REPLACE VIEW risk_stress AS SELECT * FROM risk_stress_raw FINAL;

-- Every limit as it now stands.
CREATE TABLE IF NOT EXISTS risk_limits_raw
(
    firm_id LowCardinality(String),
    limit_id String,
    scope LowCardinality(String),
    scope_id String,
    measure LowCardinality(String),
    value Float64,
    warning Float64,
    breach Float64,
    status Enum8('within' = 0, 'near' = 1, 'breach' = 2),
    acknowledged Bool,
    breach_probability Float64 COMMENT 'Chance of a breach in the next minutes by the model; NaN without one',
    event_time_ms Int64,
    evaluated_at_ms Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(evaluated_at_ms)
ORDER BY (firm_id, limit_id);

CREATE OR REPLACE VIEW risk_limits AS SELECT * FROM risk_limits_raw FINAL;

-- Daily VaR forecasts against what came.
CREATE TABLE IF NOT EXISTS risk_forecasts_raw
(
    firm_id LowCardinality(String),
    level Float64,
    day_ms Int64 COMMENT 'Midnight UTC that began the day',
    day DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(day_ms, 'UTC'),
    forecast Float64,
    pnl Float64,
    exception Bool,
    observations Int64,
    exceptions Int64,
    kupiec_lr Float64,
    kupiec_p Float64,
    christoffersen_lr Float64,
    christoffersen_p Float64,
    zone LowCardinality(String),
    evaluated_at_ms Int64,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(evaluated_at_ms)
ORDER BY (firm_id, level, day_ms);

CREATE OR REPLACE VIEW risk_forecasts AS SELECT * FROM risk_forecasts_raw FINAL;
