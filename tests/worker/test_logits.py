"""Logits of the probes and how they are compared, on a tiny model in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from registry.digest import Digest
from registry.evaluation.reports import Report
from registry.evaluation.thresholds import Thresholds
from registry.evaluation.verdicts import Check
from registry.worker.model import language
from registry.worker.model.language import LoadedBase
from registry.worker.model.updates import read_adapter
from registry.worker.smoke import effect
from registry.worker.smoke.effect import ROWS, Baseline
from registry.worker.smoke.result import SmokeResult, reportable
from registry.worker.smoke.shared import Discard, SharedModel


@pytest.fixture(scope="module")
def base(base_folder: Path) -> LoadedBase:
    return LoadedBase.load(base_folder, "tiny")


def test_the_texts_of_a_group_are_cut_to_one_length() -> None:
    prompts = language.text_probes(lambda text: list(text.encode()))
    assert [len(tokens) for tokens in prompts] == [min(len(text) for text in language.SHORT)] * 3 + [64] * 3
    assert bytes(prompts[1]).decode() in language.SHORT[1]


def test_rows_of_one_length_are_one_pass_and_answered_in_their_places(base: LoadedBase) -> None:
    prompts = [(1, 2, 3), (4, 5), (6, 7, 8), (9, 10)]
    passes: list[torch.Size] = []
    counting = base.model.register_forward_pre_hook(
        lambda _model, _args, how: passes.append(how["input_ids"].shape), with_kwargs=True
    )
    try:
        together = base.logits(prompts)
    finally:
        counting.remove()
    assert passes == [(2, 3), (2, 2)]
    for tokens, answer in zip(prompts, together, strict=True):
        torch.testing.assert_close(answer, base.rows([tokens])[0])


def test_what_is_compared_some_rows_at_a_time_is_what_the_whole_would_be() -> None:
    torch.manual_seed(0)
    prompts = [tuple(range(ROWS + 3)), (1, 2)]
    before = [torch.randn(len(tokens), 50) * 3 for tokens in prompts]
    after = [values + 0.3 * torch.randn_like(values) for values in before]
    result = SmokeResult(Thresholds())
    assert effect.compare(Baseline.of(prompts, before), after, result, kind="numbers")
    was, now = torch.cat(before).double(), torch.cat(after).double()
    kl = torch.nn.functional.kl_div(now.log_softmax(-1), was.log_softmax(-1), log_target=True, reduction="sum")
    log_p = torch.cat([values[:-1].log_softmax(-1) for values in after])
    next_tokens = torch.tensor([token for tokens in prompts for token in tokens[1:]])
    measurements = result.measurements
    assert measurements["kl_nats"] == pytest.approx(float(kl) / len(was), rel=1e-4)
    assert measurements["max_logit_delta"] == pytest.approx(float((now - was).abs().max()), rel=1e-5)
    assert measurements["mean_logit_delta"] == pytest.approx(float((now - was).abs().mean()), rel=1e-5)
    assert measurements["top1_agreement"] == pytest.approx(
        float((now.argmax(-1) == was.argmax(-1)).float().mean()), rel=1e-5
    )
    perplexity = float((-log_p.gather(-1, next_tokens[:, None]).mean()).exp())
    assert measurements["perplexity"] == pytest.approx(perplexity, rel=1e-5)


def test_an_adapter_that_makes_text_e_to_the_50_times_as_unlikely_gets_a_verdict() -> None:
    """Such a perplexity is no number of a report, and its job failed without a verdict."""
    prompt = (1, 2, 3)
    before, after = torch.zeros(3, 50), torch.zeros(3, 50)
    after[:, 7] = 50
    result = SmokeResult(Thresholds())
    assert effect.compare(Baseline.of([prompt], [before]), [after], result, kind="text")
    assert [finding.code for finding in result.findings] == ["smoke.drift"]
    norms = [reportable(number, 4) for number in (1e30, -1e30, float("nan"), None)]
    report = Report(
        check=Check.SMOKE, subject=Digest.of(b""), base="tiny", base_fingerprint="", findings=tuple(result.findings),
        measurements=result.measurements, module_norms={"q_proj": tuple(norms)},
    )  # fmt: skip
    assert report.measurements["perplexity"] == pytest.approx(2**63, rel=1e-5)
    assert report.module_norms["q_proj"] == (9.223e18, -9.223e18, None, None)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_seen_wherever_it_lies(odd: float) -> None:
    before = [torch.randn(2 * ROWS + 1, 50)]
    after = [before[0].clone()]
    after[0][-1, 7] = odd
    result = SmokeResult(Thresholds())
    assert not effect.compare(Baseline.of([(1,) * len(before[0])], before), after, result, kind="numbers")
    assert [finding.code for finding in result.findings] == ["smoke.not_finite"]


def test_a_number_of_the_base_that_no_answer_depends_on_is_missed_after_the_next_adapter(
    base_folder: Path, good: Path
) -> None:
    """A row of the embeddings that no probe uses: every logit stays, and the model object is given up all the same."""
    own = LoadedBase.load(base_folder, "tiny")
    shared = SharedModel(own)
    contents = read_adapter(good)
    assert shared.examine(good, contents, Thresholds()).measurements["base_tensors_changed"] == 0
    unused = own.vocabulary - 1
    assert not any(unused in tokens for tokens in own.probes)
    own.model.get_input_embeddings().weight.data[unused, 5] += 1
    with pytest.raises(Discard, match=r"1 of the base.s tensors changed, model\.embed_tokens"):
        shared.examine(good, contents, Thresholds())
