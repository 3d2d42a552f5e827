-- Many sandboxes asked for in one call. Its runner lives in memory: what a server did not get to is settled at the next start.
CREATE TABLE batches (
    id          TEXT    NOT NULL PRIMARY KEY,
    status      TEXT    NOT NULL,
    requested   INTEGER NOT NULL,
    concurrency INTEGER NOT NULL,
    request     TEXT    NOT NULL, -- JSON object: what is the same for all items
    created_at  INTEGER NOT NULL,
    settled_at  INTEGER
);

CREATE TABLE batch_items (
    id            TEXT    NOT NULL PRIMARY KEY,
    batch_id      TEXT    NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    position      INTEGER NOT NULL,
    name          TEXT,
    sandbox_id    TEXT,    -- no reference: an item outlives its sandbox's record
    status        TEXT    NOT NULL,
    error_code    TEXT,
    error_message TEXT,
    started_at    INTEGER,
    ended_at      INTEGER,
    UNIQUE (batch_id, position)
);

CREATE INDEX batch_items_sandbox ON batch_items (sandbox_id) WHERE sandbox_id IS NOT NULL;
