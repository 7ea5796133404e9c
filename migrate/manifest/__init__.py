"""The manifest: the queue, the record and the law of a migration, in one SQLite file."""

from migrate.manifest.file import Lock
from migrate.manifest.queue import Queue
from migrate.manifest.store import Manifest
from migrate.manifest.writer import Effects

__all__ = ["Effects", "Lock", "Manifest", "Queue"]
