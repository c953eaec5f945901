"""Patterns over module paths: the same answers as `re.fullmatch`, in linear time."""

from __future__ import annotations

import random
import re
from functools import partial

import pytest

from registry.strict import patterns
from registry.strict.patterns import PatternRefused, compile_pattern
from tests import effort

UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|k_proj)))"
)

SWIFT = r"^(model\.language_model(?=\.).*\.(q_proj|o_proj|up_proj))$"
FACTORY = r"^(?!.*visual).*(?:q_proj|k_proj|o_proj).*"


@pytest.mark.parametrize(
    ("pattern", "path", "answer"),
    [
        (r".*layers\.[01]\.self_attn\.(q|v)_proj", "model.layers.1.self_attn.v_proj", True),
        (r".*layers\.[01]\.self_attn\.(q|v)_proj", "model.layers.2.self_attn.v_proj", False),
        (UNSLOTH, "model.layers.12.self_attn.q_proj", True),
        (UNSLOTH, "model.language_model.layers.3.mlp.fc1", True),
        (UNSLOTH, "model.layers.12.self_attn.o_proj", False),
        (r"^model\.norm$", "model.norm", True),
        (r"", "", True),
        (r"a{2,3}", "aaaa", False),
        (r"[^.]+\.\d+", "layer.12", True),
        (SWIFT, "model.language_model.layers.3.self_attn.q_proj", True),
        (SWIFT, "model.visual.blocks.3.attn.q_proj", False),
        (SWIFT, "model.language_model_2.layers.3.self_attn.q_proj", False),
        (FACTORY, "model.layers.3.self_attn.q_proj", True),
        (FACTORY, "model.visual.blocks.3.attn.q_proj", False),
        (r"^(model)(?!.*(lm_head|output|emb|wte|shared)).*", "model.layers.3.self_attn.q_proj", True),
        (r"^(model)(?!.*(lm_head|output|emb|wte|shared)).*", "model.embed_tokens", False),
        (r"(?=.*attn)(?!.*cross).*_proj$", "layers.3.self_attn.o_proj", True),
        (r"(?=.*attn)(?!.*cross).*_proj$", "layers.3.cross_attn.o_proj", False),
        (r"(?!.*\.(q|k)_proj$).*_proj", "layers.3.k_proj", False),
        (r"(?!.*\.(q|k)_proj$).*_proj", "layers.3.k_proj.o_proj", True),
    ],
)
def test_patterns_of_real_configurations_are_matched(pattern: str, path: str, answer: bool) -> None:
    assert compile_pattern(pattern).matches(path) is answer
    assert bool(re.fullmatch(pattern, path)) is answer


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*b", "(.*a){20}", ".*.*.*x", "(x+x+)+y", "a{1000}", "(?<=a)b", "(?<!a)b", "(?i)a", "(?=a)*b",
     "(?!a", "a(?=^b)",
     "(?!a)" * 9 + "b", "(?P<n>a)", r"(a)\1", "a**", "[a-",
     "[]", "(", ")", "*a", "a|*", "(" * 20 + "a" + ")" * 20, "x" * 3000, "é", "a\n", r"\p", "^^a", "[b-a]", "a{x}",
     ".*a.*b.*c.*d.*e.*f.*g"],
)  # fmt: skip
def test_a_pattern_that_could_hang_a_matcher_is_refused(pattern: str) -> None:
    with pytest.raises(PatternRefused):
        compile_pattern(pattern)


def test_accepted_patterns_mean_what_re_means() -> None:
    rng = random.Random(20)
    tokens = ["a", "b", ".", r"\.", r"\d", "[ab]", "[^a]", "1", "(", "(?:", ")", "|", "*", "+", "?", "{1,2}", "{0}",
              "{2,}", "^", "$", "*?", "(?=", "(?!"]  # fmt: skip
    accepted = 0
    for _ in range(20_000):
        text = "".join(rng.choice(tokens) for _ in range(rng.randint(1, 8)))
        try:
            pattern = patterns.Pattern(text)
        except PatternRefused:
            continue
        accepted += 1
        for _ in range(4):
            path = "".join(rng.choice("ab.1") for _ in range(rng.randint(0, 5)))
            assert pattern.matches(path) == bool(re.fullmatch(text, path)), (text, path)
    assert accepted > 2000


def test_matching_takes_time_linear_in_the_path() -> None:
    pattern = compile_pattern(".*a.*b.*c.*d.*e.*f")
    short, long = (effort.lines(partial(pattern.matches, "abcde" * n)) for n in (200, 400))
    assert long < 2.2 * short
    assert not pattern.matches("abcde" * 4000)


@pytest.mark.security
@pytest.mark.parametrize(
    ("text", "repeats"), [("q_proj", (0,)), (".*q", (1,)), ("(.*a|.*b.*c)d", (1, 2)), (UNSLOTH, (4, 1))]
)
def test_steps_grow_with_the_repeats_that_follow_each_other(text: str, repeats: tuple[int, ...]) -> None:
    assert patterns.compile_pattern(text).steps == sum(patterns.REPEAT_STEPS**count for count in repeats)
