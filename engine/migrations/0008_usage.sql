-- What a sandbox's machines used of the host's processors, as last seen.
CREATE TABLE usage (
    sandbox_id   TEXT    NOT NULL PRIMARY KEY REFERENCES sandboxes (id) ON DELETE CASCADE,
    ended_cpu_us INTEGER NOT NULL, -- of the processes before this one, together
    pid          INTEGER NOT NULL, -- the latest process, and what proves that it is the same one
    start_ticks  INTEGER NOT NULL,
    cpu_us       INTEGER NOT NULL  -- of that process
);
