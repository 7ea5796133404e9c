"""[audit]: where DICOM audit messages go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from migrate.config.pacs import tls_of
from migrate.config.settings import AuditSettings
from migrate.config.table import Table, is_port


def audit_of(base: Path, data: dict[str, Any], mistakes: list[str]) -> AuditSettings | None:
    """None without the table."""
    if "audit" not in data:
        return None
    table = Table("audit", data["audit"], mistakes)
    file = table.take("file", str, fits=lambda t: bool(t.strip()), must="a path")
    address = table.take("syslog", str, fits=_is_address, must="host:port, usually with port 6514")
    site = table.take("site", str, "")
    tls = tls_of(base, table, mistakes)
    table.done()
    if (file is None) == (address is None):
        table.wrong("", "needs file or syslog, and not both")
    if address is not None and tls is None:
        table.wrong("tls", "is missing: audit messages leave this machine over TLS only; set up [audit.tls] with ca or pin")
    host, _, port = (address or ":0").rpartition(":")
    return AuditSettings(base / file if file else None, (host.strip("[]"), int(port)) if address else None, tls, site)


def _is_address(text: str) -> bool:
    return re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[^:\s]+):[0-9]{1,5}", text) is not None and is_port(int(text.rpartition(":")[2]))
