"""The tables of an inbox's file, each record with a checksum, and how a file of an earlier release gets them."""

from __future__ import annotations

_TABLES_2 = """
CREATE TABLE files (
    file TEXT NOT NULL, document TEXT NOT NULL REFERENCES documents (id), state INTEGER NOT NULL,
    place INTEGER NOT NULL, PRIMARY KEY (file, document)
);
CREATE TABLE notes (document TEXT PRIMARY KEY REFERENCES documents (id), reason TEXT NOT NULL, since TEXT NOT NULL);
CREATE TABLE removed (
    document TEXT PRIMARY KEY REFERENCES documents (id), source TEXT NOT NULL, reason TEXT NOT NULL, who TEXT NOT NULL,
    since TEXT NOT NULL
);
"""
_REFUSED = "CREATE TABLE refused (place TEXT PRIMARY KEY, reason TEXT NOT NULL, since TEXT NOT NULL);"
_TABLES_1 = """
CREATE TABLE documents (
    id TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE, arrived TEXT NOT NULL, content TEXT NOT NULL
);
CREATE TABLE claims (
    document TEXT NOT NULL REFERENCES documents (id), whole TEXT NOT NULL, target TEXT NOT NULL,
    place INTEGER NOT NULL UNIQUE, PRIMARY KEY (document, whole, target)
);
CREATE TABLE aside (
    document TEXT PRIMARY KEY REFERENCES documents (id), reason TEXT NOT NULL, night TEXT NOT NULL, since TEXT NOT NULL
);
"""
MIGRATION_2 = f"""{_TABLES_2}
INSERT INTO files SELECT json_extract(content, '$.source'), id, 1, place FROM documents
    WHERE json_extract(content, '$.source') NOT LIKE '%.%json%';
"""
"""Sources were paths, but for those of rows, which do not replace each other by their file."""
_COLUMNS_3 = {
    "documents": "id, place, arrived, content",
    "claims": "document, whole, target, place",
    "files": "file, document, state, place",
    "aside": "document, reason, night, since",
    "notes": "document, reason, since",
    "removed": "document, source, reason, who, since",
    "refused": "place, reason, since",
}
MIGRATION_3 = _REFUSED + "".join(
    f"ALTER TABLE {table} ADD COLUMN checksum TEXT; UPDATE {table} SET checksum = checksum({columns});"
    for table, columns in _COLUMNS_3.items()
)
COLUMNS = {**_COLUMNS_3, "interactions": "id, client, arrived, expires, content, document"}
MIGRATION_4 = """
CREATE TABLE interactions (
    id TEXT PRIMARY KEY, client TEXT NOT NULL, arrived TEXT NOT NULL, expires TEXT NOT NULL, content TEXT NOT NULL,
    document TEXT NOT NULL, checksum TEXT
);
"""
TABLES = _TABLES_1 + _TABLES_2 + MIGRATION_3 + MIGRATION_4


def into(table: str) -> str:
    """Return the rest of an INSERT or REPLACE: the table, and the values with their checksum."""
    values = ", ".join(f"?{i + 1}" for i in range(COLUMNS[table].count(",") + 1))
    return f"INTO {table} VALUES ({values}, checksum({values}))"


# Not OR IGNORE, which would also hide violations of other constraints.
ADD_DOCUMENT = f"INSERT {into('documents')} ON CONFLICT (id) DO NOTHING"
ADD_CLAIM = f"INSERT {into('claims')} ON CONFLICT (document, whole, target) DO NOTHING"
SET_CONTENT = "UPDATE documents SET content = ?1, checksum = checksum(id, place, arrived, ?1) WHERE id = ?2"
SET_PLACE = (
    "UPDATE interactions SET document = ?2, checksum = checksum(id, client, arrived, expires, content, ?2) "
    "WHERE id = ?1 AND content = ?3"
)
SET_INTERACTION = (
    "UPDATE interactions SET content = ?2, checksum = checksum(id, client, arrived, expires, ?2, document) "
    "WHERE id = ?1 AND content = ?3"
)
LAST_PLACE = (
    "SELECT MAX(place) FROM (SELECT 0 AS place UNION SELECT place FROM documents UNION SELECT place FROM claims "
    "UNION SELECT place FROM files)"
)
