"""Compare an adapter's own tokenizer and chat template with those of its base.

Never an error: an adapter with a tokenizer of its own fits, and answers badly if it is served with the base's.
"""

from collections.abc import Iterable

from registry.bases import BaseSpec
from registry.bases.fingerprints import template_text, tokenizer_fingerprint
from registry.digest import Digest
from registry.errors import Invalid
from registry.findings import Finding, FindingCollector
from registry.versions.files import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, Read
from registry.versions.manifest import Descriptor

TOKENIZER_LIMIT_BYTES = 16 * 2**20
"""Llama 3's tokenizer has 9 MB. Larger ones (Gemma: 33 MB) are not compared."""


def check_tokenizer(files: Iterable[Descriptor], read: Read, base: BaseSpec) -> list[Finding]:
    """Warnings where the version's own tokenizer or template is not the base's. A base without one is not compared."""
    if not base.is_registered:
        return []
    findings = FindingCollector()
    sizes = {file.path: file.size_bytes for file in files}
    if TOKENIZER in sizes and base.fingerprints.tokenizer is not None:
        _tokenizer(sizes[TOKENIZER], read, base.fingerprints.tokenizer, base.name, findings)
    texts = {path: read(path, 0, sizes[path]) for path in (CHAT_TEMPLATE, TOKENIZER_CONFIG) if path in sizes}
    text = texts.get(CHAT_TEMPLATE, b"").decode("utf-8", "replace")
    template = template_text(text or None, texts.get(TOKENIZER_CONFIG))
    if template:
        _template(CHAT_TEMPLATE if text else TOKENIZER_CONFIG, template, base, findings)
    return findings.all()


def _tokenizer(size_bytes: int, read: Read, expected: Digest, base: str, findings: FindingCollector) -> None:
    if size_bytes > TOKENIZER_LIMIT_BYTES:
        message = f"{TOKENIZER} has {size_bytes} bytes and is not compared with the base's; the limit is "
        findings.info("compat.tokenizer_not_compared", TOKENIZER, message + str(TOKENIZER_LIMIT_BYTES))
        return
    try:
        fingerprint = tokenizer_fingerprint(read(TOKENIZER, 0, size_bytes))
    except Invalid as e:
        findings.warning("compat.tokenizer_unreadable", TOKENIZER, f"{e.detail}, so nothing can load it")
        return
    if fingerprint != expected:
        message = f"{TOKENIZER} is not that of {base}: with the tokenizer of the base, the adapter gets other tokens"
        findings.warning("compat.tokenizer_differs", TOKENIZER, message, expected, fingerprint)


def _template(path: str, template: str, base: BaseSpec, findings: FindingCollector) -> None:
    fingerprint = Digest.of(template.encode("utf-8", "surrogatepass"))
    expected = base.fingerprints.template
    if expected is None:
        message = f"the version has a chat template, and {base.name} has none: serve the adapter with it"
        findings.info("compat.template_added", path, message)
    elif fingerprint != expected:
        message = (
            f"the chat template in {path} is not that of {base.name}: "
            "served with the base's template, the adapter fits and answers badly"
        )
        findings.warning("compat.template_differs", path, message, expected, fingerprint)
