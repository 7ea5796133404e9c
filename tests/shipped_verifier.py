"""verify_dossier.py as it is shipped, run within this process on a copy of a dossier that may be damaged."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "migrate" / "reports" / "verify_dossier.py"
PROGRAM = compile(SOURCE.read_bytes(), str(SOURCE), "exec")


def verify(folder: Path, *more: str) -> tuple[int, str]:
    """Exit code and output of the verifier, within this process; of the shipped one, as the dossier's may be damaged."""
    said = io.StringIO()
    sys.argv = ["verify_dossier.py", str(folder / "dossier"), "--objects", str(folder / "bucket"), *more]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            exec(PROGRAM, {"__name__": "__main__", "__doc__": ""})
    except SystemExit as ended:
        return (ended.code if isinstance(ended.code, int) else 1 if ended.code else 0), f"{said.getvalue()}{ended.code or ''}"
    raise AssertionError("it ends by sys.exit")


def copy(sound: Path, to: Path) -> Path:
    return Path(shutil.copytree(sound, to, ignore=shutil.ignore_patterns("m.db*")))


def repaired(sound: Path, folder: Path) -> Path:
    """The copy, with whatever was damaged as it is in the sound one."""
    for path in (path for name in ("dossier", "bucket") for path in (sound / name).rglob("*") if path.is_file()):
        mine = folder / path.relative_to(sound)
        if not mine.exists() or mine.read_bytes() != path.read_bytes():
            shutil.copyfile(path, mine)
    return folder
