"""instances.parquet: the rows of instances.csv.gz for programs that analyse them. Needs the extra `parquet` (pyarrow)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from migrate.errors import UsageError
from migrate.reports.tables import INSTANCE_COLUMNS

INSTANCES = "instances.parquet"
_NUMBERS = {
    "listed", "conflict", "beside", "size_bytes", "staged_at", "stored_at", "verified_at", "staged_seal", "stored_seal", "verified_seal",
}  # fmt: skip
_GROUP_ROWS = 20_000  # held in memory, some 20 MiB


def require() -> None:
    """Raises UsageError where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UsageError("--parquet needs pyarrow, which is not installed.",
                         hint="pip install 'pacs-migrate[parquet]', or leave --parquet out: instances.csv.gz has the same rows.") from error  # fmt: skip


class ParquetTable:
    """A Parquet file being written by INSTANCE_COLUMNS; equal rows give equal bytes with the same pyarrow. NULL is null, no text is changed."""

    def __init__(self, path: Path, group_rows: int = _GROUP_ROWS) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        self._arrow, self._group_rows = pyarrow, group_rows
        self._schema = pyarrow.schema([(name, pyarrow.int64() if name in _NUMBERS else pyarrow.string()) for name in INSTANCE_COLUMNS])
        self._writer = ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []

    def row(self, values: Iterable[Any]) -> None:
        """Add one; every so many rows they go to the disk as a group."""
        self._rows.append(tuple(values))
        if len(self._rows) == self._group_rows:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True)
        arrays = [self._arrow.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema), row_group_size=self._group_rows)
        self._rows.clear()

    def __enter__(self) -> ParquetTable:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
