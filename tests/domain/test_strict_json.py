"""JSON that every reader reads alike."""

from __future__ import annotations

import pytest

from registry.errors import Invalid
from registry.strict.json import SPLIT_BYTES, Dialect, depth_of, parse
from tests import effort

DIALECT = Dialect("CONFIG_INVALID", "config", depth=4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":1,"a":1}', "config.duplicate_key"),
        ('{"x":{"a":1,"a":2}}', "config.duplicate_key"),
        ('{"a":NaN}', "config.not_finite"),
        ("[[[[[1]]]]]", "config.too_deep"),
        ("\ufeff{}", "config.invalid"),
        ('"\\ud800"', "config.invalid"),
        ('{"a":["x\\udc00"]}', "config.invalid"),
        ("1" * 5000, "config.invalid"),
        ("{'a':1}", "config.invalid"),
        ("", "config.invalid"),
        ('{"a":1} x', "config.invalid"),
        ('"a\nb"', "config.invalid"),
    ],
)
def test_text_that_readers_disagree_about_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text.encode(), DIALECT, file="f.json")
    assert caught.value.findings[0].code == reason
    assert caught.value.detail.startswith("f.json")


def test_good_text_is_read() -> None:
    text = '{"a": [1, -0, 2.5e3, "\\u00e9\\ud83d\\ude00 [{"], "b": null}'
    assert parse(text.encode(), DIALECT, file="f") == {"a": [1, 0, 2500.0, "é\U0001f600 [{"], "b": None}


@pytest.mark.parametrize(
    ("text", "depth"), [("1", 0), ("[]", 1), ('["[[["]', 1), ('{"a":[{}]}', 3), ('"\\"[[["', 0), ("[[[[[[[", 5)]
)
def test_depth_counts_brackets_outside_texts(text: str, depth: int) -> None:
    assert depth_of(text.encode(), stop_at=4) == depth


@pytest.mark.parametrize("text", ['["a[", {"b": "]"}]', '["[[', '"[" "', '""[""', "[]"])
def test_a_backslash_or_more_bytes_change_no_depth(text: str) -> None:
    depth = depth_of(text.encode(), stop_at=4)
    assert depth_of(text.replace("a", "\\\\").encode(), stop_at=4) == depth
    assert depth_of(b" " * SPLIT_BYTES + text.encode(), stop_at=4) == depth


@pytest.mark.parametrize("text", [b"[" * 8_000_000, b"]" * 8_000_000, b'"' + b'\\"' * 4_000_000, b"[]" * 4_000_000])
def test_measuring_depth_takes_time_linear_in_the_text(text: bytes) -> None:
    with effort.ends():
        assert depth_of(text, stop_at=8) <= 9
