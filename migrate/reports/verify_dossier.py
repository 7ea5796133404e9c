"""Checks a dossier of pacs-migrate with nothing but Python 3.11 or later, and names every place that does not hold.

Everything is computed anew: the hash of each file, the chain of seals over events and instances, the Merkle root over what is proven, the
counts, the lists of checksums and, where they are given, the objects. docs/proof.md and docs/dossier.md of pacs-migrate have the formats.
Exit: 0 all of it holds, 1 something does not, 2 usage. The signature is checked by ssh-keygen:
ssh-keygen -Y verify -f SIGNERS -I NAME -n pacs-migrate -s dossier.sig < contents.sha256
"""

import argparse, collections, csv, gzip, hashlib, heapq, io, itertools, json
import pathlib, re, sqlite3, sys, tempfile, time

STATES = ("expected", "staged", "stored", "verified")
STUDY_STATES = ("found", "planned", "retrieved", "migrated", "excluded", "parked", "accepted")
FLAGS = {"instance conflict": "conflict", "instance lies beside": "beside"}
OPEN, COUNTED = ("found", "planned", "retrieved", "parked"), ("studies", "instances", "bytes", "proof")
STAGED = ("size_bytes", "dataset_sha256", "file_sha256", "crc64nvme", "pixel_crc64", "sop_class", "transfer_syntax", "notes", "staged_at")
LEAF = ("study", "series", "sop", "size_bytes", "dataset_sha256", "file_sha256", "key", "version", "proof")
STEPS = (("staged", STAGED), ("stored", ("stored_at", "version", "checksum", "beside")), ("verified", ("proof", "verified_at")))
ROW = ("date", "time", "modalities", "claimed_instances", "claimed_by_series", "listed_instances", "attempts", "error", "detail")
FILES = {"verify_dossier.py", "instances.csv.gz", "events.csv.gz", "seals.csv.gz", "merkle.json", "report.json", "studies.csv"}
HEAD, CONTENTS = ("id", "at", "run", "operator", "host", "version"), "contents.sha256"
BESIDE, FOUND = {CONTENTS, "dossier.sig", "dossier.tsq", "dossier.tsr"}, r"'([0-9.]+)'((?:,(?:'(?:[^']|'')*'|\w+)){4})"
SEALS_AT_ONCE = 100_000  # so many hashes are open at a time; more seals take more walks through the instances
ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
TABLES = """PRAGMA journal_mode=OFF; PRAGMA cache_size=-32768; BEGIN; CREATE TABLE back(line BLOB, seal INTEGER);
CREATE TABLE flag(uids TEXT PRIMARY KEY) WITHOUT ROWID; CREATE TABLE object(key TEXT PRIMARY KEY, size INTEGER, sha256 TEXT);
CREATE TABLE study(uid TEXT PRIMARY KEY, state TEXT, listed TEXT, row TEXT) WITHOUT ROWID"""
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


class Tree:
    """A Merkle tree (RFC 9162 2.1), an entry after the other: whole subtrees from the left as (leaves, hash)."""

    def __init__(self):
        self.leaves, self.peaks = 0, []

    def add(self, *entry):
        self.leaves += 1
        size, taken = 1, hashlib.sha256(b"\0" + as_json(entry).encode()).digest()
        while self.peaks and self.peaks[-1][0] == size:
            size, taken = size * 2, hashlib.sha256(b"\1" + self.peaks.pop()[1] + taken).digest()
        self.peaks.append((size, taken))

    def root(self):
        taken = self.peaks[-1][1] if self.peaks else hashlib.sha256(b"").digest()
        for _, left in reversed(self.peaks[:-1]):
            taken = hashlib.sha256(b"\1" + left + taken).digest()
        return taken.hex()


class Check:
    def __init__(self, options, scratch):
        self.options, self.folder, self.count, self.quarantined, self.lost = options, options.dossier, 0, 0, []
        self.seal, self.head, self.at, self.migration, self.root, self.prefixes = 0, "", 0, None, None, set()
        self.scratch = sqlite3.connect(scratch, isolation_level=None)
        self.scratch.executescript(TABLES)

    def wrong(self, place, what):
        self.count += print(f"WRONG {place}: {what}") or 1

    def rows(self, name):
        """The rows of a CSV file as dicts: None for an empty cell, without the apostrophe that keeps spreadsheets from calculating."""
        with gzip.open(self.folder / name) if name.endswith(".gz") else (self.folder / name).open("rb") as raw:
            reader = csv.reader(io.TextIOWrapper(raw, encoding="utf-8", newline=""), strict=True)
            head = next(reader)
            for number, row in enumerate(reader, 1):
                if len(row) != len(head):
                    raise ValueError(f"row {number} of {name} has {len(row)} cells")
                yield dict(zip(head, [None if not cell else cell[1:] if cell[0] == "'" else cell for cell in row], strict=True))

    def instances(self):
        before = ()
        for number, row in enumerate(self.rows("instances.csv.gz"), 1):
            now = (row["study"], row["series"], row["sop"], row["copy"] or "")
            reached, seals = STATES.index(row["state"]), [0 < int(row[f"{step}_seal"] or 0) <= self.seal for step, _ in STEPS]
            stray = {name for step, fields in STEPS[reached:] for name in (*fields, f"{step}_seal") if row[name]} - {"beside"}
            beside = f"~{(row['dataset_sha256'] or '')[:12]}" if row["beside"] == "1" else ""
            name = f"studies/{row['study']}/series/{row['series']}/instances/{row['sop']}{beside}.dcm"
            self.prefixes |= {row["key"].removesuffix(name)} if row["key"] else set()
            keyed = (row["key"] or name).endswith(name) and len(self.prefixes) < 2 and bool(row["key"]) == (reached > 1)
            if not keyed or sum(seals[:reached]) != reached or stray - set(STAGED if row["copy"] else ()) or not now > before:
                raise ValueError(f"row {number} of instances.csv.gz ({' '.join(now)}) is out of order, or does not fit its state and key")
            before = now
            yield row

    def files(self):
        """Each file as contents.sha256 lists it, and no other."""
        listed = [""]
        with (self.folder / CONTENTS).open(encoding="utf-8", newline="\n") as file:
            for number, each in enumerate(file, 1):
                found = re.fullmatch(r"([0-9a-f]{64})  ([^/\n][^\n]*)\n", each)
                if not found or not found[2] > listed[-1] or ".." in found[2].split("/"):
                    self.wrong(f"{CONTENTS} line {number}", "is no line of sha256sum, or not in the order of names")
                elif not (self.folder / found[2]).is_file():
                    self.wrong(found[2], "is missing")
                elif sha256(self.folder / found[2]) != found[1]:
                    self.wrong(found[2], f"is not the file that {CONTENTS} lists")
                listed += [found[2]] if found else []
        found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        for name in sorted(name for name in found - {*listed} - BESIDE if not name.startswith("bag/data/")):
            self.wrong(name, f"is not listed in {CONTENTS}")
        for name in sorted(FILES - {*listed}):
            self.wrong(CONTENTS, f"does not list {name}")

    def events(self):
        """What the log says of studies, conflicts and steps taken back goes into the scratch file."""
        put = "INSERT INTO study(uid, {0}) VALUES (?, ?) ON CONFLICT(uid) DO UPDATE SET {0} = excluded.{0}"
        for event in self.rows("events.csv.gz"):
            kind, study, detail = event["kind"], event["study"], event["detail"]
            self.quarantined += kind == "file quarantined"
            self.lost += literals(detail)[2].split() if kind == "manifest restored" else []
            if kind in ("instance fell back", "copy fell back", "proof raised"):
                values = literals(detail)
                for at, (step, fields) in zip((3, 13, 18), STEPS, strict=True):
                    if values[at] is not None:
                        uids, values_then = (study, event["series"], event["sop"], values[2] or ""), values[at + 1 : at + 1 + len(fields)]
                        self.scratch.execute("INSERT INTO back VALUES (?, ?)", (line("step", *uids, step, *values_then), int(values[at])))
            elif kind in FLAGS:
                self.scratch.execute("REPLACE INTO flag VALUES (?)", (f"{FLAGS[kind]} 1 {study} {event['series']} {event['sop']}",))
            elif kind in ("study listed", "study row"):
                self.scratch.execute(put.format(kind[6:]), (study, detail))
            elif kind[:6] == "study " and kind[6:] in STUDY_STATES:
                self.scratch.execute(put.format("state"), (study, kind[6:]))
            for uid, row in re.findall(FOUND, detail) if kind == "studies found" else ():
                self.scratch.execute("REPLACE INTO study(uid,state,row) VALUES (?, 'found', ?)", (uid, f"{row[1:]},NULL,NULL,0,NULL,NULL"))

    def steps(self):
        """(line, seal) of each step that an instance stands on, sorted, as its row has it."""
        for row in self.instances():
            for step, fields in STEPS[: STATES.index(row["state"])]:
                values = (row["study"], row["series"], row["sop"], row["copy"] or "", step, *(row[field] for field in fields))
                yield line("step", *values), int(row[f"{step}_seal"])

    def chain(self):
        """Every seal over the one before it, its events and its steps. Ids are without gaps."""
        for number, seal in enumerate(self.rows("seals.csv.gz"), 1):
            self.seal, self.head, self.at = number, seal["sha256"], int(seal["at"])
        seals, events, before, last = enumerate(self.rows("seals.csv.gz"), 1), enumerate(self.rows("events.csv.gz"), 1), bytes(32), 0
        event, seen, taken = next(events, None), 0, {0: None}
        while taken:
            taken, said = {}, {}
            for number, seal in itertools.islice(seals, SEALS_AT_ONCE):
                first, last = last + 1, int(seal["last_event"])
                if int(seal["id"]) != number or last < first - 1:
                    raise ValueError(f"seal {number} is not where it belongs: {seal['id']}, up to event {last}, stands there")
                taken[number] = hashlib.sha256(before + line("seal", *(seal[name] for name in HEAD)))
                while event and event[0] <= last:
                    values = [int(value) if value and name in HEAD else value for name, value in event[1].items()]
                    if values[0] != event[0]:
                        raise ValueError(f"event {event[0]} is not where it belongs: {values[0]} stands there")
                    taken[number].update(f"event\t{as_json(values)}\n".encode())
                    seen, event = event[0], next(events, None)
                before, said[number] = bytes.fromhex(seal["sha256"]), [seal["sha256"], int(seal["steps"]), first, last]
            back = self.scratch.execute("SELECT line, seal FROM back ORDER BY line")
            for step, number in heapq.merge(self.steps(), back) if taken else ():
                if number in taken:
                    taken[number].update(step)
                    said[number][1] -= 1
            for number, (claimed, missing, first, last_of_it) in said.items():
                if taken[number].hexdigest() != claimed or missing:
                    more = f", {abs(missing)} steps of instances {'missing' if missing > 0 else 'too many'}" if missing else ""
                    self.wrong(f"seal {number}", f"does not hold: it, or what it seals, was changed (events {first} to {last_of_it}{more})")
        if event or seen != last:
            self.wrong("events.csv.gz", f"is under seals up to {seen}, where {'more follow' if event else 'it ends'}; the last says {last}")

    def walk(self):
        """Studies with their instances: counts, what was listed, the Merkle root, the lists of checksums, the objects."""
        with (self.folder / "report.json").open(encoding="utf-8") as file:  # its exceptions come last, and may be many
            report = json.loads("".join(itertools.takewhile(lambda each: each[:13] != ' "exceptions"', file)).rstrip(",\n") + "}")
        merkle, self.migration = json.loads((self.folder / "merkle.json").read_bytes()), report["migration"]
        lists = {name: hashlib.sha256() for name in ("SHA256SUMS", "bag/manifest-sha256.txt")}
        counts, tree, leaves, before = collections.Counter(), Tree(), 0, ""
        groups = itertools.groupby(self.instances(), key=lambda row: row["study"])
        group = next(groups, None)
        for study in self.rows("studies.csv"):
            uid, mine, states, listed, number = study["study"], Tree(), collections.Counter(), hashlib.sha256(), 0
            if not uid > before or (group and group[0] < uid):
                raise ValueError(f"study {uid} in studies.csv, or {group and group[0]} in instances.csv.gz, is not where it belongs")
            before = uid
            counts["studies", study["state"]] += 1
            there = group[1] if group and group[0] == uid else ()
            for _, rows in itertools.groupby(there, key=lambda row: (row["series"], row["sop"])):
                proven = []
                for row in rows:
                    if row["copy"] is None:
                        states[row["state"]] += 1
                        kind = "conflict" if row["conflict"] == "1" else row["state"] if row["listed"] == "1" else "unexpected"
                        for flag in (flag for flag in FLAGS.values() if row[flag] != "0"):
                            uids = f"{flag} {row[flag]} {uid} {row['series']} {row['sop']}"
                            if not self.scratch.execute("DELETE FROM flag WHERE uids = ?", (uids,)).rowcount:
                                self.wrong("instances.csv.gz", f"has what the log does not have: {uids}")
                        counts["instances", kind] += 1
                        counts["proof", row["proof"]] += 1
                        counts["bytes", "verified" if row["proof"] else "staged"] += int(row["state"] != "expected" and row["size_bytes"])
                        if row["listed"] == "1":
                            number += 1
                            listed.update(line(row["series"], row["modality"] or "", row["sop"]))
                    if row["proof"]:
                        proven.append(row)
                        self.object(row)
                        lists["SHA256SUMS"].update(f"{row['file_sha256']}  {row['key']}\n".encode())
                        lists["bag/manifest-sha256.txt"].update(f"{row['file_sha256']}  data/{row['key'].replace('%', '%25')}\n".encode())
                for row in sorted(proven, key=lambda row: row["key"].encode()):
                    mine.add(*(int(row[name]) if name == "size_bytes" else row[name] for name in LEAF))
            group = next(groups, None) if there else group
            if mine.leaves:
                tree.add(uid, mine.leaves, mine.root())
                leaves += mine.leaves
            logged = self.scratch.execute("DELETE FROM study WHERE uid = ? RETURNING state, row, listed", (uid,)).fetchone() or ("", "", "")
            values = dict(zip(ROW, literals(logged[1]), strict=False), state=logged[0], **{name: str(states[name]) for name in STATES})
            if differing := [f"{name} {study[name]}" for name, value in values.items() if name in study and study[name] != value]:
                self.wrong(f"study {uid}", f"says in studies.csv {', '.join(differing)}; the log and instances.csv.gz say {values}")
            if (logged[2] or f"0,'{hashlib.sha256().hexdigest()}'") != f"{number},'{listed.hexdigest()}'":
                self.wrong(f"study {uid}", f"has {number} listed instances in instances.csv.gz, which are not those of the log")
        for (uid,) in self.scratch.execute("SELECT uid FROM study UNION ALL SELECT uids FROM flag"):
            self.wrong("studies.csv or instances.csv.gz", f"lacks what the log names: {uid}")
        if group:
            self.wrong("studies.csv", f"lacks study {group[0]}, and perhaps others")
        counts["instances", "quarantined"] = self.quarantined
        facts = [("report.json", f"{of} {name}", said, counts[of, name]) for of in COUNTED for name, said in report[of].items()]
        at, is_open = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at // 1000)), any(counts["studies", name] for name in OPEN)
        truth = {"generated_at": at, "complete": report["complete"] and not is_open}
        facts += [("report.json", name, report[name], right) for name, right in truth.items()]
        self.root = tree.root()
        roots = {"seal": self.seal, "head": self.head, "studies": tree.leaves, "leaves": leaves, "root": self.root}
        facts += [("merkle.json", name, merkle[name], right) for name, right in roots.items()]
        facts += [(name, "its SHA-256", sha256(self.folder / name), right.hexdigest()) for name, right in lists.items()]
        for place, what, said, right in (fact for fact in facts if fact[2] != fact[3]):
            self.wrong(place, f"says {what}: {said}; the tables give {right}")
        print(f"proven objects: {leaves} (studies: {tree.leaves}); seal {self.seal}, head {self.head}, Merkle root {self.root}")

    def object(self, row):
        """A proven object in the folder, and in the list from the bucket."""
        key, options, truth = row["key"], self.options, (int(row["size_bytes"]), row["file_sha256"])
        path = (options.objects or self.folder) / key
        if options.objects and not path.is_file():
            self.wrong(key, "is missing")
        elif options.objects and (path.stat().st_size != truth[0] or sha256(path) != truth[1]):
            self.wrong(key, "has other bytes than those that were proven")
        size, taken = self.scratch.execute("SELECT size, sha256 FROM object WHERE key = ?", (key,)).fetchone() or (None, None)
        if options.list and (size, taken or truth[1]) != truth:
            self.wrong(key, "is not in the list" if size is None else "is in the list with another size or SHA-256")

    def listing(self):
        with self.options.list.open(encoding="utf-8") as file:
            objects = ((each.rstrip("\n") + "\t").split("\t")[:3] for each in file)
            self.scratch.executemany("INSERT OR REPLACE INTO object VALUES (?, ?, ?)", objects)

    def anchors(self):
        """Anchors among the objects: none of them may know a seal that this chain does not have."""
        found = sorted(path for path in self.options.objects.rglob("_pacs-migrate/anchors/*.json") if path.stem not in self.lost)
        anchors = {path: each for path in found if self.migration in (None, (each := json.loads(path.read_bytes()))["migration"])}
        seals = {each["seal"] for each in anchors.values()}
        print(f"anchors compared: {len(anchors)}; without any, a chain that was written anew as a whole could not be told.")
        mine = {int(row["id"]): row["sha256"] for row in self.rows("seals.csv.gz") if int(row["id"]) in seals}
        for path, each in anchors.items():
            if mine.get(each["seal"]) != each["head"]:
                self.wrong(path, f"anchors seal {each['seal']}; this dossier ends with {self.seal}: it is older, cut off or rewritten")
            elif each["seal"] == self.seal and each["root"] not in (None, self.root):
                self.wrong(path, f"has the Merkle root {each['root']}; the tables give {self.root}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dossier", metavar="DIR", type=pathlib.Path)
    parser.add_argument("--objects", metavar="FOLDER", type=pathlib.Path, help="folder destination or downloaded bucket")
    parser.add_argument("--list", metavar="FILE", type=pathlib.Path, help="of the bucket: key, size and perhaps SHA-256, separated by tabs")
    options = parser.parse_args()
    for path in (options.dossier, options.objects, options.list):
        if path and not path.exists():
            parser.error(f"there is no {path}")
    csv.field_size_limit(1 << 30)
    with tempfile.TemporaryDirectory() as scratch:
        check = Check(options, pathlib.Path(scratch, "scratch.db"))
        works = {CONTENTS: check.files, "events.csv.gz": check.events, "seals.csv.gz": check.chain, options.list: check.listing,
                 "the tables": check.walk, options.objects: check.anchors}  # fmt: skip
        for place in filter(None, works):
            try:
                works[place]()
            except Exception as error:  # whatever damage does to a reader
                check.wrong(place, f"cannot be checked to its end: {error if isinstance(error, ValueError) else repr(error)}")
        check.scratch.close()
    sys.exit(f"places that do not hold: {check.count}" if check.count else print("All of it holds."))
