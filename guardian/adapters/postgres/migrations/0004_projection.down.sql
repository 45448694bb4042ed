DROP TABLE projection_position;
DROP TABLE config_revisions;
DROP TABLE configs;
DROP FUNCTION guardian_jsonb(text);
