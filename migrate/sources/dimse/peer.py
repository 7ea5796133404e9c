"""Whom a source calls, and from where it may be called."""

from __future__ import annotations

import socket
from dataclasses import replace

from migrate.config import ReceiverSettings, SourceSettings
from migrate.dicom.scu import Peer
from migrate.errors import SourceUnreachable


def peer_of(settings: SourceSettings, receiver: ReceiverSettings) -> Peer:
    """The PACS as we call it: by the receiver's AE title, which is the one that it knows us by."""
    return Peer(settings.host, settings.port, settings.ae_title, receiver.ae_title, answer_s=settings.stall_s, tls=settings.tls)


def with_addresses(receiver: ReceiverSettings) -> ReceiverSettings:
    """The same with the addresses behind each host name in `allow`. Raises SourceUnreachable where one cannot be resolved."""
    return replace(receiver, allow=tuple(address for name in receiver.allow for address in _addresses(name)))


def _addresses(name: str) -> list[str]:
    if "/" in name:
        return [name]
    try:
        return sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError as error:
        raise SourceUnreachable(f"The host name {name} cannot be resolved.") from error
