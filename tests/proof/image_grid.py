"""Generated image adapters: family × writer × parts × targets × DoRA × alphas × fault, each made again by its id.

    sdxl/kohya/dt/attn/-/half/ok      family / writer / parts / targets / DoRA of parts / alphas / fault

    parts      d the denoiser, t the text encoders, dt both
    targets    what is updated in the denoiser and text encoders: attn, qv, ff, conv, proj, emb, norm, one, all
    alphas     see `_alpha`; for diffusers' names `told` is the configuration in the metadata
    fault      see `FAULTS`: `ok` and the honest ones mean what they say, the others are broken on purpose

The bases are the tiny models of `tests.proof.diffusers_grid`.

Invariants
- Equal ids make equal bytes.
- `meant` holds what an ideal reader does with the file, also with a module that no base has; it is empty where a
  tensor without which nothing can be computed is missing or has a wrong size.
"""

from __future__ import annotations

import json
import math
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from tests import samples
from tests.proof.image_writers import ATTENTION, UNETS, Names, Shape, is_text, writers
from tests.worker.image_cases import Case, Update

RANK = 4


@dataclass(frozen=True, slots=True)
class Spec:
    """The seven words of an id."""

    family: str
    writer: str
    parts: str
    targets: str
    dora: str
    alphas: str
    fault: str

    def __str__(self) -> str:
        return "/".join((self.family, self.writer, self.parts, self.targets, self.dora, self.alphas, self.fault))

    @property
    def denoiser(self) -> str:
        return "unet" if self.family in UNETS else "transformer"


# ------------------------------------------------------------------ which modules
_TARGETS: dict[str, re.Pattern[str]] = {
    "attn": ATTENTION, "ff": re.compile(r"\.(?:ff|ffn|mlp|ff_context|img_mlp|txt_mlp)[._]|proj_mlp"),
    "conv": re.compile(r"\.conv\d?\Z|conv_shortcut|conv_in\Z|conv_out\Z"),
    "proj": re.compile(r"proj_in\Z|proj_out\Z|projection\Z"), "emb": re.compile(r"embed|time_proj|time_emb_proj"),
    "norm": re.compile(r"norm\w*\.linear|_mod\.1"), "all": re.compile(r""),
}  # fmt: skip
_NEVER = re.compile(
    r"(?:token|position|pos)_embed\w*\Z|pos_embed\.|patch_embed\w*\Z|norm\d?\Z|layer_norm|\.gate\Z|conv_depth\Z"
)
"""What no LoRA is for, and a convolution in groups, which has a test of its own."""
_QV = re.compile(r"(?:to_[qv]|[qv]_proj)\Z")


def modules_of(spec: Spec, shapes: Mapping[str, Mapping[str, Shape]]) -> dict[str, Shape]:
    """Path with its component → shape of its weight, in an order that does not depend on names alone."""
    chosen: dict[str, Shape] = {}
    for component, paths in shapes.items():
        if ("t" if component.startswith("text_encoder") else "d") not in spec.parts:
            continue
        paths = {path: tuple(shape) for path, shape in paths.items() if not _NEVER.search(path)}
        if spec.targets in ("qv", "one"):
            paths = {path: shape for path, shape in paths.items() if _QV.search(path)}
            paths = dict(list(paths.items())[1:2]) if spec.targets == "one" else paths
        else:
            paths = {path: shape for path, shape in paths.items() if _TARGETS[spec.targets].search(path)}
        chosen |= {f"{component}.{path}": shape for path, shape in paths.items()}
    return chosen


# ------------------------------------------------------------------ alphas
def _alpha(kind: str, number: int, count: int, rank: int) -> float | None:
    """The alpha of one pair; None: the file has none for it."""
    return {
        "none": None, "told": None, "both": rank / 2, "both-rank": rank / 2, "rank": float(rank), "half": rank / 2,
        "four": 4.0,
        "some": None if number % 3 == 1 else rank / 2, "some-rank": None if number % 3 == 1 else float(rank),
        "but-one": None if number == count - 1 else rank / 2,
        "other": 16.0 if number == count - 1 else rank / 2, "thirds": (1.0, 8.0, 2.0)[number % 3],
        "zero-one": 0.0 if number == 1 else rank / 2, "negative-one": -2.0 if number == 1 else rank / 2,
    }[kind]  # fmt: skip


def _rank(kind: str, number: int) -> int:
    """Ranks differ where alphas could hide it: with none, and where all equal the rank."""
    return 2 + 2 * (number % 3) if kind in ("rank", "four") and number % 2 else RANK


# ------------------------------------------------------------------ the file
@dataclass(slots=True)
class Draft:
    """A case before its fault: what each pair is called, by number."""

    case: Case
    names: list[Names] = field(default_factory=list)

    def drop(self, *tensors: str) -> None:
        for name in tensors:
            self.case.tensors.pop(name, None)

    def of(self, number: int) -> list[int]:
        """The updates of one pair."""
        return [n for n, update in enumerate(self.case.meant) if update.a == self.names[number].a]


@lru_cache(maxsize=1)
def _pool() -> bytes:
    return samples.values("F32", (16384,), scale=0.5)


def _put(case: Case, name: str, shape: Shape, content: bytes | None = None) -> None:
    """With values out of one pool, so that a case costs no more than its bytes."""
    size, start = 4 * math.prod(shape), 4 * (97 * len(case.tensors) % 4096)
    case.tensors[name] = ("F32", shape, content or (_pool() * (1 + (start + size) // 65536))[start : start + size])


def draft(spec: Spec, names: list[Names], shapes: Mapping[str, Shape]) -> Draft:
    """All pairs, alphas and magnitudes of an honest file."""
    case = Case(spec.family)
    for number, pair in enumerate(names):
        rank = _rank(spec.alphas, number)
        rows = [shapes[module][0] for module in pair.modules]
        kernel = shapes[pair.modules[0]][2:]
        _put(case, pair.a, (rank, shapes[pair.modules[0]][1], *kernel))
        _put(case, pair.b, (sum(rows), rank, *(1 for _ in kernel)))
        alpha = _alpha(spec.alphas, number, len(names), rank)
        if alpha is not None:
            _put(case, pair.alpha, (), struct.pack("<f", alpha))
        magnitude = pair.magnitude if ("t" if is_text(pair.modules[0]) else "d") in spec.dora else ""
        if magnitude:
            is_scale = magnitude.endswith("dora_scale")
            shape: Shape = (
                (sum(rows), 1) if is_scale else (1, sum(rows), *(1 for _ in kernel)) if kernel else (sum(rows),)
            )
            _put(case, magnitude, shape, struct.pack(f"<{sum(rows)}f", *(0.5 + n / 100 for n in range(sum(rows)))))
        at, scale = 0, 1.0 if alpha is None else alpha / rank
        for module, size in zip(pair.modules, rows, strict=True):
            piece = (at, at + size) if len(rows) > 1 else None
            case.meant.append(Update(module, pair.a, pair.b, scale, piece, magnitude))
            at += size
    if spec.alphas in _IN_METADATA:
        _tell(case, _IN_METADATA[spec.alphas], is_scale=spec.alphas == "told")
    return Draft(case, names)


_IN_METADATA = {"told": 2, "both": 2, "both-rank": 1}
"""Of alphas whose file has a configuration in the metadata: its alpha over the rank."""


def _tell(case: Case, scale: float, *, is_scale: bool) -> None:
    """With the configuration that today's diffusers writes into the metadata. `is_scale`: the file has no alphas."""
    claims: dict[str, Any] = {}
    for number, update in enumerate(case.meant):
        component, _, path = update.module.partition(".")
        claims |= {f"{component}.r": RANK, f"{component}.lora_alpha": scale * RANK}
        claims.setdefault(f"{component}.target_modules", []).append(path)
        claims[f"{component}.use_dora"] = bool(update.magnitude)
        if is_scale:
            case.meant[number] = replace(update, scale=float(scale))
    case.metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(claims)}


# ------------------------------------------------------------------ faults
def _break(case: Case) -> None:
    case.meant = []


def _lost(ending: str) -> Callable[[Draft, int], None]:
    def lose(adapter: Draft, number: int) -> None:
        adapter.drop(getattr(adapter.names[number], ending))
        _break(adapter.case)

    return lose


def _lost_pair(adapter: Draft, number: int) -> None:
    pair = adapter.names[number]
    adapter.drop(pair.a, pair.b, pair.alpha, pair.magnitude)
    adapter.case.meant = [update for update in adapter.case.meant if update.a != pair.a]


def _orphan(ending: str) -> Callable[[Draft, int], None]:
    def lose(adapter: Draft, number: int) -> None:
        pair = adapter.names[number]
        orphan = getattr(pair, ending)
        is_broken = orphan in adapter.case.tensors
        adapter.drop(*({pair.a, pair.b, pair.alpha, pair.magnitude} - {orphan}))
        adapter.case.meant = [] if is_broken else [update for update in adapter.case.meant if update.a != pair.a]

    return lose


def _resized(ending: str, change: Callable[[Shape], Shape]) -> Callable[[Draft, int], None]:
    def resize(adapter: Draft, number: int) -> None:
        name = getattr(adapter.names[number], ending)
        if name in adapter.case.tensors:
            shape = change(adapter.case.tensors[name][1])
            _put(adapter.case, name, shape)
            _break(adapter.case)

    return resize


def _renamed(adapter: Draft, number: int) -> None:
    """To a module that no base has."""
    pair = adapter.names[number]
    at = re.sub(r"(?<=[._])\d(?=[._])", "9", pair.a, count=1)
    if at != pair.a:
        for name in (pair.a, pair.b, pair.alpha, pair.magnitude):
            if name in adapter.case.tensors:
                adapter.case.tensors[re.sub(r"(?<=[._])\d(?=[._])", "9", name, count=1)] = adapter.case.tensors.pop(
                    name
                )
        _break(adapter.case)


def _extra(adapter: Draft, number: int) -> None:
    """A pair for a module that no base has, beside all others."""
    pair = adapter.names[number]
    stem = re.sub(r"(?<=[._])\d(?=[._])", "9", pair.a, count=1)
    if stem != pair.a:
        for name in (pair.a, pair.b):
            adapter.case.tensors[re.sub(r"(?<=[._])\d(?=[._])", "9", name, count=1)] = adapter.case.tensors[name]
        _break(adapter.case)


def _bias(every: bool) -> Callable[[Draft, int], None]:
    def add(adapter: Draft, number: int) -> None:
        for n, pair in enumerate(adapter.names):
            if (every or n == number) and pair.b.endswith(".lora_B.weight"):
                _put(adapter.case, pair.bias, (adapter.case.tensors[pair.b][1][0],))

    return add


FAULTS: dict[str, Callable[[Draft, int], None]] = {
    "lost-pair": _lost_pair,
    "lost-a": _lost("a"), "lost-b": _lost("b"),
    "orphan-alpha": _orphan("alpha"), "orphan-magnitude": _orphan("magnitude"),
    "rank": _resized("b", lambda shape: (shape[0], shape[1] + 1, *shape[2:])),
    "narrow": _resized("a", lambda shape: (shape[0], shape[1] - 1, *shape[2:])),
    "wide": _resized("b", lambda shape: (shape[0] + 1, *shape[1:])),
    "magnitude-size": _resized("magnitude", lambda shape: tuple(max(1, size - 1) for size in shape)),
    "magnitude-one": _resized("magnitude", lambda shape: tuple(1 for _ in shape)),
    "renamed": _renamed, "extra": _extra, "bias": _bias(True), "bias-one": _bias(False),
}  # fmt: skip
"""Name → what it does to a finished draft, at the pair of this number. Those by names are in `build`."""


_NAMES = ["to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"]
_HARMLESS: tuple[tuple[str, Any], ...] = (
    ("lora_bias", False), ("target_modules", [*_NAMES, "fc1", "proj_out", "net.2", "linear"]),
    ("target_modules", _NAMES[::4]), ("target_modules", ".*"), ("target_modules", r".*(to_q|q_proj)"),
    ("target_modules", "all-linear"), ("target_modules", []), ("exclude_modules", _NAMES[::4]),
    ("layers_to_transform", [0]), ("init_lora_weights", False), ("init_lora_weights", "pissa"),
    ("init_lora_weights", "eva"), ("bias", "all"), ("modules_to_save", ["fc1", "proj_out"]), ("modules_to_save", []),
    ("fan_in_fan_out", "x"), ("layer_replication", [[0, 1]]), ("peft_type", "LOHA"), ("lora_alpha", None),
    ("use_bdlora", {"a": 1}), ("trainable_token_indices", [1]), ("runtime_config", {"a": 1}), ("lora_dropout", -1),
    ("init_lora_weights", "orthogonal"),
)  # fmt: skip
"""What the metadata may say of the tensors without another meaning of them."""


def _restated(field: str, value: Any) -> Callable[[Draft, int], None]:
    """Another value in the metadata, of every model; None: the field is not there."""

    def restate(adapter: Draft, _: int) -> None:
        metadata = adapter.case.metadata or {}
        claims = json.loads(metadata["lora_adapter_metadata"])
        for component in {key.partition(".")[0] for key in claims}:
            claims.pop(f"{component}.{field}", None)
            claims |= {} if value is None else {f"{component}.{field}": value}
        adapter.case.metadata = metadata | {"lora_adapter_metadata": json.dumps(claims)}
        if (field, value) not in _HARMLESS:
            _break(adapter.case)

    return restate


FAULTS_OF_METADATA: dict[str, Callable[[Draft, int], None]] = {
    "says-r": _restated("r", 16), "says-no-r": _restated("r", None), "says-r-0": _restated("r", 0),
    "says-ranks": _restated("rank_pattern", {"to_q": 2, "q_proj": 2, "q": 2}),
    "says-alpha-text": _restated("lora_alpha", "8"), "says-no-targets": _restated("target_modules", None),
    "says-parameters": _restated("target_parameters", ["weight"]), "says-unknown": _restated("from_the_future", 7),
    "says-dora": _restated("use_dora", True), "says-bias": _restated("lora_bias", True),
    "says-no-bias": _restated("lora_bias", False), "says-more": _restated(*_HARMLESS[1]),
    "says-fewer": _restated(*_HARMLESS[2]), "says-pattern": _restated(*_HARMLESS[3]),
    "says-narrow-pattern": _restated(*_HARMLESS[4]), "says-all-linear": _restated(*_HARMLESS[5]),
    "says-empty": _restated(*_HARMLESS[6]), "says-excludes": _restated(*_HARMLESS[7]),
    "says-layer": _restated(*_HARMLESS[8]),
    **{f"says-{field}-{value}": _restated(field, value) for field, value in _HARMLESS[9:]},
}  # fmt: skip
"""Of files whose metadata hold a configuration: what it says instead."""
MIXED = ("half-dotted", "half-down-up", "half-diffusers", "half-kohya", "first-dotted", "first-diffusers")
"""Some pairs under the names of another writer: every second one, or only the first."""
BY_PART = ("lost-magnitude",)


def build(identity: str, bases: Mapping[str, Any]) -> Case:
    """The case of this id. `bases`: family → component → path → shape of its weight."""
    spec = Spec(*identity.split("/"))
    tables = bases[spec.family]
    shapes = modules_of(spec, tables)
    makers = writers(spec.family)
    names = sorted(makers[spec.writer](shapes), key=lambda pair: pair.a)
    if spec.fault in MIXED:
        how, _, other = spec.fault.partition("-")
        others = {pair.modules: pair for pair in makers[other](shapes)}
        chosen = range(0, len(names), 2) if how == "half" else range(1)
        names = [others.get(pair.modules, pair) if n in chosen else pair for n, pair in enumerate(names)]
    adapter = draft(spec, names, shapes)
    number = random.Random(identity).randrange(len(names)) if names else 0
    if names and spec.fault == "lost-magnitude":
        pair = adapter.names[number]
        adapter.drop(pair.magnitude)
        for n in adapter.of(number):
            update = adapter.case.meant[n]
            adapter.case.meant[n] = Update(update.module, update.a, update.b, update.scale, update.rows)
    elif names and spec.fault in FAULTS:
        FAULTS[spec.fault](adapter, number)
    elif names and spec.fault in FAULTS_OF_METADATA:
        FAULTS_OF_METADATA[spec.fault](adapter, number)
    return adapter.case


# ------------------------------------------------------------------ which cases
_HONEST_ALPHAS = (
    "none",
    "told",
    "both",
    "both-rank",
    "rank",
    "half",
    "four",
    "some",
    "some-rank",
    "but-one",
    "other",
    "thirds",
    "zero-one",
    "negative-one",
)
_FAULTS_ASKED = (*FAULTS, *MIXED, *BY_PART)


def ids(bases: Mapping[str, Any]) -> list[str]:
    """All cases: each dimension whole against a plain rest, and every fault with and without DoRA."""
    unique: dict[str, None] = {}
    for family in bases:
        has_text = any(map(is_text, bases[family]))
        parts = ("d", "t", "dt") if has_text else ("d",)
        for writer in writers(family):
            plain = "half" if writer in _WITH_ALPHAS else "none"
            rows = [Spec(family, writer, parts[-1], target, "-", plain, "ok") for target in ("attn", "one", "all")]
            if writer in _WHOLE.get(family, ()):
                rows += _whole(family, writer, parts, plain)
            unique |= dict.fromkeys(map(str, rows))
    return [identity for identity in unique if _is_case(identity, bases)]


_WITH_ALPHAS = (
    "kohya",
    "kohya-unlike",
    "lycoris",
    "sgm",
    "onetrainer",
    "down-up",
    "bare-down-up",
    "comfy-down-up",
    "linear1",
)
_WHOLE = {
    "sd": ("diffusers", "saved", "old", "late", "kohya"), "sdxl": ("diffusers", "saved", "late", "kohya", "sgm"),
    "flux": ("diffusers", "kohya", "onetrainer", "xlabs", "comfy-down-up"), "wan": ("diffusers", "comfy", "kohya"),
    "qwen": ("diffusers", "kohya", "comfy"), "sd3": ("diffusers",), "auraflow": ("diffusers",),
    "hidream": ("diffusers", "comfy"), "ltx": ("diffusers", "comfy"),
    **dict.fromkeys(("hunyuan-video", "lumina2", "z-image", "cogvideox", "cogview4", "sana", "mochi"), ("diffusers",)),
}  # fmt: skip
"""Family → the writers that are asked about everything; of all others three honest files."""


def _whole(family: str, writer: str, parts: tuple[str, ...], plain: str) -> list[Spec]:
    both = parts[-1]
    targets = ("attn", "qv", "ff", "conv", "proj", "emb", "norm", "one", "all")
    rows = [Spec(family, writer, part, target, "-", plain, "ok") for part in parts for target in targets]
    rows += [Spec(family, writer, part, "all", "-", alphas, "ok") for part in parts for alphas in _HONEST_ALPHAS]
    rows += [Spec(family, writer, both, "attn", "-", alphas, "ok") for alphas in _HONEST_ALPHAS]
    rows += [Spec(family, writer, both, target, dora, alphas, "ok")
             for dora in parts for target in ("attn", "all") for alphas in (plain, "told")]  # fmt: skip
    rows += [Spec(family, writer, both, "all", dora, plain, fault)
             for fault in _FAULTS_ASKED for dora in ("d" if "magnitude" in fault else "-",)]  # fmt: skip
    return rows + [Spec(family, writer, both, "attn", "-", "told", fault) for fault in FAULTS_OF_METADATA]


def _is_case(identity: str, tables: Mapping[str, Any]) -> bool:
    """Whether the id makes a file."""
    spec = Spec(*identity.split("/"))
    if spec.fault in MIXED and (
        spec.writer in ("xlabs", "old") or spec.fault.partition("-")[2] not in writers(spec.family)
    ):
        return False
    if spec.writer == "old" and spec.alphas not in ("none", "told"):
        return False
    shapes = modules_of(spec, tables[spec.family])
    return any(True for _ in writers(spec.family)[spec.writer](shapes))


def sample(identities: Iterable[str], share: int) -> list[str]:
    """One case in `share`, the same ones each time."""
    return [identity for identity in identities if zlib.crc32(identity.encode()) % share == 0]
