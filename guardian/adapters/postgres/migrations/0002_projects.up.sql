-- 'creating' until the log has the project. There is no state for deletion: that enters the log
-- first, and then the row goes.
CREATE TABLE projects (
    id               text COLLATE "C" PRIMARY KEY,
    name             text NOT NULL,
    owner_id         text COLLATE "C" NOT NULL REFERENCES users (id),
    state            text NOT NULL CHECK (state IN ('creating', 'active')),
    created_at_ms    bigint NOT NULL,
    -- of this database's clock: only ever compared with that clock (reconciliation)
    state_changed_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX projects_owner_idx ON projects (owner_id, id);
CREATE INDEX projects_unsettled_idx ON projects (state_changed_at) WHERE state <> 'active';

CREATE TABLE project_roles (
    project_id text COLLATE "C" NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    user_id    text COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role       text NOT NULL CHECK (role IN ('admin', 'editor', 'viewer')),
    PRIMARY KEY (project_id, user_id)
);

CREATE INDEX project_roles_user_idx ON project_roles (user_id, project_id);
