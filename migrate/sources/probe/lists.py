"""What a PACS lists of a few studies, against the numbers that it claims; and whether it does so without the UIDs above (PS3.4 C.4.1.2.2.2)."""

from __future__ import annotations

from migrate.model import InstanceRef, is_uid
from migrate.sources.probe.asking import IN_SERIES, IN_STUDY, MODALITIES, SERIES_UID, SOP, STUDY, Asking

_COUNTED, _SERIES = 5, 8
_KEPT_S = 40.0  # for what comes after the counting: retrieval


def first_images(asking: Asking) -> list[InstanceRef]:
    """The first image of a few small studies; on the way the numbers that the PACS claims are compared."""
    claimed = {uid: _number(row.get(IN_STUDY, "")) for uid, row in asking.seen.items()}
    small = sorted((uid for uid in claimed if claimed[uid] is None or 0 < (claimed[uid] or 0) <= 100), key=lambda uid: claimed[uid] or 0)
    # of all sizes: the smallest, and then as different modalities as there are
    kinds: dict[str, str] = {}
    for uid in small:
        kinds.setdefault(asking.seen[uid].get(MODALITIES, ""), uid)
    chosen = [*kinds.values(), *(uid for uid in small if uid not in kinds.values())][: _COUNTED + 2]
    plans: list[InstanceRef] = []
    studies = said = wrong = 0
    for uid in chosen:
        if asking.clock.left_s < _KEPT_S:
            break
        found = _count(asking, uid)
        if found is None:
            continue
        plan, pairs = found
        if plan is not None:
            plans.append(plan)
        studies += 1
        said += sum(claim is not None for claim, _ in pairs)
        wrong += sum(claim is not None and claim != listed for claim, listed in pairs)
    if studies and not said:
        asking.learn("counters", "absent", "The PACS does not say how many images a study or a series has.")
    elif studies:
        asking.learn("counters", "wrong" if wrong else "honest", f"{wrong} of {said} numbers of images, in {studies} studies, differ from what is listed.")
    return plans


def _count(asking: Asking, uid: str) -> tuple[InstanceRef | None, list[tuple[int | None, int]]] | None:
    """A study's first image, and (claimed, listed) numbers of images, its own first; None where they are not all listed."""
    study = {STUDY: uid, **asking.patient_key(uid)}
    series = asking.ask("SERIES", study, (STUDY, SERIES_UID, IN_SERIES))
    if not series.whole or not 0 < len(series.rows) <= _SERIES:
        return None
    first: InstanceRef | None = None
    pairs: list[tuple[int | None, int]] = []
    for row in series.rows:
        listed = asking.ask("IMAGE", study | {SERIES_UID: row.get(SERIES_UID, "")}, (STUDY, SERIES_UID, SOP))
        if not listed.whole:
            return None
        pairs.append((_number(row.get(IN_SERIES, "")), len(listed.rows)))
        ref = (uid, row.get(SERIES_UID, ""), listed.rows[0].get(SOP, "")) if listed.rows else ("",)
        if first is None and all(map(is_uid, ref)):
            first = InstanceRef(*ref)
    return first, [(_number(asking.seen[uid].get(IN_STUDY, "")), sum(listed for _, listed in pairs)), *pairs]


def ask_relational(asking: Asking, plans: list[InstanceRef]) -> None:
    """A SERIES query without the study above it (PS3.4 C.4.1.2.2.2)."""
    if not plans:
        return
    answer = asking.ask("SERIES", {SERIES_UID: plans[0].series, **asking.patient_key(plans[0].study)}, (SERIES_UID, STUDY))
    if any(row.get(SERIES_UID) == plans[0].series for row in answer.rows):
        asking.learn("relational", "yes", "A series is found without its study's UID.")
    elif answer.refused or answer.whole:
        asking.learn("relational", "no", "Relational queries are refused." if answer.refused else "A relational query finds nothing.")


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None
