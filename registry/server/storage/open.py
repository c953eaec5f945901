"""Opens the blob stores of the settings. A store creates nothing before the first write."""

from registry.errors import Invalid, Unavailable
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore, RequestRejected
from registry.server.storage.local import LocalBlobs
from registry.server.storage.s3.store import S3Blobs


def open_store(settings: Settings) -> BlobStore:
    """Open the store of `settings.blobs`. `Invalid` (SETTING_INVALID) for an unknown kind of URL."""
    return _open_url(settings.blobs, settings)


def open_second_copy(settings: Settings) -> BlobStore | None:
    """Open the store from which damaged blobs are restored, if there is one."""
    return _open_url(settings.second_copy, settings) if settings.second_copy else None


def try_store(store: BlobStore, url: str) -> str:
    """List objects once of the store at this URL. Returns why the store does not respond; empty if it does.

    `Invalid` (SETTING_INVALID): it responds, but rejects the request, as for a bucket that does not exist.
    """
    try:
        next(iter(store.list("staging/")), None)
    except RequestRejected as e:
        raise Invalid("SETTING_INVALID", f"REGISTRY_BLOBS: {url}: {e.detail}") from e
    except Unavailable as e:
        return e.detail
    return ""


def _open_url(url: str, settings: Settings) -> BlobStore:
    if url.startswith("s3:"):
        return S3Blobs.from_url(
            url,
            endpoint=settings.s3_endpoint,
            public_endpoint=settings.s3_public_endpoint,
            parts_from_bytes=settings.parts_from_bytes,
        )
    return LocalBlobs.from_url(url)
