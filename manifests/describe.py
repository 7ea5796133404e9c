"""Writes manifests/README.md from the comments of the manifest's schema: `python manifests/describe.py`."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
SCHEMA = HERE.parent / "migrate" / "manifest" / "schema.sql"
QUERIES = """
## Queries

With `sqlite3` (always `-readonly` while a run is active) or `sqlite-utils rows FILE VIEW`:

```sql
SELECT state, count(*) FROM studies GROUP BY state;                       -- where the studies stand
SELECT study, error, detail FROM studies WHERE state = 'parked';          -- what needs a person
SELECT sop, file_sha256 FROM instances WHERE study = '1.2.3';             -- every image of a study with its hash
SELECT study, series, sop FROM instances WHERE state = 'expected';        -- what has not come
SELECT at, operator, kind, detail FROM events WHERE study = '1.2.3';      -- what happened to a study
SELECT transfer_syntax, count(*) FROM instances GROUP BY 1;               -- how the PACS sent it
```
"""


def describe(schema: str) -> str:
    """The page: each table with its comment, and each column with its type and meaning."""
    parts = [
        "# The manifest's format", "",
        "One SQLite file a migration, schema version 1. This page is made from the schema's comments by `manifests/describe.py`.",
        "Times are milliseconds since 1970-01-01T00:00:00Z, hashes are 32-byte BLOBs. `golden/` holds one file of each released version.", "",
    ]  # fmt: skip
    for comment, name, body in re.findall(r"-- ([^\n]+)\nCREATE TABLE (\w+)\((.*?)\n\) STRICT", schema, re.S):
        parts += [f"## `{name}`", comment, "", "| column | type | meaning |", "|---|---|---|"]
        for column, kind, meaning in re.findall(r"^  (\w+) (TEXT|INTEGER|BLOB)[^\n]*?-- ([^\n]+)$", body, re.M):
            parts.append(f"| {column} | {kind} | {meaning.replace('|', '/')} |")
        parts.append("")
    for comment, name in re.findall(r"-- ([^\n]+)\nCREATE VIEW (\w+)", schema):
        parts += [f"## View `{name}`", comment, ""]
    return "\n".join(parts) + QUERIES


if __name__ == "__main__":
    (HERE / "README.md").write_text(describe(SCHEMA.read_text(encoding="utf-8")), encoding="utf-8")
