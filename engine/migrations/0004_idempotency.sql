-- What was answered under an idempotency key.
CREATE TABLE idempotency (
    scope      TEXT    NOT NULL PRIMARY KEY, -- method, path and key
    body_hash  TEXT    NOT NULL,
    status     INTEGER NOT NULL,
    sandbox_id TEXT,
    body       TEXT,
    created_at INTEGER NOT NULL
);

CREATE INDEX idempotency_sandbox ON idempotency (sandbox_id) WHERE sandbox_id IS NOT NULL;
