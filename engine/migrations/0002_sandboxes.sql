CREATE TABLE sandboxes (
    id                    TEXT    NOT NULL PRIMARY KEY,
    state                 TEXT    NOT NULL,
    last_error            TEXT,
    template_id           TEXT    NOT NULL,
    template_version      TEXT    NOT NULL,
    size                  TEXT,
    cpu_count             INTEGER NOT NULL,
    memory_mb             INTEGER NOT NULL,
    disk_size_mb          INTEGER NOT NULL,
    cpu_granted           INTEGER,
    timeout_sec           INTEGER NOT NULL,
    idle_timeout_sec      INTEGER NOT NULL,
    always_on             INTEGER NOT NULL,
    persistent            INTEGER NOT NULL,
    env                   TEXT    NOT NULL, -- JSON object of text
    metadata              TEXT    NOT NULL, -- JSON object
    name                  TEXT,
    slug                  TEXT,
    tags                  TEXT    NOT NULL, -- JSON array of text
    external_workspace_id TEXT,
    external_user_id      TEXT,
    external_project_id   TEXT,
    boot_ms               INTEGER,
    boot_path             TEXT,
    created_at            INTEGER NOT NULL,
    started_at            INTEGER,
    ready_at              INTEGER,
    destroyed_at          INTEGER,
    FOREIGN KEY (template_id, template_version) REFERENCES templates (id, version)
);

-- A name belongs to one live sandbox.
CREATE UNIQUE INDEX sandboxes_live_name ON sandboxes (name) WHERE state <> 'destroyed';
CREATE INDEX sandboxes_by_time ON sandboxes (created_at, id);

-- The process that runs a sandbox's machine, and what proves that it is still the same process.
CREATE TABLE machines (
    sandbox_id  TEXT    NOT NULL PRIMARY KEY REFERENCES sandboxes (id) ON DELETE CASCADE,
    pid         INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL -- start time, in clock ticks since the host's boot (proc_pid_stat(5), field 22)
);
