-- Which breach model gave a limit its chance, as it changes on a running job; and prices that are old.
ALTER TABLE risk_limits_raw
    ADD COLUMN IF NOT EXISTS breach_model LowCardinality(String) COMMENT 'Version of the model that gave breach_probability' AFTER breach_probability;

CREATE OR REPLACE VIEW risk_limits AS SELECT * FROM risk_limits_raw FINAL;

ALTER TABLE risk_positions_raw
    ADD COLUMN IF NOT EXISTS stale Bool DEFAULT false COMMENT 'Its price is older than market_risk.stale_ms, by event time' AFTER priced;

CREATE OR REPLACE VIEW risk_positions AS SELECT * FROM risk_positions_raw FINAL;

ALTER TABLE risk_measures_raw
    ADD COLUMN IF NOT EXISTS stale Int64 DEFAULT 0 COMMENT 'Positions whose price is old' AFTER unpriced;

CREATE OR REPLACE VIEW risk_measures AS SELECT * FROM risk_measures_raw FINAL;

CREATE OR REPLACE VIEW risk_measures_now AS
SELECT * FROM risk_measures_raw FINAL
ORDER BY bucket_ms DESC LIMIT 1 BY firm_id, scope, scope_id;
