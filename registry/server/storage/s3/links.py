"""Links that the server signs for clients: to read a blob, and to put what is staged, each bound to what it may do.

Invariants
- A link to put is bound to the SHA-256 of the body, or to a key that does not exist yet; where the store can hold a
  client to neither there is none, and the bytes come through this server.
- No link of these writes anywhere but under `staging/`.
"""

from __future__ import annotations

import base64
from typing import Any

from registry.digest import Digest
from registry.server.storage.blobs import Link
from registry.server.storage.s3.bucket import Bucket
from registry.server.storage.s3.capabilities import Abilities

SINGLE_PUT_LIMIT_BYTES = 5 * 2**30


def to_read(bucket: Bucket, key: str, seconds: int, method: str, file_name: str) -> Link:
    """A link for GET (an attachment of that name) or HEAD."""
    where: dict[str, Any] = {"Key": bucket.prefix + key}
    if method == "HEAD":
        return Link(bucket.link("head_object", seconds, where))
    name = file_name.rsplit("/", 1)[-1] or "blob"
    shown = {"ResponseContentDisposition": f'attachment; filename="{name}"'}
    return Link(bucket.link("get_object", seconds, {**where, **shown}))


def to_put(
    bucket: Bucket, abilities: Abilities, key: str, seconds: int, digest: Digest | None, size_bytes: int | None
) -> Link | None:
    """A link that stages this one body, or None where that cannot be made sure."""
    if size_bytes is None or size_bytes > SINGLE_PUT_LIMIT_BYTES or not key.startswith("staging/"):
        return None
    if digest is not None and abilities.sum_links:
        told = base64.b64encode(bytes.fromhex(digest.hex)).decode()
        bound, headers = {"ChecksumSHA256": told}, {"x-amz-checksum-sha256": told}
    elif abilities.once_links:
        bound, headers = {"IfNoneMatch": "*"}, {"If-None-Match": "*"}
    else:
        return None
    given = {"Key": bucket.prefix + key, **bound, "ContentLength": size_bytes}
    return Link(bucket.link("put_object", seconds, given), headers)
