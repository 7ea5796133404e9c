"""DICOM TLS with DCMTK's tools, and with peers that nobody should trust."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from migrate.config import ReceiverSettings, TlsSettings, load
from migrate.dicom.receiver import Receiver
from migrate.dicom.scu import Peer, echo
from migrate.dicom.tls import context, public_key
from migrate.errors import ConfigError, SourceUnreachable
from migrate.model import Received
from migrate.staging.area import Staging
from tests.dicom_peers import HOST, orthanc, run
from tests.integration.test_real_peers import archive_files
from tests.ports import free_port
from tests.runs import called, configure

CT = Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def certify(folder: Path, name: str, *, ca: str = "ca", san: str = "IP:127.0.0.1", days: int = 2) -> None:
    openssl(folder, "req", "-new", *NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    (folder / f"{name}.ext").write_text(f"subjectAltName={san}\n")
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
            "-days", str(days), "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    for name in ("ca", "otherca"):
        openssl(folder, "req", "-x509", *NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "9")
    certify(folder, "us")
    certify(folder, "pacs")
    certify(folder, "stranger", ca="otherca")
    certify(folder, "elsewhere", san="DNS:pacs.example.org")
    certify(folder, "expired", days=-1)
    return folder


def settings_of(pki: Path, name: str = "us", **more: object) -> TlsSettings:
    return replace(TlsSettings(pki / "ca.pem", pki / f"{name}.pem", pki / f"{name}.key"), **more)  # type: ignore[arg-type]


class Bench:
    def __init__(self, folder: Path, tls: TlsSettings) -> None:
        self.got: list[Received] = []
        self.staging = Staging(folder / "staging", reserve_bytes=1)
        self.receiver = Receiver(ReceiverSettings(host=HOST, port=0, tls=tls), self.staging, self._keep)
        self.receiver.start()
        self.port = self.receiver.port

    def _keep(self, received: Received) -> None:
        self.got.append(received)


@pytest.fixture
def bench(tmp_path: Path, pki: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, settings_of(pki))
    yield made
    made.receiver.close()
    made.staging.close()


def tls_words(pki: Path, name: str) -> tuple[str, ...]:
    return ("+tls", str(pki / f"{name}.key"), str(pki / f"{name}.pem"), "+cf", str(pki / "ca.pem"))


def peer(port: int, tls: TlsSettings) -> Peer:
    return Peer(HOST, port, "X", "US", connect_s=1.0, answer_s=5.0, tls=tls)


def test_storescu_sends_by_tls(bench: Bench, pki: Path) -> None:
    """DCMTK's storescu with a certificate of the CA is served; its image comes whole."""
    run("storescu", *tls_words(pki, "pacs"), HOST, str(bench.port), CT)
    assert [received.quarantine for received in bench.got] == [None]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_our_requests_meet_our_receiver(bench: Bench, pki: Path, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion) -> None:
    """C-ECHO by TLS 1.2 and by 1.3: one is no more than the other's older form."""
    assert bench.receiver._tls is not None
    bench.receiver._tls.maximum_version = version
    echo(peer(bench.port, settings_of(pki, "pacs")))


@pytest.mark.parametrize("name", ["stranger", "expired", None])
def test_a_client_that_is_not_trusted_gets_nothing(bench: Bench, pki: Path, name: str | None) -> None:
    """A certificate of another CA, one that has expired, none: the association never begins, and the next is served."""
    tls = settings_of(pki, name) if name else settings_of(pki, cert=None, key=None)
    with pytest.raises(SourceUnreachable):
        echo(peer(bench.port, tls))
    echo(peer(bench.port, settings_of(pki, "pacs")))


def test_clear_text_and_old_tls_are_refused(bench: Bench, pki: Path) -> None:
    """Plain DICOM and TLS 1.0 and 1.1 end before an association."""
    assert run("echoscu", HOST, str(bench.port), ok=False).returncode != 0
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((HOST, bench.port), timeout=5) as sock, pytest.raises(OSError):
        old.wrap_socket(sock)
    for server in (True, False):  # newer OpenSSLs refuse the old ones by themselves: what we ask for counts, too
        assert context(settings_of(pki, "pacs"), server=server).minimum_version == ssl.TLSVersion.TLSv1_2
    echo(peer(bench.port, settings_of(pki, "pacs")))


def test_silent_hand_shakes_keep_nobody_out(bench: Bench, pki: Path) -> None:
    """Two hundred that never finish the hand-shake: a real one is done within a second."""
    socks = [socket.create_connection((HOST, bench.port), timeout=5) for _ in range(200)]
    began = time.monotonic()
    echo(peer(bench.port, settings_of(pki, "pacs")))
    assert time.monotonic() - began < 1
    for sock in socks:
        sock.close()


def test_pins(bench: Bench, pki: Path) -> None:
    """The pin of the certificate or of its key is enough without a CA; another pin is refused, on either side."""
    der = ssl.PEM_cert_to_DER_cert((pki / "us.pem").read_text())
    spki = subprocess.run("openssl x509 -in us.pem -pubkey -noout | openssl pkey -pubin -outform der", shell=True, cwd=pki,
                          check=True, capture_output=True).stdout  # fmt: skip
    assert public_key(der) == spki
    for pin in (hashlib.sha256(der).hexdigest(), hashlib.sha256(spki).hexdigest()):
        echo(peer(bench.port, settings_of(pki, "pacs", ca=None, verify_hostname=False, pin=pin)))
    with pytest.raises(SourceUnreachable, match="not the pinned one"):
        echo(peer(bench.port, settings_of(pki, "pacs", ca=None, verify_hostname=False, pin="0" * 64)))


def test_the_receivers_pin(tmp_path: Path, pki: Path) -> None:
    """With a pin the receiver takes only that one of the CA's certificates."""
    pin = hashlib.sha256(ssl.PEM_cert_to_DER_cert((pki / "pacs.pem").read_text())).hexdigest()
    made = Bench(tmp_path, settings_of(pki, pin=pin))
    with pytest.raises(SourceUnreachable):
        echo(peer(made.port, settings_of(pki, "us")))
    echo(peer(made.port, settings_of(pki, "pacs")))
    made.receiver.close()
    made.staging.close()


@pytest.mark.parametrize(
    ("name", "said"), [("stranger", "not trusted"), ("expired", "expired"), ("elsewhere", "mismatch"), ("", "too long"), ("pacs", "does not answer")]
)
def test_a_server_that_is_not_trusted_is_not_asked(pki: Path, name: str, said: str) -> None:
    """Wrong CA, expired, another host's name, a hand-shake that never comes: each is told; the right one hears us."""
    heard: list[bytes] = []
    with socket.create_server((HOST, 0)) as listener:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if name:
            made.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
        done = threading.Event()

        def serve() -> None:
            sock, _ = listener.accept()
            try:
                if name:
                    with made.wrap_socket(sock, server_side=True) as secure:
                        heard.append(secure.recv(1))
                else:
                    done.wait(10)
            except OSError:
                pass
            finally:
                sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(SourceUnreachable, match=said):
            echo(peer(listener.getsockname()[1], settings_of(pki)))
        done.set()
        thread.join()
    assert [piece for piece in heard if piece] == ([b"\x01"] if name == "pacs" else [])


def test_a_whole_migration_by_tls(tmp_path: Path, pki: Path) -> None:
    """From an Orthanc that speaks nothing but TLS, both ways and with certificates on both sides: complete, every image in the
    bucket folder, and the record says that both links were encrypted."""
    receiver, files = free_port(), archive_files(tmp_path / "files", 2)
    moved = {"PACSMIGRATE": {"AET": "PACSMIGRATE", "Host": HOST, "Port": receiver, "UseDicomTls": True}}
    options = {"DicomTlsEnabled": True, "DicomTlsCertificate": str(pki / "pacs.pem"), "DicomTlsPrivateKey": str(pki / "pacs.key"),
               "DicomTlsTrustedCertificates": str(pki / "ca.pem"), "DicomTlsRemoteCertificateRequired": True, "DicomModalities": moved}  # fmt: skip
    with orthanc(tmp_path / "pacs", options=options, tls=tls_words(pki, "us")) as pacs:
        run("storescu", *tls_words(pki, "us"), "-xs", "-aec", pacs.ae_title, "+sd", HOST, str(pacs.port), tmp_path / "files", ok=False)
        tables = "".join(f'[{name}.tls]\nca = "{pki}/ca.pem"\ncert = "{pki}/us.pem"\nkey = "{pki}/us.key"\n' for name in ("source", "receiver"))
        toml = configure(tmp_path, pacs.port, receiver, ae_title=pacs.ae_title)
        toml.write_text(toml.read_text() + tables)
        code, out, err = called(tmp_path, "run", "--json")
    assert code == 0, err
    done = json.loads(out)
    assert done["complete"] is True and done["instances"]["verified"] > len(files) // 2
    with contextlib.closing(sqlite3.connect(tmp_path / "manifests" / "test.db")) as manifest:
        assert manifest.execute("SELECT detail FROM event WHERE kind = 'links'").fetchall() == [("questions over TLS, images over TLS",)]


TOML = """[migration]
name = "m"
[source]
host = "{host}"
port = 104
ae_title = "PACS"
{more}
[destination]
kind = "folder"
path = "bucket"
"""


def test_clear_text_into_the_open_network_must_be_meant(tmp_path: Path) -> None:
    """A public address without TLS ends with exit 2; what is meant is allowed, and so are private addresses."""
    path = tmp_path / "migrate.toml"
    for host, more, fine in (("8.8.8.8", "", False), ("8.8.8.8", "allow_cleartext = true", True), ("10.0.0.5", "", True)):
        path.write_text(TOML.format(host=host, more=more))
        if fine:
            assert load(path).source.host == host
            continue
        with pytest.raises(ConfigError, match="clear text") as refused:
            load(path)
        assert refused.value.exit_code == 2


def test_tls_tables(tmp_path: Path, pki: Path) -> None:
    """Both tables load with files beside the TOML; all mistakes come in one go, a key that others can read among them."""
    for name in ("ca.pem", "us.pem", "us.key"):
        (tmp_path / name).write_bytes((pki / name).read_bytes())
    (tmp_path / "us.key").chmod(0o600)
    table = 'ca = "ca.pem"\ncert = "us.pem"\nkey = "us.key"\n'
    path = tmp_path / "migrate.toml"
    path.write_text(TOML.format(host="8.8.8.8", more=f"[source.tls]\n{table}[receiver.tls]\n{table}"))
    config = load(path)
    assert config.receiver.tls is not None and config.source.tls == replace(config.receiver.tls, verify_hostname=True)
    (tmp_path / "us.key").chmod(0o640)  # its group is others, too
    path.write_text(TOML.format(host="10.0.0.5", more='[source.tls]\nkey = "us.key"\npin = "12"\n[receiver.tls]\nca = "gone.pem"\n'))
    with pytest.raises(ConfigError) as refused:
        load(path)
    told = "\n".join(refused.value.mistakes)
    for said in ("line 8: [source.tls] key can be read by others", "line 9: [source.tls] pin", "belong together", "line 11: [receiver.tls] ca is no file", "[receiver.tls] cert is missing"):
        assert said in told, told
