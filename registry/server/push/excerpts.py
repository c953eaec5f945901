"""`Excerpts`: the first bytes of files, which a plan carries, so that pushes are judged before their bytes are sent.

A client may send other bytes than these afterwards. So excerpts only refuse a push or choose its base; what a version
says follows from the bytes that a commit reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from registry.api.transfer import PushItem
from registry.versions.files import CONFIG, GOLDEN, WEIGHTS_ENDINGS
from registry.versions.manifest import Descriptor, ManifestDraft


class NotSent(Exception):
    """A plan has no excerpt of these bytes."""


@dataclass(frozen=True, slots=True)
class Excerpts:
    """The first bytes of some files of one push, and the sizes of these files."""

    data_of: Mapping[str, bytes]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, item: PushItem, data: Sequence[bytes]) -> Excerpts:
        """The excerpts of one push, among those of the request."""
        sizes = {file.path: file.size_bytes for file in item.manifest.files if file.path in item.excerpts}
        return cls({path: data[item.excerpts[path]][:size] for path, size in sizes.items()}, sizes)

    @property
    def whole(self) -> dict[str, int]:
        """The sizes of those files that were sent as a whole."""
        return {path: size for path, size in self.sizes.items() if len(self.data_of[path]) == size}

    def read(self, path: str, start: int, length: int) -> bytes:
        """Read a piece of a file. `NotSent` if an excerpt does not hold all of it."""
        data = self.data_of.get(path)
        if data is None or min(start + length, self.sizes[path]) > len(data):
            raise NotSent
        return data[start : start + length]

    def select_readable(self, draft: ManifestDraft) -> list[Descriptor] | None:
        """The files that say what the adapter is; None if the plan has no excerpt of one of them."""
        read = [f for f in draft.files if f.path == CONFIG or f.path.endswith(WEIGHTS_ENDINGS)]
        if any(file.path not in self.data_of for file in read):
            return None
        return [*read, *(f for f in draft.files if f.path == GOLDEN and GOLDEN in self.whole)]
