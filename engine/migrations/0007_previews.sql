-- A sandbox's own loopback address, from its first preview to its end.
CREATE TABLE addresses (
    sandbox_id TEXT    NOT NULL PRIMARY KEY REFERENCES sandboxes (id) ON DELETE CASCADE,
    address    INTEGER NOT NULL UNIQUE -- 127.a.b.c as a number
);

CREATE TABLE previews (
    id         TEXT    NOT NULL PRIMARY KEY,
    sandbox_id TEXT    NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port       INTEGER NOT NULL, -- in the guest
    host_port  INTEGER NOT NULL, -- on the sandbox's address
    name       TEXT,
    path       TEXT,             -- where its URL leads; the root when NULL
    visibility TEXT    NOT NULL,
    metadata   TEXT    NOT NULL, -- JSON object
    expires_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (sandbox_id, port),
    UNIQUE (sandbox_id, host_port)
);

-- Tokens that open previews; of the token itself there is only its hash.
CREATE TABLE grants (
    id         TEXT    NOT NULL PRIMARY KEY,
    sandbox_id TEXT    NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    preview_id TEXT    REFERENCES previews (id) ON DELETE CASCADE, -- of this one alone; all of the sandbox's when NULL
    kind       TEXT    NOT NULL,
    scope      TEXT    NOT NULL,
    hash       TEXT    NOT NULL UNIQUE,
    prefix     TEXT    NOT NULL, -- of the token, for people who want to recognise it
    expires_at INTEGER,
    created_at INTEGER NOT NULL
);

CREATE INDEX grants_sandbox ON grants (sandbox_id, created_at);
CREATE INDEX grants_preview ON grants (preview_id) WHERE preview_id IS NOT NULL;
