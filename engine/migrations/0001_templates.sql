-- What sandboxes are made from. Times are microseconds since 1970, UTC.
CREATE TABLE templates (
    id              TEXT    NOT NULL,
    version         TEXT    NOT NULL,
    -- The version that new sandboxes get; one for each id.
    current         INTEGER NOT NULL,
    name            TEXT    NOT NULL,
    description     TEXT    NOT NULL,
    aliases         TEXT    NOT NULL, -- JSON array of text
    tags            TEXT    NOT NULL, -- JSON array of text
    built_in        INTEGER NOT NULL,
    is_default      INTEGER NOT NULL,
    cpu_count       INTEGER NOT NULL,
    memory_mb       INTEGER NOT NULL,
    disk_size_mb    INTEGER NOT NULL,
    workdir         TEXT    NOT NULL,
    root            TEXT    NOT NULL, -- path of the base layer
    root_bytes      INTEGER NOT NULL,
    -- Changed when someone writes to the base layer, which nobody may.
    root_modified_us INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    PRIMARY KEY (id, version)
);

CREATE UNIQUE INDEX templates_current ON templates (id) WHERE current = 1;
