"""Read-only questions of the stages: what is ready for me? A connection of its own, never a lock."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from migrate.manifest.file import now_ms, open_reader
from migrate.manifest.windows import window_of
from migrate.model import (
    SHARE,
    Fixity,
    HabitLearned,
    InstanceRef,
    InstanceState,
    Item,
    Receipt,
    StudyRef,
    StudyState,
    Wanted,
    Window,
    object_key,
)

_FIXITY = "size_bytes, file_sha256, dataset_sha256, crc64nvme"


class Queue:
    """What is ready, as of the last commit. Not thread-safe: one a thread. Raises NoManifest, ManifestTooNew."""

    def __init__(self, path: Path, *, prefix: str = "") -> None:
        self.connection = open_reader(path)
        self.prefix = prefix

    def close(self) -> None:
        self.connection.close()

    # -- sweeps
    def last_sweep(self) -> int:
        """The number of the newest sweep, 0 before the first."""
        return int(self.connection.execute("SELECT coalesce(max(sweep), 0) FROM window").fetchone()[0])

    def windows(self, sweep: int) -> list[sqlite3.Row]:
        """All windows of a sweep, in the order they were planned."""
        cursor = self.connection.cursor()
        cursor.row_factory = sqlite3.Row
        return cursor.execute("SELECT * FROM window WHERE sweep = ? ORDER BY id", (sweep,)).fetchall()

    def windows_to_ask(self, sweep: int, limit: int) -> list[tuple[int, Window, int, bool]]:
        """(id, question, times asked in vain, whether it only looks) of what is to be asked next: patients one by one come before all others."""
        cursor = self.connection.cursor()
        cursor.row_factory = sqlite3.Row
        rows = cursor.execute(
            "SELECT * FROM window WHERE sweep = ? AND state = 0 AND not_before <= ? ORDER BY substr(patient, 1, 1) IS NOT ?, id LIMIT ?",
            (sweep, now_ms(), SHARE, limit),
        )
        return [(row["id"], window_of(row), row["attempts"], row["purpose"] == "look") for row in rows]

    def lists_patients(self, sweep: int) -> bool:
        """Whether a sweep has asked, or is to ask, who all the patients are."""
        return self.connection.execute("SELECT 1 FROM window WHERE sweep = ? AND patient = ?", (sweep, SHARE)).fetchone() is not None

    def ignores_date(self, sweep: int) -> bool:
        """Whether question after question by date has shown other dates: the rest of them would show the same. One will do if it is known."""
        outside, inside, windows = self.connection.execute(
            "SELECT total(outside_count), total(study_count - outside_count), total(outside_count > 0) FROM window "
            "WHERE sweep = ? AND axis = 'date' AND state = 1 AND lo IS NOT NULL AND hi IS NOT NULL", (sweep,)
        ).fetchone()  # fmt: skip
        enough = 1 if self.habits().get("ignores_date") == "yes" else 3
        return bool(windows >= enough and outside > 2 * inside)

    def shown_only_by(self, these: Iterable[int], others: Iterable[int], *, dated: tuple[str, str] | None = None) -> int:
        """How many studies these windows showed, fitting their question, that the others did not; `dated`: of those from the one day to the other."""
        count: int = self.connection.execute(
            "SELECT count(DISTINCT study_id) FROM sighting WHERE window_id IN (SELECT value FROM json_each(?)) AND outside = 0 "
            "AND study_id NOT IN (SELECT study_id FROM sighting WHERE window_id IN (SELECT value FROM json_each(?))) "
            "AND (? IS NULL OR (SELECT date FROM study WHERE id = study_id) BETWEEN ? AND ?)",
            (json.dumps(list(these)), json.dumps(list(others)), *((dated[0], *dated) if dated else (None, None, None))),
        ).fetchone()[0]
        return count

    def habits(self) -> dict[str, str]:
        """What is known of the PACS's habits: values by name."""
        return dict(self.connection.execute("SELECT name, value FROM habit"))

    def learned(self) -> list[HabitLearned]:
        """The same, with what is said of them."""
        return [HabitLearned(*row) for row in self.connection.execute("SELECT name, value, detail FROM habit ORDER BY name")]

    def found_in(self, sweep: int) -> int:
        """How many studies this sweep was the first to show."""
        return int(self.connection.execute("SELECT count(*) FROM study WHERE found_sweep = ?", (sweep,)).fetchone()[0])

    # -- studies
    def studies_to_plan(self, limit: int) -> list[StudyRef]:
        return [StudyRef(uid) for _, uid in self._due(StudyState.FOUND, limit)]

    def studies_to_retrieve(self, limit: int, *, skip: Collection[object] = ()) -> list[tuple[StudyRef, Wanted]]:
        """Planned studies with what to ask for: the whole, or what an ended, failed or stopped attempt left missing."""
        due = ((study_id, StudyRef(uid)) for study_id, uid in self._due(StudyState.PLANNED, limit))
        return [(study, self._wanted(study_id)) for study_id, study in due if study not in skip]

    def studies_to_confirm(self, limit: int) -> list[StudyRef]:
        """Studies of which everything is proven, to be asked for once more before they close."""
        rows = self.connection.execute(
            "SELECT uid FROM study WHERE state = 2 AND state < 3 AND stage = 'confirm' AND not_before <= ? ORDER BY id LIMIT ?", (now_ms(), limit)
        )
        return [StudyRef(uid) for (uid,) in rows]

    def _due(self, state: StudyState, limit: int) -> list[tuple[int, str]]:
        """A study whose upload failed is left alone until what is here of it is proven, or its attempts are used up."""
        return self.connection.execute(
            "SELECT id, uid FROM study WHERE state = ? AND state < 3 AND not_before <= ? AND NOT (coalesce(stage, '') IN ('upload', 'verify') "
            "AND EXISTS (SELECT 1 FROM series WHERE study_id = study.id AND staged + stored > 0)) ORDER BY id LIMIT ?",
            (int(state), now_ms(), limit),
        ).fetchall()

    def _wanted(self, study_id: int) -> Wanted:
        ended, begun_before, claimed = self.connection.execute(
            "SELECT retrieve_ended, attempts > 0 OR coalesce(stage, '') = 'retrieve', max(coalesce(claimed_instances, 0), coalesce(claimed_by_series, 0)) FROM study WHERE id = ?", (study_id,)
        ).fetchone()
        missing: dict[str, tuple[str, ...]] = {}
        begun = set()
        for series_id, uid, arrived in self.connection.execute(
            "SELECT id, uid, staged + stored + verified FROM series WHERE study_id = ? AND expected > 0", (study_id,)
        ).fetchall():
            sops = self.connection.execute("SELECT sop_uid FROM instance WHERE series_id = ? AND state = 0", (series_id,))
            missing[uid] = tuple(sop for (sop,) in sops)
            if arrived:
                begun.add(uid)
        return Wanted(not ended and not (begun_before and missing), missing, frozenset(begun), claimed)

    def next_due_ms(self, *, windows_only: bool = False) -> int | None:
        """When the earliest put-off work falls due; None where nothing waits for a time."""
        question = "SELECT min(not_before) AS due FROM window WHERE state = 0 AND not_before > 0"
        if not windows_only:
            question = (
                f"SELECT min(due) FROM ({question} UNION ALL SELECT min(not_before) FROM study WHERE state < 3 AND not_before > 0 "
                "AND (state < 2 OR stage IN ('upload', 'verify', 'confirm')))"
            )
        due: int | None = self.connection.execute(question).fetchone()[0]
        return due

    # -- instances
    def items(self, state: InstanceState, *, skip_series: set[int], limit: int) -> Iterator[tuple[int, list[Item]]]:
        """Series with instances in `state` (staged or stored) and those instances, at most `limit` series.

        Studies whose upload failed wait for their time; parked ones whose upload used up its attempts are left out.
        """
        tally = "staged" if state == InstanceState.STAGED else "stored"
        rows = self.connection.execute(
            f"SELECT series.id, study.uid, series.uid FROM series JOIN study ON study.id = study_id WHERE series.{tally} > 0 "
            "AND NOT (coalesce(study.stage, '') IN ('upload', 'verify') AND (study.state = 5 OR study.not_before > ?)) ORDER BY series.id",
            (now_ms(),),
        )
        taken = 0
        for series_id, study, series in rows:
            if series_id in skip_series:
                continue
            yield series_id, [self._item(study, series, row) for row in self._rows(series_id, state)]
            taken += 1
            if taken >= limit:
                return

    def copies(self, state: InstanceState, *, skip_series: set[int]) -> Iterator[tuple[int, list[Item]]]:
        """The same for further contents."""
        rows = self.connection.execute(
            f"SELECT series.id, study.uid, series.uid, sop_uid, 1, copy.version, {_FIXITY} FROM copy JOIN series ON series.id = series_id "
            "JOIN study ON study.id = study_id WHERE copy.state = ? AND NOT (coalesce(study.stage, '') IN ('upload', 'verify') "
            "AND (study.state = 5 OR study.not_before > ?)) LIMIT 100",
            (int(state), now_ms()),
        ).fetchall()
        for series_id, study, series, *row in rows:
            if -series_id not in skip_series:
                yield -series_id, [self._item(study, series, row, copy=True)]

    def refused_before(self, study: str) -> bool:
        """Whether the store failed for an object of this study while it served others."""
        return self.connection.execute("SELECT 1 FROM study WHERE uid = ? AND error = 'ObjectRefused'", (study,)).fetchone() is not None

    def nearly_done(self, state: InstanceState, most: int = 3) -> bool:
        """Whether at most so many instances in this state are all that is left: no study is to be planned or retrieved any more."""
        tally = "staged" if state == InstanceState.STAGED else "stored"
        left = self.connection.execute(f"SELECT total({tally}) FROM series WHERE {tally} > 0").fetchone()[0]
        return left <= most and self.connection.execute("SELECT 1 FROM study WHERE state < 2 LIMIT 1").fetchone() is None

    def is_verified(self, ref: InstanceRef) -> bool:
        """Whether the instance's own row (not one of a further content) is verified."""
        sql = ("SELECT 1 FROM instance JOIN series ON series.id = series_id JOIN study ON study.id = study_id "
               "WHERE study.uid = ? AND series.uid = ? AND sop_uid = ? AND instance.state = 3")  # fmt: skip
        return self.connection.execute(sql, (ref.study, ref.series, ref.sop)).fetchone() is not None

    def some_verified(self, count: int) -> Iterator[Item]:
        """Proven instances of as many series, each picked at random; none where nothing is proven."""
        for _ in range(count):
            sql = "SELECT series.id, study.uid, series.uid FROM series JOIN study ON study.id = study_id WHERE verified > 0"
            onwards = f"{sql} AND series.id >= (SELECT abs(random() % (max(id) + 1)) FROM series)"
            for series_id, study, series in self.connection.execute(
                f"SELECT * FROM ({onwards} ORDER BY series.id LIMIT 1) UNION ALL SELECT * FROM ({sql} ORDER BY series.id LIMIT 1) LIMIT 1"
            ).fetchall():
                yield self._item(study, series, self._rows(series_id, InstanceState.VERIFIED)[0])

    def some_listed(self, count: int) -> list[tuple[StudyRef, frozenset[str]]]:
        """Studies picked at random, with the images that are known of them; none without images, and none that vanished."""
        known = "SELECT json_group_array(sop_uid) FROM instance JOIN series ON series.id = series_id WHERE study_id = study.id"
        rows = self.connection.execute(
            f"SELECT uid, ({known}) FROM study WHERE error IS NOT 'VanishedAtSource' "
            "AND EXISTS (SELECT 1 FROM instance JOIN series ON series.id = series_id WHERE study_id = study.id) ORDER BY random() LIMIT ?", (count,)
        )  # fmt: skip
        return [(StudyRef(uid), frozenset(json.loads(sops))) for uid, sops in rows]

    def in_staging(self) -> Iterator[Item]:
        """Every item whose file must still lie in staging."""
        for state in (InstanceState.STAGED, InstanceState.STORED):
            tally = "staged" if state == InstanceState.STAGED else "stored"
            for series_id, study, series in self.connection.execute(
                f"SELECT series.id, study.uid, series.uid FROM series JOIN study ON study.id = study_id WHERE series.{tally} > 0"
            ).fetchall():
                for row in self._rows(series_id, state):
                    yield self._item(study, series, row)
        for study, series, *row in self.connection.execute(
            f"SELECT study.uid, series.uid, sop_uid, 1, copy.version, {_FIXITY} FROM copy JOIN series ON series.id = series_id "
            "JOIN study ON study.id = study_id WHERE copy.state IN (1, 2)"
        ):
            yield self._item(study, series, row, copy=True)

    def _rows(self, series_id: int, state: InstanceState) -> list[tuple[Any, ...]]:
        return self.connection.execute(
            f"SELECT sop_uid, beside, version, {_FIXITY} FROM instance WHERE series_id = ? AND state = ?",
            (series_id, int(state)),
        ).fetchall()

    def _item(self, study: str, series: str, row: Sequence[Any], *, copy: bool = False) -> Item:
        sop, beside, version, size, file_sha, dataset_sha, crc = row
        ref = InstanceRef(study, series, sop)
        fixity = Fixity(size, file_sha, dataset_sha, crc & (1 << 64) - 1)
        key = object_key(ref, self.prefix, beside=fixity.dataset_sha256 if beside else None)
        return Item(ref, fixity, bool(beside), copy, Receipt(key, version))
