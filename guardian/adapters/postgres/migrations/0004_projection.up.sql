-- A mirror of the replicated state for people who ask questions in SQL. Never the truth; can be
-- emptied and filled again at any time, so nothing refers to it.

-- Content as jsonb where that can hold it. It can not hold \u0000, lone surrogates and numbers
-- beyond numeric, all of which are JSON.
CREATE FUNCTION guardian_jsonb(content text) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE STRICT AS
$$
BEGIN
    RETURN content::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded OR statement_too_complex THEN
    RETURN NULL;
END
$$;

CREATE TABLE configs (
    project_id     text COLLATE "C" NOT NULL,
    key            text COLLATE "C" NOT NULL,
    schema_id      text COLLATE "C" NOT NULL,
    schema_version integer NOT NULL,
    version        bigint NOT NULL,
    revision       bigint NOT NULL,
    content        text NOT NULL,
    content_json   jsonb,
    digest         bytea NOT NULL,
    updated_by     text NOT NULL,
    updated_at_ms  bigint NOT NULL,
    PRIMARY KEY (project_id, key)
);

CREATE TABLE config_revisions (
    project_id     text COLLATE "C" NOT NULL,
    key            text COLLATE "C" NOT NULL,
    version        bigint NOT NULL,
    revision       bigint NOT NULL,
    kind           text NOT NULL,
    schema_id      text COLLATE "C" NOT NULL,
    schema_version integer NOT NULL,
    content        text,
    content_json   jsonb,
    digest         bytea NOT NULL,
    updated_by     text NOT NULL,
    updated_at_ms  bigint NOT NULL,
    PRIMARY KEY (project_id, key, version)
);

CREATE INDEX config_revisions_revision_idx ON config_revisions (revision);

-- How far the mirror has come: up to and including event <revision>.<ordinal> of that cluster.
CREATE TABLE projection_position (
    cluster_id text COLLATE "C" PRIMARY KEY,
    revision   bigint NOT NULL,
    ordinal    bigint NOT NULL
);
