"""A disk that fails below SQLite: the nth operation on the manifest's files fails, or it and all that follow.

The sqlite3 module, its connections and everything above run as they are. The methods of SQLite's own VFS are replaced in
memory by ones that count and, when their time has come, answer as that VFS does when the system call below it failed: with
SQLITE_FULL for ENOSPC, else with the SQLITE_IOERR or SQLITE_CANTOPEN of the operation. Reads are not touched.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import sys
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p, cast, sizeof
from typing import Any

OPERATIONS = ("open", "write", "truncate", "sync", "shm", "delete")
_CODES = {
    "full": dict.fromkeys(OPERATIONS, 13) | {"open": 14, "sync": 1034, "shm": 4874, "delete": 2570},
    "io": {"open": 14, "write": 778, "truncate": 1546, "sync": 1034, "shm": 4874, "delete": 2570},
}
"""What an operation answers: SQLITE_FULL, SQLITE_CANTOPEN, SQLITE_IOERR_WRITE, _TRUNCATE, _FSYNC, _SHMSIZE, _DELETE."""

_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)
_ShmMap = CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int, c_void_p)
_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_Delete = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)


_kept: list[object] = []
"""What SQLite may call at any time, and ctypes frees when nobody holds it."""


class _Methods(Structure):
    """sqlite3_io_methods, version 3."""

    _fields_ = [("version", c_int), ("close", c_void_p), ("read", c_void_p), ("write", _Write), ("truncate", _Truncate), ("sync", _Sync),
                ("others", c_void_p * 7), ("shm", _ShmMap), ("more", c_void_p * 5)]  # fmt: skip


class _File(Structure):
    """sqlite3_file."""

    _fields_ = [("methods", POINTER(_Methods))]


class _Vfs(Structure):
    """The beginning of sqlite3_vfs."""

    _fields_ = [("version", c_int), ("file_bytes", c_int), ("path_bytes", c_int), ("next", c_void_p), ("name", c_char_p), ("data", c_void_p),
                ("open", _Open), ("delete", _Delete)]  # fmt: skip


class FailingVfs:
    """Puts itself below every connection that this process opens from now on, for as long as the process lives."""

    def __init__(self, kind: str, nth: int, *, lasting: bool) -> None:
        """`kind`: "full" or "io"; `nth` 0 only counts."""
        self._codes, self._nth, self._lasting = _CODES[kind], nth, lasting
        self.operations = 0
        self.struck = False
        library = ctypes.CDLL(_sqlite3.__file__)  # whichever SQLite the module itself uses
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        self._vfs = library.sqlite3_vfs_find(None).contents
        _kept.append(self)
        self._methods: dict[int, _Methods] = {}
        open_, delete = self._copy(_Open, self._vfs.open), self._copy(_Delete, self._vfs.delete)
        self._vfs.delete = self._keep(_Delete(lambda *given: self._failing("delete") or delete(*given)))

        def opened(vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
            cast(file, POINTER(_File)).contents.methods = None  # nothing to close, should it fail
            code = self._failing("open") or open_(vfs, name, file, flags, out)
            if not code:
                self._replace(cast(file, POINTER(_File)).contents)
            return code

        self._vfs.open = self._keep(_Open(opened))

    def _failing(self, operation: str) -> int:
        """0, or how this operation fails."""
        self.operations += 1
        if not self._nth or self.operations < self._nth or (self.operations > self._nth and not self._lasting):
            return 0
        if not self.struck:
            self.struck = True
            sys.stderr.write(f"failpoint sqlite {operation} {self.operations}\n")
            sys.stderr.flush()
        return self._codes[operation]

    def _replace(self, file: _File) -> None:
        """Give an open file methods that may fail."""
        address = ctypes.addressof(file.methods.contents)
        if address not in self._methods:
            mine = _Methods.from_buffer_copy(ctypes.string_at(address, sizeof(_Methods)))
            for name, kind in (("write", _Write), ("truncate", _Truncate), ("sync", _Sync), ("shm", _ShmMap)):
                if real := getattr(mine, name):  # a log has no shared memory
                    setattr(mine, name, self._keep(kind(self._counted(name, self._copy(kind, real)))))
            self._methods[address] = mine
        file.methods = ctypes.pointer(self._methods[address])

    def _counted(self, operation: str, real: Callable[..., int]) -> Callable[..., int]:
        return lambda *given: self._failing(operation) or real(*given)

    def _copy(self, kind: Any, function: Any) -> Any:
        """The function as it is now, not the place where its address stands."""
        return kind(cast(function, c_void_p).value)

    def _keep(self, function: Any) -> Any:
        _kept.append(function)
        return function
