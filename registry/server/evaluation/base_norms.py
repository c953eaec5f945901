"""Norms of a base's weights W, and how large a version's updates are beside them: |scale · BA| / |W|.

The norms come from the base's identity, once someone has read its weights (`adapter base identify`, or a worker). They
never change, so a process reads them once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import count

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from registry.compat.paths import Paths
from registry.evaluation.thresholds import DEFAULTS, Thresholds
from registry.findings import Finding
from registry.server.catalog import base_rows
from registry.server.database.models import BaseIdentityRow, BaseRow, BaseThresholdsRow
from registry.server.evaluation.norms import FactorNorms

CACHED_BASES = 16
PEFT = "peft"
_HEAD = "lm_head"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""The embeddings, under the names that architectures give them: a head without a weight of its own is tied to them."""
_OF_EXPERTS = {"gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")), "down_proj": (("w2",), ("down_proj",))}
"""A parameter of a block of experts, and the names of its parts in files that hold each expert by itself."""
_CACHE: dict[tuple[str, str, datetime], Mapping[str, float]] = {}


@dataclass(frozen=True, slots=True)
class BaseNorms:
    """The norms of a base's weights by tensor, empty if no one has read them, and the thresholds for its adapters.

    `paths` translates another tool's names to modules; None for PEFT, which uses the modules' own names.
    """

    name: str
    norms: Mapping[str, float]
    thresholds: Thresholds = DEFAULTS
    paths: Paths | None = None

    def norm(self, path: str) -> float | None:
        """|W| of the module under a file's path, or of all modules that are parts of one fused matrix."""
        modules = (path,) if self.paths is None else self.paths.of(path) or ()
        sizes = [self._norm(module) for module in modules]
        measured = [size for size in sizes if size is not None]
        return float(f"{math.hypot(*measured):.5g}") if measured and len(measured) == len(sizes) else None

    def _norm(self, path: str) -> float | None:
        """|W| of a module, or of a parameter of a block of experts; a tied head has the embedding's."""
        names = (path, path.replace(".mlp.", ".block_sparse_moe."))  # the model's name, and that of Mixtral's files
        sizes = (self.norms.get(f"{name}.weight") or self.norms.get(name) or self._experts(name) for name in names)
        norm = next((size for size in sizes if size is not None), None)
        if norm is None and path.rpartition(".")[2] == _HEAD:
            norm = next((size for name, size in self.norms.items() if name.endswith(_EMBEDDINGS)), None)
        return norm

    def _experts(self, path: str) -> float | None:
        """|W| of one parameter of all experts, if the files hold each expert by itself."""
        block, _, parameter = path.rpartition(".")
        sizes: list[float] = []
        for leaves in _OF_EXPERTS.get(parameter, ()):
            for expert in count():
                each = [self.norms.get(f"{block}.{expert}.{leaf}.weight") for leaf in leaves]
                measured = [size for size in each if size is not None]
                if len(measured) < len(leaves):
                    break
                sizes += measured
        return math.hypot(*sizes) if sizes else None

    def share(self, path: str, update: float | None) -> float | None:
        """|scale · BA| / |W|, in three digits; None if one of them is unknown or W is zero."""
        weight = self.norm(path)
        return float(f"{update / weight:.3g}") if weight and update is not None else None


_SELECT_THRESHOLDS = (
    select(BaseThresholdsRow.thresholds)
    .select_from(BaseIdentityRow)
    .outerjoin(BaseThresholdsRow, col(BaseThresholdsRow.base_id) == col(BaseIdentityRow.base_id))
    .where(col(BaseIdentityRow.base_id) == bindparam("id"))
)
"""A row exists if the base has an identity. Built once: every push executes it."""


def load_base_norms(session: Session, base: BaseRow, format_name: str = PEFT) -> BaseNorms:
    """The norms of the base for an adapter whose names are in this format."""
    rows = session.exec(_SELECT_THRESHOLDS, params={"id": base.id}).all()
    if not rows:
        return BaseNorms(base.name, {})
    key = (base.name, base.fingerprint, base.created_at)
    norms = _CACHE.get(key)
    if norms is None:
        text = session.exec(select(BaseIdentityRow.identity).where(col(BaseIdentityRow.base_id) == base.id)).one()
        norms = {name: mark["norm"] for name, mark in json.loads(text)["marks"].items() if mark.get("norm") is not None}
        if norms:  # an identity of an earlier release may still get them
            if len(_CACHE) >= CACHED_BASES:
                _CACHE.clear()
            _CACHE[key] = norms
    paths = Paths(format_name, base_rows.load_spec(base).modules) if norms and format_name != PEFT else None
    return BaseNorms(base.name, norms, Thresholds.with_overrides(rows[0] or {}), paths)


def compare_with_base(base: BaseNorms, norms: Mapping[str, FactorNorms]) -> tuple[Finding, ...]:
    """`weights.beyond_base` where an update is larger than the base's threshold allows."""
    limit = base.thresholds.update_share_warn
    shares = {path: base.share(path, size.update) for path, size in norms.items()}
    beyond = {path: share for path, share in shares.items() if share is not None and share > limit}
    if not beyond:
        return ()
    worst = max(beyond, key=beyond.__getitem__)
    compared = sum(share is not None for share in shares.values())
    message = (
        f"the update of {worst[:300]} is {beyond[worst]:.3g} times as large as the weight of {base.name[:200]} that it "
        f"changes ({len(beyond)} of {compared} modules are over {limit:g}); trained updates are mostly below 0.3"
    )
    return (Finding.of("warning", "weights.beyond_base", worst, message, f"at most {limit:g}", f"{beyond[worst]:.3g}"),)
