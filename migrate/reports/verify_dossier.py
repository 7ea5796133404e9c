"""Checks a dossier of pacs-migrate with nothing but Python 3.11 or later, and names every place that does not hold.

Everything is computed anew: hashes of files, seals over events and instances, the Merkle root, verdict, counts, exceptions, lists of checksums
and, where given, the objects. docs/proof.md and docs/dossier.md of pacs-migrate have the formats. Exit: 0 all of it holds, 1 something
does not, 2 usage. ssh-keygen -Y verify -f SIGNERS -I NAME -n pacs-migrate -s dossier.sig < contents.sha256 checks the signature.
"""

import argparse, collections, csv, gzip, hashlib, heapq, itertools, json, pathlib, re, sqlite3, sys, time

STATES, OPEN = ("expected", "staged", "stored", "verified"), ("found", "planned", "retrieved", "parked")
STATED = {f"study {state}": state for state in (*OPEN, "migrated", "excluded", "accepted")}
FLAGS = {"conflict": "instance conflict", "beside": "instance lies beside"}
NUMBERED = ("file quarantined", "quarantine row", "acceptance row", "revocation row", "window row", "meta", "manifest restored")
STAGED = ("size_bytes", "dataset_sha256", "file_sha256", "crc64nvme", "pixel_crc64", "sop_class", "transfer_syntax", "notes", "staged_at")
STEPS = (("staged", STAGED), ("stored", ("stored_at", "version", "checksum", "beside")), ("verified", ("proof", "verified_at")))
BACK = ("before", "after", "copy", *(name for step, fields in STEPS for name in (f"{step}_seal", *fields)))
LEAF = ("study", "series", "sop", "size_bytes", "dataset_sha256", "file_sha256", "key", "version", "proof")
ROW = ("date", None, "modalities", "claimed_instances", None, "listed_instances", "attempts", "error", "detail")  # of studies.csv
HEAD, COUNTED = ("id", "at", "run", "operator", "host", "version"), ("studies", "instances", "proof", "bytes")
CONTENTS, BESIDE = "contents.sha256", {"contents.sha256", "dossier.sig", "dossier.tsq", "dossier.tsr"}
FOUND = r"'([0-9.]+)'((?:,(?:'(?:[^']|'')*'|\w+)){4})"
ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
TABLES = """PRAGMA journal_mode=OFF; PRAGMA cache_size=-32768; BEGIN; CREATE TABLE back(study TEXT, line BLOB, seal INTEGER);
CREATE TABLE last(kind TEXT, key TEXT, study TEXT, sop TEXT, detail TEXT, PRIMARY KEY(kind, key)) WITHOUT ROWID; CREATE INDEX i ON back(study);
CREATE TABLE object(key TEXT PRIMARY KEY, size INTEGER, sha256 TEXT); CREATE INDEX j ON last(kind, study, CAST(key AS INTEGER))"""
as_json = json.JSONEncoder(separators=(",", ":")).encode

def sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

def line(*values):
    """Fields joined by tabs, as a seal has them."""
    return "\t".join("\\N" if value is None else str(value).translate(ESCAPES) for value in values).encode() + b"\n"

def literals(detail):
    """SQL literals joined by commas as texts; None for NULL."""
    found = re.findall(r"(?:'((?:[^']|'')*)'|([^,']+))(?:,|$)", detail)
    return [None if bare == "NULL" else bare or quoted.replace("''", "'") for quoted, bare in found]

def iso(at):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(at or 0) // 1000))

def steps(row):
    """(line, seal) of each step that a row, or an event that takes steps back, has under a seal."""
    for step, fields in STEPS:
        if row[f"{step}_seal"]:
            uids = (row["study"], row["series"], row["sop"], row["copy"] or "")
            yield line("step", *uids, step, *(row[name] for name in fields)), int(row[f"{step}_seal"])

def leaf(entry):
    return hashlib.sha256(b"\0" + as_json(entry).encode()).digest()

def root(level):
    """The Merkle root over the hashes of leaves (RFC 9162 2.1)."""
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return (level[0] if level else hashlib.sha256(b"").digest()).hex()

class Check:
    def __init__(self, options):
        self.options, self.folder, self.count, self.counts, self.tree = options, options.dossier, 0, collections.Counter(), []
        self.seals, self.newest, self.prefix, self.migration, self.root = {}, {"sha256": "", "at": 0}, None, None, None
        self.exceptions, self.sums, self.bag = self.rows("exceptions.csv"), hashlib.sha256(), hashlib.sha256()
        self.scratch = sqlite3.connect("", isolation_level=None)  # on the disk, in the folder for temporary files
        self.scratch.executescript(TABLES)

    def wrong(self, place, what):
        self.count += print(f"WRONG {place}: {what}") or 1

    def same(self, place, of, said, right):
        for name in (name for name in right if said.get(name, "missing") != right[name]):
            self.wrong(place, f"says {of}{name}: {said.get(name)}; the tables give {right[name]}")

    def rows(self, name):
        """The rows of a CSV file as dicts: None for an empty cell, without the apostrophe that keeps spreadsheets from calculating."""
        with (gzip.open if name.endswith(".gz") else open)(self.folder / name, "rt", encoding="utf-8", newline="") as text:
            for number, row in enumerate(csv.DictReader(text, strict=True), 1):
                if None in row or None in row.values():
                    raise ValueError(f"row {number} of {name} has too many or too few cells")
                yield {column: None if not cell else cell[1:] if cell[0] == "'" else cell for column, cell in row.items()}

    def instances(self):
        """Rows in their order, each with what its state has to have and nothing else."""
        before = ()
        for number, row in enumerate(self.rows("instances.csv.gz"), 1):
            now, reached = (row["study"], row["series"], row["sop"], row["copy"] or ""), STATES.index(row["state"])
            sealed = sum(int(row[f"{step}_seal"] or 0) in self.seals for step, _ in STEPS[:reached]) == reached
            stray = {name for step, fields in STEPS[reached:] for name in (*fields, f"{step}_seal") if row[name]} - {"beside"}
            beside = f"~{(row['dataset_sha256'] or '')[:12]}" if row["beside"] == "1" else ""
            name = f"studies/{row['study']}/series/{row['series']}/instances/{row['sop']}{beside}.dcm"
            self.prefix = row["key"].removesuffix(name) if row["key"] and self.prefix is None else self.prefix
            keyed = row["key"] == (f"{self.prefix}{name}" if reached > 1 else None)
            flagged = {row["listed"], row["conflict"]} <= ({None} if row["copy"] else {"0", "1"}) and row["beside"] in ("01"[bool(row["copy"])], "1")
            if not (keyed and sealed and flagged and now > before) or stray - set(STAGED if row["copy"] else ()):
                raise ValueError(f"row {number} of instances.csv.gz ({' '.join(now)}) is out of order, or does not fit its state and key")
            before = now
            yield row

    def files(self):
        """Each file as contents.sha256 lists it, and no other."""
        text = (self.folder / CONTENTS).read_bytes().decode()
        listed = {each[66:]: each[:64] for each in text.split("\n") if each}
        found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()} - BESIDE
        for name in sorted({*listed, "inventory.dcm", "verify_dossier.py"} | {name for name in found if name[:9] != "bag/data/"}):
            if name not in listed or name not in found:
                self.wrong(name, "is missing" if name in listed else f"is not listed in {CONTENTS}")
            elif sha256(self.folder / name) != listed[name]:
                self.wrong(name, f"is not the file that {CONTENTS} lists")
        if text != "".join(f"{digest}  {name}\n" for name, digest in sorted(listed.items())):
            self.wrong(CONTENTS, "has lines that sha256sum does not write, or not in the order of names")

    def last(self, kind, key):
        """What the log said last of it, once; what is left at the end has no row in the tables."""
        return (self.scratch.execute("DELETE FROM last WHERE kind = ? AND key = ? RETURNING detail", (kind, key)).fetchone() or [""])[0]

    def numbered(self, kind, study):
        """(number, SOP Instance UID, values) of what the log holds of a study, or of none."""
        found = self.scratch.execute("SELECT key, sop, detail FROM last WHERE kind = ? AND study IS ? ORDER BY CAST(key AS INTEGER)", (kind, study))
        return [(number, sop, literals(detail)) for number, sop, detail in found]

    def event(self, at, kind, study, series, sop, detail):
        """What the log says last of each object goes into the scratch file, as do steps that it takes back."""
        key = detail.partition(",")[0] if kind in NUMBERED else " ".join(filter(None, (study, series, sop)))
        words = [("state", key, study, sop, f"{STATED[kind]} {at}") if kind in STATED else (kind, key, study, sop, detail or "1")]
        for uid, row in re.findall(FOUND, detail) if kind == "studies found" else ():
            said = {"state": f"found {at}", "found": at, "study row": f"{row[1:]},NULL,NULL,0,NULL,NULL"}
            words += [(name, uid, uid, None, text) for name, text in said.items()]
        self.scratch.executemany("REPLACE INTO last VALUES (?, ?, ?, ?, ?)", words)
        if kind in ("instance fell back", "copy fell back", "proof raised"):
            row = dict(zip(BACK, literals(detail), strict=True), study=study, series=series, sop=sop)
            self.scratch.executemany("INSERT INTO back VALUES (?, ?, ?)", [(study, *step) for step in steps(row)])

    def chain(self):
        """Every seal over the one before it and its events, open for its steps. Ids are without gaps."""
        events, before, last = enumerate(self.rows("events.csv.gz"), 1), bytes(32), 0
        number, event = next(events, (0, None))
        for count, seal in enumerate(self.rows("seals.csv.gz"), 1):
            first, last = last + 1, int(seal["last_event"])
            if last < first - 1:
                raise ValueError(f"seal {count} ends at event {last}, before the one before it")
            taken = hashlib.sha256(before + line("seal", *(seal[name] for name in HEAD)))
            while event and number <= last:
                values = [int(value) if value and name in HEAD else value for name, value in event.items()]
                taken.update(f"event\t{as_json(values)}\n".encode())
                self.event(values[1], *values[3:7], values[7] or "")
                number, event = next(events, (number + 1, None))
            before, self.newest = bytes.fromhex(seal["sha256"]), seal
            self.seals[count] = [taken, seal["sha256"], int(seal["steps"]), f"{first} to {last}"]
        if event or number - 1 != last:
            self.wrong("events.csv.gz", f"{'goes on after' if event else 'ends before'} event {last}, the last under a seal")

    def walk(self):
        """Studies with their instances, against the log; what all of them add up to, against the rest of the dossier."""
        for each in self.options.list.open(encoding="utf-8") if self.options.list else ():
            self.scratch.execute("REPLACE INTO object VALUES (?, ?, ?)", (each.rstrip("\n") + "\t").split("\t")[:3])
        tables = (((row["study"], row) for row in rows) for rows in (self.rows("studies.csv"), self.instances()))
        for uid, group in itertools.groupby(heapq.merge(*tables, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
            _, study = next(group)  # of two equal ones the table of studies comes first
            if "attempts" not in study:
                raise ValueError(f"study {uid} is not in studies.csv, or not where it belongs")
            self.study(study, group)
        for file in self.numbered("file quarantined", None):
            signed = [values[1:] for number, _, values in self.numbered("quarantine row", None) if number == file[0] and values[1]]
            self.counts["open"] += not signed
            loose = {"study": None, "state": "accepted" if signed else "quarantined", "error": "Quarantined", "detail": None, "attempts": "0"}
            self.exception(loose, {}, [file], signed)
        self.same("exceptions.csv", "", {"at its end": next(self.exceptions or iter(()), None)}, {"at its end": None})
        for kind, key in self.scratch.execute("SELECT kind, key FROM last WHERE kind IN ('state', ?, ?)", tuple(FLAGS.values())):
            self.wrong("studies.csv or instances.csv.gz", f"lacks what the log names: {kind} {key}")
        for number, (taken, claimed, missing, over) in self.seals.items():
            if taken.hexdigest() != claimed or missing:
                self.wrong(f"seal {number}", f"does not hold: it, or what it seals, was changed (events {over}; steps missing: {missing})")
        self.documents()

    def study(self, study, rows):
        """A study's instances under their seals, what the log says of it, its entry in the tree; an exception, if it is one."""
        uid, states, leaves, listed, modalities = study["study"], collections.Counter(), [], [], {}
        under = self.scratch.execute("SELECT line, seal FROM back WHERE study = ?", (uid,)).fetchall()
        given_up, named = study["state"] in ("parked", "accepted"), {"missing": [], "unexpected": [], "conflict": []}
        for _, row in rows:
            under += steps(row)
            self.same(f"instance {row['sop']}", "modality ", row, {"modality": modalities.setdefault(row["series"], row["modality"])})
            if row["copy"] is None:
                states[row["state"]] += 1
                listed += [line(row["series"], row["modality"] or "", row["sop"])] if row["listed"] == "1" else []
                kind = "conflict" if row["conflict"] == "1" else row["state"] if row["listed"] == "1" else "unexpected"
                named.get(kind, []).append(row["sop"])
                named["missing"] += [row["sop"]] * (row["state"] == "expected" or (given_up and not row["proof"] and kind != "conflict"))
                self.counts.update({("instances", kind): 1, ("proof", row["proof"]): 1})
                self.counts["bytes", "verified" if row["proof"] else "staged"] += int(row["state"] != "expected" and row["size_bytes"])
                for flag in (flag for flag in FLAGS if row[flag] != "0"):
                    if self.last(FLAGS[flag], f"{uid} {row['series']} {row['sop']}") != row[flag]:
                        self.wrong("instances.csv.gz", f"has what the log does not have: {flag} {row[flag]} of instance {row['sop']}")
            if row["proof"]:
                self.object(row)
                leaves.append((row["series"], row["sop"], row["key"], leaf([int(row[name]) if name == "size_bytes" else row[name] for name in LEAF])))
        for step, number in sorted(under):
            self.seals[number][0].update(step)
            self.seals[number][2] -= 1
        self.tree += [leaf([uid, len(leaves), root([each[-1] for each in sorted(leaves)])])] if leaves else []
        self.counts.update({("studies", study["state"]): 1, "open": study["state"] in OPEN, "leaves": len(leaves)})
        right = dict(zip(ROW, literals(self.last("study row", uid)), strict=False), listed=self.last("study listed", uid))
        state, _, changed = self.last("state", uid).partition(" ")
        right |= {name: str(states[name]) for name in STATES} | {"state": state, "found_at": iso(self.last("found", uid)), "changed_at": iso(changed)}
        said = study | {None: right.get(None), "listed": f"{len(listed)},'{hashlib.sha256(b''.join(listed)).hexdigest()}'" if listed else ""}
        self.same(f"study {uid}", "in its row and its instances ", said, right)
        revoked = {values[1] for _, _, values in self.numbered("revocation row", uid)}
        signed = [(f"{by} ({role})" if role else by, (f"{sop}: " if sop else "") + (f"{code}: " if code != "other" else "") + why)
                  for number, sop, (_, _, code, why, by, role, _) in self.numbered("acceptance row", uid) if number not in revoked]  # fmt: skip
        self.exception(study, named, self.numbered("file quarantined", uid), signed)

    def exception(self, study, named, files, signed):
        """What has to be said of a study, or of a file of none: the next row of exceptions.csv."""
        self.counts["instances", "quarantined"] += len(files)
        if study["state"] == "migrated" and study["error"] is None and not files and not any(named.values()):
            return
        self.counts["exceptions"] += 1
        entry = {name: study[name] for name in ("study", "state", "error", "detail", "attempts")} | {"accepted_by": None, "reason": None}
        words = [f"q{number}: {values[2]}; UIDs as sent: {values[3]}." for number, _, values in files]
        words += [f"The PACS lists {each}, which is no UID." for each in json.loads(self.last("rows without a UID", study["study"]) or "[]")]
        entry["detail"] = " ".join(filter(None, (study["detail"], *words))) if words else study["detail"]
        entry |= {kind: " ".join(sorted(named.get(kind, ()))) or None for kind in ("missing", "unexpected", "conflict")}
        entry["quarantined"] = " ".join(sop or f"q{number}" for number, sop, _ in files) or None
        entry |= {name: "; ".join(dict.fromkeys(each)) for name, each in zip(("accepted_by", "reason"), zip(*signed, strict=True), strict=False)}
        if self.exceptions and (row := next(self.exceptions, None)) != entry:
            self.wrong("exceptions.csv", f"says {row}; the sealed tables give {entry}; what follows was not compared")
            self.exceptions = None

    def documents(self):
        """report.json, the pages' verdict and counts, merkle.json, the lists of checksums: what the tables give."""
        with (self.folder / "report.json").open(encoding="utf-8", newline="\n") as file:  # its exceptions come last, and may be many
            head = "".join(itertools.takewhile(lambda each: each != ' "exceptions": [\n', file)).rstrip(",\n")
            report = json.loads(f"{head}}}")
            told = report | {"exceptions": sum(each == "  {\n" for each in file), "form": json.dumps(report, indent=1)[:-2] == head}
        self.migration, self.root = report["migration"], root(self.tree)
        windows = [values for _, _, values in self.numbered("window row", None)]
        sweep = max((int(values[1]) for values in windows), default=None)
        blocks = [values for values in windows if values[1] == str(sweep) and values[21] is None and (values[13] == "0" or values[20] == "1")]
        blocks += [each for each in report["enumeration"]["suspicious"] if each["blocks"] and not each["window"]]  # a recount that differs
        complete = self.last("meta", "'closed_sweep'") == f"'closed_sweep','{sweep}'" and not (self.counts["open"] or blocks)
        for of in COUNTED:
            self.same("report.json", f"{of}, ", report[of], {name: self.counts[of, name] for name in report[of]})
        self.same("report.json", "", told, {"complete": complete, "generated_at": iso(self.newest["at"]), "exceptions": self.counts["exceptions"], "form": True})
        right = {"seal": len(self.seals), "head": self.newest["sha256"], "studies": len(self.tree), "leaves": self.counts["leaves"], "root": self.root}
        self.same("merkle.json", "", {"text": (self.folder / "merkle.json").read_text()}, {"text": f"{json.dumps(right, indent=1)}\n"})
        for name, taken in (("SHA256SUMS", self.sums), ("bag/manifest-sha256.txt", self.bag)):
            self.same(name, "", {"SHA-256": sha256(self.folder / name)}, {"SHA-256": taken.hexdigest()})
        words = [(name.replace("_", " "), f"{self.counts[of, name]:,}") for of in COUNTED[:3] for name in report[of]]
        for name in ("report.html", "report-anonymous.html"):
            with (self.folder / name).open(encoding="utf-8") as file:
                page = file.read(1 << 20)  # verdict and counts come first
            shown = [word for word in words if '<th scope="row">{}</th><td class="n">{}</td>'.format(*word) in page]
            self.same(name, "", {"complete": 'id="verdict">Complete:' in page, "counts": shown}, {"complete": complete, "counts": words})
        if self.options.list:
            print("list: {} keys, {} of them with a SHA-256; of the others only the size is compared.".format(*self.scratch.execute("SELECT count(*), count(nullif(sha256, '')) FROM object").fetchone()))
        print("proven objects: {leaves} (studies: {studies}); seal {seal}, head {head}, Merkle root {root}".format(**right))

    def object(self, row):
        """A proven object for the lists of checksums; in the folder, and in the list from the bucket."""
        key, (folder, listing), truth = row["key"], (self.options.objects, self.options.list), (int(row["size_bytes"]), row["file_sha256"])
        self.sums.update(f"{truth[1]}  {key}\n".encode())
        self.bag.update(f"{truth[1]}  data/{key.replace('%', '%25')}\n".encode())
        there = not folder or (folder / key).is_file()
        if not there or (folder and ((folder / key).stat().st_size, sha256(folder / key)) != truth):
            self.wrong(key, "has other bytes than those that were proven" if there else "is missing")
        size, taken = self.scratch.execute("SELECT size, sha256 FROM object WHERE key = ?", (key,)).fetchone() or (None, None) if listing else truth
        if (size, taken or truth[1]) != truth:
            self.wrong(key, "is not in the list" if size is None else "is in the list with another size or SHA-256")

    def anchors(self):
        """Anchors among the objects: none of them may know a seal that this chain does not have."""
        lost, paths = " ".join(values[2] for _, _, values in self.numbered("manifest restored", None)).split(), self.options.objects.rglob("_pacs-migrate/anchors/*.json")
        mine = [(path, each) for path, each in ((path, json.loads(path.read_bytes())) for path in sorted(paths)) if path.stem not in lost and self.migration in (None, each["migration"])]
        print(f"anchors compared: {len(mine)}; without any, a chain that was written anew as a whole could not be told.")
        for path, each in mine:
            if self.seals.get(each["seal"], ("", ""))[1] != each["head"]:
                self.wrong(path, f"anchors seal {each['seal']}; this dossier ends with {len(self.seals)}: it is older, cut off or rewritten, or another manifest has its name")
            elif each["seal"] == len(self.seals) and each["root"] not in (None, self.root):
                self.wrong(path, f"has the Merkle root {each['root']}; the tables give {self.root}")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dossier", metavar="DIR", type=pathlib.Path)
    parser.add_argument("--objects", metavar="FOLDER", type=pathlib.Path, help="folder destination or downloaded bucket")
    parser.add_argument("--list", metavar="FILE", type=pathlib.Path, help="of the bucket: key, size and perhaps SHA-256, separated by tabs")
    options = parser.parse_args()
    if absent := [str(path) for path in (options.dossier, options.objects, options.list) if path and not path.exists()]:
        parser.error(f"there is no {', '.join(absent)}")
    csv.field_size_limit(1 << 30)
    check = Check(options)
    works = {CONTENTS: check.files, "seals.csv.gz": check.chain, "the tables": check.walk, options.objects: check.anchors}
    for place in filter(None, works):
        try:
            works[place]()
        except Exception as error:  # whatever damage does to a reader
            check.wrong(place, f"cannot be checked to its end: {error if isinstance(error, ValueError) else repr(error)}")
    sys.exit(f"places that do not hold: {check.count}" if check.count else print("All of it holds."))
