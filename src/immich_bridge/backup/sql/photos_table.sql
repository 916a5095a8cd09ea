-- One user's photos. {table} is photos_user_<id>, made by catalog.photos_table().
CREATE TABLE IF NOT EXISTS {table} (
    local_id            TEXT PRIMARY KEY,
    creation_time       DATETIME NOT NULL,
    file_path           TEXT NOT NULL,
    file_name           TEXT NOT NULL,
    file_type           TEXT NOT NULL,
    file_count          INTEGER NOT NULL DEFAULT 0,
    uploaded_extensions TEXT NOT NULL DEFAULT '[]',
    created_at          DATETIME NOT NULL,
    updated_at          DATETIME NOT NULL,
    deleted_at          DATETIME,
    -- Beyond the columns of the API document: the counter of each day, and the
    -- extension that the photo was indexed with.
    number              INTEGER NOT NULL,
    file_extension      TEXT NOT NULL,
    UNIQUE (file_path, number)
);
