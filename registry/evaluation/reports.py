"""`Report`: all findings and measurements of one run of a check, stored as a blob; a verdict names it by digest.

It is untrusted input: bounded, and only the server turns it into a verdict.
"""

import unicodedata
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, model_validator

from registry.digest import Digest
from registry.evaluation.golden import SAMPLES_LIMIT
from registry.evaluation.reference_logprobs import ReferenceLogprobs
from registry.evaluation.verdicts import Check
from registry.findings import Finding, limit_fields
from registry.model import FrozenModel
from registry.validation import pattern

MODULES_LIMIT = 4000
TOOLS_LIMIT = 64
"""Tools that made a report, which every response about the version contains."""
Tools = dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=300)]]


MeasurementName = Annotated[
    str, Field(pattern=pattern(r"^[a-z0-9_]{1,60}$", "must be 1 to 60 lowercase letters, digits and _"))
]
NUMBER_LIMIT = 2**63
Number = Annotated[StrictBool | StrictInt | StrictFloat, Field(ge=-NUMBER_LIMIT, le=NUMBER_LIMIT)]
ModulePath = Annotated[str, Field(max_length=600)]
ModuleNorms = tuple[Number | None, Number | None, Number | None, Number | None]
"""|A|, |B|, |scale · BA| and |W| of one module."""
GoldenNumbers = dict[Literal["log_p", "base_log_p", "margin_nats", "ends"], Number]
Image = Annotated[str, Field(max_length=2**20)]


class Layer(StrEnum):
    """What confines the process that reads an adapter."""

    LIMITS = "limits"
    NO_NETWORK = "no network"
    NO_HOME = "no home folder"
    READ_ONLY = "read-only files"
    BUBBLEWRAP = "bubblewrap"


ISOLATION = frozenset({Layer.NO_NETWORK, Layer.NO_HOME, Layer.READ_ONLY})
"""Without one of these, code in an adapter could read the worker's files, write them or send them away."""


class Execution(FrozenModel):
    """How a smoke test was run. `probe_kind`: whether the probes are texts or token numbers."""

    mode: Literal["", "loaded", "swapped", "isolated"] = ""
    """`loaded` and `swapped`: in a shared process; `isolated`: in its own process."""
    isolated_because: str = Field(default="", max_length=600)
    """Why it had its own process. Empty if it had none."""
    probe_kind: Literal["", "text", "numbers"] = ""
    """Whether the probes were `text` or token `numbers`."""
    confined_by: tuple[Layer, ...] = Field(default=(), max_length=len(Layer))
    """What confined the process that read the adapter."""

    @property
    def missing_isolation(self) -> list[Layer]:
        """The layers of isolation that the worker's machine does not have."""
        return sorted(ISOLATION - set(self.confined_by))


ANSWERS_LIMIT, ANSWER_LIMIT = 8, 400
"""Answers of a report, and characters of each of their texts."""


def answer_text(text: str) -> str:
    """The beginning of a text with escapes for what a reader cannot see; all spaces and the joiners of scripts stay."""
    return "".join(char if _is_seen(char) else ascii(char)[1:-1] for char in text)[:ANSWER_LIMIT]


def _is_seen(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs" or char in "\u200c\u200d"


AnswerText = Annotated[str, Field(max_length=ANSWER_LIMIT), AfterValidator(answer_text)]


class Answer(FrozenModel):
    """How the base begins to continue a prompt, alone and with the adapter. Untrusted; no verdict depends on it."""

    prompt: AnswerText
    """The prompt, decoded; control and formatting characters are escaped."""
    base: AnswerText
    """What the base alone says: generated text, the likeliest next tokens, or the start of a golden answer."""
    adapter: AnswerText
    """The same with the adapter."""


class Report(FrozenModel):
    """Everything one run of a check saw. `measurements` are numbers with their unit in the name.

    `reference_logprobs`: what a serving node compares after loading. `images`: name → PNG in base64, of image models.
    `thresholds`: the limits behind the findings. `compat`: what the library itself says of names and shapes,
    where the header alone could not tell; `engine`: what the engine of `made_by` took of an image adapter's file. Both
    are None, and then left out, where nobody was asked. `golden`: the numbers of each golden sample. `answers`: texts
    for people to read, left out where there are none. A process that read the adapter made all of this, so every field
    is typed and bounded.
    """

    check: Check
    """Which check: `compat` (header fits the base), `weights` (numbers), `engine` (a serving engine), `smoke` (a
    run)."""
    subject: Digest
    """Digest of the version that was checked."""
    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    base_fingerprint: str
    """Digest of the architecture of the base: tensor names, shapes, and what changes the computation."""
    findings: tuple[Finding, ...] = ()
    """What was observed: errors first, then warnings and notes."""
    measurements: dict[MeasurementName, Number | None] = Field(default_factory=dict, max_length=100)
    """Name with its unit → number; null if it is not finite."""
    module_norms: dict[ModulePath, ModuleNorms] = Field(default_factory=dict, max_length=MODULES_LIMIT)
    """Path of a module → Frobenius norms of A, B, scale · BA and the base weight W; null where unknown."""
    golden: tuple[GoldenNumbers, ...] = Field(default=(), max_length=SAMPLES_LIMIT)
    """Figures of each golden sample, in file order: log-probabilities in nats, with and without the adapter."""
    execution: Execution = Field(default_factory=Execution)
    """How the test was run."""
    made_by: Tools = Field(default_factory=dict, max_length=TOOLS_LIMIT)
    """Tool that took part → its version."""
    reference_logprobs: ReferenceLogprobs | None = None
    """What a serving node compares after loading; null if none were recorded."""
    images: dict[Literal["before", "after"], Image] = Field(default_factory=dict)
    """`before` and `after` → PNG in base64, for image models."""
    thresholds: dict[str, float] = Field(default_factory=dict)
    """Name of a threshold → the value that the findings are based on."""
    compat: tuple[Finding, ...] | None = Field(default=None, exclude_if=lambda findings: findings is None)
    """What PEFT reports about tensor names and shapes; absent if it was not asked."""
    engine: tuple[Finding, ...] | None = Field(default=None, exclude_if=lambda findings: findings is None)
    """Name of the engine on its node, such as `vllm-8000`."""
    answers: tuple[Answer, ...] = Field(default=(), max_length=ANSWERS_LIMIT, exclude_if=lambda answers: not answers)
    """How base and adapter begin to continue prompts. Untrusted text; left out if there is none."""

    @model_validator(mode="before")
    @classmethod
    def _limit_fields(cls, data: Any) -> Any:
        for field in ("findings", "compat"):
            if isinstance(data, dict) and isinstance(findings := data.get(field), list):
                for finding in findings:
                    limit_fields(finding)
        return data
