"""The `facts` of a VersionView: what people and serving engines ask about a version, as JSON, from its files alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from registry.adapters import card, formats, trainer
from registry.adapters.formats import summary
from registry.adapters.read import Contents, Found, NonPeftContents, Read
from registry.engines import facts as engine_facts
from registry.engines.facts import EngineFacts
from registry.files import CARD, TRAINER_STATE
from registry.manifest import Descriptor


def of(contents: Found) -> dict[str, Any]:
    return _of_peft(contents) if isinstance(contents, Contents) else _of_file(contents)


def of_engine(contents: Found) -> EngineFacts:
    if isinstance(contents, Contents):
        return engine_facts.of_lora(contents.lora)
    return engine_facts.of_file(contents.file, is_image=contents.file.format in formats.IMAGE_FORMATS)


def claims(files: Iterable[Descriptor], read: Read) -> dict[str, Any]:
    """What README (`card`) and trainer's log (`trainer`) claim of the version's origin, as more of its facts."""
    by_path = {f.path: f for f in files}
    facts: dict[str, Any] = {}
    if file := by_path.get(CARD):
        facts["card"] = card.read(read(CARD, 0, min(file.size_bytes, card.READ_LIMIT_BYTES))).facts
    if file := by_path.get(TRAINER_STATE):
        facts["trainer"] = trainer.read(read(TRAINER_STATE, 0, min(file.size_bytes, trainer.READ_LIMIT_BYTES))).facts
    return {key: value for key, value in facts.items() if value}


def _of_peft(contents: Contents) -> dict[str, Any]:
    spec, written = contents.lora, contents.config
    paths = [m.path for m in spec.modules] + [p.path for p in spec.pieces]
    return {
        "format": "peft",
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
        "updates": summary.of_updates((m.key, m.rank, m.alpha, m.scale) for m in spec.modules),
        "engine": engine_facts.to_stored(of_engine(contents)),
    }


def _of_file(contents: NonPeftContents) -> dict[str, Any]:
    """The same, and what only such a file has. Private metadata is named, never repeated."""
    file = contents.file
    scales = {round(m.scale, 6) for m in file.modules if m.scale is not None}
    alphas = {m.alpha for m in file.modules if m.alpha is not None}
    return {
        "format": file.format,
        "method": file.method.upper(),
        "file": file.file,
        "family": file.family,
        "components": list(file.components),
        "rank": file.max_rank or None,
        "ranks": sorted({m.rank for m in file.modules if m.rank}),
        "alpha": alphas.pop() if len(alphas) == 1 else None,
        "alpha_rule": file.alpha_rule,
        "scales": sorted(scales),
        "targets": summary.targets(m.path for m in file.modules),
        "modules": len(file.modules),
        "use_dora": file.has_dora,
        "dtypes": list(file.dtypes),
        "parameters": file.parameters,
        "weights_bytes": file.size_bytes,
        "base_claimed": file.base_claimed,
        "trigger_words": file.trigger_words,
        "training": dict(file.claims),
        "private_left_out": list(file.private_texts),
        "updates": summary.of_updates((m.path, m.rank, m.alpha, m.scale) for m in file.modules),
        "engine": engine_facts.to_stored(of_engine(contents)),
    }
