-- One row per attempt to write a version. The log decides which attempt won; its row becomes the
-- version's only one. Bodies are bytes, because their digest is over bytes.
CREATE TABLE config_schemas (
    id               text COLLATE "C" NOT NULL,
    version          integer NOT NULL CHECK (version > 0),
    attempt_id       text COLLATE "C" NOT NULL,
    state            text NOT NULL CHECK (state IN ('pending', 'active')),
    name             text NOT NULL,
    body             bytea NOT NULL,
    digest           bytea NOT NULL,
    created_by       text COLLATE "C" NOT NULL,
    created_at_ms    bigint NOT NULL,
    state_changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, version, attempt_id)
);

CREATE UNIQUE INDEX config_schemas_one_active ON config_schemas (id, version)
    WHERE state = 'active';
CREATE INDEX config_schemas_pending_idx ON config_schemas (state_changed_at)
    WHERE state = 'pending';
