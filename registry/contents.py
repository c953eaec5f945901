"""`Contents`: what the files of a version say about themselves, read by ranges. Client and server read the same way.

Invariants
- At most the configuration (256 KiB) and the headers (16 MiB each) are read, never a tensor.
- Malformed is `Invalid` or `TooLarge` with every broken rule of the first file that breaks one.
- What is merely odd or does not add up is a finding of `lora.findings` or of `findings`.

Example
    >>> read_contents(manifest.files, read).lora.rank
    8
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from registry import lora, tensors
from registry.engines import facts as engine_facts
from registry.errors import Invalid, Reason
from registry.lora import LoraSpec, config
from registry.lora.config import AdapterConfig
from registry.manifest import CONFIG, WEIGHTS, Descriptor
from registry.tensors import Header
from registry.verdicts import Finding

Read = Callable[[str, int, int], bytes]
"""(path, offset, length) → those bytes of that file, fewer only at its end."""


@dataclass(frozen=True, slots=True)
class Contents:
    config: AdapterConfig
    header: Header
    lora: LoraSpec
    findings: tuple[Finding, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What people and serving engines ask about a version, as JSON: the `facts` of a VersionView."""
        spec, written = self.lora, self.config
        paths = [m.path for m in spec.modules] + [p.path for p in spec.pieces]
        return {
            "method": spec.method,
            "rank": spec.rank or None,
            "ranks": sorted({m.rank for m in spec.modules}),
            "alpha": written.alpha,
            "scales": sorted({round(m.scale, 6) for m in spec.modules}),
            "targets": sorted({path.rsplit(".", 1)[-1] for path in paths if path}),
            "modules": len(spec.modules),
            "saved_modules": list(written.saved_modules),
            "trained_tokens": sum(piece.shape[0] for piece in spec.tokens if piece.shape),
            "use_dora": written.use_dora,
            "use_rslora": written.use_rslora,
            "bias": written.bias,
            "task": written.task,
            "dtypes": list(spec.dtypes),
            "parameters": spec.parameters,
            "weights_bytes": spec.size_bytes,
            "base_claimed": spec.base_name,
            "peft_version": written.peft_version,
            "engine": engine_facts.to_stored(engine_facts.of_lora(spec)),
        }


def read_contents(files: Iterable[Descriptor], read: Read) -> Contents:
    """The configuration, the header and the LoraSpec of these files.

    `Invalid` (MANIFEST_INVALID) when the weights or the configuration are not among them.
    """
    by_path = {f.path: f for f in files}
    _refuse_missing(by_path)
    written = by_path[CONFIG]
    limit = config.SIZE_LIMIT_BYTES + 1
    found = config.read_config(read(CONFIG, 0, min(written.size_bytes, limit)), file=CONFIG)
    headers = {path: _header(f, read) for path, f in by_path.items() if path.endswith(".safetensors")}
    extra = tuple(_extra(path) for path in headers if path != WEIGHTS)
    return Contents(found, headers[WEIGHTS], lora.describe(found, headers[WEIGHTS]), extra)


def _header(file: Descriptor, read: Read) -> Header:
    return tensors.read_header(lambda offset, length: read(file.path, offset, length), file.size_bytes, file=file.path)


def _refuse_missing(by_path: dict[str, Descriptor]) -> None:
    needed = ((WEIGHTS, "adapter.weights_missing"), (CONFIG, "adapter.config_missing"))
    sentence = "is missing, and an adapter needs it"
    reasons = [Reason(code, path, sentence) for path, code in needed if path not in by_path]
    if reasons:
        raise Invalid(
            "MANIFEST_INVALID",
            f"{reasons[0].place} {sentence}",
            reasons=reasons,
            next_step="push the folder that save_pretrained() wrote",
        )


def _extra(path: str) -> Finding:
    return Finding(
        code="adapter.extra_weights",
        severity="warning",
        place=path,
        sentence=f"{path} is kept, but nothing reads it: an adapter's weights are {WEIGHTS}",
    )
