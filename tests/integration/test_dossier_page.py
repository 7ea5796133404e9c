"""The dossier's page in Chromium: what it shows, that it needs nothing but itself, that it can be read and printed; its anonymous edition."""

from __future__ import annotations

import html
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from migrate.manifest import Manifest
from migrate.manifest.decisions import accept
from migrate.model import RetrieveEnded, RetryPolicy, StudyRef, WindowJudged
from migrate.reports import write_dossier
from tests.filled import HOSTILE, came, fresh_manifest, in_browser, migrated, planned, proven, read, received, swept, verdict

# What axe-core asks of such a page: headings in order, contrast (WCAG 1.4.3), names for pictures, heads for tables, a language and a title.
PROBE = """<script>
const found = [], say = text => found.push(text);
const levels = [...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1]);
if (levels.filter(l => l === 1).length !== 1 || levels[0] !== 1) say('one h1 first: ' + levels);
levels.forEach((l, i) => { if (i && l > levels[i - 1] + 1) say('heading level skipped at ' + i); });
if (!document.documentElement.lang || !document.title) say('no language or title');
for (const svg of document.querySelectorAll('svg')) if (svg.getAttribute('role') !== 'img' || !svg.getAttribute('aria-label')) say('picture without a name');
for (const th of document.querySelectorAll('table th')) if (!th.getAttribute('scope') && th.parentElement.rowIndex !== 0) say('head without scope: ' + th.textContent);
const ids = [...document.querySelectorAll('[id]')].map(e => e.id); if (new Set(ids).size !== ids.length) say('an id twice');
const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
let checked = 0;
for (const e of document.querySelectorAll('body *')) {
  if (e.matches('script,style,title') || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
  const style = getComputedStyle(e), ink = rgb(e.closest('svg') ? style.fill : style.color).slice(0, 3), size = parseFloat(style.fontSize);
  const [a, b] = [light(ink), light(ground(e.closest('svg') ? e.closest('svg').parentElement : e))].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
  checked++;
  if (ratio < (size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5)) say('contrast ' + ratio.toFixed(2) + ': ' + e.textContent.slice(0, 40));
}
addEventListener('load', () => { const pre = document.createElement('pre'); pre.id = 'probe';
  pre.textContent = JSON.stringify({checked, found, ground: getComputedStyle(document.body).backgroundColor, requests: performance.getEntriesByType('resource').map(r => r.name)}); document.body.append(pre); });
</script>"""
NAME, OPERATOR = "St. Elsewhere", "j.doe-operator"


@pytest.fixture(scope="module")
def dossier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a manifest with all kinds of exceptions: missing, accepted, in conflict, unexpected; a window that blocks, a killed run."""
    folder = tmp_path_factory.mktemp("page")
    identity = {"source": "OLDPACS@10.20.30.40:104", "destination": f"folder:{folder}/bucket", "migration": NAME}
    manifest = Manifest(folder / "m.db", identity=identity, policy=RetryPolicy(attempts=1))
    manifest.begin_run("run", OPERATOR, "0" * 64)  # never ends: killed
    manifest.begin_run("run", OPERATOR, "1" * 64)
    window = swept(manifest, "1.1", "1.2", "1.3", "1.4")
    manifest.commit([WindowJudged(window, "capped at 2", blocks=True)])
    migrated(manifest, "1.1", "1.1.1.1", "1.1.1.2")
    for study in ("1.2", "1.3"):
        planned(manifest, study, f"{study}.1.1")
        manifest.commit([RetrieveEnded(StudyRef(study), 0, "SourceIncomplete", HOSTILE)])
    accept(manifest, ["1.3"], "the tape is lost", "J. Smith")
    planned(manifest, "1.4", "1.4.1.1")
    arrivals = [received("1.4", "1.4.1.1"), received("1.4", "1.4.1.1", "other"), received("1.4", "1.4.1.9")]
    manifest.commit([*(came(one) for one in arrivals), RetrieveEnded(StudyRef("1.4"), 0)])
    manifest.end_run(3)
    page: Path = read(manifest, write_dossier, folder / "dossier", prefix="")
    manifest.close()
    return page.parent


def chromium(*arguments: str | Path) -> str:
    program = shutil.which("chromium")
    assert program, "Chromium comes with the test peers"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    return subprocess.run([program, *quiet, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_page_shows_verdict_pictures_and_exceptions(dossier: Path, tmp_path: Path) -> None:
    """Verdict, the three sides as table and picture, each exception with its reason and signature, the killed run; hostile text runs nothing."""
    dom = in_browser(dossier / "report.html", tmp_path)
    assert 'id="verdict">Not complete' in dom
    words = ("1.2.1.1", "1.3.1.1", "1.4.1.1", "1.4.1.9", "SourceIncomplete", "Accepted by J. Smith: the tape is lost", "capped at 2", "killed, or cut off",
             "Images by year: 2020: 5 said by the PACS, 3 received, 2 proven", "Images by modality: CT: 5 said by the PACS", "Line of time with 2 commands",
             "OLDPACS@10.20.30.40:104", OPERATOR, "0" * 64, "1" * 64, "no hash at the source", "1 of them did not end by themselves")  # fmt: skip
    assert [word for word in words if word not in dom] == []
    assert "<script" not in dom and "&lt;script&gt;" in dom
    (row,) = re.findall(r'<table id="by-year">.*?<th scope="row" class="nb">2020</th>(.*?)</tr>', dom, re.DOTALL)
    assert re.findall(r">(\d+)<", row) == ["5", "3", "2", "1"]


def probe(page: Path, folder: Path, more: str = "", *, dark: bool = False) -> dict[str, Any]:
    """What PROBE says of a page, to which `more` is added."""
    copy = folder / "page.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", more + PROBE + "</body>"), encoding="utf-8")
    dom = in_browser(copy, folder / "profile", *(["--blink-settings=preferredColorScheme=0"] if dark else []))
    return json.loads(html.unescape(dom.partition('<pre id="probe">')[2].partition("</pre>")[0]))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "dark"), [("report.html", False), ("report.html", True), ("report-anonymous.html", False)])
def test_the_page_can_be_read_by_everybody_and_asks_for_nothing(dossier: Path, tmp_path: Path, name: str, dark: bool) -> None:
    """Headings in order, enough contrast for each text, by day and by night, names for pictures, heads for tables; and the page requests nothing."""
    said = probe(dossier / name, tmp_path, dark=dark)
    assert ("rgb(24, 24, 24)" in said["ground"]) == dark
    assert (said["found"], said["requests"]) == ([], []) and said["checked"] > 50


def test_the_probe_sees_what_is_wrong(dossier: Path, tmp_path: Path) -> None:
    """Pale text, a skipped heading, a picture without a name and a request are found: else the test above would show nothing."""
    wrong = '<h4>x</h4><p style="color:#bbb">pale</p><svg></svg><img src="http://127.0.0.1:9/missing.png">'
    said = probe(dossier / "report-anonymous.html", tmp_path, wrong)
    assert [text.split(" ")[0] for text in said["found"]] == ["heading", "picture", "contrast"]
    assert [url.rpartition("/")[2] for url in said["requests"]] == ["missing.png"]


def test_the_page_prints(dossier: Path, tmp_path: Path) -> None:
    """Chromium prints it to a PDF of several pages; nothing in either edition links out of the file."""
    pdf = tmp_path / "report.pdf"
    chromium(f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={pdf}", (dossier / "report.html").as_uri())
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF") and len(re.findall(rb"/Type ?/Page\b", content)) >= 2
    for name in ("report.html", "report-anonymous.html"):
        source = (dossier / name).read_text(encoding="utf-8")
        assert not any(word in source for word in ("http:", "https:", "src=", "href=", "@import", "url(", "<link"))


def test_every_exception_stands_on_the_page(tmp_path: Path) -> None:
    """1,203 parked studies by UID, each image that is missing of one that came in part, and of one that did not come only how many; Chromium shows and prints them all."""
    with fresh_manifest(tmp_path) as manifest:
        studies = [f"1.2.{number}" for number in range(1203)]
        swept(manifest, *studies)
        for number, study in enumerate(studies):
            planned(manifest, study, *(f"{study}.1.{each}" for each in range(25 if number < 2 else 1)))
            arrived = [came(received(study, f"{study}.1.0"))] if number == 0 else []
            manifest.commit([*arrived, RetrieveEnded(StudyRef(study), 0, "SourceIncomplete", "it is gone")])
        proven(manifest)
        page: Path = read(manifest, write_dossier, tmp_path / "dossier", prefix="")
    dom = in_browser(page, tmp_path)
    rows = re.findall(r"<tr><td><code>([0-9.]+)</code></td><td class=\"nb\">parked</td>", dom)
    assert (len(rows), set(rows)) == (1203, set(studies))
    assert "missing all 25 that the PACS lists" in dom and "1.2.1.1.7" not in dom
    assert [number for number in range(1, 25) if f"<code>1.2.0.1.{number}</code>" not in dom] == []
    pdf = tmp_path / "report.pdf"
    chromium(f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={pdf}", page.as_uri())
    assert len(re.findall(rb"/Type ?/Page\b", pdf.read_bytes())) > 30


def test_the_anonymous_edition_names_nobody_and_nothing(dossier: Path) -> None:
    """It has the same verdict and counts, and no UID, name, address, machine, operator, reason or hash."""
    source = (dossier / "report-anonymous.html").read_text(encoding="utf-8")
    assert verdict(dossier / "report-anonymous.html") == verdict(dossier / "report.html")
    assert not re.search(r"\b[0-9]+(\.[0-9]+){2,}\b", source)  # neither UIDs nor addresses
    assert NAME in (dossier / "report.html").read_text(encoding="utf-8")
    for word in (NAME, socket.gethostname(), OPERATOR, "OLDPACS", "J. Smith", "tape", "bucket", "0" * 64, "1" * 64, str(dossier.parent), HOSTILE[:7]):
        assert word not in source, word
    assert "SourceIncomplete" in source
