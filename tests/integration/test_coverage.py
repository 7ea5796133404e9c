"""How the report shows what was asked: each day's class, gaps that stand out, the calendar, the months of `status`."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from migrate.manifest import Manifest
from migrate.model import StudyFound, StudyRef, Window, WindowAnswered, WindowFailed, WindowJudged
from migrate.reports import coverage, coverage_text
from migrate.reports.coverage import Coverage, Day, Swept, gaps
from migrate.reports.pictures import calendar
from tests.filled import answered, asked, in_browser, read, swept, written

DAY = datetime.date
YEAR = Window("20200101", "20201231")
NO_KEY = Window(None, None, "all")


def covered(manifest: Manifest) -> Coverage:
    found: Coverage = read(manifest, coverage)
    return found


def day(manifest: Manifest, month: int, number: int, year: int = 2020) -> tuple[int, Swept]:
    found = dict(covered(manifest).days())[DAY(year, month, number)]
    return found.studies, found.swept


def refused(manifest: Manifest, window: int) -> None:
    manifest.commit([WindowFailed(window, "QueryRefused", "0xA700", retryable=False)])


def test_a_day_asked_for_by_date_only_has_one_axis(manifest: Manifest) -> None:
    """Without a question of another kind nothing confirms a day, with studies or without; only years with studies are shown."""
    swept(manifest, "1.1", "1.2")
    assert (day(manifest, 5, 5), day(manifest, 5, 6)) == ((2, Swept.ONE_AXIS), (0, Swept.ONE_AXIS))
    assert {year: len(days) for year, days in covered(manifest).years.items()} == {2020: 366}


def test_a_day_shown_by_two_kinds_of_questions_is_confirmed(manifest: Manifest) -> None:
    """A day has two axes if each of its studies was shown by two; a day without studies, if a question without a key was answered."""
    year, no_key = asked(manifest, 1, YEAR, NO_KEY)
    answered(manifest, year, ("1.1", "20200505"), ("1.2", "20200506"), ("1.3", "20200506"))
    answered(manifest, no_key, ("1.1", "20200505"), ("1.2", "20200506"))
    assert (day(manifest, 5, 5), day(manifest, 5, 6)) == ((1, Swept.SEVERAL_AXES), (2, Swept.ONE_AXIS))
    assert day(manifest, 5, 7) == (0, Swept.SEVERAL_AXES)


def test_a_day_that_hides_a_study_from_its_date_is_suspicious(manifest: Manifest) -> None:
    """A study with a date that no question by date showed makes its day suspicious, unless it is left out anyway."""
    year, no_key = asked(manifest, 1, YEAR, NO_KEY)
    answered(manifest, year)
    answered(manifest, no_key, ("1.1", "20200505"))
    manifest.commit([StudyFound(StudyRef("1.2"), "20200506", ("CT",), 1, no_key, excluded="None of its modalities is to be migrated.")])
    assert (day(manifest, 5, 5)[1], day(manifest, 5, 6)[1]) == (Swept.SUSPICIOUS, Swept.ONE_AXIS)


def test_parts_of_a_refused_window_are_split(manifest: Manifest) -> None:
    """Halves of a refused year are split; a half without an answer is not swept, though its parts by time have one it is suspicious."""
    (year,) = asked(manifest, 1, YEAR)
    refused(manifest, year)
    first, second = asked(manifest, 1, Window("20200101", "20200630"), Window("20200701", "20201231"), parent=year, by="date", replaces=True)
    answered(manifest, first, ("1.1", "20200505"))
    assert (day(manifest, 5, 5), day(manifest, 12, 31)) == ((1, Swept.SPLIT), (0, Swept.NOT_SWEPT))
    refused(manifest, second)
    assert day(manifest, 12, 31)[1] == Swept.NOT_SWEPT
    (part,) = asked(manifest, 1, Window("20200701", "20201231", modality="CT"), parent=second, by="modality")
    answered(manifest, part)
    assert day(manifest, 12, 31)[1] == Swept.SUSPICIOUS
    manifest.commit([WindowJudged(second, "asked in parts by time and modality, which show the same.")])
    assert day(manifest, 12, 31)[1] == Swept.SPLIT


def test_a_split_day_tells_whether_another_way_confirms_it(manifest: Manifest) -> None:
    """Where the PACS caps or refuses nearly everything is split; the tip of a square still tells what was shown in two ways."""
    year, no_key = asked(manifest, 1, YEAR, NO_KEY)
    refused(manifest, year)
    first, second = asked(manifest, 1, Window("20200101", "20200630"), Window("20200701", "20201231"), parent=year, by="date", replaces=True)
    answered(manifest, first, ("1.1", "20200505"), ("1.2", "20200506"))
    answered(manifest, second)
    answered(manifest, no_key, ("1.1", "20200505"))
    (row,) = calendar(covered(manifest))["rows"]
    titles = {cell.title for cell in row["cells"]}
    assert "Tue 2020-05-05: 1 study, asked in parts and in two ways" in titles
    assert "Wed 2020-05-06: 1 study, asked in parts" in titles
    assert "Thu 2020-05-07: no studies, asked in parts and in two ways" in titles


def test_an_odd_answer_makes_its_days_suspicious(manifest: Manifest) -> None:
    """A suspicion holds for all days of its window; questions that only compare hold for none."""
    first, second = asked(manifest, 1, Window("20200101", "20200630"), Window("20200701", "20201231"))
    answered(manifest, first, ("1.1", "20200505"))
    answered(manifest, second)
    (check,) = asked(manifest, 1, Window("20200701", "20200831"), parent=second, by="date", purpose="check")
    answered(manifest, check)
    manifest.commit([WindowJudged(first, "odd"), WindowJudged(check, "odd")])
    assert (day(manifest, 6, 30)[1], day(manifest, 7, 1)[1]) == (Swept.SUSPICIOUS, Swept.ONE_AXIS)


def test_a_capped_day_that_was_cut_by_other_keys_is_split(manifest: Manifest) -> None:
    """What the other keys show alike makes the day split, whatever is said of it; what they cannot show, suspicious."""
    (window,) = asked(manifest, 1, Window("20200505", "20200505"))
    answered(manifest, window, ("1.1", "20200505"))
    (part,) = asked(manifest, 1, Window("20200505", "20200505", time_lo="000000", time_hi="120000"), parent=window, by="time")
    answered(manifest, part, ("1.1", "20200505"))
    manifest.commit([WindowJudged(window, "The answer may be capped; asked in parts by time and modality, which show the same.")])
    assert day(manifest, 5, 5)[1] == Swept.SPLIT
    manifest.commit([WindowJudged(window, "The answer may be capped, and no other key shows all of it.", blocks=True)])
    assert (day(manifest, 5, 5)[1], day(manifest, 5, 6)[1]) == (Swept.SUSPICIOUS, Swept.NOT_SWEPT)


def test_only_the_newest_sweep_counts(manifest: Manifest) -> None:
    """What an older sweep was answered covers nothing; a question that still waits is no answer."""
    swept(manifest, "1.1")
    (window,) = asked(manifest, 2, YEAR)
    assert day(manifest, 5, 5) == (1, Swept.NOT_SWEPT)
    answered(manifest, window)
    assert day(manifest, 5, 5) == (1, Swept.ONE_AXIS)


def test_dates_that_are_none_are_counted_apart(manifest: Manifest) -> None:
    """No date, the 31st of February and the year 1 are in no year, and do not stretch the calendar."""
    (window,) = asked(manifest, 1, NO_KEY)
    answered(manifest, window, ("1.1", None), ("1.2", "20200231"), ("1.3", "00010101"), ("1.4", "2020.1.1"), ("1.5", "20200505"))
    assert (covered(manifest).undated, list(covered(manifest).years)) == (4, [2020])
    assert "4 studies without a usable date" in coverage_text(covered(manifest))


def working(years: range, studies: Callable[[DAY], int]) -> Coverage:
    """A coverage with that many studies on each day."""
    days = {year: [DAY(year, 1, 1) + datetime.timedelta(number) for number in range(365 + (year % 4 == 0))] for year in years}
    return Coverage({year: [Day(studies(date), Swept.ONE_AXIS) for date in dates] for year, dates in days.items()}, {}, 0)


def named(found: Coverage) -> list[tuple[str, str, int]]:
    return [(str(gap.first), str(gap.last), gap.weekdays) for gap in gaps(found)]


def test_a_weekday_without_studies_amid_busy_ones_stands_out() -> None:
    """One empty Tuesday is named, an empty week is one gap; weekends, quiet archives and the ends are none."""
    def busy(date: DAY) -> int:
        return 0 if date.weekday() > 4 or date == DAY(2020, 5, 5) or DAY(2020, 9, 7) <= date <= DAY(2020, 9, 13) else 5  # fmt: skip

    assert named(working(range(2019, 2022), busy)) == [("2020-05-05", "2020-05-05", 1), ("2020-09-07", "2020-09-11", 5)]
    assert named(working(range(2019, 2022), lambda date: min(busy(date), 4))) == []
    assert named(working(range(2020, 2021), lambda date: 5 if DAY(2020, 3, 1) <= date <= DAY(2020, 10, 1) else 0)) == []


def test_a_public_holiday_every_other_week_is_no_reason_to_hide_a_gap() -> None:
    """Two empty days in a row are judged each by its own weekday; a run is judged by the averages around it."""
    empty = {DAY(2020, 5, 5), DAY(2020, 5, 6), DAY(2020, 8, 24), *(DAY(2020, 8, number) for number in (4, 5, 6, 7))}
    found = working(range(2020, 2021), lambda date: 9 if date.weekday() < 5 and date not in empty else 0)
    assert named(found) == [("2020-05-05", "2020-05-05", 1), ("2020-05-06", "2020-05-06", 1), ("2020-08-04", "2020-08-07", 4), ("2020-08-24", "2020-08-24", 1)]


def test_a_gap_tells_how_its_days_were_asked_for(manifest: Manifest) -> None:
    """A whole year without studies between busy ones is a gap; it was not answered if its window failed."""
    ids = asked(manifest, 1, *(Window(f"{year}0101", f"{year}1231") for year in (2019, 2020, 2021)))
    for window, year in ((ids[0], 2019), (ids[2], 2021)):
        dates = [DAY(year, 1, 1) + datetime.timedelta(number) for number in range(365)]
        found = [(f"1.{date:%Y%m%d}.{number}", f"{date:%Y%m%d}") for date in dates if date.weekday() < 5 for number in range(5)]
        answered(manifest, window, *found)
    refused(manifest, ids[1])
    document = read(manifest)["coverage"]
    assert document["gaps"] == [{"from": "2020-01-01", "to": "2020-12-31", "weekdays": 262, "swept": "not_swept"}]
    assert document["years"] == {"2019": 1305, "2021": 1305}
    assert document["days"] == {"several_axes": 0, "one_axis": 730, "split": 0, "suspicious": 0, "not_swept": 0}
    text = coverage_text(covered(manifest))
    assert "\n2020 no studies\n" in text and "2020-01-01 to 2020-12-31" in text


def test_status_has_a_line_a_year(manifest: Manifest) -> None:
    """Twelve months with their studies and a sign for the worst day, at most 100 columns wide, whatever the numbers; quarters in a narrow terminal."""
    first, second = asked(manifest, 1, Window("20200101", "20200630"), Window("20200701", "20201231"))
    answered(manifest, first, *((f"1.{number}", "20200105") for number in range(1234)), ("1.9999", "20200505"))
    manifest.commit([WindowAnswered(second, 0), WindowJudged(second, "odd")])
    text = coverage_text(covered(manifest))
    (line,) = [line for line in text.splitlines() if line.startswith("2020")]
    assert line.split() == ["2020", "1234", ".", ".", ".", "1", ".", *[".!"] * 6, "1,235"]
    manifest.commit([WindowJudged(second, "worse", blocks=True)])
    large = Coverage({2020: [Day(999_999, Swept.NOT_SWEPT)] * 366}, {}, 0)
    assert max(len(line) for line in (*text.splitlines(), *coverage_text(large).splitlines())) <= 100
    narrow = coverage_text(covered(manifest), 60)
    assert max(map(len, narrow.splitlines())) <= 60
    assert [line.split() for line in narrow.splitlines()[2:]] == [["year", "Q1", "Q2", "Q3", "Q4", "total"], ["2020", "1234", "1", ".!", ".!", "1,235"]]
    assert coverage_text(Coverage({}, {}, 0)) == "No study with a date has been found yet."


def test_a_range_is_what_was_asked_for_by_date(manifest: Manifest) -> None:
    """A question that only looks for what no range can show does not open the range of the report."""
    (window,) = asked(manifest, 1, YEAR)
    (look,) = asked(manifest, 1, NO_KEY, purpose="look")
    answered(manifest, window, ("1.1", "20200505"))
    answered(manifest, look)
    enumeration = read(manifest)["enumeration"]
    assert (enumeration["from"], enumeration["to"], enumeration["windows"]) == ("2020-01-01", "2020-12-31", 2)
    for sweep, (first, last) in enumerate(((None, None), ("00010101", "99991231")), 2):
        asked(manifest, sweep, Window(first, "20191231"), YEAR, Window("20210101", last), NO_KEY)
        assert (read(manifest)["enumeration"]["from"], read(manifest)["enumeration"]["to"]) == (None, None)


def test_a_browser_shows_the_calendar(manifest: Manifest, tmp_path: Path) -> None:
    """Chromium has a cell for each day of the years with studies, with its date, studies and how it was asked, and a legend."""
    years = asked(manifest, 1, *(Window(f"{year}0101", f"{year}1231") for year in range(2018, 2022)))
    answered(manifest, years[0], ("1.1", "20180104"))
    answered(manifest, years[1])
    refused(manifest, years[2])
    answered(manifest, years[3], ("1.2", "20210505"), ("1.3", "20210505"), ("1.4", "20210506"))
    manifest.commit([WindowJudged(years[3], "odd")])
    dom = in_browser(written(manifest, tmp_path / "out"), tmp_path / "profile")
    calendar = dom.partition('id="calendar"')[2].partition("Gaps</h3>")[0]
    assert calendar.count("<li") == calendar.count("</li>") == 730
    assert '<li class="s2" title="Wed 2021-05-05: 2 studies, odd answer">' in calendar
    assert '<li class="o1" title="Thu 2018-01-04: 1 study, asked in one way">' in calendar
    assert calendar.count("2019 to 2020: no studies") == 1
    assert "odd answer: 365 days" in dom and "in one way: 365 days" in dom and "2 or more" in dom


def test_a_calendar_of_forty_years_is_of_a_sane_size(manifest: Manifest, tmp_path: Path) -> None:
    """Forty years are less than two megabytes, and no year needs a script."""
    ids = asked(manifest, 1, *(Window(f"{year}0101", f"{year}1231") for year in range(1981, 2021)))
    for window, year in zip(ids, range(1981, 2021), strict=True):
        answered(manifest, window, *((f"1.{year}.{number}", f"{year}0505") for number in range(year % 5 + 1)))
    page = written(manifest, tmp_path / "out")
    assert 500_000 < page.stat().st_size < 2_000_000 and "<script" not in page.read_text()


MEASURE = """<script>onload = () => document.body.dataset.over = [...document.querySelectorAll("#calendar, #calendar figure")]
  .map(each => each.scrollWidth - each.clientWidth).join(" ")</script>"""


@pytest.mark.parametrize("width", [500, 800, 993, 1400])
def test_the_calendar_is_as_wide_as_the_page(manifest: Manifest, tmp_path: Path, width: int) -> None:
    """Nobody has to scroll sideways for December, also in 2012, a leap year that spreads over 54 weeks."""
    (window,) = asked(manifest, 1, Window("20120101", "20121231"))
    answered(manifest, window, ("1.2", "20120505"))
    page = written(manifest, tmp_path / "out")
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    assert 'data-over="0 0"' in in_browser(page, tmp_path / "profile", f"--window-size={width},900")
