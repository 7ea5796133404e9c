"""A second verifier of dossiers, written from docs/proof.md and docs/dossier.md alone: whole tables in memory, nothing shared with the first.

It only says whether all holds; the first one, which ships, must agree on every case.
"""

from __future__ import annotations

import collections
import csv
import datetime
import gzip
import hashlib
import io
import json
from pathlib import Path

ESCAPED = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
ORDER = ["expected", "staged", "stored", "verified"]
SET_BY = {
    "staged": ["size_bytes", "dataset_sha256", "file_sha256", "crc64nvme", "pixel_crc64", "sop_class", "transfer_syntax", "notes", "staged_at"],
    "stored": ["stored_at", "version", "checksum", "beside"],
    "verified": ["proof", "verified_at"],
}


class DoesNotHold(Exception):
    """Something of a dossier does not hold."""


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise DoesNotHold(what)


def holds(folder: Path, objects: Path | None = None) -> bool:
    """Whether everything in the dossier, and every proven object, is as it was sealed."""
    try:
        _files(folder)
        tables = {name: _table(folder / name) for name in ("instances.csv.gz", "events.csv.gz", "seals.csv.gz", "studies.csv", "exceptions.csv")}
        _chain(tables)
        _rows_against_log(tables)
        leaves = _tree(folder, tables)
        demand(tables["exceptions.csv"] == _exceptions(tables), "exceptions.csv")
        _report(folder, tables)
        _lists(folder, leaves)
        if objects:
            for row in leaves:
                raw = (objects / str(row["key"])).read_bytes()
                demand(hashlib.sha256(raw).hexdigest() == row["file_sha256"] and len(raw) == int(row["size_bytes"] or -1), "object")
            _anchors(folder, objects, tables)
    except Exception:  # a damaged file breaks its reader in many ways
        return False
    return True


def _files(folder: Path) -> None:
    listed = {}
    *lines, rest = (folder / "contents.sha256").read_bytes().decode().split("\n")
    for line in lines:
        demand(line[64:66] == "  " and line[66:] not in listed, "a line of contents.sha256")
        listed[line[66:]] = line[:64]
    demand(rest == "" and list(listed) == sorted(listed), "the order of contents.sha256")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "bag/data/" not in path.as_posix()}
    demand(found - {"contents.sha256", "dossier.sig", "dossier.tsq", "dossier.tsr"} == set(listed), "files")
    for name, digest in listed.items():
        demand(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name)


def _table(path: Path) -> list[dict[str, str | None]]:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    head, *rows = list(csv.reader(io.StringIO(text, newline="")))
    demand(all(len(row) == len(head) for row in rows), "a row's cells")
    return [{name: (cell[1:] if cell.startswith("'") else cell) if cell else None for name, cell in zip(head, row, strict=True)} for row in rows]


def _field(value: object) -> str:
    return "\\N" if value is None else "".join(ESCAPED.get(letter, letter) for letter in str(value))


def _quoted(text: str) -> list[str | None]:
    """What SQLite's quote() wrote, joined by commas, letter by letter."""
    values: list[str | None] = []
    while text:
        if text[0] == "'":
            end = 1
            while text[end : end + 1] != "'" or text[end : end + 2] == "''":
                end += 2 if text[end : end + 2] == "''" else 1
                demand(end < len(text), "a literal without an end")
            values.append(text[1:end].replace("''", "'"))
            text = text[end + 1 :]
        else:
            word, comma, rest = text.partition(",")
            values.append(None if word == "NULL" else word)
            text = comma + rest
        demand(text[:1] in ("", ","), "literals")
        text = text[1:]
    return values


def _step(uids: tuple[object, ...], name: str, values: list[str | None]) -> str:
    return "\t".join(["step", *map(_field, uids), name, *map(_field, values)])


def _chain(tables: dict[str, list[dict[str, str | None]]]) -> None:
    steps: dict[int, list[str]] = collections.defaultdict(list)
    for row in tables["instances.csv.gz"]:
        reached = ORDER.index(str(row["state"]))
        for place, (name, columns) in enumerate(SET_BY.items(), 1):
            seal = row[f"{name}_seal"]
            demand((seal is not None) == (place <= reached), "a seal that fits the state")
            kept = {"beside", *(SET_BY["staged"] if row["copy"] else ())}
            demand(place <= reached or not any(row[column] for column in columns if column not in kept), "nothing of a step not taken")
            if seal is not None:
                uids = (row["study"], row["series"], row["sop"], row["copy"] or "")
                steps[int(seal)].append(_step(uids, name, [row[column] for column in columns]))
        demand((row["proof"] is not None) == (reached == 3) and (row["key"] is not None) == (reached >= 2), "a proof and key that fit the state")
    for event in tables["events.csv.gz"]:
        if event["kind"] in ("instance fell back", "copy fell back", "proof raised"):
            values = _quoted(event["detail"] or "")
            uids = (event["study"], event["series"], event["sop"], values[2] or "")
            for name, begin, end in (("staged", 4, 13), ("stored", 14, 18), ("verified", 19, 21)):
                if values[begin - 1] is not None:
                    steps[int(values[begin - 1] or 0)].append(_step(uids, name, values[begin:end]))
    before, used = bytes(32), 0
    for number, seal in enumerate(tables["seals.csv.gz"], 1):
        demand(seal["id"] == str(number), "seals without gaps")
        lines = ["\t".join(["seal", *(_field(seal[name]) for name in ("id", "at", "run", "operator", "host", "version"))])]
        while used < int(seal["last_event"] or 0):
            event = tables["events.csv.gz"][used]
            used += 1
            demand(event["id"] == str(used), "events without gaps")
            plain: list[object] = [int(event["id"] or 0), int(event["at"] or 0), None if event["run"] is None else int(event["run"])]
            plain += [event[name] for name in ("kind", "study", "series", "sop", "detail")]
            lines.append("event\t" + json.dumps(plain, separators=(",", ":")))
        demand(used == int(seal["last_event"] or 0), "a last event that is not before the one of the seal before")
        mine = sorted(steps.pop(number, []), key=lambda line: line.encode())
        demand(len(mine) == int(seal["steps"] or 0), "steps")
        before = hashlib.sha256(before + "".join(f"{line}\n" for line in [*lines, *mine]).encode()).digest()
        demand(before.hex() == seal["sha256"], f"seal {number}")
    demand(used == len(tables["events.csv.gz"]) and not steps, "nothing beyond the last seal")


def _rows_against_log(tables: dict[str, list[dict[str, str | None]]]) -> None:
    states: dict[str | None, str] = {}
    found, changed = {}, {}
    rows: dict[str | None, list[str | None]] = {}
    plans: dict[str | None, tuple[int, str]] = {}
    marks = set()
    for event in tables["events.csv.gz"]:
        kind, study = str(event["kind"]), event["study"]
        if kind.removeprefix("study ") in ("found", "planned", "retrieved", "migrated", "excluded", "parked", "accepted"):
            states[study], changed[study] = kind.removeprefix("study "), event["at"]
        if kind == "studies found":
            values = _quoted(event["detail"] or "")
            demand(len(values) % 5 == 0, "five literals for each study found")
            for at in range(0, len(values), 5):
                found[values[at]] = changed[values[at]] = event["at"]
                states[values[at]], rows[values[at]] = "found", [*values[at + 1 : at + 5], None, None, "0", None, None]
        elif kind == "study row":
            rows[study] = _quoted(event["detail"] or "")
        elif kind == "study listed":
            count, digest = _quoted(event["detail"] or "")
            plans[study] = (int(count or 0), str(digest))
        elif kind in ("instance conflict", "instance lies beside"):
            marks.add((kind.split()[-1], "1", study, event["series"], event["sop"]))
    by_study = collections.defaultdict(list)
    for row in tables["instances.csv.gz"]:
        by_study[row["study"]].append(row)
    uids = [row["study"] for row in tables["studies.csv"]]
    demand(uids == sorted(set(uids), key=str) and set(uids) == set(states) and set(by_study) <= set(uids), "studies")
    for study in tables["studies.csv"]:
        uid = study["study"]
        first = [row for row in by_study[uid] if row["copy"] is None]
        counted = collections.Counter(row["state"] for row in first)
        demand(study["state"] == states[uid] and all(int(study[name] or 0) == counted[name] for name in ORDER), "a study's state and counts")
        date, _, modalities, claimed, _, listed, attempts, error, detail = rows[uid]
        said = {"date": date, "modalities": modalities, "claimed_instances": claimed, "listed_instances": listed, "attempts": attempts, "error": error}
        times = {"detail": detail, "found_at": _iso(found[uid]), "changed_at": _iso(changed[uid])}
        rest = {name: value for name, value in study.items() if name not in ("study", "state", *ORDER)}
        demand(rest == said | times, "a study's row")
        lines = [f"{row['series']}\t{row['modality'] or ''}\t{row['sop']}\n" for row in first if row["listed"] == "1"]
        demand((len(lines), hashlib.sha256("".join(lines).encode()).hexdigest()) == plans.get(uid, (0, hashlib.sha256().hexdigest())), "a plan")
    marked = {
        (name, row[name], row["study"], row["series"], row["sop"])
        for row in tables["instances.csv.gz"] for name in ("conflict", "beside") if row["copy"] is None and row[name] != "0"
    }  # fmt: skip
    demand(marked == marks, "what is in conflict, and what lies beside")
    of_series: dict[object, str | None] = {}
    for row in tables["instances.csv.gz"]:
        demand(of_series.setdefault((row["study"], row["series"]), row["modality"]) == row["modality"], "one modality of a series")
        flags = (row["listed"], row["conflict"], row["beside"])
        demand(flags == (None, None, "1") if row["copy"] else set(flags) <= {"0", "1"}, "flags")
    keys = [(str(row["study"]), str(row["series"]), str(row["sop"]), row["copy"] or "") for row in tables["instances.csv.gz"]]
    demand(keys == sorted(set(keys)), "the order of instances")


def _iso(at_ms: str | None) -> str:
    return f"{datetime.datetime.fromtimestamp(int(at_ms or 0) // 1000, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    demand(len(dict(pairs)) == len(pairs), "a name twice")
    return dict(pairs)


def _mth(hashes: list[bytes]) -> bytes:
    """MTH of RFC 9162 2.1.1, as the recursion that it is there."""
    if not hashes:
        return hashlib.sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return hashlib.sha256(b"\x01" + _mth(hashes[:split]) + _mth(hashes[split:])).digest()


def _leaf(entry: list[object]) -> bytes:
    return hashlib.sha256(b"\x00" + json.dumps(entry, separators=(",", ":")).encode("ascii")).digest()


def _tree(folder: Path, tables: dict[str, list[dict[str, str | None]]]) -> list[dict[str, str | None]]:
    proven = [row for row in tables["instances.csv.gz"] if row["proof"]]
    prefixes = set()
    for row in tables["instances.csv.gz"]:
        if row["key"]:
            tail = f"~{str(row['dataset_sha256'])[:12]}.dcm" if row["beside"] == "1" else ".dcm"
            before, found, after = row["key"].rpartition(f"studies/{row['study']}/series/{row['series']}/instances/{row['sop']}{tail}")
            demand(bool(found) and not after, "a key")
            prefixes.add(before)
    demand(len(prefixes) < 2, "one prefix for all keys")
    of_study = []
    for uid in sorted({str(row["study"]) for row in proven}):
        mine = sorted((row for row in proven if row["study"] == uid), key=lambda row: (str(row["series"]), str(row["sop"]), str(row["key"])))
        entries: list[list[object]] = []
        for row in mine:
            entries.append([uid, row["series"], row["sop"], int(row["size_bytes"] or 0), row["dataset_sha256"], row["file_sha256"], row["key"],
                            row["version"], row["proof"]])  # fmt: skip
        of_study.append(_leaf([uid, len(entries), _mth([_leaf(entry) for entry in entries]).hex()]))
    seals = tables["seals.csv.gz"]
    truth = {"seal": len(seals), "head": seals[-1]["sha256"], "studies": len(of_study), "leaves": len(proven), "root": _mth(of_study).hex()}
    said = json.loads((folder / "merkle.json").read_text())
    demand({name: said[name] for name in truth} == truth, "merkle.json")
    return proven


def _newest(tables: dict[str, list[dict[str, str | None]]], kind: str) -> dict[str | None, dict[str, str | None]]:
    """The last event of that kind for each row that it speaks of: its first literal."""
    return {_quoted(event["detail"] or "")[0]: event for event in tables["events.csv.gz"] if event["kind"] == kind}


def _exceptions(tables: dict[str, list[dict[str, str | None]]]) -> list[dict[str, str | None]]:
    """What exceptions.csv has to say: studies first, then files that belong to none."""
    images, files, odd, signed = (collections.defaultdict(list) for _ in range(4))
    for row in tables["instances.csv.gz"]:
        if row["copy"] is None:
            images[row["study"]].append(row)
    revoked = {_quoted(event["detail"] or "")[1] for event in _newest(tables, "revocation row").values()}
    for number, event in _newest(tables, "acceptance row").items():
        _, _, code, reason, by, role, _ = _quoted(event["detail"] or "")
        if number not in revoked:
            why = ": ".join(str(part) for part in (event["sop"], code if code != "other" else None, reason) if part is not None)
            signed[event["study"]].append((f"{by} ({role})" if role else str(by), why))
    for number, event in _newest(tables, "file quarantined").items():
        _, _, reason, claimed, _, _ = _quoted(event["detail"] or "")
        files[event["study"]].append((event["sop"] or f"q{number}", f"q{number}: {reason}; UIDs as sent: {claimed}.", number))
    for event in tables["events.csv.gz"]:
        if event["kind"] == "rows without a UID":
            odd[event["study"]] = [f"The PACS lists {row}, which is no UID." for row in json.loads(event["detail"] or "")]
    found = []

    def say(study: str | None, state: str | None, error: str | None, detail: str | None, attempts: str | None, **more: list[str]) -> None:
        lists = {name: " ".join(more.get(name, ())) or None for name in ("missing", "unexpected", "conflict", "quarantined")}
        by, why = ([part for part, _ in more.get("signed", [])], [part for _, part in more.get("signed", [])])  # type: ignore[misc]
        signature = {"accepted_by": "; ".join(dict.fromkeys(by)) or None, "reason": "; ".join(dict.fromkeys(why)) or None}
        found.append({"study": study, "state": state, "error": error, "detail": detail, "attempts": attempts, **lists, **signature})

    for study in tables["studies.csv"]:
        uid, mine = study["study"], images[study["study"]]
        conflict = [row for row in mine if row["conflict"] == "1"]
        unexpected = [row for row in mine if row["conflict"] != "1" and row["listed"] != "1"]
        left = study["state"] in ("parked", "accepted")
        missing = [row for row in mine if row["state"] == "expected" or (left and row["state"] != "verified" and row["conflict"] != "1")]
        if study["state"] == "migrated" and study["error"] is None and not (conflict or unexpected or missing or files[uid]):
            continue
        words = [text for _, text, _ in files[uid]] + odd[uid]
        detail = " ".join([study["detail"], *words] if study["detail"] else words) if words else study["detail"]
        named = {name: sorted(str(row["sop"]) for row in rows) for name, rows in (("missing", missing), ("unexpected", unexpected), ("conflict", conflict))}
        say(uid, study["state"], study["error"], detail, study["attempts"], **named, quarantined=[name for name, _, _ in files[uid]], signed=signed[uid])
    accepted = {number: _quoted(event["detail"] or "")[1:] for number, event in _newest(tables, "quarantine row").items()}
    for _, text, number in files[None]:
        mine = [tuple(accepted[number])] if accepted.get(number, [None])[0] else []
        say(None, "accepted" if mine else "quarantined", "Quarantined", text, "0", quarantined=[f"q{number}"], signed=mine)
    return found


def _complete(tables: dict[str, list[dict[str, str | None]]]) -> bool:
    """Whether nothing is open: no study, no question of the newest sweep, no loose file; and a closing sweep was the newest."""
    windows = [_quoted(event["detail"] or "") for event in _newest(tables, "window row").values()]
    sweep = max((int(window[1] or 0) for window in windows), default=None)
    closed = [_quoted(event["detail"] or "")[1] for event in tables["events.csv.gz"] if (event["detail"] or "").startswith("'closed_sweep',")]
    unanswered = [window for window in windows if window[1] == str(sweep) and window[21] is None and (window[13] == "0" or window[20] == "1")]
    open_studies = [study for study in tables["studies.csv"] if study["state"] not in ("migrated", "excluded", "accepted")]
    loose = [row for row in tables["exceptions.csv"] if row["study"] is None and row["state"] != "accepted"]
    return sweep is not None and closed[-1:] == [str(sweep)] and not (unanswered or open_studies or loose)


def _report(folder: Path, tables: dict[str, list[dict[str, str | None]]]) -> None:
    report = json.loads((folder / "report.json").read_text(), object_pairs_hook=_once)
    first = [row for row in tables["instances.csv.gz"] if row["copy"] is None]
    kinds = collections.Counter("conflict" if row["conflict"] == "1" else "unexpected" if row["listed"] != "1" else row["state"] for row in first)
    kinds["quarantined"] = sum(event["kind"] == "file quarantined" for event in tables["events.csv.gz"])
    size = {name: sum(int(row["size_bytes"] or 0) for row in first if row["state"] in states) for name, states in
            (("staged", ("staged", "stored")), ("verified", ("verified",)))}  # fmt: skip
    studies = collections.Counter(row["state"] for row in tables["studies.csv"])
    right = {"instances": kinds, "studies": studies, "proof": collections.Counter(row["proof"] for row in first)}
    demand(all(count == counted[name] for of, counted in right.items() for name, count in report[of].items()), "counts")
    demand(report["bytes"] == size and len(report["exceptions"]) == len(tables["exceptions.csv"]), "bytes and exceptions")
    demand(report["generated_at"] == _iso(tables["seals.csv.gz"][-1]["at"]), "the report's time")
    complete = _complete(tables) and not any(each["blocks"] and not each["window"] for each in report["enumeration"]["suspicious"])
    demand(report["complete"] == complete, "the verdict")
    for name in ("report.html", "report-anonymous.html"):
        page = (folder / name).read_text(encoding="utf-8")
        demand(('id="verdict">Complete:' in page) == complete, "the page's verdict")
        for of in right:
            for word, count in report[of].items():
                demand(f'<th scope="row">{word.replace("_", " ")}</th><td class="n">{count:,}</td>' in page, "the page's counts")


def _lists(folder: Path, leaves: list[dict[str, str | None]]) -> None:
    sums = [f"{row['file_sha256']}  {row['key']}\n" for row in leaves]
    demand((folder / "SHA256SUMS").read_bytes().decode() == "".join(sums), "SHA256SUMS")
    bag = [f"{row['file_sha256']}  data/{str(row['key']).replace('%', '%25')}\n" for row in leaves]
    demand((folder / "bag" / "manifest-sha256.txt").read_bytes().decode() == "".join(bag), "the bag's manifest")


def _anchors(folder: Path, objects: Path, tables: dict[str, list[dict[str, str | None]]]) -> None:
    seals = tables["seals.csv.gz"]
    migration = json.loads((folder / "report.json").read_text())["migration"]
    root = json.loads((folder / "merkle.json").read_text())["root"]
    lost: set[str] = set()
    for event in tables["events.csv.gz"]:
        if event["kind"] == "manifest restored":
            lost |= set((_quoted(event["detail"] or "")[2] or "").split(" "))
    for path in objects.rglob("_pacs-migrate/anchors/*.json"):
        anchor = json.loads(path.read_text())
        if anchor["migration"] == migration and path.stem not in lost:
            demand(anchor["seal"] <= len(seals) and seals[anchor["seal"] - 1]["sha256"] == anchor["head"], "an anchor")
            demand(anchor["seal"] < len(seals) or anchor["root"] in (None, root), "an anchor's root")
