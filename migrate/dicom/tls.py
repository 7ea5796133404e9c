"""DICOM TLS (PS3.15 B.12): TLS 1.2 or 1.3 on both roles, both sides with a certificate, from an own CA or pinned."""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl

from migrate.config import TlsSettings
from migrate.dicom.wire import UpperLayerError
from migrate.errors import ConfigError


class HandshakeFailed(UpperLayerError):
    """No TLS with this peer: it or we do not trust the other, or it does not speak TLS 1.2."""


def context(settings: TlsSettings, *, server: bool) -> ssl.SSLContext:
    """What `settings` ask for. A server always wants a certificate of its client. Raises ConfigError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.check_hostname = False if server else settings.verify_hostname
    try:
        if settings.ca is not None:
            made.load_verify_locations(settings.ca)
            made.verify_mode = ssl.CERT_REQUIRED
        elif not server and settings.pin:
            made.verify_mode = ssl.CERT_NONE  # the pin alone decides
        if settings.cert is not None:
            made.load_cert_chain(settings.cert, settings.key, password=lambda: "")  # never asks at a terminal
    except OSError as error:
        raise ConfigError("The TLS certificates or the key cannot be used.", (str(error.strerror or error),),
                          hint="PEM files are wanted, a key that fits the certificate and has no passphrase.") from error  # fmt: skip
    if server and settings.ca is None:
        raise ConfigError("Without ca nobody could show us a certificate that counts.", hint="Set ca under [receiver.tls].")
    return made


def wrap(sock: socket.socket, made: ssl.SSLContext, *, host: str | None) -> ssl.SSLSocket:
    """TLS around a connected socket, nothing said yet; `host` is the server's name where we are the client."""
    return made.wrap_socket(sock, server_side=host is None, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=True)


def shake_hands(sock: ssl.SSLSocket, pin: str | None, limit_s: float) -> None:
    """The hand-shake, and the pin. Raises HandshakeFailed, in `limit_s` without a byte at the latest."""
    try:
        sock.settimeout(limit_s)
        sock.do_handshake()
    except TimeoutError as error:
        raise HandshakeFailed("the TLS hand-shake takes too long") from error
    except ssl.SSLCertVerificationError as error:
        raise HandshakeFailed(f"the peer's certificate is not trusted: {error.verify_message}") from error
    except (OSError, ValueError) as error:
        raise HandshakeFailed(f"no TLS: {getattr(error, 'reason', None) or getattr(error, 'strerror', None) or error}") from error
    if pin:
        certificate = sock.getpeercert(binary_form=True) or b""
        found = [hashlib.sha256(part).hexdigest() for part in (certificate, public_key(certificate))]
        if not any(hmac.compare_digest(pin, digest) for digest in found):
            raise HandshakeFailed("the peer's certificate is not the pinned one")


def public_key(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a DER certificate (RFC 5280 4.1); b"" for what is none."""
    try:
        at, _ = _inside(certificate, 0)  # Certificate
        at, _ = _inside(certificate, at)  # TBSCertificate
        if certificate[at] == 0xA0:  # version
            at = sum(_inside(certificate, at))
        for _ in range(5):  # serial number, signature, issuer, validity, subject
            at = sum(_inside(certificate, at))
        return certificate[at : sum(_inside(certificate, at))]
    except IndexError:
        return b""


def _inside(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins, and its length."""
    length, at = der[at + 1], at + 2
    if length < 0x80:
        return at, length
    count = length & 0x7F
    return at + count, int.from_bytes(der[at : at + count], "big")
