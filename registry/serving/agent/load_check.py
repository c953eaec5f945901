"""`LoadCheck`: does an engine answer with a loaded version as its smoke test did? One prompt against the reference.

- It uses the reference prompt on which adapter and base differ most, and the tokens that the engine reports.
- An answer like the base's, or like neither's, is `Refused`. Without a reference the version is unverified.
- A converted version without a reference of its own uses that of its parent.
- If the engine's base is quantized, being nearer to the adapter than to the base is enough.
"""

from pathlib import Path

from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Invalid, NotFound, Refused, Unavailable
from registry.evaluation import reference_logprobs
from registry.evaluation.reference_logprobs import ReferenceLogprobs
from registry.filesystem import replace_file
from registry.names import Ref
from registry.serving.engines.openai import EngineDriver
from registry.serving.store.local_store import LocalStore
from registry.versions.manifest import Relation


class LoadCheck:
    def __init__(self, engine: EngineDriver, registry: Registry, store: LocalStore) -> None:
        self._engine, self._registry, self._store = engine, registry, store

    def compare(self, served: str, ref: Ref, digest: Digest) -> bool:
        """Whether the answers could be compared. `Refused` (VERDICT_FAILED) if they are not like the adapter's."""
        reference = self._reference_logprobs(ref, digest) if self._engine.has_logprobs else None
        if reference is None:
            return False
        prompt = max(reference.prompts, key=lambda p: sum(abs(a - b) for a, b in zip(p.adapter, p.base, strict=True)))
        answered = self._engine.logprobs(served, prompt.tokens)
        compared_at = [at for at, value in enumerate(answered or ()) if value is not None and at < len(prompt.adapter)]
        if not answered or not compared_at:
            return False
        if len(answered) == len(prompt.adapter):  # else `compare` reports the difference
            prompt = prompt.model_copy(
                update={
                    "adapter": [prompt.adapter[at] for at in compared_at],
                    "base": [prompt.base[at] for at in compared_at],
                }
            )
        answer = [value for value in answered if value is not None]
        comparison = reference_logprobs.compare(reference.model_copy(update={"prompts": (prompt,)}), [answer])
        if (
            comparison.answers_like == "neither"
            and self._engine.is_quantized
            and comparison.to_adapter_nats < comparison.to_base_nats
        ):
            return True
        if comparison.answers_like in ("base", "neither"):
            raise Refused(
                "VERDICT_FAILED", f"{served} was loaded and answers like {comparison.answers_like}: "
                f"{comparison.to_adapter_nats} nats a token from its reference",
            )  # fmt: skip
        return True

    def _reference_logprobs(self, ref: Ref, digest: Digest) -> ReferenceLogprobs | None:
        path = self._store.reference_logprobs / f"{digest.hex}.json"
        try:
            return ReferenceLogprobs.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            pass
        reference = self._fetch_reference(ref) or self._reference_of_parent(digest)
        if reference is not None:
            _store(path, reference)
        return reference

    def _fetch_reference(self, ref: Ref) -> ReferenceLogprobs | None:
        try:
            return self._registry.reference_logprobs(ref).reference_logprobs
        except (NotFound, Unavailable):
            return None

    def _reference_of_parent(self, digest: Digest) -> ReferenceLogprobs | None:
        manifest = self._store.manifest(digest)
        if manifest is None or [edge.relation for edge in manifest.parents] != [Relation.CONVERTED]:
            return None
        parent = manifest.parents[0]
        try:
            name = Ref.parse(parent.name).name
        except Invalid:
            return None
        return self._fetch_reference(Ref(name, parent.digest))


def _store(path: Path, reference: ReferenceLogprobs) -> None:
    try:
        replace_file(path, reference.model_dump_json().encode())
    except OSError:
        return  # it is fetched again
