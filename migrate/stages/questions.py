"""The questions of a sweep, and how each is cut into smaller ones. Pure: no peer, no manifest."""

from __future__ import annotations

import datetime
import string
from collections.abc import Sequence
from dataclasses import replace

from migrate.model import EXACT, PartBy, Window

FIRST_YEAR = 1970
_OLDEST_YEAR, _LATEST_YEAR = 1900, 2040
_FIRST_DAY, _LAST_DAY = "00010101", "99991231"
PREFIX_MAX = 8
"""Characters of an ID that a question holds at most: longer ones would name a patient."""
PREFIXES = string.digits + string.ascii_uppercase + string.ascii_lowercase + "-_.#/+"
"""Characters that IDs are taken to begin with; a sweep by them is believed only if it shows again what dates have shown."""
MODALITIES: Sequence[str] = (
    "CT", "MR", "CR", "DX", "US", "MG", "PX", "IO", "RF", "XA", "NM", "PT", "OT", "SC", "SR", "PR", "KO", "ES", "XC", "GM", "OP", "OPT", "OCT", "ECG", "HD", "EPS", "IVUS", "IVOCT", "BI", "TG", "LS", "BMD", "BDUS", "AR", "AU", "DOC", "KER", "LEN",
    "OAM", "OPM", "OPV", "OSS", "PLAN", "REG", "RESP", "RG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD", "RTSTRUCT", "SEG", "SM", "SMR", "SRF", "STAIN", "TEXTUREMAP", "VA", "FID", "RWV", "CF", "CS", "DD", "DF", "DM",
    "DS", "EC", "FA", "FS", "LP", "MA", "MS", "ST", "VF",
)
"""Defined terms of Modality, the retired ones included (PS3.3 C.7.3.1.1.1)."""


def first_windows(date_from: str | None, date_to: str | None, today: datetime.date, *, open_ranges: bool = True) -> tuple[Window, ...]:
    """A window a year between the bounds; where both are open, also all before, all after, and one without any key.

    Without `open_ranges` the PACS is known to make little of them: closed ones hold every date there can be.
    """
    last = date_to or f"{today.year + 1}1231"
    first = date_from or f"{FIRST_YEAR}0101"
    windows = [] if date_from else [Window(None, f"{FIRST_YEAR - 1}1231")]
    for year in range(int(first[:4]), int(last[:4]) + 1):
        windows.append(Window(max(first, f"{year}0101"), min(last, f"{year}1231")))
    if not date_to:
        windows.append(Window(f"{today.year + 2}0101", None))
    if not open_ranges:
        windows = [part for window in windows for part in (closed(window) or (window,))]
    if not date_from and not date_to:
        windows.append(Window(None, None, "all"))
    return tuple(windows)


def closed(window: Window) -> tuple[Window, ...]:
    """An open range of dates from the first or to the last date that can be written; () for one that is closed already."""
    if (window.lo is None) == (window.hi is None):
        return ()
    return (replace(window, lo=window.lo or _FIRST_DAY, hi=window.hi or _LAST_DAY),)


def is_far(window: Window) -> bool:
    """A closed range of years that no study can be from: too many of them to ask for one by one."""
    return window.lo is not None and window.hi is not None and (window.hi < f"{_OLDEST_YEAR}" or window.lo >= f"{_LATEST_YEAR}")


def narrower(window: Window) -> tuple[Window, ...]:
    """The window cut by date, where that is of use: nothing for a single day, and for years that no study can be from."""
    return () if is_far(window) else by_date(window)


def by_date(window: Window) -> tuple[Window, ...]:
    """Open ranges closed, then years (halves of far ones), then months, then halves down to days. Nothing for a single day."""
    if window.lo is None or window.hi is None:
        return closed(window)
    if is_far(window) and window.lo[:4] != window.hi[:4]:
        middle = (int(window.lo[:4]) + int(window.hi[:4])) // 2
        return replace(window, hi=f"{middle:04}1231"), replace(window, lo=f"{middle + 1:04}0101")
    if window.lo[:4] != window.hi[:4]:
        return (
            *([replace(window, hi=f"{_OLDEST_YEAR - 1}1231")] if window.lo < f"{_OLDEST_YEAR}" else []),
            *_years(replace(window, lo=max(window.lo, f"{_OLDEST_YEAR}0101"), hi=min(window.hi, f"{_LATEST_YEAR - 1}1231"))),
            *([replace(window, lo=f"{_LATEST_YEAR}0101")] if window.hi >= f"{_LATEST_YEAR}" else []),
        )
    if window.lo[:6] != window.hi[:6]:
        return _months(window)
    first, last = _day(window.lo), _day(window.hi)
    if first >= last:
        return ()
    middle_day = first + (last - first) // 2
    after = middle_day + datetime.timedelta(1)
    return (replace(window, hi=f"{middle_day:%Y%m%d}"), replace(window, lo=f"{after:%Y%m%d}"))


def _years(window: Window) -> tuple[Window, ...]:
    assert window.lo is not None and window.hi is not None
    years = range(int(window.lo[:4]), int(window.hi[:4]) + 1)
    return tuple(replace(window, lo=max(window.lo, f"{year:04}0101"), hi=min(window.hi, f"{year:04}1231")) for year in years)


def _months(window: Window) -> tuple[Window, ...]:
    assert window.lo is not None and window.hi is not None
    year = window.lo[:4]
    months = range(int(window.lo[4:6]), int(window.hi[4:6]) + 1)
    ends = (f"{_day(f'{year}{month + 1:02}01') - datetime.timedelta(1):%Y%m%d}" if month < 12 else f"{year}1231" for month in months)
    return tuple(
        replace(window, lo=max(window.lo, f"{year}{month:02}01"), hi=min(window.hi, end)) for month, end in zip(months, ends, strict=True)
    )


def _day(text: str) -> datetime.date:
    return datetime.date(int(text[:4]), int(text[4:6]), int(text[6:8]))


def by_time(window: Window) -> tuple[Window, ...]:
    """Halves of a day's time that share their border, so that a fraction of a second falls into one of them; () below 2 s."""
    if window.lo is None or window.lo != window.hi:
        return ()
    lo, hi = _seconds(window.time_lo or "000000"), _seconds(window.time_hi or "240000")
    if hi - lo < 2:
        return ()
    middle = (lo + hi) // 2
    return (
        replace(window, time_lo=_time(lo), time_hi=_time(middle)),
        replace(window, time_lo=_time(middle), time_hi=_time(hi)),
    )


def _seconds(text: str) -> int:
    if text.startswith("235959."):
        return 86400
    return int(text[:2]) * 3600 + int(text[2:4]) * 60 + int(text[4:6])


def _time(seconds: int) -> str:
    if seconds == 86400:
        return "235959.999999"
    return f"{seconds // 3600:02}{seconds // 60 % 60:02}{seconds % 60:02}"


def parts(window: Window, by: PartBy) -> tuple[Window, ...]:
    """The window cut by that key; () where it cannot be cut further by it."""
    match by:
        case "date":
            return by_date(window)
        case "time":
            return by_time(window)
        case "modality":
            return () if window.modality else tuple(replace(window, modality=code) for code in MODALITIES)
        case "patient":
            return tuple(replace(window, patient=longer) for longer in _longer(window.patient or ""))
        case "accession":
            return tuple(replace(window, accession=longer) for longer in _longer(window.accession or ""))


def _longer(prefix: str) -> tuple[str, ...]:
    """Prefixes of one character more, and the value that is just the prefix."""
    if len(prefix) >= PREFIX_MAX or prefix.endswith(EXACT):
        return ()
    return (*(prefix + more for more in PREFIXES), *([prefix + EXACT] if prefix else []))


def cuts(window: Window, *, ignores_date: bool = False) -> tuple[PartBy, ...]:
    """The keys by which a window can be cut, in the order to try them.

    Parts by date lose nothing. All others lose what has no value under their key, so that more than one must be tried.
    """
    if window.axis == "date" and not ignores_date:
        if by_date(window):
            return ("date",)
        return ("time", "modality", "patient", "accession") if window.lo and window.lo == window.hi else ()
    return ("patient", "accession", "modality")
