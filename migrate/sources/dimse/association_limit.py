"""How many associations may be open to the PACS at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from migrate.dicom.upper_layer import Rejected
from migrate.errors import Interrupted, SourceUnreachable

_TRY_MORE = 100  # associations without a rejection, after which one more at once is tried


class AssociationLimit:
    """Gives places, no more at once than `limit` (None: any number) and than the PACS takes: where it rejects one of several for
    now, there are only as many as the others. Thread-safe."""

    def __init__(self, limit: int | None, stopped: threading.Event) -> None:
        self._most, self._limit, self._stopped = limit, limit, stopped
        self._room = threading.Condition()
        self._open = self._good = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A place for what is done inside. Raises Interrupted when the run is being stopped: nobody is to blame for that."""
        with self._room:
            while self._limit is not None and self._open >= self._limit:
                if self._stopped.is_set():
                    raise Interrupted("The run is being stopped.")
                self._room.wait(0.2)
            self._open += 1
        try:
            yield
            self._went_well()
        except SourceUnreachable as error:
            if isinstance(error.__cause__, Rejected):
                self._was_rejected()
            raise
        finally:
            with self._room:
                self._open -= 1
                self._room.notify_all()

    def _was_rejected(self) -> None:
        with self._room:
            self._good = 0
            if self._open > 1:
                self._limit = self._open - 1 if self._limit is None else min(self._limit, self._open - 1)

    def _went_well(self) -> None:
        with self._room:
            self._good += 1
            if self._limit is not None and self._limit != self._most and self._good >= _TRY_MORE:
                self._limit, self._good = self._limit + 1, 0
