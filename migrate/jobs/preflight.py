"""`check`: every finding says ok, warn or fail, and what to do."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from migrate.config import Config, clear_text
from migrate.counted import counted
from migrate.destinations import Destination, open_destination
from migrate.errors import DestinationError, IdentityMismatch, LocalError, ManifestError, NoManifest, PacsMigrateError
from migrate.host import is_open_to_others, network_file_system
from migrate.jobs import anchors
from migrate.manifest import Queue
from migrate.manifest.file import expect_identity, is_locked, open_reader
from migrate.model import Finding, HabitLearned
from migrate.reports.habits import words
from migrate.sources import Source, open_source
from migrate.sources.probe.habits import DimseProbe
from migrate.staging.area import Staging, local_error

_EXIT_CODES = {"config": 2, "source": 20, "destination": 21, "local": 22}
_SOUND_SQLITE = (3, 51, 3)
_SLOW_SYNC_MS = 30


def local_findings(config: Config) -> list[Finding]:
    """Disk, fsync cost, SQLite, clock."""
    findings: list[Finding] = []
    try:
        config.staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(config.staging).free
        level: Literal["ok", "warn", "fail"] = "ok" if free > 20 << 30 else "warn" if free > 2 << 30 else "fail"
        findings.append(Finding("disk", level, f"{free >> 30} GiB free for staging.", "" if level == "ok" else "Free some space.", "local"))
        findings.append(fsync_told(_fsync_ms(config.staging), _fsync_ms(config.manifest.parent)))
        findings.append(_rights(config))
    except OSError as error:
        failing = local_error(error, "trying staging and the manifest's folder")
        findings.append(Finding("disk", "fail", str(failing), failing.hint, "local"))
    sound = sqlite3.sqlite_version_info >= _SOUND_SQLITE
    known = "; one connection writes and checkpoints" if sound else ": its WAL-reset race needs two writing connections, we use one"
    findings.append(Finding("SQLite", "ok", f"Version {sqlite3.sqlite_version}{known}.", part="local"))
    if bare := clear_text(config.source, config.receiver):
        detail = f"{' and '.join(bare).capitalize()} cross the network in clear text."
        findings.append(Finding("TLS", "warn" if config.source.allow_cleartext else "ok", detail, "Set up DICOM TLS, or keep to a network of your own."))
    year = time.gmtime().tm_year
    findings.append(
        Finding("clock", "ok" if year >= 2026 else "fail", f"It is {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}.",
                "" if year >= 2026 else "Set the clock.", "local")
    )  # fmt: skip
    return findings


def fsync_told(staging_ms: float, manifest_ms: float) -> Finding:
    """What a sync of a file costs under both; a warning where it is slow."""
    slow = max(staging_ms, manifest_ms) > _SLOW_SYNC_MS
    hint = "An SSD under staging and manifest makes small images faster." if slow else ""
    return Finding("fsync", "warn" if slow else "ok", f"{staging_ms:.1f} ms for staging, {manifest_ms:.1f} ms for the manifest.", hint, "local")


def _fsync_ms(folder: Path) -> float:
    """What a sync of a small file there costs. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    probe = folder / f".fsync-{os.getpid()}"
    began = time.perf_counter()
    try:
        with probe.open("wb") as file:
            for _ in range(10):
                file.write(b"0" * 4096)
                file.flush()
                os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
    return (time.perf_counter() - began) * 100


def _rights(config: Config) -> Finding:
    """Who else may read: what lies in staging is closed by every run, the manifest may be meant for a group."""
    places = [config.staging, config.manifest.parent, config.manifest]
    wide = [str(path) for path in places if path.exists() and is_open_to_others(path)]
    if not wide:
        return Finding("rights", "ok", "Staging and manifest are for this user only.", part="local")
    return Finding("rights", "warn", f"Others may look into {', '.join(wide)}: UIDs and dates stand there, and staging holds images (behind closed folders).",
                   "chmod 700 folders and 600 files, if nobody else is meant to read them.", "local")  # fmt: skip


def _manifest_findings(config: Config) -> list[Finding]:
    """Nothing where `run` may go on with the manifest that is there, or makes one. Raises LocalError."""
    try:
        with contextlib.closing(open_reader(config.manifest)) as reader, contextlib.closing(open_destination(config.destination)) as destination:
            expect_identity(reader, {"source": config.source_identity, "destination": destination.identity})
    except (ManifestError, IdentityMismatch) as error:
        return [] if isinstance(error, NoManifest) else [Finding("manifest", "fail", str(error), error.hint, "config")]
    except DestinationError:
        pass  # told elsewhere
    return []


def destination_findings(config: Config) -> list[Finding]:
    """What the destination can prove."""
    try:
        destination = open_destination(config.destination)
        try:
            findings = destination.check()
            return findings if any(each.level == "fail" for each in findings) else findings + _lost_manifest(config, destination)
        finally:
            destination.close()
    except DestinationError as error:
        return [Finding("destination", "fail", str(error), error.hint, "destination")]


def _lost_manifest(config: Config, destination: Destination) -> list[Finding]:
    """A warning where a migration of this name has left anchors, and there is no manifest: two manifests of one name spoil each other's audit."""
    anchored = [] if config.manifest.exists() else anchors.told(anchors.read_all(config, destination), config.name)[0]
    said = f"A migration named {config.name} has left {counted(len(anchored), 'anchor')} there, and there is no manifest {config.manifest}."
    hint = "If it is lost: `pacs-migrate restore-manifest`. For another migration choose another name under [migration], or another prefix."
    return [Finding("destination anchors", "warn", said, hint, "destination")] if anchored else []


def source_findings(config: Config) -> list[Finding]:
    """C-ECHO, C-FIND, and one instance by C-MOVE."""
    try:
        return check_source(config)
    except LocalError as error:
        return [Finding("receiver", "fail", str(error), error.hint, "local")]
    except PacsMigrateError as error:
        return [Finding("PACS", "fail", str(error), error.hint, "source")]


def habit_findings(config: Config) -> list[Finding]:
    """What a few seconds tell of the PACS's habits, and what is on record of them from `probe` and from sweeps."""
    found = {habit.name: habit for habit in DimseProbe(config.source, config.receiver).quick()}
    findings: list[Finding] = []
    for name in ("study_root", "patient_root"):
        if found[name].value != "unknown":
            findings.append(Finding(name, "ok", found[name].detail, words(found[name]).effect, "source"))
    allowed = found["associations"]
    if allowed.value.isdigit() and int(allowed.value) <= config.source.associations:
        findings.append(Finding("associations", "warn", allowed.detail, "Run `probe`: the run keeps to what it finds. " + words(allowed).ask, "source"))
    elif allowed.value != "unknown":
        findings.append(Finding("associations", "ok", allowed.detail, part="source"))
    recorded = _recorded_habits(config)
    if not recorded:
        findings.append(Finding("habits", "ok", "Not asked for yet.", "`pacs-migrate probe` asks, in less than two minutes.", "source"))
    for habit in recorded:
        if effect := words(habit).effect:
            findings.append(Finding(habit.name, "warn", habit.detail, effect, "source"))
    return findings


def _recorded_habits(config: Config) -> list[HabitLearned]:
    try:
        queue = Queue(config.manifest)
    except ManifestError:
        return []
    try:
        return [habit for habit in queue.learned() if habit.name not in ("study_root", "patient_root", "associations")]
    finally:
        queue.close()


def check(config: Config) -> tuple[list[Finding], int]:
    """All findings, and their exit code; 11 while a run is active."""
    findings = local_findings(config)
    if kind := network_file_system(config.manifest):
        findings.append(Finding("manifest", "fail", f"It would lie on a network file system ({kind}), where SQLite can lose what it has written.",
                                "Name a file on a disk of this machine under [migration] manifest.", "config"))  # fmt: skip
    else:
        try:
            if is_locked(config.manifest):
                return [*findings, Finding("manifest", "fail", "A run is active on this manifest.", "Wait for it, or stop it.", "local")], 11
            findings += _manifest_findings(config)
        except LocalError as error:
            findings.append(Finding("manifest", "fail", str(error), error.hint, "local"))
    source = source_findings(config)
    if not any(finding.level == "fail" and finding.name in ("PACS", "receiver") for finding in source):
        source += habit_findings(config)
    findings += source + destination_findings(config)
    return findings, exit_code(findings)


def exit_code(findings: Iterable[Finding]) -> int:
    """That of the first part, in the order of `_EXIT_CODES`, of which something fails; 0 where nothing does."""
    failed = {finding.part for finding in findings if finding.level == "fail"}
    return next((code for part, code in _EXIT_CODES.items() if part in failed), 0)


def check_source(config: Config) -> list[Finding]:
    """The source's part of the preflight: listens, asks, and lets the PACS send one instance, which is thrown away."""
    with borrowed_staging(config) as staging:
        source: Source = open_source(config, staging, lambda received: received.path.unlink(missing_ok=True))
        source.open()
        try:
            return source.check()
        finally:
            source.close()


@contextlib.contextmanager
def borrowed_staging(config: Config) -> Iterator[Staging]:
    """The staging folder for who only looks: nothing of what comes meanwhile stays."""
    staging = Staging(config.staging)
    before = set(staging.incoming.iterdir())
    try:
        yield staging
    finally:
        for path in set(staging.incoming.iterdir()) - before:
            path.unlink(missing_ok=True)
        staging.close()
        staging.tidy()
