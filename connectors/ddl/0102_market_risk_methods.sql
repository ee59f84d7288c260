-- VaR by every method, its back-tests by method, Greeks, marginal VaR.

-- Rows from before have no method: they are plain historical simulation.
ALTER TABLE risk_var_raw
    ADD COLUMN IF NOT EXISTS method LowCardinality(String) AFTER level,
    MODIFY ORDER BY (firm_id, scope, scope_id, level, bucket_ms, method);

CREATE OR REPLACE VIEW risk_var AS
SELECT * REPLACE (if(method = '', 'plain', method) AS method) FROM risk_var_raw FINAL;

ALTER TABLE risk_forecasts_raw
    ADD COLUMN IF NOT EXISTS method LowCardinality(String) AFTER level,
    ADD COLUMN IF NOT EXISTS coverage_lr Float64 DEFAULT nan COMMENT 'Christoffersen, conditional coverage: number and independence at once' AFTER christoffersen_p,
    ADD COLUMN IF NOT EXISTS coverage_p Float64 DEFAULT nan AFTER coverage_lr,
    ADD COLUMN IF NOT EXISTS multiplier_increase Float64 DEFAULT nan COMMENT 'What Basel adds to the multiplier 3; NaN where its table says nothing' AFTER zone,
    MODIFY ORDER BY (firm_id, level, day_ms, method);

CREATE OR REPLACE VIEW risk_forecasts AS
SELECT * REPLACE (if(method = '', 'plain', method) AS method) FROM risk_forecasts_raw FINAL;

ALTER TABLE risk_positions_raw
    ADD COLUMN IF NOT EXISTS component_es Float64 DEFAULT nan COMMENT 'Share of the expected shortfall of the firm' AFTER component_var,
    ADD COLUMN IF NOT EXISTS marginal_var Float64 DEFAULT nan COMMENT 'VaR of the firm for one more unit of money in it; NaN when flat' AFTER component_es,
    ADD COLUMN IF NOT EXISTS delta Float64 DEFAULT nan COMMENT 'Money in the underlying that moves as much' AFTER marginal_var,
    ADD COLUMN IF NOT EXISTS gamma Float64 DEFAULT nan COMMENT 'Change of delta for 1 % of the underlying' AFTER delta,
    ADD COLUMN IF NOT EXISTS vega Float64 DEFAULT nan COMMENT 'Gain for one point of volatility' AFTER gamma,
    ADD COLUMN IF NOT EXISTS theta Float64 DEFAULT nan COMMENT 'Gain as a day passes' AFTER vega,
    ADD COLUMN IF NOT EXISTS rho Float64 DEFAULT nan COMMENT 'Gain for one point of the rate' AFTER theta;

CREATE OR REPLACE VIEW risk_positions AS SELECT * FROM risk_positions_raw FINAL;

ALTER TABLE risk_measures_raw
    ADD COLUMN IF NOT EXISTS delta Float64 DEFAULT nan COMMENT 'Greeks as in risk_positions, summed' AFTER margin,
    ADD COLUMN IF NOT EXISTS gamma Float64 DEFAULT nan AFTER delta,
    ADD COLUMN IF NOT EXISTS vega Float64 DEFAULT nan AFTER gamma,
    ADD COLUMN IF NOT EXISTS theta Float64 DEFAULT nan AFTER vega,
    ADD COLUMN IF NOT EXISTS rho Float64 DEFAULT nan AFTER theta;

CREATE OR REPLACE VIEW risk_measures AS SELECT * FROM risk_measures_raw FINAL;

CREATE OR REPLACE VIEW risk_measures_now AS
SELECT * FROM risk_measures_raw FINAL
ORDER BY bucket_ms DESC LIMIT 1 BY firm_id, scope, scope_id;

-- The chance of a breach of each account, desk and firm: that of the likeliest of its limits.
CREATE OR REPLACE VIEW risk_breach AS
SELECT firm_id, scope, scope_id, max(chance) AS breach_probability,
    argMax(limit_id, chance) AS limit_id, countIf(status = 'breach') AS breached,
    count() AS limits, max(evaluated) AS evaluated_at_ms
FROM
(
    SELECT firm_id, scope, scope_id, limit_id, status, breach_probability AS chance,
        evaluated_at_ms AS evaluated
    FROM risk_limits_raw FINAL
    WHERE NOT isNaN(breach_probability)
)
GROUP BY firm_id, scope, scope_id;
