"""`Report`: all findings and measurements of one run of a check, stored as a blob; a verdict names it by digest.

It is untrusted input: bounded, and only the server turns it into a verdict. Reports with the field names of schema 0014
are converted when they are read.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from registry.digest import Digest
from registry.evaluation.reference_logprobs import ReferenceLogprobs
from registry.evaluation.verdicts import Check, Finding
from registry.model import FrozenModel

TOOLS_LIMIT = 64
"""Tools that a report is made by: every answer about the version holds them."""
Tools = dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=300)]]


class Report(FrozenModel):
    """Everything one run of a check saw. `measurements` are numbers with their unit in the name.

    `reference_logprobs`: what a serving node compares after loading. `images`: name → PNG in base64, of image models.
    `thresholds`: the limits that findings were judged by. `compat`: what the library itself says of names and shapes,
    where the header alone could not tell; None, and then left out, where it was not asked.
    """

    check: Check
    subject: Digest
    base: str
    base_fingerprint: str
    findings: tuple[Finding, ...] = ()
    measurements: dict[str, Any] = Field(default_factory=dict)
    made_by: Tools = Field(default_factory=dict, max_length=TOOLS_LIMIT)
    reference_logprobs: ReferenceLogprobs | None = None
    images: dict[str, str] = Field(default_factory=dict)
    thresholds: dict[str, float] = Field(default_factory=dict)
    compat: tuple[Finding, ...] | None = Field(default=None, exclude_if=lambda findings: findings is None)

    @model_validator(mode="before")
    @classmethod
    def _convert_old_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "pictures" in data:
            data = {"images" if key == "pictures" else key: value for key, value in data.items()}
        if data.get("check") != "acts":
            return data
        renamed = {_OLD_FIELDS.get(key, key): value for key, value in data.items()} | {"check": "smoke"}
        for field in ("findings", "compat"):
            if isinstance(findings := renamed.get(field), list):
                renamed[field] = [_convert_finding(finding) for finding in findings]
        return renamed


_OLD_FIELDS = {"place": "location", "sentence": "message", "fits": "compat", "fingerprint": "reference_logprobs"}
_OLD_CODES = {"acts.picture_not_finite": "smoke.image_not_finite", "acts.picture_unchanged": "smoke.image_unchanged"}
_OLD_FAMILIES = {"acts": "smoke", "fit": "compat", "values": "weights"}


def _convert_finding(finding: Any) -> Any:
    if not isinstance(finding, dict):
        return finding
    code = str(finding.get("code", ""))
    family, dot, rest = code.partition(".")
    renamed = {_OLD_FIELDS.get(key, key): value for key, value in finding.items()}
    return renamed | {"code": _OLD_CODES.get(code) or _OLD_FAMILIES.get(family, family) + dot + rest}
