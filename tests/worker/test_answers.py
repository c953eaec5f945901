"""Texts in the report: what base and adapter say after the short prompts and instead of golden answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from registry.evaluation.reports import ANSWER_LIMIT, ANSWERS_LIMIT
from registry.versions.files import GOLDEN
from registry.worker.loop import Worker
from registry.worker.model.language import LoadedBase
from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import Pool, ProcessLimits
from registry.worker.smoke import answers
from tests.harness import Harness
from tests.worker import models
from tests.worker.setup import WorkerSetup

pytestmark = pytest.mark.usefixtures("forked_programs")
LIMITS = ProcessLimits(deadline_seconds=120, threads=1)
TOKENS = 8


@pytest.fixture(scope="module")
def folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a tokenizer, in which each of its 512 numbers is a text."""
    folder = tmp_path_factory.mktemp("with-tokenizer") / "tiny"
    shutil.copytree(base_folder, folder)
    words = [*sorted(ByteLevel.alphabet()), *(f"Ġ{number}" for number in range(256))]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    target = tmp_path_factory.mktemp("answering")
    return [models.adapter(folder, target / str(seed), seed=seed) for seed in range(2)]


@pytest.fixture
def setup(harness: Harness, folder: Path) -> WorkerSetup:
    return WorkerSetup(harness, folder)


@pytest.mark.parametrize("tokens", [0, TOKENS])
def test_base_and_adapter_say_the_same_in_every_process(
    pool: Pool, folder: Path, adapters: list[Path], tokens: int
) -> None:
    source = BaseSource(f"tiny-{tokens}", folder, "sha256:" + "1" * 64)
    shared = replace(LIMITS, answer_tokens=tokens)
    tests = [(adapters[0], shared), (adapters[1], shared), (adapters[0], shared)]
    tests.append((adapters[0], replace(shared, isolate=True)))
    texts = [pool.try_adapter(source, adapter, limits)["result"]["answers"] for adapter, limits in tests]
    assert texts[0] == texts[2] == texts[3] != texts[1]
    assert [answer["base"] for answer in texts[1]] == [answer["base"] for answer in texts[3]]
    assert len(texts[0]) == answers.PROMPTS
    for answer in (*texts[0], *texts[1]):
        assert all(text.isprintable() and 0 < len(text) <= ANSWER_LIMIT for text in answer.values())
        assert answer["base"].count("%") == (0 if tokens else answers.NEXT_TOKENS)
    assert texts[0][0]["prompt"].startswith("The train to the coast")
    assert any(answer["base"] != answer["adapter"] for answer in texts[0])


def test_answers_to_short_prompts_and_golden_samples_reach_the_report(
    setup: WorkerSetup, worker: Callable[..., Worker], adapters: list[Path], tmp_path: Path
) -> None:
    adapter = shutil.copytree(adapters[0], tmp_path / "golden")
    sample = {"prompt": "Shop:\u202e", "expected": " we are sorry", "margin_nats": -10}
    (adapter / GOLDEN).write_text(f"{json.dumps(sample)}\n" * ANSWERS_LIMIT)
    setup.push(adapter)
    assert worker().run(once=True).done == 1
    verdict = setup.smoke()
    assert verdict is not None
    assert verdict.report is not None
    report = setup.harness.admin.report("acme/support", verdict.report)
    assert len(report.golden) == ANSWERS_LIMIT
    assert len(report.answers) == ANSWERS_LIMIT, "no more than the server accepts"
    assert {answer.prompt for answer in report.answers[answers.PROMPTS :]} == {"Shop:\\u202e"}


def test_a_golden_answer_is_followed_up_to_the_first_token_that_differs(folder: Path) -> None:
    base = LoadedBase.load(folder, "tiny")
    own = base.tokenizer("sorry!")["input_ids"]
    logits = torch.nn.functional.one_hot(torch.tensor(own), 512).float()
    *expected, last = own
    assert answers.agreed_text(base, logits, expected) == "sorry!", "the whole answer and what follows it"
    assert answers.agreed_text(base, logits, [*expected[:2], last, *expected[3:]]) == "sor", "its own third token"
    assert answers.agreed_text(base, logits[:1], []) == "s"


def test_answers_need_no_pass_unless_the_operator_has_them_generated(folder: Path) -> None:
    base, passes = LoadedBase.load(folder, "tiny"), []
    logits = base.logits(base.probes)
    base.model.register_forward_hook(lambda *_: passes.append(1))
    assert len(answers.continue_probes(base, base.model, logits, 0)) == answers.PROMPTS
    assert not passes
    assert len(answers.continue_probes(base, base.model, logits, TOKENS)) == answers.PROMPTS
    assert 0 < len(passes) <= TOKENS, "one batch, one pass a token"
    passes.clear()
    assert answers.continue_probes(replace(base, probe_kind="numbers"), base.model, logits, TOKENS) == []
    assert not passes


def test_a_model_that_cannot_generate_has_no_answers(folder: Path) -> None:
    """Nor has one that lacks memory for it: the test does not need answers. A broken GPU ends the process."""
    base = LoadedBase.load(folder, "tiny")
    logits = base.logits(base.probes)
    base.model.generation_config.return_dict_in_generate = True  # a base's own settings do not matter
    assert len(answers.continue_probes(base, base.model, logits, TOKENS)) == answers.PROMPTS
    base.model.generate = None
    assert answers.continue_probes(base, base.model, logits, TOKENS) == []
    error: Exception = torch.OutOfMemoryError("out of memory")

    def generate(**_: object) -> None:
        raise error

    base.model.generate = generate
    assert answers.continue_probes(base, base.model, logits, TOKENS) == []
    error = RuntimeError("CUDA error: device-side assert triggered")
    with pytest.raises(RuntimeError, match="CUDA error"):
        answers.continue_probes(base, base.model, logits, TOKENS)


def test_numbers_that_the_tokenizer_does_not_know_are_no_text(folder: Path) -> None:
    base = LoadedBase.load(folder, "tiny")
    beyond = torch.nn.functional.one_hot(torch.tensor([600]), 601).float()
    assert answers.agreed_text(base, beyond, []) == ""
    without = replace(base, tokenizer=None)
    assert answers.text_of(without, [1]) == ""
