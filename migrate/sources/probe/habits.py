"""What a PACS is like to talk to: its habits, asked for with a few small questions and two retrievals of a small sample.

Every question has a limit of rows and of time, and all of them together stay below two minutes; what could not be told is
`unknown`. PatientIDs and accession numbers serve as keys, in memory only.
"""

from __future__ import annotations

import datetime
import string
from collections import Counter
from collections.abc import Mapping

from migrate.config import ReceiverSettings, SourceSettings
from migrate.dicom import dimse, trial
from migrate.dicom.scu import Peer, associate
from migrate.dicom.trial import Answer, Clock, Questioner
from migrate.model import HabitLearned
from migrate.sources.probe.asking import CONNECT_S, DATE, FEW, PATIENT, QUESTION_S, ROWS, STUDY, TOTAL_S, Asking, Row
from migrate.sources.probe.keys import ask_keys, ask_ranges, ask_undated, is_day, next_day
from migrate.sources.probe.lists import ask_relational, first_images
from migrate.sources.probe.sample import Sample
from migrate.staging.area import Staging

_QUICK_S = 8.0
_SAMPLE, _MOST_ASSOCIATIONS = 3, 4


class DimseProbe(Asking):
    """Asks one PACS for its habits; `run` for all of them, `quick` for what a few seconds tell.

    `known` are the habits that are on record already, learned by sweeps. One use each.
    """

    def __init__(self, settings: SourceSettings, receiver: ReceiverSettings, known: Mapping[str, str] | None = None, *, total_s: float = TOTAL_S) -> None:
        answer_s = min(QUESTION_S, settings.stall_s)
        super().__init__(Peer(settings.host, settings.port, settings.ae_title, receiver.ae_title, connect_s=CONNECT_S, answer_s=answer_s), total_s)
        self._settings, self._receiver = settings, receiver
        self._known = dict(known or {})
        self._moves = False

    def quick(self) -> list[HabitLearned]:
        """The information models and how many associations are allowed at once."""
        self.clock = Clock(_QUICK_S)
        self._models()
        self._associations()
        return self.told()

    def run(self, staging: Staging | None) -> list[HabitLearned]:
        """All habits in the order of `NAMES`; without a staging folder nothing is retrieved.

        Raises SourceUnreachable and SourceRefused where there is nobody to ask, PortInUse.
        """
        associate(self.peer, dimse.STUDY_ROOT_FIND, dimse.PATIENT_ROOT_FIND, timeout_s=CONNECT_S).release(2.0)
        self._models()
        self._associations()
        if self.questioner is not None:
            self._look_around()
            self._cap()
            ask_keys(self)
            ask_ranges(self)
            ask_undated(self)
            plans = first_images(self)
            ask_relational(self, plans)
            self._cancel()
            self.questioner.close()  # a PACS that allows one association at a time needs it for the C-MOVE
            if staging is not None and self._moves and plans:
                sample = Sample(self.peer, self._receiver, self.clock, lambda study: self.patient_key(study).get(PATIENT))
                self.habits |= {habit.name: habit for habit in sample.retrieve(plans[:_SAMPLE], staging)}
        return self.told()

    # -- associations
    def _models(self) -> None:
        offered = trial.models(self.peer, self.clock)
        if offered is None:
            return
        for model, services in offered.items():
            name = model.replace("_", " ").title()
            self.learn(model, " ".join(services) or "none", f"{name} is offered for {', '.join(services)}." if services else f"{name} is not offered.")
        self._moves = any("MOVE" in services for services in offered.values())
        for model, services in offered.items():  # Study Root first
            if "FIND" in services and self.questioner is None:
                self.questioner = Questioner(self.peer, self.clock, trial.MODELS[model]["FIND"])
        if not offered["patient_root"]:
            self.learn("insists_on_patient_id", "no", "Patient Root is not offered.")

    def _associations(self) -> None:
        """One more than the C-MOVEs that are configured: questions are asked meanwhile."""
        count, rejected = trial.associations(self.peer, self.clock, min(self._settings.associations + 1, _MOST_ASSOCIATIONS))
        if rejected:
            self.learn("associations", str(count), f"{count} at once; the next one was rejected.")
        elif count:
            self.learn("associations", f"{count}+", f"{count} at once, which is as many as were tried.")

    # -- what it shows at all
    def _look_around(self) -> None:
        """The question without a key, or what is answered in its stead."""
        answer = self.ask("STUDY", {}, most=ROWS, limit_s=10)
        offers_patient_root = self.habits.get("patient_root", HabitLearned("", "")).value != "none"
        if answer.mismatched and not answer.rows and offers_patient_root and self._with_patient():
            answer = self.ask("STUDY", {}, most=ROWS)
            self.learn("insists_on_patient_id", "yes", "Below the level PATIENT nothing is answered without one PatientID.")
        elif answer.rows or answer.whole:
            self.learn("insists_on_patient_id", "no", "Studies are shown without a PatientID.")
        if answer.whole:
            self.learn("keyless", "answered", "A question without a key is answered.")
        elif answer.refused:
            self.learn("keyless", "refused", f"A question without a key is refused after {len(answer.rows)} rows." if answer.rows
                        else "A question without a key is refused.")  # fmt: skip
            self._narrower()
        elif answer.rows:
            self.learn("keyless", "answered", f"A question without a key is answered; we stopped after {len(answer.rows)} rows.")
        self.baseline = answer

    def _with_patient(self) -> bool:
        """Find a patient with studies by Patient Root, whose PatientID goes into every question from now on."""
        assert self.questioner is not None
        self.questioner.close()
        self.questioner = Questioner(self.peer, self.clock, dimse.PATIENT_ROOT_FIND)
        found = self.ask("PATIENT", {PATIENT: "*"}, (PATIENT,), most=FEW)
        ids = [row[PATIENT] for row in found.rows if row.get(PATIENT)]
        best = 0
        for patient in [one for one in ids if one.isascii() and not set(one) & set("*?\\")][:5]:
            rows = self.ask("STUDY", {PATIENT: patient}).rows
            if len(rows) > best:
                best, self.base = len(rows), {PATIENT: patient}
        if best and len(ids) > 1:
            self._patient_pattern(ids, len(ids) if found.whole else None)
        self.seen.clear()  # those of the chosen patient are shown again
        return best > 0

    def _patient_pattern(self, ids: list[str], count: int | None) -> None:
        """PATIENT level: parts of all patients by the first character in which PatientIDs differ show ignored keys, and a cap at `count`."""
        low, high = min(ids), max(ids)
        prefix = low[: next((at for at, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))]
        more: set[str] = set()
        believed = True
        for character in string.digits + string.ascii_uppercase:
            part = prefix + character
            answer = self.ask("PATIENT", {PATIENT: f"{part}*"}, (PATIENT,), limit_s=2)
            if any(not row.get(PATIENT, "").casefold().startswith(part.casefold()) for row in answer.rows):
                self.learn("ignores_patient_id", "yes", "A PatientID with a wildcard shows patients that do not fit.")
                return
            more |= {row[PATIENT] for row in answer.rows} - set(ids)
            believed = believed and answer.whole and len(answer.rows) < len(ids)
        self.learn("ignores_patient_id", "no", "PatientID with a wildcard is matched.")
        if more and count:  # of PATIENT rows: nothing is known by that of STUDY rows
            self.learn("cap_patients", str(count), f"Lists of patients are capped: {count} rows, and the parts of such a list show more.")
        elif count and believed:
            self.learn("cap_patients", "none", f"None up to {count} rows: a list of all patients shows what its parts show.")

    def _narrower(self) -> None:
        """Years, then months, then days, the newest first, until one shows a few studies."""
        today = datetime.date.today()
        for days, count in ((365, 15), (30, 24), (1, 40)):
            last = today
            for _ in range(count):
                first = last - datetime.timedelta(days - 1)
                answer = self.ask("STUDY", {DATE: f"{first:%Y%m%d}-{last:%Y%m%d}" if days > 1 else f"{last:%Y%m%d}"}, limit_s=3)
                if answer.rows:
                    self.learn("insists_on_patient_id", "no", "Studies are shown without a PatientID.")
                if len(self.seen) >= 2 or not self.clock.left_s:
                    return
                if answer.refused:
                    break
                last = first - datetime.timedelta(1)

    # -- caps
    def _cap(self) -> None:
        """A question and its parts: without a key against before and after a day, or else a year against its months."""
        if known := self._known.get("cap"):
            self.learn("cap", known, f"Sweeps have found that answers are capped at {known} rows.")
            return
        dates = sorted(row[DATE] for row in self.seen.values() if is_day(row.get(DATE, "")))
        if not dates:
            return
        if self.baseline.whole:
            middle = dates[len(dates) // 2]
            parts = [f"-{next_day(middle, -1)}", f"{middle}-"]
            self._compare({}, self.baseline, parts, "without a key")
        elif self.baseline.cut:  # at our limit of rows, or of time
            if len(self.baseline.rows) >= FEW:
                self.learn("cap", "none", f"None was met; {len(self.baseline.rows)} rows came before we stopped the PACS.")
        else:
            year, _ = Counter(day[:4] for day in dates).most_common(1)[0]
            key = f"{year}0101-{year}1231"
            months = [f"{year}{month:02}01-{year}{month:02}{_days(int(year), month)}" for month in range(1, 13)]
            whole = self.ask("STUDY", {DATE: key}, most=ROWS)
            if whole.whole:
                self._compare({DATE: key}, whole, months, "for a year")

    def _compare(self, keys: Row, whole: Answer, parts: list[str], what: str) -> None:
        """Parts that show studies with a date which the whole lacks, twice, tell a cap."""
        shown = {row.get(STUDY) for row in whole.rows}
        answers = [self.ask("STUDY", {DATE: part}, most=ROWS) for part in parts]
        rows = [row for answer in answers for row in answer.rows if row.get(DATE)]
        count = len(shown)  # rows may repeat; and a cap that is taken for too low only costs questions
        if not {row.get(STUDY) for row in rows} <= shown:
            again = self.ask("STUDY", keys, most=ROWS)
            more = {row.get(STUDY) for row in rows} - shown - {row.get(STUDY) for row in again.rows}
            if more and again.whole and len({row.get(STUDY) for row in again.rows}) == count:
                self.learn("cap", str(count), f"The PACS caps its answers: {count} rows for a question {what}, and its parts show more.")
        elif count and all(answer.whole and len(answer.rows) < count for answer in answers):
            self.learn("cap", "none", f"None up to {count} rows: a question {what} shows what its parts show.")

    def _cancel(self) -> None:
        told = self.baseline.cancelled
        if told is None and len(self.seen) > 1:
            told = self.ask("STUDY", {} if self.habits["keyless"].value == "answered" else {DATE: "19000101-"}, cancel_after=1).cancelled
        if told is None:
            self.learn("cancel", "unknown", "Answers are over too soon to tell whether C-CANCEL ends them.")
        else:
            self.learn("cancel", "yes" if told else "no", "C-CANCEL ends an answer." if told else "C-CANCEL is ignored.")


def _days(year: int, month: int) -> int:
    return (datetime.date(year + month // 12, month % 12 + 1, 1) - datetime.timedelta(1)).day
