"""[source], [receiver] and their TLS: the links to the PACS."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Any

from migrate.config.settings import ReceiverSettings, SourceSettings, TlsSettings
from migrate.config.table import AMOUNT, PORT, POSITIVE, TITLE, Table, are_modalities, is_amount, is_network, is_port, is_positive, is_title
from migrate.model import is_uid


def source_of(base: Path, data: dict[str, Any], mistakes: list[str]) -> SourceSettings | None:
    """What [source] says; None, with `mistakes` longer, where it says too little. `base`: relative paths begin there."""
    table = Table("source", data.get("source"), mistakes)
    table.take("kind", str, "dimse-move", fits=lambda k: k == "dimse-move", must='"dimse-move"')
    host = table.take("host", str, required=True, fits=lambda t: bool(t.strip()), must="the PACS's address")
    port = table.take("port", int, required=True, fits=is_port, must=PORT)
    title = table.take("ae_title", str, required=True, fits=is_title, must=TITLE)
    first = table.take("from", datetime.date)
    last = table.take("to", datetime.date)
    if first and last and first > last:
        table.wrong("from", "is later than to")
    more = {
        "associations": table.take("associations", int, 2, fits=lambda n: 0 < n <= 64, must="from 1 to 64"),
        "stall_s": float(table.take("stall_s", (int, float), 600, fits=is_positive, must=POSITIVE)),
        "attempt_s": float(table.take("attempt_s", (int, float), 21600, fits=is_positive, must=POSITIVE)),
        "settle_s": float(table.take("settle_s", (int, float), 5, fits=is_amount, must=AMOUNT)),
        "modalities": tuple(table.take("modalities", list, [], fits=are_modalities, must='a list of modalities, such as ["CT", "MR"]')),
        "allow_cleartext": table.take("allow_cleartext", bool, False),
        "tls": tls_of(base, table, mistakes),
    }
    table.done()
    if host is None or port is None or title is None:
        return None
    dates = [day.strftime("%Y%m%d") if day else None for day in (first, last)]
    return SourceSettings(host, port, title, dates[0], dates[1], **more)


def receiver_of(base: Path, data: dict[str, Any], mistakes: list[str]) -> ReceiverSettings:
    """What [receiver] says; what cannot be followed is added to `mistakes`."""
    table = Table("receiver", data.get("receiver"), mistakes)
    settings = ReceiverSettings(
        ae_title=table.take("ae_title", str, "PACSMIGRATE", fits=is_title, must=TITLE),
        host=table.take("host", str, "0.0.0.0"),
        port=table.take("port", int, 11112, fits=is_port, must=PORT),
        allow=tuple(table.take("allow", list, [], fits=lambda v: all(map(is_network, v)), must="a list of addresses or networks")),
        allow_ae=tuple(table.take("allow_ae", list, [], fits=lambda v: all(isinstance(t, str) and is_title(t) for t in v),
                                  must="a list of AE titles")),
        max_pdu=table.take("max_pdu", int, 131072, fits=lambda n: 4096 <= n <= 1 << 24, must="from 4096 to 16777216"),
        ack=table.take("ack", str, "received", fits=lambda t: t in ("received", "durable"), must='"received" or "durable"'),
        transfer_syntaxes=tuple(table.take("transfer_syntaxes", list, [], fits=lambda v: all(isinstance(t, str) and is_uid(t) for t in v),
                                           must="a list of transfer syntax UIDs, the most wanted first")),
        tls=tls_of(base, table, mistakes),
    )  # fmt: skip
    table.done()
    return settings


def tls_of(base: Path, owner: Table, mistakes: list[str]) -> TlsSettings | None:
    """The table `[source.tls]`, `[receiver.tls]` or `[audit.tls]`, whose files must be there; None without it."""
    if "tls" not in owner.data:
        return None
    table = Table(f"{owner.name}.tls", owner.data.pop("tls"), mistakes)
    files: dict[str, Path | None] = {}
    for key in ("ca", "cert", "key"):
        name = table.take(key, str)
        files[key] = path = base / name if name else None
        if path is None:
            continue
        if not os.access(path, os.R_OK) or not path.is_file():
            table.wrong(key, "is no file that can be read")
        elif key == "key" and os.name == "posix" and path.stat().st_mode & 0o077:
            table.wrong(key, "can be read by others, who could then pass for us: chmod 600")
    pin = table.take("pin", str, None, fits=lambda t: re.fullmatch("[0-9a-f]{64}", _bare(t)) is not None,
                     must="the SHA-256 of a certificate or of its public key: 64 hexadecimal digits")  # fmt: skip
    verify = table.take("verify_hostname", bool, pin is None and owner.name != "receiver")
    table.done()
    if bool(files["cert"]) != bool(files["key"]):
        table.wrong("cert", "and key belong together")
    if owner.name == "receiver":
        for key in ("ca", "cert"):
            if files[key] is None:
                table.wrong(key, "is missing: the PACS and we show each other a certificate")
        if verify:
            table.wrong("verify_hostname", "is for [source.tls]; name the PACS's certificate with pin")
    elif files["ca"] is None and pin is None:
        table.wrong("ca", f"is missing (or a pin): without one anybody could pass for the {'server' if owner.name == 'audit' else 'PACS'}")
    elif files["ca"] is None and verify:
        table.wrong("verify_hostname", "needs ca")
    elif not verify and pin is None:
        table.wrong("verify_hostname", "may be false only with a pin: else every certificate of this CA would pass for the PACS")
    return TlsSettings(files["ca"], files["cert"], files["key"], _bare(pin) if pin else None, verify)


def _bare(digest: str) -> str:
    return digest.replace(":", "").lower()


def clear_text(source: SourceSettings, receiver: ReceiverSettings) -> list[str]:
    """Which links to the PACS are not encrypted: questions, images."""
    return [what for what, tls in (("questions", source.tls), ("images", receiver.tls)) if tls is None]


def expect_encryption(source: SourceSettings, receiver: ReceiverSettings, mistakes: list[str]) -> None:
    """Plain DICOM outside one's own network is a mistake unless it is said to be meant."""
    open_links = clear_text(source, receiver)
    if not open_links or source.allow_cleartext:
        return
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(source.host, None)}
    except (OSError, UnicodeError):
        return  # nobody can be reached under this name
    if not all(ip.is_private or ip.is_loopback or ip.is_link_local for ip in map(ipaddress.ip_address, (f.partition("%")[0] for f in found))):
        mistakes.append(
            f"[source] host is a public address, and {' and '.join(open_links)} would cross the open network in clear text, with "
            "patients' names; set up [source.tls] and [receiver.tls], or allow_cleartext = true if a tunnel encrypts the link"
        )
