"""One question of the probe after the other: within limits, and with what every answer tells by the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from migrate.dicom import dimse
from migrate.dicom.scu import Level, Peer
from migrate.dicom.trial import Answer, Clock, Questioner
from migrate.model import HabitLearned, is_uid

TOTAL_S = 105.0
"""All questions together; a second or two more is spent on endings."""
CONNECT_S, QUESTION_S = 5.0, 6.0
ROWS, FEW = 1200, 300

DATE, TIME, MODALITIES, ACCESSION, PATIENT = 0x00080020, 0x00080030, 0x00080061, 0x00080050, dimse.PATIENT_ID
STUDY, SERIES_UID, SOP = dimse.STUDY_UID, dimse.SERIES_UID, dimse.SOP_UID
IN_STUDY, IN_SERIES = 0x00201208, 0x00201209
WANTED = (STUDY, DATE, TIME, MODALITIES, ACCESSION, PATIENT, IN_STUDY)
KEY_NAMES = {DATE: "StudyDate", TIME: "StudyTime", MODALITIES: "ModalitiesInStudy", PATIENT: "PatientID", ACCESSION: "AccessionNumber"}
IGNORES = {DATE: "ignores_date", TIME: "ignores_time", MODALITIES: "ignores_modality", PATIENT: "ignores_patient_id",
           ACCESSION: "ignores_accession"}  # fmt: skip

NAMES: tuple[str, ...] = (
    "study_root", "patient_root", "insists_on_patient_id", "relational", "associations", "keyless", "cap", "cap_patients", *IGNORES.values(),
    "day_range", "open_range", "undated", "counters", "breaks_off", "unreadable_rows", "padded_uids", "ff01", "cancel", "same_uids",
    "same_bytes", "transfer_syntaxes", "move_originator",
)  # fmt: skip
"""The habits, by their stable names, in the order in which they are told."""

Row = dict[int, str]


class Asking:
    """What has been learned and seen so far, and the association to ask over."""

    def __init__(self, peer: Peer, total_s: float = TOTAL_S) -> None:
        self.peer = peer
        self.clock = Clock(total_s)
        self.habits: dict[str, HabitLearned] = {}
        self.questioner: Questioner | None = None
        self.base: Row = {}  # keys without which the PACS answers nothing
        self.baseline = Answer()  # of the question without a key
        self.seen: dict[str, Row] = {}  # STUDY rows by UID, of all answers

    def learn(self, name: str, value: str, detail: str) -> None:
        """Note a habit; the last that is said of it counts."""
        self.habits[name] = HabitLearned(name, value, detail)

    def told(self) -> list[HabitLearned]:
        """All habits in the order of `NAMES`."""
        missing = "It could not be told: the PACS shows too little, or did not answer in time."
        return [self.habits.get(name) or HabitLearned(name, "unknown", missing) for name in NAMES]

    def ask(
        self, level: Level, keys: Mapping[int, str], wanted: Sequence[int] = WANTED, *, most: int = FEW, limit_s: float = QUESTION_S,
        cancel_after: int | None = None, again: bool = False,
    ) -> Answer:  # fmt: skip
        """One question; once more where its answer was spoilt."""
        assert self.questioner is not None
        answer = self.questioner.ask(level, {**self.base, **keys}, wanted, most=most, limit_s=limit_s, cancel_after=cancel_after)
        for name, happened, text in (("breaks_off", answer.broken, "Answers break off."), ("unreadable_rows", answer.unreadable, "Some rows cannot be decoded.")):
            if happened:
                self.learn(name, "yes", text)
            elif answer.whole and name not in self.habits:
                self.learn(name, "no", "Answers come to their end." if name == "breaks_off" else "All rows can be decoded.")
        if (answer.broken or answer.unreadable) and not again:
            return self.ask(level, keys, wanted, most=most, limit_s=limit_s, cancel_after=cancel_after, again=True)
        if answer.saw_ff01:
            self.learn("ff01", "yes", "Rows come with FF01: some optional keys are not supported.")
        elif answer.rows and "ff01" not in self.habits:
            self.learn("ff01", "no", "Rows come with FF00.")
        if answer.padded:
            self.learn("padded_uids", "yes", "UIDs come with spaces or superfluous NULs behind them.")
        elif answer.padded is False and "padded_uids" not in self.habits:
            self.learn("padded_uids", "no", "UIDs come as they should.")
        if level == "STUDY":
            for row in answer.rows:
                if is_uid(row.get(STUDY, "")):
                    self.seen.setdefault(row[STUDY], row)
        return answer

    def patient_key(self, uid: str) -> Row:
        """The PatientID that a question about this study has to name, if any."""
        return {PATIENT: self.seen[uid].get(PATIENT, "") or self.base[PATIENT]} if self.base else {}
