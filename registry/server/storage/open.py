"""Which store of blobs a setting means.

Invariants
- Nothing is opened or created here; the store does so when it is first written to.
"""

from __future__ import annotations

from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.server.storage.local import LocalBlobs
from registry.server.storage.s3.store import S3Blobs


def of(settings: Settings) -> BlobStore:
    """The store of `settings.blobs`. `Invalid` (SETTING_INVALID) for a URL that names none."""
    return _at(settings.blobs, settings)


def second(settings: Settings) -> BlobStore | None:
    """The store that damaged blobs are restored from, if there is one."""
    return _at(settings.second_copy, settings) if settings.second_copy else None


def _at(url: str, settings: Settings) -> BlobStore:
    if url.startswith("s3:"):
        return S3Blobs.at(
            url,
            endpoint=settings.s3_endpoint,
            public_endpoint=settings.s3_public_endpoint,
            parts_from_bytes=settings.parts_from_bytes,
        )
    return LocalBlobs.at(url)
