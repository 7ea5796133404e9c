"""What a store's refusal or silence means to a person: one table from error codes to errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from migrate.destinations.s3.answers import NoAnswer, StoreSaid
from migrate.errors import DestinationBusy, DestinationError, DestinationRefused, DestinationUnreachable, PutFailed

_KEYS = "Check the credentials: environment, profile, or the role of this machine."
_RENEW = "The temporary credentials ran out: log in again (`aws sso login`), or use a role that renews itself."
_KMS = "Check kms_key_id, and that we may use the key (kms:GenerateDataKey, kms:Decrypt)."
_RIGHTS = "Ask for PutObject, GetObject, ListBucket, AbortMultipartUpload and ListBucketMultipartUploads on the bucket."
_BUCKET = "Check bucket and endpoint_url under [destination]; the bucket is never made by us."
_REGION = "Set region under [destination] to the bucket's own region"
_REFUSALS = {
    "AccessDenied": _RIGHTS + " A wrong bucket_owner is answered like this, too.",
    "AllAccessDisabled": _RIGHTS,
    "HTTP 403": _RIGHTS + " Credentials that are wrong are answered like this, too.",
    "HTTP 401": _KEYS,
    "Unauthorized": _KEYS,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS + " The secret key does not fit the access key.",
    "InvalidSecurity": _KEYS,
    "InvalidToken": _RENEW,
    "InvalidClientTokenId": _RENEW,
    "UnrecognizedClientException": _KEYS,
    "ExpiredToken": _RENEW,
    "TokenRefreshRequired": _RENEW,
    "RequestTimeTooSkewed": "This machine's clock is wrong: set it, best by NTP.",
    "RequestExpired": "This machine's clock is wrong: set it, best by NTP.",
    "NoSuchBucket": _BUCKET,
    "InvalidBucketName": _BUCKET,
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "HTTP 301": _REGION,
    "HTTP 307": _REGION,
    "InvalidStorageClass": "Check storage_class under [destination].",
    "InvalidObjectState": "The object is archived: restore it, or verify without reading back.",
    "QuotaExceeded": "Ask for more space in the bucket.",
    "InsufficientStorage": "The store is full.",
    "XMinioStorageFull": "The store is full.",
    "HTTP 507": "The store is full.",
    "NotSignedUp": "The account is not enabled for this store.",
    "InvalidEncryptionAlgorithmError": _KMS,
    "NotImplemented": "The store lacks something that is needed here: puts that overwrite nothing (If-None-Match).",
}
_SLOW_DOWN = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "Busy", "ServerBusy"}


def error_of(trouble: StoreSaid | NoAnswer, doing: str) -> DestinationError:
    """The error that `trouble` while `doing` is: DestinationRefused, DestinationUnreachable or PutFailed."""
    if isinstance(trouble, NoAnswer):
        if trouble.kind == "credentials":
            return DestinationRefused(f"No usable credentials for the store: {trouble.reason}.", hint=_KEYS)
        if trouble.kind == "settings":
            return DestinationRefused(f"The store's settings cannot work: {trouble.reason.rstrip('.')}.", hint=_BUCKET)
        if trouble.kind == "file":
            return PutFailed(f"Sending the staged file failed at {doing}: {trouble.reason}.")
        if "TLS" in trouble.reason or "SSL" in trouble.reason:
            return DestinationUnreachable(
                f"The encrypted connection failed at {doing}: {trouble.reason}.",
                hint="Check endpoint_url; for a private certificate authority set AWS_CA_BUNDLE to its file.",
            )
        return DestinationUnreachable(f"The store gave no answer to {doing}: {trouble.reason}.")
    code, status = trouble.code, trouble.status
    sentence = f"The store refused {doing}: {code}" + ("" if code.startswith("HTTP") else f" (HTTP {status})") + "."
    if code in _SLOW_DOWN or status == 429:
        return DestinationBusy(sentence)
    if code in _REFUSALS:
        hint = _REFUSALS[code]
        if hint is _REGION:
            region = trouble.headers.get("x-amz-bucket-region")
            hint = f"{hint}: {region}." if region else f"{hint}."
        return DestinationRefused(sentence, hint=hint)
    if code.upper().startswith("KMS"):
        return DestinationRefused(sentence, hint=_KMS)
    if status in (401, 403):
        return DestinationRefused(sentence, hint=_RIGHTS)
    if status >= 500 or status == 0:
        return DestinationUnreachable(sentence, hint="The store is in trouble or overloaded; it is tried again later.")
    return PutFailed(sentence)


@contextmanager
def telling(doing: str) -> Iterator[None]:
    """Turns StoreSaid and NoAnswer inside into errors of ours."""
    try:
        yield
    except (StoreSaid, NoAnswer) as trouble:
        raise error_of(trouble, doing) from trouble
