"""How many instances of a study are claimed, listed and known, and whether a list may be believed."""

from __future__ import annotations

from typing import NamedTuple

from migrate.manifest import unreadable
from migrate.manifest.writer import Writer
from migrate.model import RetrieveEnded


class Numbers(NamedTuple):
    """What is said and known of a study: instances claimed at most, whether its row claims none at all, instances known, those that
    no answer lists, series without any, rows that name none."""

    claimed: int
    uncounted: int
    known: int
    unlisted: int
    hollow: int
    unreadable: int

    def list_in_doubt(self) -> bool:
        """Whether the IMAGE answers may be cut short: more is claimed than known, they show nothing where there should be something, or
        they are known to be short and nothing else tells how many there are."""
        short = self.claimed > self.known + self.unreadable or self.hollow > self.unreadable
        return short or self.known == self.unlisted or bool(self.uncounted and self.unlisted)

    def is_short(self) -> bool:
        """Whether the list is known to be cut short, and something of what is claimed has not come."""
        return self.claimed > self.known and self.unlisted > 0

    def shown_whole_by(self, ended: RetrieveEnded) -> bool:
        """Whether nothing unlisted can be missing: a list that agrees with what is claimed needs no more; the weaker it is, the more
        does it take of a C-MOVE of the whole study."""
        if self.list_in_doubt() or self.uncounted:
            return ended.whole
        return ended.clean or not self.unlisted


def numbers_of(manifest: Writer, study_id: int) -> Numbers:
    """What the manifest holds of them now."""
    return Numbers(*manifest.one(
        "SELECT max(coalesce(claimed_instances, 0), coalesce(claimed_by_series, 0)), claimed_instances IS NULL, "
        "(SELECT coalesce(sum(expected + staged + stored + verified), 0) FROM series WHERE study_id = study.id), "
        "(SELECT count(*) FROM series JOIN instance ON series_id = series.id WHERE study_id = study.id AND listed = 0), "
        "(SELECT count(*) FROM series WHERE study_id = study.id AND expected + staged + stored + verified = 0), "
        f"(SELECT coalesce(json_array_length({unreadable.LAST.replace(':uid', 'study.uid')}), 0)) FROM study WHERE id = ?", study_id,
    ))  # fmt: skip
