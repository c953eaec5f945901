"""The `facts` of a VersionView: what people and serving engines ask about a version, as JSON, from its files alone."""

import re
from collections.abc import Iterable
from typing import Any

from registry.adapters import card, trainer
from registry.adapters.read import AdapterContents, NonPeftContents, PeftContents
from registry.engines import facts as engine_facts
from registry.engines.facts import EngineFacts
from registry.versions.files import CARD, TRAINER_STATE, Read
from registry.versions.manifest import Descriptor

LINES_LIMIT = 200
TARGETS_LIMIT = 100

_NUMBER = re.compile(r"(?<=[._])\d{1,6}(?=[._])")


def facts_of(contents: AdapterContents) -> dict[str, Any]:
    """The facts that a VersionView shows."""
    return _of_peft(contents) if isinstance(contents, PeftContents) else _of_file(contents)


def engine_facts_of(contents: AdapterContents) -> EngineFacts:
    """The facts that engine rules read."""
    if isinstance(contents, PeftContents):
        return engine_facts.of_lora(contents.lora)
    return engine_facts.of_file(contents.file)


def claims(files: Iterable[Descriptor], read: Read) -> dict[str, Any]:
    """What README (`card`) and trainer's log (`trainer`) claim of the version's origin, as more of its facts."""
    by_path = {f.path: f for f in files}
    facts: dict[str, Any] = {}
    if file := by_path.get(CARD):
        facts["card"] = card.read(read(CARD, 0, min(file.size_bytes, card.READ_LIMIT_BYTES))).facts
    if file := by_path.get(TRAINER_STATE):
        facts["trainer"] = trainer.read(read(TRAINER_STATE, 0, min(file.size_bytes, trainer.READ_LIMIT_BYTES))).facts
    return {key: value for key, value in facts.items() if value}


def _of_peft(contents: PeftContents) -> dict[str, Any]:
    spec, config = contents.lora, contents.config
    paths = [m.path for m in spec.modules] + [p.path for p in spec.pieces]
    return {
        "format": contents.format.name,
        "method": spec.method,
        "rank": spec.rank or None,
        "ranks": sorted({m.rank for m in spec.modules}),
        "alpha": config.alpha,
        "scales": sorted({round(m.scale, 6) for m in spec.modules}),
        "targets": sorted({path.rsplit(".", 1)[-1] for path in paths if path}),
        "modules": len(spec.modules),
        "saved_modules": list(config.saved_modules),
        "trained_tokens": sum(piece.shape[0] for piece in spec.tokens if piece.shape),
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
        "bias": config.bias,
        "task": config.task,
        "dtypes": list(spec.dtypes),
        "parameters": spec.parameters,
        "weights_bytes": spec.size_bytes,
        "base_claimed": spec.base_name,
        "peft_version": config.peft_version,
        "updates": summarize_updates((m.key, m.rank, m.alpha, m.scale) for m in spec.modules),
        "engine": engine_facts.to_stored(engine_facts_of(contents)),
    }


def _of_file(contents: NonPeftContents) -> dict[str, Any]:
    """The same, and what only such a file has. Private metadata is named, never repeated."""
    file = contents.file
    scales = {round(m.scale, 6) for m in file.modules if m.scale is not None}
    alphas = {m.alpha for m in file.modules if m.alpha is not None}
    return {
        "format": file.format.name,
        "method": file.method.upper(),
        "file": file.file,
        "family": file.family,
        "components": list(file.components),
        "rank": file.max_rank or None,
        "ranks": sorted({m.rank for m in file.modules if m.rank}),
        "alpha": alphas.pop() if len(alphas) == 1 else None,
        "alpha_rule": file.alpha_rule,
        "scales": sorted(scales),
        "targets": target_kinds(m.path for m in file.modules),
        "modules": len(file.modules),
        "use_dora": file.has_dora,
        "dtypes": list(file.dtypes),
        "parameters": file.parameters,
        "weights_bytes": file.size_bytes,
        "base_claimed": file.base_claimed,
        "trigger_words": file.trigger_words,
        "training": dict(file.claims),
        "private_left_out": list(file.private_texts),
        "updates": summarize_updates((m.path, m.rank, m.alpha, m.scale) for m in file.modules),
        "engine": engine_facts.to_stored(engine_facts_of(contents)),
    }


def summarize_updates(updates: Iterable[tuple[str, int, float | None, float | None]]) -> list[dict[str, Any]]:
    """One line for each (path without its first number, rank, alpha, scale), in the order of first appearance.

    >>> summarize_updates([("layers.0.q", 8, 16.0, 2.0), ("layers.1.q", 8, 16.0, 2.0)])
    [{'path': 'layers.*.q', 'layers': '0-1', 'modules': 2, 'rank': 8, 'alpha': 16.0, 'scale': 2.0}]
    """
    lines: dict[tuple[Any, ...], list[int | None]] = {}
    for path, rank, alpha, scale in updates:
        layer = _NUMBER.search(path)
        starred = f"{path[: layer.start()]}*{path[layer.end() :]}" if layer else path
        number = int(layer[0]) if layer else None
        rounded = round(scale, 6) if scale is not None else None
        lines.setdefault((starred[:300], rank, alpha, rounded), []).append(number)
    rows = [
        {"path": path, "layers": _ranges([n for n in numbers if n is not None]), "modules": len(numbers),
         "rank": rank, "alpha": alpha, "scale": scale}
        for (path, rank, alpha, scale), numbers in lines.items()
    ]  # fmt: skip
    if len(rows) > LINES_LIMIT:
        rest = rows[LINES_LIMIT:]
        more = {"path": "", "layers": "", "modules": sum(line["modules"] for line in rest)}
        rows = [*rows[:LINES_LIMIT], {**more, "rank": None, "alpha": None, "scale": None}]
    return rows


def target_kinds(paths: Iterable[str]) -> list[str]:
    """The kinds of modules among these paths: the last part of each, of a flat name what follows the last number."""
    return sorted({_target(path) for path in paths})[:TARGETS_LIMIT]


def _target(path: str) -> str:
    if "." in path:
        last = path.rpartition(".")
        return f"{last[0].rpartition('.')[2]}.{last[2]}" if last[2].isdigit() else last[2]
    flat = re.split(r"_\d+_", path)[-1]
    return flat[:100]


def _ranges(numbers: list[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3 and 7."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in parts)
