"""`Proof`: does an engine answer with a loaded version as its smoke test did? One prompt against the reference.

Invariants
- Of the reference prompts the one is asked in which adapter and base differ most.
- Tokens of which the engine does not tell are left out of the comparison.
- An answer like the base's, or like neither's, is `Refused`. Where the engine cannot be asked, or nobody has made a
  reference yet, the version is unverified, which is said and is no error.
- A version that is another one in another form (relation `converted`, a GGUF file) answers like the one that it came
  from: where nobody has tried it, that one's reference counts.
- Where an engine's base may be in fewer bits than the reference's, nearer to the adapter than to the base is proof.
"""

from __future__ import annotations

from pathlib import Path

from registry.client.registry import Registry
from registry.digest import Digest
from registry.durable import replace_file
from registry.errors import Invalid, NotFound, Refused, Unavailable
from registry.evaluation import reference_logprobs
from registry.evaluation.reference_logprobs import ReferenceLogprobs
from registry.manifest import Relation
from registry.names import Ref
from registry.serving.engines.openai import EngineDriver
from registry.serving.store.store import Shelf


class Proof:
    def __init__(self, engine: EngineDriver, registry: Registry, shelf: Shelf) -> None:
        self._engine, self._registry, self._shelf = engine, registry, shelf

    def of(self, served: str, ref: Ref, digest: Digest) -> bool:
        """Whether it could be compared, and is like the adapter. `Refused` (VERDICT_FAILED) when it is not."""
        reference = self._reference_logprobs(ref, digest) if self._engine.answers else None
        if reference is None:
            return False
        telling = max(reference.prompts, key=lambda p: sum(abs(a - b) for a, b in zip(p.adapter, p.base, strict=True)))
        answered = self._engine.log_probs(served, telling.tokens)
        compared_at = [at for at, value in enumerate(answered or ()) if value is not None and at < len(telling.adapter)]
        if not answered or not compared_at:
            return False
        if len(answered) == len(telling.adapter):  # else it is for `compare` to say
            telling = telling.model_copy(
                update={
                    "adapter": [telling.adapter[at] for at in compared_at],
                    "base": [telling.base[at] for at in compared_at],
                }
            )
        answer = [value for value in answered if value is not None]
        comparison = reference_logprobs.compare(reference.model_copy(update={"prompts": (telling,)}), [answer])
        if (
            comparison.answers_like == "neither"
            and self._engine.coarse
            and comparison.to_adapter_nats < comparison.to_base_nats
        ):
            return True
        if comparison.answers_like in ("base", "neither"):
            raise Refused(
                "VERDICT_FAILED", f"{served} was loaded and answers like {comparison.answers_like}: "
                f"{comparison.to_adapter_nats} nats a token from its reference",
            )  # fmt: skip
        return True

    # ---------------------------------------------------------------- inside
    def _reference_logprobs(self, ref: Ref, digest: Digest) -> ReferenceLogprobs | None:
        path = self._shelf.reference_logprobs / f"{digest.hex}.json"
        try:
            return ReferenceLogprobs.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            pass
        reference = self._asked_for(ref) or self._of_original(digest)
        if reference is not None:
            _keep(path, reference)
        return reference

    def _asked_for(self, ref: Ref) -> ReferenceLogprobs | None:
        try:
            return self._registry.reference_logprobs(ref).reference_logprobs
        except (NotFound, Unavailable):
            return None

    def _of_original(self, digest: Digest) -> ReferenceLogprobs | None:
        manifest = self._shelf.manifest(digest)
        if manifest is None or [edge.relation for edge in manifest.parents] != [Relation.CONVERTED]:
            return None
        original = manifest.parents[0]
        try:
            name = Ref.parse(original.name).name
        except Invalid:
            return None
        return self._asked_for(Ref(name, original.digest))


def _keep(path: Path, reference: ReferenceLogprobs) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, reference.model_dump_json().encode())
    except OSError:
        return  # it is asked for again
