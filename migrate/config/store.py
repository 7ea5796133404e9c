"""[destination]: the bucket or the folder."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from migrate.config.settings import DestinationSettings, FolderSettings, S3Settings
from migrate.config.table import Table


def destination_of(base: Path, data: dict[str, Any], mistakes: list[str]) -> tuple[DestinationSettings | None, int]:
    """(what [destination] says, its number of workers); None, with `mistakes` longer, where it says too little. `base`: relative paths begin there."""
    table = Table("destination", data.get("destination"), mistakes)
    kind = table.take("kind", str, required=True, fits=lambda k: k in ("s3", "folder"), must='"s3" or "folder"')
    prefix = table.take("prefix", str, "", fits=_is_prefix, must="a relative path without . or .. in it")
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    workers = table.take("workers", int, 8, fits=lambda n: 0 < n <= 256, must="from 1 to 256")
    result: DestinationSettings | None = None
    if kind == "folder":
        where = table.take("path", str, required=True, must="the folder that takes the objects")
        result = FolderSettings(base / where, prefix) if where else None
    elif kind == "s3":
        bucket = table.take("bucket", str, required=True, must="the bucket's name")
        endpoint = table.take("endpoint_url", str, None, fits=lambda t: urlsplit(t).scheme in ("http", "https") and bool(urlsplit(t).hostname),
                              must="an address that begins with https://")  # fmt: skip
        allow_http = table.take("allow_http", bool, False)
        if endpoint and urlsplit(endpoint).scheme == "http" and not allow_http and not _is_loopback(urlsplit(endpoint).hostname or ""):
            table.wrong("endpoint_url", "is not encrypted; use https://, or set allow_http = true if that is really meant")
        part_mib = table.take("part_mib", int, 8, fits=lambda n: 5 <= n <= 32, must="from 5 (the least that S3 takes) to 32")
        options = {key: table.take(key, str) for key in ("region", "storage_class", "kms_key_id", "bucket_owner")}
        if bucket:
            result = S3Settings(bucket, prefix, endpoint_url=endpoint, workers=workers, part_bytes=(part_mib or 0) << 20, allow_http=allow_http, **options)
    if kind is not None:
        table.done()
    return result, workers


def _is_prefix(text: str) -> bool:
    parts = text.rstrip("/").split("/") if text else []
    return not text.startswith("/") and "\\" not in text and all(part not in ("", ".", "..") for part in parts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
