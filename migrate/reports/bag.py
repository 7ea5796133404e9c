"""Lists of the proven objects for tools that everybody has: SHA256SUMS for `sha256sum -c`, and a bag (RFC 8493)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from migrate import __version__
from migrate.reports.moment import utc

_DECLARATION = "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"


class Objects:
    """SHA256SUMS and a bag's payload manifest being written, a line an object, in the order they come."""

    def __init__(self, folder: Path) -> None:
        self._bag = folder / "bag"
        (self._bag / "data").mkdir(parents=True, exist_ok=True)
        self._sums = (folder / "SHA256SUMS").open("x", encoding="utf-8", newline="")
        self._manifest = (self._bag / "manifest-sha256.txt").open("x", encoding="utf-8", newline="")
        self.count = self.size_bytes = 0

    def add(self, key: str, file_sha256: str, size_bytes: int) -> None:
        self._sums.write(sums_line(file_sha256, key))
        self._manifest.write(f"{file_sha256}  data/{_percent(key)}\n")
        self.count += 1
        self.size_bytes += size_bytes

    def close(self, migration: str, at_ms: int) -> None:
        """Write the bag's other tag files. `at_ms` becomes its Bagging-Date."""
        self._sums.close()
        self._manifest.close()
        date = utc(at_ms).date()
        tags = {
            "bagit.txt": _DECLARATION,
            "bag-info.txt": f"Bag-Software-Agent: pacs-migrate {__version__}\nBagging-Date: {date}\n"
                            f"External-Identifier: {' '.join(migration.split())}\nPayload-Oxum: {self.size_bytes}.{self.count}\n",
        }  # fmt: skip
        for name, text in tags.items():
            (self._bag / name).write_text(text, encoding="utf-8", newline="")
        names = ("bag-info.txt", "bagit.txt", "manifest-sha256.txt")
        lines = [f"{sha256(self._bag / name)}  {name}\n" for name in names]
        (self._bag / "tagmanifest-sha256.txt").write_text("".join(lines), encoding="utf-8", newline="")


def sums_line(digest: str, name: str) -> str:
    """A line as sha256sum writes it: a name with a backslash or a line break is escaped, which a backslash in front tells."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{chr(92) if escaped != name else ''}{digest}  {escaped}\n"


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _percent(key: str) -> str:
    """RFC 8493 2.1.3: what would break a line, and the sign that says so, is percent-encoded."""
    return key.replace("%", "%25").replace("\n", "%0A").replace("\r", "%0D")
