"""Against the base: how large a version's updates are beside the weights W that they change, |scale · BA| / |W|.

    known at a push     where somebody has read the base's weights: `adapter base identify`, or a worker before
    told afterwards     the share is worked out when it is asked for, so it is there as soon as the base is identified

Invariants
- The norms of W come from the base's identity, which never changes once it has them: they are read once a process.
- One statement for a push whose base is known; a base that is not, or a packing that is not unpacked, has no share.
"""

from __future__ import annotations

import json
import math
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from threading import Lock

from sqlalchemy import Connection, Engine, bindparam
from sqlmodel import Session, col, select

from registry.compat.paths import Paths
from registry.evaluation.thresholds import DEFAULTS, Thresholds
from registry.evaluation.verdicts import Finding
from registry.server.catalog import bases
from registry.server.database.models import BaseIdentityRow, BaseRow, BaseThresholdsRow
from registry.server.evaluation.weights.numbers import FactorNorms

BASES_KEPT = 16
PEFT = "peft"
_HEAD = "lm_head"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""What a head without a weight of its own is tied to, under the names that architectures give it."""
_OF_EXPERTS = {"gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")), "down_proj": (("w2",), ("down_proj",))}
"""A parameter of a block of experts, and what its parts are called where the files hold each expert by itself."""


@dataclass(frozen=True, slots=True)
class BaseNorms:
    """The norms of a base's weights by tensor, empty if nobody read them; and how its adapters are judged.

    `paths` says which modules another tool's names mean; None for PEFT's, which are the modules' own.
    """

    name: str
    norms: Mapping[str, float]
    thresholds: Thresholds = DEFAULTS
    paths: Paths | None = None

    def norm(self, path: str) -> float | None:
        """|W| of what a file's path means: a module, or several that are parts of one fused matrix, together."""
        meant = (path,) if self.paths is None else self.paths.of(path) or ()
        sizes = [self._norm(module) for module in meant]
        measured = [size for size in sizes if size is not None]
        return float(f"{math.hypot(*measured):.5g}") if measured and len(measured) == len(sizes) else None

    def _norm(self, path: str) -> float | None:
        """|W| of a module, or of a parameter of a block of experts; a tied head has the embedding's."""
        names = (path, path.replace(".mlp.", ".block_sparse_moe."))  # the model's name, and that of Mixtral's files
        sizes = (self.norms.get(f"{name}.weight") or self.norms.get(name) or self._experts(name) for name in names)
        found = next((size for size in sizes if size is not None), None)
        if found is None and path.rpartition(".")[2] == _HEAD:
            found = next((norm for name, norm in self.norms.items() if name.endswith(_EMBEDDINGS)), None)
        return found

    def _experts(self, path: str) -> float | None:
        """|W| of one parameter of all experts, where the files hold each expert by itself."""
        block, _, parameter = path.rpartition(".")
        sizes: list[float] = []
        for leaves in _OF_EXPERTS.get(parameter, ()):
            for expert in count():
                each = [self.norms.get(f"{block}.{expert}.{leaf}.weight") for leaf in leaves]
                known = [size for size in each if size is not None]
                if len(known) < len(leaves):
                    break
                sizes += known
        return math.hypot(*sizes) if sizes else None

    def share(self, path: str, update: float | None) -> float | None:
        """|scale · BA| / |W|, in three digits; None where one of them is unknown, or W is zero."""
        weight = self.norm(path)
        return float(f"{update / weight:.3g}") if weight and update is not None else None


class _Kept:
    """The norms of the bases of one database that were asked for last. Safe for many threads."""

    def __init__(self) -> None:
        self._lock, self._norms = Lock(), OrderedDict[int, Mapping[str, float]]()

    def get(self, base_id: int) -> Mapping[str, float]:
        with self._lock:
            if base_id in self._norms:
                self._norms.move_to_end(base_id)
            return self._norms.get(base_id, {})

    def put(self, base_id: int, norms: Mapping[str, float]) -> None:
        with self._lock:
            self._norms[base_id] = norms
            while len(self._norms) > BASES_KEPT:
                self._norms.popitem(last=False)


_KEPT: weakref.WeakKeyDictionary[Engine | Connection, _Kept] = weakref.WeakKeyDictionary()


_KNOWN = (
    select(BaseIdentityRow.base_id, BaseThresholdsRow.thresholds)
    .outerjoin(BaseThresholdsRow, col(BaseThresholdsRow.base_id) == col(BaseIdentityRow.base_id))
    .where(col(BaseIdentityRow.base_id) == bindparam("id"))
)
"""Put together once: every push asks this."""


def load_base_norms(session: Session, base: BaseRow, format_name: str = PEFT) -> BaseNorms:
    """What is known of the base's weights, for an adapter whose names are in this format."""
    row = session.exec(_KNOWN, params={"id": base.id}).first()
    if row is None:
        return BaseNorms(base.name, {})
    base_id, own = row
    cache = _KEPT.setdefault(session.get_bind(), _Kept())
    norms = cache.get(base_id)
    if not norms:
        text = session.exec(select(BaseIdentityRow.identity).where(col(BaseIdentityRow.base_id) == base.id)).one()
        norms = {name: mark["norm"] for name, mark in json.loads(text)["marks"].items() if mark.get("norm") is not None}
        if norms:  # an identity of an earlier release may still get them
            cache.put(base_id, norms)
    paths = Paths(format_name, bases.load_spec(base).modules) if norms and format_name != PEFT else None
    return BaseNorms(base.name, norms, Thresholds.with_overrides(own or {}), paths)


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
