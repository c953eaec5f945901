"""Compare an adapter's own tokenizer and chat template with those of its base.

Never an error: an adapter with a tokenizer of its own fits, and answers badly if it is served with the base's.
"""

import math
import threading
from collections.abc import Iterable, Iterator, Mapping

from registry.adapters.read import ReadCache
from registry.bases import BaseSpec
from registry.bases.fingerprints import template_text, tokenizer_fingerprint
from registry.compat.catalog import compat_finding
from registry.digest import Digest
from registry.errors import Invalid
from registry.findings import Finding
from registry.strict import json as strict_json
from registry.versions.files import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, Read
from registry.versions.manifest import Descriptor

TOKENIZER_LIMIT_BYTES = 16 * 2**20
"""Llama 3's tokenizer has 9 MB. Larger ones (Gemma: 33 MB) are not compared."""
TOKENIZER_VALUES_LIMIT = 1_500_000
"""Llama 3's tokenizer has a million values. 16 MiB of brackets take 1.4 GB of memory."""
_FINGERPRINTS: ReadCache[Digest | Finding] = ReadCache(limit=256, limit_bytes=math.inf)
"""The fingerprint of a tokenizer, or why it has none. Most versions of an adapter have the same one."""
_TEMPLATES: ReadCache[Digest | None] = ReadCache(limit=256, limit_bytes=math.inf)
_PARSING = threading.Lock()
"""One tokenizer at a time: parsing one takes up to 500 MB."""


def check_tokenizer(files: Iterable[Descriptor], read: Read, base: BaseSpec) -> list[Finding]:
    """Warnings where the version's own tokenizer or template is not the base's. A base without one is not compared."""
    if not base.is_registered:
        return []
    sizes = {file.path: file.size_bytes for file in files}
    return [*_compare_tokenizer(sizes, read, base), *_compare_template(sizes, read, base)]


def _compare_tokenizer(sizes: Mapping[str, int], read: Read, base: BaseSpec) -> Iterator[Finding]:
    size_bytes, expected = sizes.get(TOKENIZER), base.fingerprints.tokenizer
    if size_bytes is None or expected is None:
        return
    if size_bytes > TOKENIZER_LIMIT_BYTES:
        yield _not_compared(f"{size_bytes} bytes", TOKENIZER_LIMIT_BYTES)
        return
    fingerprint = _FINGERPRINTS.compute(size_bytes, read, lambda read: _fingerprint(read(TOKENIZER, 0, size_bytes)))
    if isinstance(fingerprint, Finding):
        yield fingerprint
    elif fingerprint != expected:
        message = (
            f"{TOKENIZER} is not that of {base.name}: with the tokenizer of the base, the adapter gets other tokens"
        )
        yield compat_finding("compat.tokenizer_differs", TOKENIZER, message, expected, fingerprint)


def _fingerprint(tokenizer: bytes) -> Digest | Finding:
    """The fingerprint, or the finding that says why there is none."""
    with _PARSING:
        if strict_json.has_more_values(tokenizer, TOKENIZER_VALUES_LIMIT):
            return _not_compared(f"over {TOKENIZER_VALUES_LIMIT} values", TOKENIZER_VALUES_LIMIT)
        try:
            return tokenizer_fingerprint(tokenizer)
        except Invalid as e:
            message = f"{e.detail}, so nothing can load it"
            return compat_finding("compat.tokenizer_unreadable", TOKENIZER, message)


def _not_compared(size: str, limit: int) -> Finding:
    message = f"{TOKENIZER} has {size} and is not compared with the base's; the limit is {limit}"
    return compat_finding("compat.tokenizer_not_compared", TOKENIZER, message)


def _compare_template(sizes: Mapping[str, int], read: Read, base: BaseSpec) -> Iterator[Finding]:
    files = tuple((path, sizes[path]) for path in (CHAT_TEMPLATE, TOKENIZER_CONFIG) if sizes.get(path))
    if not files:
        return
    fingerprint = _TEMPLATES.compute(files, read, lambda read: _template_fingerprint(dict(files), read))
    if fingerprint is None:
        return
    path, expected = files[0][0], base.fingerprints.template
    if expected is None:
        message = f"the version has a chat template, and {base.name} has none: serve the adapter with it"
        yield compat_finding("compat.template_added", path, message)
    elif fingerprint != expected:
        message = (
            f"the chat template in {path} is not that of {base.name}: "
            "served with the template of the base, the adapter answers badly"
        )
        yield compat_finding("compat.template_differs", path, message, expected, fingerprint)


def _template_fingerprint(sizes: Mapping[str, int], read: Read) -> Digest | None:
    """The fingerprint of the chat template in these files; None without one."""
    data = {path: read(path, 0, size_bytes) for path, size_bytes in sizes.items()}
    text = template_text(data.get(CHAT_TEMPLATE, b"").decode("utf-8", "replace"), data.get(TOKENIZER_CONFIG))
    return Digest.of(text.encode("utf-8", "surrogatepass")) if text else None
