"""Attack: a weights file whose header lies, hides or exhausts. Each is refused by its rule."""

from __future__ import annotations

import pytest

from registry.adapters import safetensors
from registry.errors import Invalid, TooLarge
from tests import effort
from tests.bad_files import WEIGHTS

pytestmark = pytest.mark.security

FILE = "adapter_model.safetensors"


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_bad_header_is_refused_with_its_rule(name: str) -> None:
    data, code, reason = WEIGHTS[name]
    with effort.ends(), pytest.raises((Invalid, TooLarge)) as caught:
        safetensors.read_bytes(data, file=FILE)
    assert caught.value.code == code
    assert reason in {r.code for r in caught.value.findings}
    assert FILE in caught.value.detail


def test_every_rule_about_weights_has_a_case() -> None:
    assert {int(name[:2]) for name in WEIGHTS} >= set(range(1, 27))


def test_all_broken_entries_are_reported_and_not_only_the_first() -> None:
    from tests import samples

    header = {f"t{i}": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]} for i in range(5)}
    with pytest.raises(Invalid) as caught:
        safetensors.read_bytes(samples.raw_safetensors(header, bytes(4)), file=FILE)
    assert [r.location for r in caught.value.findings] == ["t0", "t1", "t2", "t3", "t4"]


def test_a_reader_that_returns_less_than_was_asked_is_a_response_and_no_crash() -> None:
    from tests import samples

    good = samples.safetensors({"a": ("F32", (4,), None)})
    with pytest.raises(Invalid, match="ended after"):
        safetensors.read_header(lambda at, n: good[at : at + n - 1], len(good), file=FILE)


def test_many_quotes_do_not_make_the_depth_scan_endless() -> None:
    from tests import samples

    header = b'{"' + b'\\"' * 2_000_000
    with effort.ends(), pytest.raises(Invalid):
        safetensors.read_bytes(samples.raw_safetensors(header + b"}"), file=FILE)
