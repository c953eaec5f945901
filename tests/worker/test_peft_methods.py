"""What the worker says of every method of PEFT, honest and with one tensor lost, added or of another shape."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from registry.adapters.methods import METHODS
from registry.adapters.peft.formulas import evaluate
from registry.errors import Refused
from registry.evaluation.verdicts import Check, Outcome
from registry.findings import Finding
from registry.versions.files import CONFIG
from registry.worker.smoke.result import LibraryFailed
from registry.worker.smoke.structure import NeedsValues, Structures
from tests import fixtures
from tests.worker import models
from tests.worker.setup import WorkerSetup
from tests.worker.test_structure import Make

if not fixtures.HAS_EXAMINED_PEFT:
    pytest.skip(fixtures.OLDER_PEFT, allow_module_level=True)
from tests.truth import methods, mutations

pytestmark = pytest.mark.usefixtures("forked_programs")

STRUCTURAL = ("drop", "extra", "longer", "shorter", "halved", "unsqueezed", "trailing", "transposed", "flat", "module")
OPTIONAL = "drop-one:base_layer.weight"
"""PEFT saves the layer of an embedding only if it is asked to (`save_embedding_layers`); else the base has it."""
SAMPLE, SEED = 6, 20
NEEDS_A_LIBRARY = frozenset({"ADAMSS"})
ALONE = frozenset({"XLORA"})
"""PEFT loads it only together with the adapters that it mixes."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return methods.make_base(tmp_path_factory.mktemp("methods") / "base")


@pytest.fixture(scope="module")
def structures(base: Path) -> Structures:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(base))
    return Structures(model)


def variants() -> list[tuple[str, str]]:
    return [pair for pair in methods.variants() if pair[0] not in NEEDS_A_LIBRARY | ALONE]


def test_a_head_of_a_model_without_input_embeddings_is_compared(tmp_path: Path) -> None:
    """PEFT's "auto" asks Hubert for embeddings that it does not have."""
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
    config = transformers.HubertConfig(**sizes, intermediate_size=32, num_conv_pos_embedding_groups=2)
    wrapped = peft.get_peft_model(transformers.HubertForCTC(config), peft.LoraConfig(target_modules=["lm_head"]))
    wrapped.save_pretrained(tmp_path, save_embedding_layers=False)
    with torch.device("meta"):
        structures = Structures(transformers.HubertForCTC(config))
    assert [finding.code for finding in structures.compare(tmp_path)] == ["compat.peft_expects"]


def compare(structures: Structures, folder: Path) -> list[Finding]:
    try:
        return structures.compare(folder)
    except LibraryFailed as e:
        return [e.finding]


def check_variant(structures: Structures, base: Path, folder: Path, method: str, variant: str) -> Iterator[str]:
    """Yield what is wrong: an honest adapter that is refused, or a mutated one that is not."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    methods.make(model, f"{method}/{variant}", folder)
    try:
        findings = compare(structures, folder)
    except NeedsValues:
        written = json.loads((folder / CONFIG).read_text())
        if not evaluate(METHODS[method].needs_values, written):
            yield f"{method} {variant} needs values"
        return
    if [finding.code for finding in findings] != ["compat.peft_expects"]:
        yield f"{method} {variant} honest: {findings}"
    weights = folder / models.WEIGHTS
    for name, tensors, _ in mutations.of_tensors(load_file(weights), {}, {}):
        if name.startswith(STRUCTURAL) and not name.endswith(OPTIONAL) and tensors:
            save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, weights)
            if not any(finding.severity == "error" for finding in compare(structures, folder)):
                yield f"{method} {variant} {name}"


def test_a_sample_of_methods_and_mutations(structures: Structures, base: Path, tmp_path: Path) -> None:
    sample = random.Random(SEED).sample(variants(), SAMPLE)
    assert [p for pair in sample for p in check_variant(structures, base, tmp_path / "-".join(pair), *pair)] == []


@pytest.mark.deep
def test_every_method_and_every_structural_mutation(structures: Structures, base: Path, tmp_path: Path) -> None:
    pairs = variants()
    assert len(pairs) > 80
    assert [p for pair in pairs for p in check_variant(structures, base, tmp_path / "-".join(pair), *pair)] == []


LOST: dict[str, tuple[str, str, str]] = {
    "half of each LoHa factor": ("LOHA", "plain", "hada_w1_a"),
    "AdaLoRA's singular values": ("ADALORA", "plain", "lora_E"),
    "one of a saved module's tensors": ("LOHA", "saved", "lm_head.weight"),
    "FRoD's projection": ("FROD", "plain", "frod_V"),
    "MonteCLoRA's sampler": ("LORA", "montecarlo", "lora_monteclora_sampler.std_prior"),
    "Uni-LoRA's vector": ("UNILORA", "indices", "unilora_theta_d"),
}


@pytest.mark.security
@pytest.mark.parametrize("lost", LOST)
def test_an_adapter_that_lost_tensors_gets_no_yes_from_push_and_worker(
    setup: WorkerSetup, worker: Make, base: Path, tmp_path: Path, lost: str
) -> None:
    method, variant, part = LOST[lost]
    setup.add_base("base", base)
    methods.make(transformers.AutoModelForCausalLM.from_pretrained(base), f"{method}/{variant}", tmp_path / "adapter")
    weights = tmp_path / "adapter" / models.WEIGHTS
    tensors = load_file(weights)
    name = next(name for name in sorted(tensors) if part in name)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights)
    try:
        setup.push(tmp_path / "adapter", base="base")
    except Refused:
        return
    worker().run(once=True)
    outcomes = {v.check: v.outcome for v in setup.harness.admin.version("acme/support").verdicts}
    assert Outcome.FAIL in (outcomes.get(Check.COMPAT), outcomes.get(Check.SMOKE)), outcomes
    with pytest.raises(Refused):
        setup.harness.admin.promote("acme/support", "prod", "1", generation=0)


@pytest.mark.parametrize(("method", "variant"), [("FROD", "plain"), ("UNILORA", "plain"), ("POLY", "plain"),
                                                 ("MULTITASK_PROMPT_TUNING", "plain"), ("SHIRA", "plain"),
                                                 ("LORA", "montecarlo")])  # fmt: skip
def test_honest_adapters_of_methods_that_need_values_or_tasks_pass(
    setup: WorkerSetup, worker: Make, base: Path, tmp_path: Path, method: str, variant: str
) -> None:
    setup.add_base("base", base)
    methods.make(transformers.AutoModelForCausalLM.from_pretrained(base), f"{method}/{variant}", tmp_path / "adapter")
    setup.push(tmp_path / "adapter", base="base")
    assert worker().run(once=True).done == 1
    verdicts: dict[Any, Any] = {v.check: v for v in setup.harness.admin.version("acme/support").verdicts}
    compat = Outcome.WARN if variant == "montecarlo" else Outcome.PASS  # a runtime for plain LoRA samples no factors
    assert {check: verdicts[check].outcome for check in (Check.COMPAT, Check.SMOKE)} == {
        Check.COMPAT: compat, Check.SMOKE: Outcome.PASS,
    }, [v.findings for v in verdicts.values()]  # fmt: skip
