-- Version 1: accounts, their tokens, and the sizes of stored files.
-- The photos of user N stand in a table of their own, photos_user_N (photos_table.sql).

CREATE TABLE users (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,  -- an id is never given twice
    username      TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    created_at    TEXT NOT NULL,
    updated_at    TEXT NOT NULL
);

CREATE TABLE tokens (
    token_hash BLOB PRIMARY KEY,                      -- SHA-256 of the token
    user_id    INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL,                      -- unix seconds
    created_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX tokens_by_user ON tokens (user_id);
CREATE INDEX tokens_by_expiry ON tokens (expires_at);

-- What lies on disk, as it was when it was answered with 200. No reference to users:
-- files outlive the account.
CREATE TABLE files (
    user_id   INTEGER NOT NULL,
    local_id  TEXT NOT NULL,
    extension TEXT NOT NULL,
    size      INTEGER NOT NULL,                       -- bytes
    stored_at TEXT NOT NULL,
    PRIMARY KEY (user_id, local_id, extension)
) WITHOUT ROWID;
