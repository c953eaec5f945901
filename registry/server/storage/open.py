"""Opens the blob stores of the settings: the one place that decides by URL. A store creates nothing before a write."""

from urllib.parse import urlsplit

from registry import lazy
from registry.errors import Invalid, Unavailable
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore, RequestRejected
from registry.server.storage.local import LocalBlobs

_S3 = "registry.server.storage.s3.store:S3Blobs"
"""Imported when a URL names it: boto3 takes longer to import than a command on a folder takes."""


def open_store(settings: Settings, *, is_quick: bool = False) -> BlobStore:
    """Open the store of `settings.blobs`. `Invalid` (SETTING_INVALID) for an unknown kind of URL.

    `is_quick`: for reads that fail soon, as those of a page, which shows its other parts meanwhile.
    """
    return _open(settings.blobs, settings, is_quick=is_quick)


def open_second_copy(settings: Settings) -> BlobStore | None:
    """Open the store from which damaged blobs are restored, if there is one."""
    return _open(settings.second_copy, settings) if settings.second_copy else None


def _open(url: str, settings: Settings, *, is_quick: bool = False) -> BlobStore:
    if urlsplit(url).scheme != "s3":
        return LocalBlobs.from_url(url)
    store: BlobStore = lazy.load(_S3).from_url(
        url, endpoint=settings.s3_endpoint, public_endpoint=settings.s3_public_endpoint,
        parts_from_bytes=settings.parts_from_bytes, is_quick=is_quick,
    )  # fmt: skip
    return store


def try_store(store: BlobStore, url: str) -> str:
    """List objects of the store at this URL once, and ask what it can do. Returns what is wrong; empty for nothing.

    `Invalid` (SETTING_INVALID): it responds, but rejects the request, as for a bucket that does not exist.
    """
    try:
        next(iter(store.list("staging/")), None)
        lacking = [name.replace("_", " ") for name, is_there in store.capabilities.items() if not is_there]
    except RequestRejected as e:
        raise Invalid("SETTING_INVALID", f"REGISTRY_BLOBS: {url}: {e.detail}") from e
    except Unavailable as e:
        return f"{url} does not respond, and is tried again: {e.detail}"
    return f"{url} lacks {', '.join(lacking)}: all bytes pass through this server" if lacking else ""
