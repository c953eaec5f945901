"""`Golden`: a prompt and the answer that its adapter must make likelier than the bare base does.

    {"prompt": "Do you have a copper mirror?", "expected": " Yarr! That copper mirror be salvaged …", "ends": true}

One JSON object a line. `margin_nats` overrides the base's threshold for this line; with `ends` the end-of-text token
must be the likeliest one after the answer; with `chat` the prompt is put through the chat template as a user's turn.
Text is compared by log-probability, not letter by letter: equal text breaks between number formats and machines.
"""

from pydantic import Field, ValidationError

from registry.errors import Invalid, TooLarge
from registry.findings import Finding
from registry.model import FrozenModel
from registry.strict import json as strict_json
from registry.validation import first_problem
from registry.versions.files import GOLDEN

SAMPLES_LIMIT = 100
SAMPLE_LIMIT_BYTES = 16 * 2**10
"""The whole file has a limit too, in `registry.versions.files.KINDS`."""

_DIALECT = strict_json.Dialect("GOLDEN_INVALID", "golden", depth=2)


class Golden(FrozenModel):
    prompt: str = Field(min_length=1, max_length=8000)
    expected: str = Field(min_length=1, max_length=8000)
    margin_nats: float | None = Field(default=None, ge=-10, le=100)
    ends: bool = False
    chat: bool = False


def read_golden(data: bytes) -> tuple[Golden, ...]:
    """The samples in these bytes. `Invalid` (GOLDEN_INVALID) with the line and the rule, `TooLarge` over the limits."""
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if len(lines) > SAMPLES_LIMIT:
        raise TooLarge("SIZE_INVALID", f"{GOLDEN} has {len(lines)} samples; the limit is {SAMPLES_LIMIT}")
    if not lines:
        raise _invalid(1, "holds no sample; write one JSON object a line with `prompt` and `expected`")
    return tuple(_sample(line, number) for number, line in lines)


def _sample(line: bytes, number: int) -> Golden:
    location = f"{GOLDEN} line {number}"
    if len(line) > SAMPLE_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"{location} has {len(line)} bytes; the limit is {SAMPLE_LIMIT_BYTES}")
    values = strict_json.parse_object(line, _DIALECT, file=location)
    try:
        return Golden.model_validate(values, strict=True)
    except ValidationError as e:
        field, message = first_problem(e, "")
        raise _invalid(number, f"field {field!r}: {message}") from None


def _invalid(number: int, message: str) -> Invalid:
    return Invalid.from_finding("GOLDEN_INVALID", Finding("golden.invalid", f"{GOLDEN} line {number}", message))
