"""Every study is told of by an event, some hundreds at once; what was added, lost or rewritten later differs from it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from migrate.manifest.announcements import AT_ONCE
from migrate.manifest.audit import audit
from migrate.model import RetrieveEnded, StudyFound, StudyRef
from tests.filled import came, fresh_manifest, received, swept


def filled(folder: Path) -> Path:
    """Five studies found in two batches, one of which changed later; a sixth came without being listed."""
    with fresh_manifest(folder) as manifest:
        swept(manifest, "1.1", "1.2", "1.3", claimed=4)
        window = swept(manifest, "1.1", "1.4", "1.5", claimed=4)
        manifest.commit([StudyFound(StudyRef("1.2"), "20200505", ("CT", "SR"), 5, window, "101112")])
        manifest.commit([StudyFound(StudyRef("1.2"), "20200505", ("CT",), 6, window)])
        manifest.commit([came(received("1.6", "1.6.1.1")), RetrieveEnded(StudyRef("1.6"), 0)])
        return manifest.path


def test_a_sound_manifest_is_what_its_announcements_say(tmp_path: Path) -> None:
    """Studies that changed since, and one that came without being listed, are told of as they were found."""
    connection = sqlite3.connect(filled(tmp_path))
    audited = audit(connection, "")
    assert (audited.troubles, audited.studies) == ([], 6)
    told = [detail.count(",") // 4 for (detail,) in connection.execute("SELECT detail FROM event WHERE kind = 'studies found' ORDER BY id")]
    connection.close()
    assert told == [3, 2, 1]


def test_many_studies_are_told_of_in_parts(tmp_path: Path) -> None:
    """No event grows without bound, and each study names the one that tells of it."""
    with fresh_manifest(tmp_path) as manifest:
        swept(manifest, *(f"1.{number}" for number in range(1, 2 * AT_ONCE + 2)))
        counts = manifest.execute("SELECT count(*) FROM study GROUP BY found_event ORDER BY found_event").fetchall()
        path = manifest.path
    assert [count for (count,) in counts] == [AT_ONCE, AT_ONCE, 1]
    connection = sqlite3.connect(path)
    assert audit(connection, "").troubles == []
    connection.close()


@pytest.mark.parametrize(
    ("rewritten", "named"),
    [
        ("INSERT INTO study(uid, found_event, found_at, changed_at) SELECT '1.9', max(found_event), max(found_at), 0 FROM study", "study 1.9"),
        ("DELETE FROM study WHERE uid = '1.5'", "study 1.5"),
        ("UPDATE study SET date = '20200506' WHERE uid = '1.4'", "study 1.4"),
        ("UPDATE study SET found_at = found_at + 1 WHERE uid = '1.4'", "study 1.4"),
        ("UPDATE study SET uid = '1.7' WHERE uid = '1.4'", "study 1.4"),
        ("UPDATE study SET found_event = (SELECT max(found_event) FROM study) WHERE uid = '1.4'", "study 1.4"),
        ("DELETE FROM event WHERE id = (SELECT max(id) FROM event WHERE kind = 'studies found')", "study 1.6"),
        ("UPDATE event SET detail = substr(detail, 2) WHERE id = (SELECT max(id) FROM event WHERE kind = 'studies found')", "study 1.6"),
    ],
)
def test_what_was_rewritten_behind_our_back_is_named(tmp_path: Path, rewritten: str, named: str) -> None:
    """With the law's triggers taken out of the file, a study added, deleted or changed no longer fits what the log says of it."""
    connection = sqlite3.connect(filled(tmp_path), isolation_level=None)
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    assert connection.execute(rewritten).rowcount == 1
    assert named in [trouble.place for trouble in audit(connection, "").troubles]
    connection.close()
