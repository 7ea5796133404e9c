"""Named points in an instance's life at which this process can be made to die, to fail or to wait: for tests, off otherwise.

`PACS_MIGRATE_FAILPOINT=NAME:ACTION[:NTH[+]][,...]` arms them: at the NTH time (the first, where none is given) that NAME is
reached ACTION happens, with `+` every time from then on. Off, a point costs one look at an empty table. The name `disk` is
reached by every operation of `migrate.staging.disk`. Standard library only.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass

VARIABLE = "PACS_MIGRATE_FAILPOINT"
DELAY_S = 0.3

POINTS: dict[str, str] = {
    # start
    "manifest-opened": "the manifest's file is there, its schema not yet looked at",
    "upgrade-begun": "before the steps of the schema are taken",
    "upgrade-step": "within the transaction of a step",
    "upgrade-done": "the schema is the newest, the law not yet written",
    "identity-claimed": "the manifest knows its source and destination",
    "run-begun": "the run is on record",
    "staging-swept": "leftovers of the last run are gone",
    "destination-prepared": "the destination was reached and cleared",
    # enumerate
    "sweep-planned": "the windows of a sweep are on record",
    "enumerate-asked": "before a C-FIND at STUDY level",
    "enumerate-row": "a STUDY row came",
    "enumerate-answered": "the answer ended with Success",
    "plan-asked": "before the C-FINDs for a study's images",
    "plan-answered": "all images of a study are listed",
    # retrieve
    "move-asked": "before a C-MOVE",
    "move-answered": "the last answer to a C-MOVE came",
    "retrieve-ended": "an attempt at a study ended, which is not yet on record",
    # receive
    "receive-associated": "an association is accepted",
    "receive-command": "a C-STORE request came",
    "receive-create": "before its file is made",
    "receive-fragment": "a fragment of the data set came",
    "receive-whole": "the last fragment is written",
    "receive-closed": "the file is closed, not synced",
    "receive-scanned": "its structure was checked",
    "receive-delivered": "it is on its way to durability, not answered",
    "receive-answered": "the C-STORE is answered",
    # stage
    "stage-taken": "a batch of files is to be made durable",
    "stage-read": "a file was read back and compared",
    "stage-synced": "a file is synced",
    "stage-rename": "before a file gets its final name",
    "stage-renamed": "it has its final name",
    "stage-folders-synced": "all folders of the batch are synced",
    "stage-handed-on": "the fact is on its way to the commit",
    # put, attest
    "put-begun": "before an object is put",
    "put-copied": "the folder's temporary file is whole and synced",
    "put-published": "the object has its name in the folder",
    "put-done": "the destination has said that it has it",
    "attest-begun": "before the destination is asked for its proof",
    "attest-done": "the proof is there, not yet on record",
    # release
    "release-begun": "before a proven staged file is removed",
    "release-done": "it is removed",
    # commit
    "commit-begun": "a transaction is open",
    "commit-applied": "its facts are rows",
    "commit-settled": "its studies are settled, COMMIT comes next",
    "commit-done": "COMMIT has returned",
    "commit-effects": "what the commit allows is done on the disk",
    # close
    "confirm-answered": "the last look at a study is taken",
    "sweep-closed": "a closing sweep found nothing new, which is not yet on record",
    "checkpoint-begun": "before the write-ahead log moves into the file",
    "checkpoint-done": "it has moved",
    "run-ended": "all is done, the run's end is not yet on record",
    "anchor-begun": "the run's end is on record, not yet anchored at the destination",
    "anchor-kept": "its anchor stands at the destination",
    # each file operation of staging and of the folder destination
    "disk": "before any operation on a file or folder",
}
"""Every name, with where it stands."""

_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO, "emfile": errno.EMFILE, "erofs": errno.EROFS, "edquot": errno.EDQUOT}
ACTIONS = ("kill", "raise", "delay", *_ERRORS)


class Failpoint(Exception):
    """An exception that nobody expects, as a defect would raise it."""


@dataclass
class _Armed:
    action: str
    nth: int
    lasting: bool
    reached: int = 0


_armed: dict[str, _Armed] = {}
_lock = threading.Lock()


def arm(text: str) -> None:
    """Arm what the variable's value says, and nothing else. Raises ValueError for an unknown name or action."""
    _armed.clear()
    for entry in filter(None, text.split(",")):
        name, action, *rest = entry.split(":")
        nth = rest[0] if rest else "1"
        if name not in POINTS or action not in ACTIONS or len(rest) > 1 or not nth.removesuffix("+").isdigit():
            raise ValueError(f"{VARIABLE}: {entry} is not NAME:ACTION[:NTH[+]] with a known name and action")
        _armed[name] = _Armed(action, int(nth.removesuffix("+")), nth.endswith("+"))


def reach(name: str) -> None:
    """This point is reached. Does not return, raises Failpoint or OSError, or waits, where that was asked for."""
    if _armed:
        _reached(name)


def _reached(name: str) -> None:
    armed = _armed.get(name)
    if armed is None:
        return
    with _lock:
        armed.reached += 1
        due = armed.reached == armed.nth or (armed.lasting and armed.reached > armed.nth)
    if not due:
        return
    sys.stderr.write(f"failpoint {name}:{armed.action}:{armed.reached}\n")
    sys.stderr.flush()
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if armed.action == "delay":
        time.sleep(DELAY_S)
        return
    if armed.action == "raise":
        raise Failpoint(f"failpoint {name}")
    number = _ERRORS[armed.action]
    raise OSError(number, os.strerror(number))


arm(os.environ.get(VARIABLE, ""))
