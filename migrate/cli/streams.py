"""stdout and stderr as a command of days needs them: always there, and nothing hangs on who reads them."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from migrate.errors import DiskFailing

_SAID = "The work itself is not touched by it: `pacs-migrate status` and `pacs-migrate report` tell again what is on record."


class _Lasting(io.FileIO):
    """A stream whose reader may go away (`| head`, a closed terminal): what is said after that is lost, the work goes on and the exit code is its own.

    `needed`: whatever else keeps it from being written raises DiskFailing, as a document that is not whole is no answer.
    """

    def __init__(self, fd: int, *, needed: bool) -> None:
        super().__init__(fd, "w", closefd=False)
        self._needed = needed

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)
        except OSError as error:
            if not self._needed:
                return len(data)
            raise DiskFailing(f"The output cannot be written: {error.strerror}.", hint=_SAID) from error


def keep_streams() -> None:
    """Give this process streams that last. To be called before it opens any file."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us: the next file, perhaps the manifest, would get its number
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    sys.stdout, sys.stderr = _lasting(sys.stdout, needed=True), _lasting(sys.stderr, needed=False)


def _lasting(stream: TextIO, *, needed: bool) -> TextIO:
    """The same stream, which also takes names that are no Unicode, as Linux allows them. On a terminal nothing is a document."""
    return io.TextIOWrapper(io.BufferedWriter(_Lasting(stream.fileno(), needed=needed and not stream.isatty())), encoding=stream.encoding, errors="backslashreplace", line_buffering=True)
