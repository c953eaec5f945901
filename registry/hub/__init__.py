"""The dialect of the Hugging Face Hub, as values: our terms in its own, so that unchanged clients can pull and push.

    our word                 in the dialect
    adapter                  model repository `namespace/name`
    alias                    branch (`main`, `prod`); also `refs/heads/prod`. `HEAD` is `main`
    version 3                tag `v3`; also `3` and `refs/tags/v3`
    manifest digest          commit id: its first 40 hex digits
    file, small              regular file: known by its git blob SHA-1
    file, large              "LFS" file: known by its SHA-256
    draft                    commit on a branch whose files are not an adapter yet

Text that names no revision of ours is None, never an error. Which files are large follows from the descriptor alone, so
that it is the same in every response about a version.
"""

import hashlib
import re

from registry import names
from registry.digest import DigestPrefix
from registry.errors import Invalid
from registry.names import Selector
from registry.versions.manifest import Descriptor

COMMIT_DIGITS = 40
SMALL_LIMIT_BYTES = 2**20
"""Larger files are large whatever they are called."""
_LARGE_ENDINGS: tuple[str, ...] = (".safetensors", ".gguf", ".model")
_COMMIT = re.compile(r"[0-9a-f]{7,64}\Z")


def branch(text: str) -> str:
    """The branch that a revision names, if it names one. `HEAD` is what the JavaScript client asks for by itself."""
    word = text.removeprefix("refs/heads/")
    return names.NEWEST if word == "HEAD" else word


def revision(text: str) -> Selector | None:
    """What a revision of the dialect picks; None for what no version can have. Commit ids begin a digest."""
    word = branch(text).removeprefix("refs/tags/")
    try:
        return names.selector(word)
    except Invalid:
        return DigestPrefix(f"sha256:{word}") if _COMMIT.match(word) else None


def commit_id(digest: str) -> str:
    """40 lower-case hex digits: the shape by which clients know that a revision never changes."""
    return digest.removeprefix("sha256:")[:COMMIT_DIGITS]


def is_large(file: Descriptor) -> bool:
    """Whether the file is known by its SHA-256 and comes from the store, as what the Hub calls an LFS file."""
    return file.path.endswith(_LARGE_ENDINGS) or file.size_bytes > SMALL_LIMIT_BYTES


def git_header(size_bytes: int) -> bytes:
    """What git hashes before the bytes of a blob."""
    return b"blob %d\0" % size_bytes


def git_id(data: bytes) -> str:
    """The id of a git blob with these bytes: SHA-1 of `blob`, a space, the size, NUL and the bytes."""
    return hashlib.sha1(git_header(len(data)) + data, usedforsecurity=False).hexdigest()


def pointer(file: Descriptor) -> bytes:
    """The text that stands in git for a large file (Git LFS specification, version 1)."""
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{file.digest.hex}", f"size {file.size_bytes}")
    return "".join(f"{line}\n" for line in lines).encode()
