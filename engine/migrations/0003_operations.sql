-- The journal: what was begun with a sandbox. Written before the act; a row without an outcome at start-up is what a
-- server left half-done, and is finished or undone.
CREATE TABLE operations (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    sandbox_id  TEXT    NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    kind        TEXT    NOT NULL, -- create, destroy
    begun_at    INTEGER NOT NULL,
    deadline_at INTEGER NOT NULL,
    ended_at    INTEGER,
    outcome     TEXT              -- done, failed, undone
);

CREATE INDEX operations_open ON operations (sandbox_id) WHERE outcome IS NULL;
