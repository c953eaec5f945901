"""Checks a folder or a version against a base and engines by the server's rules; nothing is stored or sent."""

from collections.abc import Callable, Sequence

from registry.api.bases import BaseView
from registry.client import convert
from registry.client.local.adapter_folder import AdapterFolder
from registry.client.registry import Registry
from registry.compat import evaluate
from registry.digest import Digest
from registry.engines import EngineProfile
from registry.evaluation.verdicts import Check, Verdict
from registry.names import Ref
from registry.versions.manifest import BaseRef

CheckWeights = Callable[[AdapterFolder, Digest, BaseView], list[Verdict]]
"""The verdict on the numbers of a folder's weights, or none where they cannot be read."""


def check_folder(
    registry: Registry, adapter: AdapterFolder, base: str, profiles: Sequence[EngineProfile], *,
    check_weights: CheckWeights = lambda _adapter, _subject, _view: [],
) -> list[Verdict]:  # fmt: skip
    """`compat`, what `check_weights` says, then `engine` for each profile. `base`: default, the configured one."""
    if not base:
        base = adapter.contents.claim.choose({view.name: view.aliases for view in registry.bases(modules=False).items})
    view = registry.base(base)
    subject = adapter.manifest(BaseRef(name=view.name, fingerprint=view.fingerprint)).digest
    first, *others = evaluate(adapter.contents, view.spec, subject, profiles, relatives=view.relatives)
    return [first, *check_weights(adapter, subject, view), *others]


def check_version(registry: Registry, ref: Ref, base: str, profiles: Sequence[EngineProfile]) -> list[Verdict]:
    """The same of a version: the stored verdicts on its own base, else from its configuration and header."""
    version = registry.version(ref)
    ref = Ref(ref.name, version.digest)
    weights = [v for v in version.verdicts if v.check is Check.WEIGHTS][-1:]
    stored = [v for v in version.verdicts if v.check is Check.COMPAT and base in ("", v.base)]
    if stored:
        engine_verdicts = registry.verdicts(ref, [str(profile) for profile in profiles]).items if profiles else []
        return [stored[-1], *weights, *engine_verdicts]
    contents = convert.read(registry, registry.resolve(ref))
    view = registry.base(base or version.base)
    first, *others = evaluate(contents, view.spec, version.digest, profiles, relatives=view.relatives)
    return [first, *weights, *others]
