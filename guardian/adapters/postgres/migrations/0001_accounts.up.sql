CREATE TABLE users (
    id            text COLLATE "C" PRIMARY KEY,
    email         text NOT NULL,
    password_hash text NOT NULL,
    is_admin      boolean NOT NULL,
    created_at_ms bigint NOT NULL
);

-- ASCII folding whatever the server's locale: in a Turkish one, lower('I') is not 'i'
CREATE UNIQUE INDEX users_email_key ON users (lower(email COLLATE "C"));

CREATE INDEX users_admin_idx ON users (id) WHERE is_admin;

-- RFC 9700 4.14: a family is one sign-in; every rotation spends one token and adds its child.
-- Spent ones are kept until they expire, because their reuse is what betrays a theft.
CREATE TABLE refresh_tokens (
    digest        bytea PRIMARY KEY,
    family_id     text COLLATE "C" NOT NULL,
    parent        bytea,
    user_id       text COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    state         text NOT NULL CHECK (state IN ('active', 'spent', 'revoked')),
    expires_at_ms bigint NOT NULL
);

-- never two live children of one sign-in
CREATE UNIQUE INDEX refresh_tokens_one_active ON refresh_tokens (family_id) WHERE state = 'active';

CREATE INDEX refresh_tokens_family_idx ON refresh_tokens (family_id);
CREATE INDEX refresh_tokens_user_idx ON refresh_tokens (user_id);
CREATE INDEX refresh_tokens_expiry_idx ON refresh_tokens (expires_at_ms);
