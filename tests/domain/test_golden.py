"""Golden samples and reference log-probabilities as values: what is read and refused, how engines' answers compare."""

from __future__ import annotations

import pytest

from registry.errors import Invalid, TooLarge
from registry.evaluation.golden import SAMPLE_LIMIT_BYTES, SAMPLES_LIMIT, read_golden
from registry.evaluation.reference_logprobs import Prompt, ReferenceLogprobs, compare
from registry.evaluation.thresholds import Thresholds

LINE = b'{"prompt": "2 + 2 =", "expected": " 4"}'


def test_each_line_is_a_sample_and_empty_lines_are_none() -> None:
    first, second = read_golden(LINE + b"\n\n" + LINE.replace(b"}", b', "margin_nats": 0.5, "ends": true}') + b"\n")
    assert (first.prompt, first.expected, first.margin_nats, first.ends) == ("2 + 2 =", " 4", None, False)
    assert (second.margin_nats, second.ends) == (0.5, True)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"[1]", "must hold one object"),
        (b"not json", "is not JSON"),
        (b'{"prompt": "a"}', "field 'expected'"),
        (b'{"prompt": "", "expected": "b"}', "field 'prompt'"),
        (b'{"prompt": "a", "expected": "b", "answer": "c"}', "field 'answer'"),
        (b'{"prompt": "a", "prompt": "b", "expected": "c"}', "written twice"),
        (b'{"prompt": "a", "expected": "b", "margin_nats": NaN}', "not a number of JSON"),
        (b'{"prompt": "a", "expected": "b", "ends": 1}', "field 'ends'"),
        (b'{"prompt": "\xff", "expected": "b"}', "not UTF-8"),
    ],
)
def test_a_line_that_breaks_a_rule_is_refused_with_its_number(line: bytes, why: str) -> None:
    with pytest.raises(Invalid, match=rf"golden\.jsonl line 2.*{why}") as caught:
        read_golden(LINE + b"\n" + line)
    assert caught.value.code == "GOLDEN_INVALID"


def test_nothing_too_many_and_too_long_are_refused() -> None:
    with pytest.raises(Invalid, match="holds no sample"):
        read_golden(b"\n \n")
    with pytest.raises(TooLarge, match=f"the limit is {SAMPLES_LIMIT}"):
        read_golden((LINE + b"\n") * (SAMPLES_LIMIT + 1))
    with pytest.raises(TooLarge, match="line 1"):
        read_golden(b'{"prompt": "' + b"a" * SAMPLE_LIMIT_BYTES + b'", "expected": "b"}')


KNOWN = ReferenceLogprobs(prompts=(Prompt(tokens=(1, 2, 3), adapter=(-0.5, -1.0), base=(-3.0, -2.0)),))


@pytest.mark.parametrize(
    ("logprobs", "like"),
    [
        ([[-0.52, -0.97]], "adapter"),
        ([[-3.01, -1.99]], "base"),
        ([[-6.0, -7.0]], "neither"),
    ],
)
def test_an_engine_answers_like_the_adapter_like_the_base_or_like_neither(logprobs: object, like: str) -> None:
    assert compare(KNOWN, logprobs).answers_like == like  # type: ignore[arg-type]


def test_an_adapter_that_hardly_differs_from_its_base_cannot_be_told_from_it() -> None:
    alike = ReferenceLogprobs(prompts=(Prompt(tokens=(1, 2), adapter=(-0.50,), base=(-0.51,)),))
    assert compare(alike, [[-0.505]]).answers_like == "either"


def test_other_counts_of_numbers_are_refused() -> None:
    with pytest.raises(Invalid, match="one number for each token"):
        compare(KNOWN, [[-0.5]])


def test_thresholds_name_the_field_that_is_none_and_the_limit() -> None:
    assert Thresholds.with_overrides({"golden_margin_nats": 2}).golden_margin_nats == 2.0
    with pytest.raises(Invalid, match=r"drift_fail: .*known are effect_logit_delta"):
        Thresholds.with_overrides({"drift_fail": 1})
    with pytest.raises(Invalid, match="drift_fail_kl_nats: "):
        Thresholds.with_overrides({"drift_fail_kl_nats": float("nan")})
