"""Compare the base that an adapter says it was trained on with the base that it is pushed for.

A name proves nothing: where both bases are registered with their weights, those decide. Unrelated weights are an error;
a quantized copy or a descendant is a warning: the structure fits, the behavior is not what was trained.
"""

import re
from collections.abc import Sequence

from registry.adapters.peft.config import BaseClaim
from registry.bases import BaseMatch, BaseSpec, Similarity
from registry.compat.catalog import CompatFindings
from registry.versions.files import CONFIG

LOCATION = f"{CONFIG}: base_model_name_or_path"
PACKED_NAME = re.compile(
    r"(?i)(?:^|[-_./])(?:bnb|[48]-?bits?|nf4|fp4|int[48]|gptq|awq|hqq|aqlm|eetq|mxfp4|nvfp4|w[48]a(?:8|16)|fp8)(?:$|[-_./])"
)
"""What packed copies are called: `…-bnb-4bit`, `…-GPTQ`, `…-AWQ`, `…-w4a16`, `…-FP8`."""
MEASURED = "a QLoRA adapter moved by 0.33 nats a token when it was put on the plain base of a small model"


def check_claim(claim: BaseClaim, base: BaseSpec, relatives: Sequence[Similarity], findings: CompatFindings) -> None:
    """One finding if the configuration names a different base from this one."""
    if not claim.name or claim.name == base.name:
        return
    related = _related(claim, base, relatives)
    if related is not None and related.match is not BaseMatch.UNKNOWN:
        _known(claim, base, related, findings)
    elif PACKED_NAME.search(claim.name) and not base.quantization:
        message = (
            f"the configuration names {claim.name!r}, a quantized copy by its name, and {base.name!r} is not one: "
            f"the adapter was not made for this base ({MEASURED})"
        )
        findings.report("compat.trained_on_packed", LOCATION, message, base.name, claim.name)
    elif not claim.names(base.name):
        message = f"the configuration names the base {claim.name!r}, and it is checked on {base.name!r}"
        if not claim.is_local:
            message += f" (if both are one model: adapter base alias add {base.name} {claim.name})"
        findings.report("compat.base_named_differently", LOCATION, message)


def _related(claim: BaseClaim, base: BaseSpec, relatives: Sequence[Similarity]) -> Similarity | None:
    """The registered base that is meant: of this very name, else the only one that the claim selects."""
    same = next((relative for relative in relatives if relative.other == claim.name), None)
    if same is not None or claim.names(base.name):
        return same
    alike = [relative for relative in relatives if claim.selects(relative.other)]
    return alike[0] if len(alike) == 1 else None


def _known(claim: BaseClaim, base: BaseSpec, related: Similarity, findings: CompatFindings) -> None:
    message = f"trained on {related.other!r} and checked on {base.name!r}: {related.other!r} {related.message}"
    match related.match:
        case BaseMatch.EXACT | BaseMatch.OTHER_DTYPE:
            findings.report("compat.base_same_weights", LOCATION, message)
        case BaseMatch.QUANTIZED:
            more = "" if base.quantization else f"; on the plain base it behaves differently ({MEASURED})"
            findings.report("compat.base_quantized_variant", LOCATION, message + more, base.name, related.other)
        case BaseMatch.DESCENDANT:
            more = "; it fits by structure, how it behaves is not known"
            findings.report("compat.base_descendant", LOCATION, message + more, base.name, related.other)
        case _ if claim.is_local or related.other != claim.name:
            more = "; if that base is meant, the adapter does not work on this one"
            findings.report("compat.base_named_differently", LOCATION, message + more, base.name, related.other)
        case _:
            findings.report("compat.base_unrelated", LOCATION, message, base.name, related.other)
