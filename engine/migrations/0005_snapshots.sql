-- One file of a disk's chain: `layers/<id>.qcow2`. What it lies on is its parent, or the template's base layer.
CREATE TABLE layers (
    id               TEXT    NOT NULL PRIMARY KEY,
    parent_id        TEXT    REFERENCES layers (id),
    template_id      TEXT    NOT NULL,
    template_version TEXT    NOT NULL,
    disk_bytes       INTEGER NOT NULL, -- size of the disk
    frozen           INTEGER NOT NULL, -- nobody writes to it any more
    created_at       INTEGER NOT NULL,
    FOREIGN KEY (template_id, template_version) REFERENCES templates (id, version)
);

CREATE INDEX layers_parent ON layers (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX layers_template ON layers (template_id, template_version);

-- A captured machine without its disk: the folder `images/<id>`.
CREATE TABLE images (
    id          TEXT    NOT NULL PRIMARY KEY,
    layer_id    TEXT    NOT NULL REFERENCES layers (id), -- the disk's top as of the capture
    fingerprint TEXT    NOT NULL,                        -- of the host that can restore it
    vcpus       INTEGER NOT NULL,                        -- that it really had
    memory_mb   INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,                        -- of its memory that are not holes
    created_at  INTEGER NOT NULL
);

CREATE INDEX images_layer ON images (layer_id);

CREATE TABLE snapshots (
    id               TEXT    NOT NULL PRIMARY KEY,
    sandbox_id       TEXT    NOT NULL, -- of which it was taken; may be gone
    sandbox_name     TEXT,
    parent_id        TEXT,             -- the snapshot that the sandbox last came from or took
    name             TEXT,
    comment          TEXT,
    metadata         TEXT    NOT NULL, -- JSON object
    template_id      TEXT    NOT NULL,
    template_version TEXT    NOT NULL,
    size             TEXT,
    cpu_count        INTEGER NOT NULL,
    memory_mb        INTEGER NOT NULL,
    disk_size_mb     INTEGER NOT NULL,
    env              TEXT    NOT NULL, -- JSON object of text
    layer_id         TEXT    NOT NULL REFERENCES layers (id),
    image_id         TEXT    REFERENCES images (id),
    generation       INTEGER NOT NULL,
    paused_us        INTEGER,          -- how long the machine stood still for it
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    expires_at       INTEGER,
    FOREIGN KEY (template_id, template_version) REFERENCES templates (id, version)
);

CREATE UNIQUE INDEX snapshots_name ON snapshots (name) WHERE name IS NOT NULL;
CREATE INDEX snapshots_sandbox ON snapshots (sandbox_id, created_at);
CREATE INDEX snapshots_layer ON snapshots (layer_id);
CREATE INDEX snapshots_image ON snapshots (image_id) WHERE image_id IS NOT NULL;

-- Machines captured right after their boot, one for each template version, shape and host software.
CREATE TABLE warm (
    key              TEXT    NOT NULL PRIMARY KEY,
    host_key         TEXT    NOT NULL, -- kernel, vmm and host; another one makes the row useless
    template_id      TEXT    NOT NULL,
    template_version TEXT    NOT NULL,
    cpu_count        INTEGER NOT NULL,
    memory_mb        INTEGER NOT NULL,
    disk_size_mb     INTEGER NOT NULL,
    image_id         TEXT    NOT NULL REFERENCES images (id),
    prepared         INTEGER NOT NULL, -- caches are warm
    used_at          INTEGER NOT NULL,
    FOREIGN KEY (template_id, template_version) REFERENCES templates (id, version)
);

-- The disk's top, and the machine as it was when it was paused.
ALTER TABLE sandboxes ADD COLUMN layer_id TEXT REFERENCES layers (id);
ALTER TABLE sandboxes ADD COLUMN image_id TEXT REFERENCES images (id);
ALTER TABLE sandboxes ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sandboxes ADD COLUMN paused_at INTEGER;
ALTER TABLE sandboxes ADD COLUMN extended_at INTEGER;
ALTER TABLE sandboxes ADD COLUMN ran_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sandboxes ADD COLUMN forked_from TEXT;
ALTER TABLE sandboxes ADD COLUMN snapshot_id TEXT;
CREATE INDEX sandboxes_layer ON sandboxes (layer_id) WHERE layer_id IS NOT NULL;
CREATE INDEX sandboxes_image ON sandboxes (image_id) WHERE image_id IS NOT NULL;

-- What a half-done operation needs to be finished or undone: JSON object.
ALTER TABLE operations ADD COLUMN detail TEXT;

-- The layers that the machine really has open, lowest first: JSON array of ids.
ALTER TABLE machines ADD COLUMN chain TEXT NOT NULL DEFAULT '[]';
