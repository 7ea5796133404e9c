"""DICOM audit messages: what is said of a run, to a file or over TLS, and that nobody's name is among it."""

from __future__ import annotations

import base64
import re
import socket
import sqlite3
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from migrate.audit_trail.delivery import open_trail
from migrate.audit_trail.messages import MINOR_FAILURE, Query
from migrate.config import load
from migrate.dicom.identifier import decode_identifier, encode_identifier
from migrate.errors import ConfigError, DiskFailing
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.runs import command, configure, here, truth

SCHEMA = Path(__file__).parents[1] / "audit-message.rng"


def mistakes(messages: list[bytes], folder: Path) -> dict[int, str]:
    """What xmllint finds against the schema of PS3.15 A.5.1, by the messages' positions."""
    folder.mkdir()
    for number, text in enumerate(messages):
        (folder / f"{number:06}.xml").write_bytes(text)
    names = sorted(path.name for path in folder.iterdir())
    done = subprocess.run(["xmllint", "--noout", "--relaxng", str(SCHEMA), *names], cwd=folder, capture_output=True, text=True)
    assert len(re.findall(r"^\d{6}\.xml (?:validates|fails to validate)$", done.stderr, re.M)) == len(names) > 0, done.stderr
    return {int(name): why for name, why in re.findall(r"^(\d{6})\.xml:\d+: (.*)$", done.stderr, re.M)}


def event_of(message: ElementTree.Element) -> str:
    event = message.find("EventIdentification/EventID")
    assert event is not None
    return event.attrib["originalText"]


@contextmanager
def audited(folder: Path, audit: str, archive: Archive) -> Iterator[None]:
    receiver = free_port()
    with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}) as pacs:
        path = configure(folder, pacs.port, receiver)
        path.write_text(f"{path.read_text()}[audit]\n{audit}\n")
        yield


def test_a_run_leaves_its_trail_in_a_file(tmp_path: Path) -> None:
    """Start, stop, each question, each study's begin and end with what came by SOP class; schema-valid, and without any patient."""
    archive = Archive(3)
    with audited(tmp_path, 'file = "audit.xml"\nsite = "St. Elsewhere"', archive):
        assert here(tmp_path, "run")[0] == 0
    text = (tmp_path / "audit.xml").read_text(encoding="utf-8")
    assert mistakes([line.encode() for line in text.splitlines()], tmp_path / "messages") == {}
    messages = [ElementTree.fromstring(line) for line in text.splitlines()]
    counts = Counter(event_of(message) for message in messages)
    assert (counts["Application Activity"], counts["Begin Transferring DICOM Instances"], counts["DICOM Instances Transferred"]) == (2, 3, 3)
    came = Counter[str]()
    for message in messages:
        if event_of(message) == "DICOM Instances Transferred":
            (study, _) = message.findall("ParticipantObjectIdentification")
            came[study.attrib["ParticipantObjectID"]] += sum(int(each.attrib["NumberOfInstances"]) for each in study.iter("SOPClass"))
    assert came == Counter(study for study, _, _ in truth(archive))
    queries = [message.findtext("ParticipantObjectIdentification/ParticipantObjectQuery") for message in messages if event_of(message) == "Query"]
    keys = [decode_identifier(base64.b64decode(query or ""), "1.2.840.10008.1.2") for query in queries]
    assert {key[0x00080052].strip() for key in keys} == {b"STUDY", b"IMAGE"}
    assert {key[0x0020000D].strip(b"\0").decode() for key in keys if 0x0020000D in key} == set(came)
    assert "^" not in text  # as every patient's name has it
    assert (tmp_path / "audit.xml").stat().st_mode & 0o077 == 0


def of_every_kind(folder: Path) -> list[bytes]:
    """Each message that can be written, as it is when all goes well and when it fails, with addresses and with names of machines."""
    for host in ("10.20.30.40", "old-pacs.example.org"):
        path = configure(folder, 1, 1)
        path.write_text(f'{path.read_text().replace("127.0.0.1", host)}[audit]\nfile = "{host}.xml"\n')
        trail = open_trail(load(path))
        assert trail is not None
        query = Query("1.2.840.10008.5.1.4.1.2.2.1", encode_identifier({0x00080052: "STUDY", 0x00080020: "20240101-"}, "1.2.840.10008.1.2"), "1.2.840.10008.1.2")
        trail.application(started=True)
        trail.queried(query)
        trail.queried(query, MINOR_FAILURE, 'SourceRefused: <&"> ü')
        trail.begins("1.2.3")
        trail.transferred("1.2.3", {})
        trail.transferred("1.2.3", {"1.2.840.10008.5.1.4.1.1.2": 3, "": 1}, MINOR_FAILURE, "SourceIncomplete")
        trail.end(20)
    return [line for path in sorted(folder.glob("*.xml")) for line in path.read_bytes().splitlines()]


def test_every_message_fits_the_schema_of_the_standard(tmp_path: Path) -> None:
    """An independent validator finds each kind of message, good and failed, valid by PS3.15 A.5.1."""
    messages = of_every_kind(tmp_path)
    kinds = Counter(event_of(ElementTree.fromstring(text)) for text in messages)
    assert kinds == {"Application Activity": 4, "Query": 4, "Begin Transferring DICOM Instances": 2, "DICOM Instances Transferred": 4}
    assert mistakes(messages, tmp_path / "messages") == {}


@pytest.mark.parametrize(("right", "wrong"), [
    (b' EventDateTime="', b' EventTime="'), (b"+00:00", b" UTC"), (b'EventOutcomeIndicator="4"', b'EventOutcomeIndicator="5"'), (b"csd-code", b"code"),
    (b'NumberOfInstances="3"', b'NumberOfInstances="many"'), (b"<ParticipantObjectName>1.2.3</ParticipantObjectName>", b""),
    (b'UserIsRequestor="true"', b'UserIsRequestor="yes"'), (b"<Encrypted>", b"<Anonymized>true</Anonymized><Encrypted>"), (b' ParticipantObjectID="1.2.3"', b""),
    (b'NetworkAccessPointTypeCode="1"', b'NetworkAccessPointTypeCode="9"'), (b"<AuditSourceIdentification", b"<More /><AuditSourceIdentification"),
])  # fmt: skip
def test_the_validator_sees_what_is_wrong(tmp_path: Path, right: bytes, wrong: bytes) -> None:
    """A message that was sound is refused once something of it is as the standard forbids: else the tests above would show nothing."""
    sound = next(text for text in reversed(of_every_kind(tmp_path)) if right in text)
    assert list(mistakes([sound, sound.replace(right, wrong, 1)], tmp_path / "messages")) == [1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A syslog server's own certificate, with its key in one file."""
    folder = tmp_path_factory.mktemp("syslog")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem", "-out", "ca.pem",
                    "-subj", "/CN=syslog", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"], cwd=folder, check=True, capture_output=True)  # fmt: skip
    return folder


@contextmanager
def syslog_server(certificate: Path, port: int) -> Iterator[list[bytes]]:
    """What one connection brings, as RFC 5425 frames it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "ca.pem", certificate / "key.pem")
    frames: list[bytes] = []
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as sock, sock.makefile("rb") as stream:
                while length := b"".join(iter(lambda: stream.read(1).strip(), b"")):
                    frames.append(stream.read(int(length)))

        thread = threading.Thread(target=serve)
        thread.start()
        yield frames
        thread.join(30)
        assert not thread.is_alive()


def test_a_syslog_server_gets_each_message_over_tls(tmp_path: Path, certificate: Path) -> None:
    """Octet-counted RFC 5424 messages with the MSGID of PS3.15 A.6; what was said while the server was away comes when it is back."""
    port = free_port()
    configure(tmp_path, 1, 1).open("a").write(f'[audit]\nsyslog = "127.0.0.1:{port}"\n[audit.tls]\nca = "{certificate / "ca.pem"}"\n')
    trail = open_trail(load(tmp_path / "migrate.toml"))
    assert trail is not None
    trail.application(started=True)
    with syslog_server(certificate, port) as frames:
        assert trail.end(0) == 0
    heads = [frame.partition(b"\xef\xbb\xbf")[0].decode() for frame in frames]
    assert [re.sub(r" \d{4}-\d\d-\d\dT[\d:.]+Z \S+ pacs-migrate \d+ ", " ", head) for head in heads] == ["<85>1 DICOM+RFC3881 - "] * 2
    assert mistakes([frame.partition(b"\xef\xbb\xbf")[2] for frame in frames], tmp_path / "messages") == {}


def test_a_syslog_server_that_never_comes_stops_nothing(tmp_path: Path, certificate: Path) -> None:
    """The run is complete, and says on record how many messages are lost."""
    with audited(tmp_path, f'syslog = "127.0.0.1:{free_port()}"\ntls = {{ ca = "{certificate / "ca.pem"}" }}', Archive(1)):
        done = command(tmp_path, "enumerate")
    assert done.returncode == 0, done.stderr
    assert "audit messages" in done.stderr
    with closing(sqlite3.connect(tmp_path / "manifests" / "test.db")) as manifest:
        (said,) = manifest.execute("SELECT detail FROM event WHERE kind = 'audit messages lost'").fetchone()
    assert re.fullmatch(r"[1-9]\d* never reached the syslog server", said)


def test_an_audit_file_that_cannot_be_written_stops_everything(tmp_path: Path) -> None:
    """Who wants a trail gets no migration without one."""
    (tmp_path / "audit.xml").mkdir()
    configure(tmp_path, 1, 1).open("a").write('[audit]\nfile = "audit.xml"\n')
    with pytest.raises(DiskFailing):
        open_trail(load(tmp_path / "migrate.toml"))


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        ("", "needs file or syslog"),
        (f'file = "a"\nsyslog = "a:1"\n[audit.tls]\npin = "{"0" * 64}"', "not both"),
        ('syslog = "a:6514"', "over TLS only"),
        ('syslog = "a"', "must be host:port"),
        ("file = 1", "must be a text"),
        ('fil = "a"', "did you mean file"),
    ],
)
def test_mistakes_of_the_table_are_told(tmp_path: Path, audit: str, said: str) -> None:
    """Neither file nor syslog, both, no TLS, no port, and what is not known."""
    configure(tmp_path, 1, 1).open("a").write(f"[audit]\n{audit}\n")
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "migrate.toml")
