"""What a PACS is like to talk to: its habits, asked for with a few small questions and two retrievals of a small sample.

Every question has a limit of rows and of time, and all of them together stay below two minutes; what could not be told is
`unknown`. PatientIDs and accession numbers serve as keys, in memory only.
"""

from __future__ import annotations

import datetime
import string
from collections import Counter
from collections.abc import Callable, Mapping

from migrate.config import ReceiverConfig, SourceSettings
from migrate.dicom import dimse, trial
from migrate.dicom.scu import Peer, associate
from migrate.dicom.trial import Answer, Clock, Questioner
from migrate.model import HabitLearned, InstanceRef, is_uid
from migrate.sources.probe_asking import (
    ACCESSION,
    CONNECT_S,
    DATE,
    FEW,
    IGNORES,
    IN_SERIES,
    IN_STUDY,
    KEY_NAMES,
    MODALITIES,
    PATIENT,
    QUESTION_S,
    ROWS,
    SERIES_UID,
    SOP,
    STUDY,
    TIME,
    Asking,
    Row,
)  # fmt: skip
from migrate.sources.probe_sample import Sample
from migrate.staging.area import Staging

_QUICK_S = 8.0
_SAMPLE, _COUNTED, _SERIES = 3, 5, 8
_MOST_ASSOCIATIONS = 4
_KEPT_S = 40.0  # for what comes after the counting: retrieval


class DimseProbe(Asking):
    """Asks one PACS for its habits; `run` for all of them, `quick` for what a few seconds tell.

    `known` are the habits that are on record already, learned by sweeps. One use each.
    """

    def __init__(self, settings: SourceSettings, receiver: ReceiverConfig, known: Mapping[str, str] | None = None) -> None:
        answer_s = min(QUESTION_S, settings.stall_s)
        super().__init__(Peer(settings.host, settings.port, settings.ae_title, receiver.ae_title, connect_s=CONNECT_S, answer_s=answer_s))
        self._settings, self._receiver = settings, receiver
        self._known = dict(known or {})
        self._baseline = Answer()
        self._moves = False

    def quick(self) -> list[HabitLearned]:
        """The information models and how many associations are allowed at once."""
        self._clock = Clock(_QUICK_S)
        self._models()
        self._associations()
        return self._told()

    def run(self, staging: Staging | None) -> list[HabitLearned]:
        """All habits in the order of `NAMES`; without a staging folder nothing is retrieved.

        Raises SourceUnreachable and SourceRefused where there is nobody to ask, PortInUse.
        """
        associate(self._peer, dimse.STUDY_ROOT_FIND, dimse.PATIENT_ROOT_FIND, timeout_s=CONNECT_S).release(2.0)
        self._models()
        self._associations()
        if self._questioner is not None:
            self._look_around()
            self._cap()
            self._keys()
            self._ranges()
            self._undated()
            plans = self._plans()
            self._relational(plans)
            self._cancel()
            self._questioner.close()  # a PACS that allows one association at a time needs it for the C-MOVE
            if staging is not None and self._moves and plans:
                sample = Sample(self._peer, self._receiver, self._clock, lambda study: self._patient_key(study).get(PATIENT))
                self._habits |= {habit.name: habit for habit in sample.retrieve(plans[:_SAMPLE], staging)}
        return self._told()

    # -- associations
    def _models(self) -> None:
        offered = trial.models(self._peer, self._clock)
        if offered is None:
            return
        for model, services in offered.items():
            name = model.replace("_", " ").title()
            self._learn(model, " ".join(services) or "none", f"{name} is offered for {', '.join(services)}." if services else f"{name} is not offered.")
        self._moves = any("MOVE" in services for services in offered.values())
        for model, services in offered.items():  # Study Root first
            if "FIND" in services and self._questioner is None:
                self._questioner = Questioner(self._peer, self._clock, trial.MODELS[model]["FIND"])
        if not offered["patient_root"]:
            self._learn("insists_on_patient_id", "no", "Patient Root is not offered.")

    def _associations(self) -> None:
        """One more than the C-MOVEs that are configured: questions are asked meanwhile."""
        count, rejected = trial.associations(self._peer, self._clock, min(self._settings.associations + 1, _MOST_ASSOCIATIONS))
        if rejected:
            self._learn("associations", str(count), f"{count} at once; the next one was rejected.")
        elif count:
            self._learn("associations", f"{count}+", f"{count} at once, which is as many as were tried.")

    # -- what it shows at all
    def _look_around(self) -> None:
        """The question without a key, or what is answered in its stead."""
        answer = self._ask("STUDY", {}, most=ROWS, limit_s=10)
        offers_patient_root = self._habits.get("patient_root", HabitLearned("", "")).value != "none"
        if answer.mismatched and not answer.rows and offers_patient_root and self._with_patient():
            answer = self._ask("STUDY", {}, most=ROWS)
            self._learn("insists_on_patient_id", "yes", "Below the level PATIENT nothing is answered without one PatientID.")
        elif answer.rows or answer.whole:
            self._learn("insists_on_patient_id", "no", "Studies are shown without a PatientID.")
        if answer.whole:
            self._learn("keyless", "answered", "A question without a key is answered.")
        elif answer.refused:
            self._learn("keyless", "refused", f"A question without a key is refused after {len(answer.rows)} rows." if answer.rows
                        else "A question without a key is refused.")  # fmt: skip
            self._narrower()
        elif answer.rows:
            self._learn("keyless", "answered", f"A question without a key is answered; we stopped after {len(answer.rows)} rows.")
        self._baseline = answer

    def _with_patient(self) -> bool:
        """Find a patient with studies by Patient Root, whose PatientID goes into every question from now on."""
        assert self._questioner is not None
        self._questioner.close()
        self._questioner = Questioner(self._peer, self._clock, dimse.PATIENT_ROOT_FIND)
        found = self._ask("PATIENT", {PATIENT: "*"}, (PATIENT,), most=FEW)
        ids = [row[PATIENT] for row in found.rows if row.get(PATIENT)]
        best = 0
        for patient in [one for one in ids if one.isascii() and not set(one) & set("*?\\")][:5]:
            rows = self._ask("STUDY", {PATIENT: patient}).rows
            if len(rows) > best:
                best, self._base = len(rows), {PATIENT: patient}
        if best and len(ids) > 1:
            self._patient_pattern(ids, len(ids) if found.whole else None)
        self._seen.clear()  # those of the chosen patient are shown again
        return best > 0

    def _patient_pattern(self, ids: list[str], count: int | None) -> None:
        """PATIENT level: parts of all patients by the first character in which PatientIDs differ show ignored keys, and a cap at `count`."""
        low, high = min(ids), max(ids)
        prefix = low[: next((at for at, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))]
        more: set[str] = set()
        believed = True
        for character in string.digits + string.ascii_uppercase:
            part = prefix + character
            answer = self._ask("PATIENT", {PATIENT: f"{part}*"}, (PATIENT,), limit_s=2)
            if any(not row.get(PATIENT, "").casefold().startswith(part.casefold()) for row in answer.rows):
                self._learn("ignores_patient_id", "yes", "A PatientID with a wildcard shows patients that do not fit.")
                return
            more |= {row[PATIENT] for row in answer.rows} - set(ids)
            believed = believed and answer.whole and len(answer.rows) < len(ids)
        self._learn("ignores_patient_id", "no", "PatientID with a wildcard is matched.")
        if more and count:  # of PATIENT rows: nothing is known by that of STUDY rows
            self._learn("cap_patients", str(count), f"Lists of patients are capped: {count} rows, and the parts of such a list show more.")
        elif count and believed:
            self._learn("cap_patients", "none", f"None up to {count} rows: a list of all patients shows what its parts show.")

    def _narrower(self) -> None:
        """Years, then months, then days, the newest first, until one shows a few studies."""
        today = datetime.date.today()
        for days, count in ((365, 15), (30, 24), (1, 40)):
            last = today
            for _ in range(count):
                first = last - datetime.timedelta(days - 1)
                answer = self._ask("STUDY", {DATE: f"{first:%Y%m%d}-{last:%Y%m%d}" if days > 1 else f"{last:%Y%m%d}"}, limit_s=3)
                if answer.rows:
                    self._learn("insists_on_patient_id", "no", "Studies are shown without a PatientID.")
                if len(self._seen) >= 2 or not self._clock.left_s:
                    return
                if answer.refused:
                    break
                last = first - datetime.timedelta(1)

    # -- caps
    def _cap(self) -> None:
        """A question and its parts: without a key against before and after a day, or else a year against its months."""
        if known := self._known.get("cap"):
            self._learn("cap", known, f"Sweeps have found that answers are capped at {known} rows.")
            return
        dates = sorted(row[DATE] for row in self._seen.values() if _is_day(row.get(DATE, "")))
        if not dates:
            return
        if self._baseline.whole:
            middle = dates[len(dates) // 2]
            parts = [f"-{_next_day(middle, -1)}", f"{middle}-"]
            self._compare({}, self._baseline, parts, "without a key")
        elif self._baseline.cut:  # at our limit of rows, or of time
            if len(self._baseline.rows) >= FEW:
                self._learn("cap", "none", f"None was met; {len(self._baseline.rows)} rows came before we stopped the PACS.")
        else:
            year, _ = Counter(day[:4] for day in dates).most_common(1)[0]
            key = f"{year}0101-{year}1231"
            months = [f"{year}{month:02}01-{year}{month:02}{_days(int(year), month)}" for month in range(1, 13)]
            whole = self._ask("STUDY", {DATE: key}, most=ROWS)
            if whole.whole:
                self._compare({DATE: key}, whole, months, "for a year")

    def _compare(self, keys: Row, whole: Answer, parts: list[str], what: str) -> None:
        """Parts that show studies with a date which the whole lacks, twice, tell a cap."""
        shown = {row.get(STUDY) for row in whole.rows}
        answers = [self._ask("STUDY", {DATE: part}, most=ROWS) for part in parts]
        rows = [row for answer in answers for row in answer.rows if row.get(DATE)]
        count = len(shown)  # rows may repeat; and a cap that is taken for too low only costs questions
        if not {row.get(STUDY) for row in rows} <= shown:
            again = self._ask("STUDY", keys, most=ROWS)
            more = {row.get(STUDY) for row in rows} - shown - {row.get(STUDY) for row in again.rows}
            if more and again.whole and len({row.get(STUDY) for row in again.rows}) == count:
                self._learn("cap", str(count), f"The PACS caps its answers: {count} rows for a question {what}, and its parts show more.")
        elif count and all(answer.whole and len(answer.rows) < count for answer in answers):
            self._learn("cap", "none", f"None up to {count} rows: a question {what} shows what its parts show.")

    # -- keys
    def _reference(self) -> Row | None:
        """A study that has a value under as many keys as possible."""
        keys = (DATE, TIME, MODALITIES, PATIENT, ACCESSION)
        return max(self._seen.values(), key=lambda row: sum(bool(row.get(tag)) for tag in keys), default=None)

    def _keys(self) -> None:
        """For each key: a question that finds a certain study, and one that must not find it."""
        study = self._reference()
        if study is None:
            return
        day = study.get(DATE, "")
        near: Row = {DATE: day} if _is_day(day) else {}
        if near:
            others = [row[DATE] for row in self._seen.values() if _is_day(row.get(DATE, "")) and row[DATE] != day]
            other = others[0] if others else _next_day(day, 1)
            self._key(DATE, study, near, {DATE: other}, lambda row: row.get(DATE) == other)
        time_ = _clock_time(study.get(TIME, ""))
        if near and time_:
            lo, hi = ("000000", f"{int(time_[:2]) - 1:02}5959") if time_ >= "120000" else (f"{int(time_[:2]) + 1:02}0000", "235959")
            self._key(TIME, study, near | {TIME: f"{time_[:2]}0000-{time_[:2]}5959"}, near | {TIME: f"{lo}-{hi}"},
                      lambda row: lo <= (_clock_time(row.get(TIME, "")) or "") <= hi)  # fmt: skip
        mine = _values(study.get(MODALITIES, ""))
        if mine:
            other = next(code for code in ("CT", "MR", "US", "CR", "MG", "XA", "NM", "PT") if code not in mine)
            self._key(MODALITIES, study, near | {MODALITIES: mine[0]}, near | {MODALITIES: other},
                      lambda row: other in _values(row.get(MODALITIES, "")))  # fmt: skip
        elif not any(row.get(MODALITIES) for row in self._seen.values()):
            self._learn("ignores_modality", "unknown", "The PACS gives no ModalitiesInStudy.")
        for tag in (PATIENT, ACCESSION):
            value = study.get(tag, "")
            if not value or not value.isascii() or set(value) & set("*?\\") or tag in self._base:
                continue
            prefix, other = value[:3], ("0" if value[0] != "0" else "Z")
            self._key(tag, study, near | {tag: f"{prefix}*"}, near | {tag: f"{other}{value[1:3]}*"},
                      lambda row, tag=tag, other=other: row.get(tag, "").casefold().startswith(other.casefold()))  # type: ignore[misc]  # fmt: skip

    def _key(self, tag: int, study: Row, finds: Row, excludes: Row, fits: Callable[[Row], bool]) -> None:
        name, key = KEY_NAMES[tag], IGNORES[tag]
        strangers = self._ask("STUDY", excludes)
        if any(not fits(row) for row in strangers.rows):
            self._learn(key, "yes", f"{name} is ignored: studies are shown that do not fit it.")
            return
        friends = self._ask("STUDY", finds)
        if strangers.refused or friends.refused:
            self._learn(key, "refused", f"Questions with {name} are refused.")
        elif any(row.get(STUDY) == study[STUDY] for row in friends.rows):
            self._learn(key, "no", f"{name} is matched.")
        elif friends.whole:
            self._learn(key, "finds nothing", f"{name} does not find a study by the value that the PACS itself gives for it.")

    def _ranges(self) -> None:
        days = sorted(row[DATE] for row in self._seen.values() if _is_day(row.get(DATE, "")))
        date = self._habits.get("ignores_date")
        if not days or date is None or date.value != "no":
            return
        middle = days[len(days) // 2]
        one, span = self._ask("STUDY", {DATE: middle}), self._ask("STUDY", {DATE: f"{middle}-{middle}"})
        if one.whole and span.refused:
            self._learn("day_range", "refused", "A range of a single day is refused.")
        elif one.whole and span.whole:
            same = {row.get(STUDY) for row in one.rows} == {row.get(STUDY) for row in span.rows}
            self._learn("day_range", "yes" if same else "no",
                        f"A day and a range of just that day show {'the same' if same else 'different studies'}.")  # fmt: skip
        newer, older = self._ask("STUDY", {DATE: f"{days[-1]}-"}), self._ask("STUDY", {DATE: f"-{days[0]}"})
        if newer.refused or older.refused:
            self._learn("open_range", "refused", "Ranges with an open end are refused.")
        elif (newer.cut or newer.whole) and (older.cut or older.whole):
            right = all(row.get(DATE, "") >= days[-1] for row in newer.rows) and all(row.get(DATE, "") <= days[0] for row in older.rows)
            found = (newer.cut or any(row.get(DATE) == days[-1] for row in newer.rows)) and (
                older.cut or any(row.get(DATE) == days[0] for row in older.rows)
            )
            self._learn("open_range", "yes" if right and found else "no",
                        "Ranges with an open end are matched." if right and found else "Ranges with an open end are not matched as they should.")  # fmt: skip

    def _undated(self) -> None:
        """Which questions show a study without a date; only as far as one is seen."""
        if not self._seen:
            return
        ways = ["without a key"] if any(not row.get(DATE) for row in self._baseline.rows) else []
        study = self._reference() or {}
        modality = Counter(code for row in self._seen.values() for code in _values(row.get(MODALITIES, ""))).most_common(1)
        questions: list[tuple[str, Row]] = [("ModalitiesInStudy", {MODALITIES: modality[0][0]})] if modality else []
        for tag in (PATIENT, ACCESSION):
            value = study.get(tag, "")
            if value.isascii() and value and value[0] not in "*?\\" and tag not in self._base:
                questions.append((KEY_NAMES[tag], {tag: f"{value[0]}*"}))
        for name, keys in questions:
            if any(not row.get(DATE) for row in self._ask("STUDY", keys).rows):
                ways.append(name)
        if ways:
            self._learn("undated", ", ".join(ways), f"Questions that show a study without a date: {', '.join(ways)}.")
        else:
            self._learn("undated", "none seen", "No study without a date was seen.")

    # -- studies, series, images
    def _plans(self) -> list[InstanceRef]:
        """The first image of a few small studies; on the way the numbers that the PACS claims are compared."""
        claimed = {uid: _number(row.get(IN_STUDY, "")) for uid, row in self._seen.items()}
        small = sorted((uid for uid in claimed if claimed[uid] is None or 0 < (claimed[uid] or 0) <= 100), key=lambda uid: claimed[uid] or 0)
        # of all sizes: the smallest, and then as different modalities as there are
        kinds: dict[str, str] = {}
        for uid in small:
            kinds.setdefault(self._seen[uid].get(MODALITIES, ""), uid)
        chosen = [*kinds.values(), *(uid for uid in small if uid not in kinds.values())][: _COUNTED + 2]
        plans: list[InstanceRef] = []
        studies = said = wrong = 0
        for uid in chosen:
            if self._clock.left_s < _KEPT_S:
                break
            found = self._count(uid)
            if found is None:
                continue
            plan, pairs = found
            if plan is not None:
                plans.append(plan)
            studies += 1
            said += sum(claim is not None for claim, _ in pairs)
            wrong += sum(claim is not None and claim != listed for claim, listed in pairs)
        if studies and not said:
            self._learn("counters", "absent", "The PACS does not say how many images a study or a series has.")
        elif studies:
            self._learn("counters", "wrong" if wrong else "honest", f"{wrong} of {said} numbers of images, in {studies} studies, differ from what is listed.")
        return plans

    def _count(self, uid: str) -> tuple[InstanceRef | None, list[tuple[int | None, int]]] | None:
        """A study's first image, and (claimed, listed) numbers of images, its own first; None where they are not all listed."""
        study = {STUDY: uid, **self._patient_key(uid)}
        series = self._ask("SERIES", study, (STUDY, SERIES_UID, IN_SERIES))
        if not series.whole or not 0 < len(series.rows) <= _SERIES:
            return None
        first: InstanceRef | None = None
        pairs: list[tuple[int | None, int]] = []
        for row in series.rows:
            listed = self._ask("IMAGE", study | {SERIES_UID: row.get(SERIES_UID, "")}, (STUDY, SERIES_UID, SOP))
            if not listed.whole:
                return None
            pairs.append((_number(row.get(IN_SERIES, "")), len(listed.rows)))
            ref = (uid, row.get(SERIES_UID, ""), listed.rows[0].get(SOP, "")) if listed.rows else ("",)
            if first is None and all(map(is_uid, ref)):
                first = InstanceRef(*ref)
        return first, [(_number(self._seen[uid].get(IN_STUDY, "")), sum(listed for _, listed in pairs)), *pairs]

    def _patient_key(self, uid: str) -> Row:
        return {PATIENT: self._seen[uid].get(PATIENT, "") or self._base[PATIENT]} if self._base else {}

    def _relational(self, plans: list[InstanceRef]) -> None:
        """A SERIES query without the study above it (PS3.4 C.4.1.2.2.2)."""
        if not plans:
            return
        answer = self._ask("SERIES", {SERIES_UID: plans[0].series, **self._patient_key(plans[0].study)}, (SERIES_UID, STUDY))
        if any(row.get(SERIES_UID) == plans[0].series for row in answer.rows):
            self._learn("relational", "yes", "A series is found without its study's UID.")
        elif answer.refused or answer.whole:
            self._learn("relational", "no", "Relational queries are refused." if answer.refused else "A relational query finds nothing.")

    def _cancel(self) -> None:
        told = self._baseline.cancelled
        if told is None and len(self._seen) > 1:
            told = self._ask("STUDY", {} if self._habits["keyless"].value == "answered" else {DATE: "19000101-"}, cancel_after=1).cancelled
        if told is None:
            self._learn("cancel", "unknown", "Answers are over too soon to tell whether C-CANCEL ends them.")
        else:
            self._learn("cancel", "yes" if told else "no", "C-CANCEL ends an answer." if told else "C-CANCEL is ignored.")


def _is_day(text: str) -> bool:
    try:
        datetime.datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return len(text) == 8


def _next_day(day: str, by: int) -> str:
    return f"{datetime.datetime.strptime(day, '%Y%m%d') + datetime.timedelta(by):%Y%m%d}"


def _days(year: int, month: int) -> int:
    return (datetime.date(year + month // 12, month % 12 + 1, 1) - datetime.timedelta(1)).day


def _clock_time(text: str) -> str | None:
    digits = text.strip().replace(":", "").partition(".")[0]
    return digits.ljust(6, "0")[:6] if len(digits) >= 2 and digits.isdigit() else None


def _values(text: str) -> list[str]:
    return [part.strip() for part in text.split("\\") if part.strip()]


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None
