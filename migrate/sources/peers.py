"""Whom a source calls, and from where it may be called."""

from __future__ import annotations

import socket

from migrate.config import ReceiverConfig, SourceSettings
from migrate.dicom.scu import Peer
from migrate.errors import SourceUnreachable


def peer_of(settings: SourceSettings, receiver: ReceiverConfig) -> Peer:
    """The PACS as we call it: by the receiver's AE title, which is the one that it knows us by."""
    return Peer(settings.host, settings.port, settings.ae_title, receiver.ae_title, answer_s=settings.stall_s, tls=settings.tls)


def addresses(name: str) -> list[str]:
    """The addresses behind a host name; a network or an address stands for itself."""
    if "/" in name:
        return [name]
    try:
        return sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError as error:
        raise SourceUnreachable(f"The host name {name} cannot be resolved.") from error
