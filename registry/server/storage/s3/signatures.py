"""AWS Signature Version 4, for what boto3 cannot do: sign for another moment than now, and sign quickly."""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

LINK_SECONDS = 60


def sign_put(
    moment: datetime, url: str, headers: Mapping[str, str], payload_sha256: str, credentials: Any, region: str
) -> dict[str, str]:
    """Return all headers of a PUT: these, in lower case, and its signature over them, the URL and the SHA-256 in hex.

    The URL has no query, and its path is quoted as botocore quotes it.
    """
    parts = urlsplit(url)
    date = f"{moment:%Y%m%dT%H%M%SZ}"
    signed = {"host": parts.netloc, "x-amz-content-sha256": payload_sha256, "x-amz-date": date, **headers}
    if credentials.token:
        signed["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    scope = _scope_of(moment, region)
    signature = _sign(moment, scope, f"PUT\n{parts.path}\n\n{lines}\n{names}\n{payload_sha256}", credentials)
    credential = f"Credential={credentials.access_key}/{scope}"
    return signed | {"authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"}


def presign_at(moment: datetime, link: str, credentials: Any, region: str) -> str:
    """Presign a GET for the minute after any moment (the query form); boto3 only knows now."""
    parts = urlsplit(link)
    scope = _scope_of(moment, region)
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{credentials.access_key}/{scope}",
        "X-Amz-Date": f"{moment:%Y%m%dT%H%M%SZ}",
        "X-Amz-Expires": str(LINK_SECONDS),
        "X-Amz-SignedHeaders": "host",
    }
    if credentials.token:
        query["X-Amz-Security-Token"] = credentials.token
    encoded = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(query.items()))
    canonical = f"GET\n{parts.path}\n{encoded}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    signature = _sign(moment, scope, canonical, credentials)
    return f"{parts.scheme}://{parts.netloc}{parts.path}?{encoded}&X-Amz-Signature={signature}"


def _scope_of(moment: datetime, region: str) -> str:
    return f"{moment:%Y%m%d}/{region}/s3/aws4_request"


def _sign(moment: datetime, scope: str, canonical: str, credentials: Any) -> str:
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{moment:%Y%m%dT%H%M%SZ}\n{scope}\n{digest}"
    key = f"AWS4{credentials.secret_key}".encode()
    for word in (*scope.split("/"), to_sign):
        key = hmac.digest(key, word.encode(), hashlib.sha256)
    return key.hex()
