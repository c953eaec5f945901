"""The modules of a base as a worker's library builds them: recorded once for each version, and used by every push."""

from __future__ import annotations

import pytest

from registry.api.bases import BaseAdd
from registry.bases.library import LibraryModules
from registry.errors import Denied
from registry.evaluation.verdicts import Check, Outcome
from tests import samples
from tests.base_specs import spec_of
from tests.harness import Harness

LIBRARY = "transformers 5.24.0"


@pytest.fixture
def unfamiliar(harness: Harness) -> Harness:
    """The base `wrapped`: its files call `language_model.model.…` what the library calls `model.…`."""
    spec = spec_of(samples.llama("wrapped"))
    renamed = {f"language_model.{path}": module for path, module in spec.modules.items()}
    harness.bases["wrapped"] = spec.model_copy(update={"modules": renamed, "names_known": False})
    harness.admin.add_base(BaseAdd(spec=harness.bases["wrapped"]))
    return harness


def built(library: str = LIBRARY, **changes: object) -> LibraryModules:
    return LibraryModules.model_validate({"library": library, "modules": spec_of(samples.llama("x")).modules} | changes)


def compat(harness: Harness, files: samples.Files) -> Outcome:
    pushed = harness.push("acme/a", files, base="wrapped")
    return newest_compat(harness, pushed.version.number)


def newest_compat(harness: Harness, number: int) -> Outcome:
    verdicts = harness.admin.version(f"acme/a@{number}").verdicts
    return [verdict.outcome for verdict in verdicts if verdict.check is Check.COMPAT][-1]


def test_a_push_is_checked_against_recorded_library_modules(unfamiliar: Harness) -> None:
    harness, good, wide = (
        unfamiliar,
        samples.lora(samples.llama("wrapped")),
        samples.lora(samples.llama("wide", hidden=128)),
    )
    assert compat(harness, good) is Outcome.UNKNOWN
    view = harness.admin.set_base_modules("wrapped", built())
    assert (view.spec.library, view.spec.names_known, view.fingerprint) == (LIBRARY, True, view.spec.fingerprint)
    assert compat(harness, samples.lora(samples.llama("wrapped"), rank=4)) is Outcome.PASS
    assert compat(harness, wide) is Outcome.FAIL


def test_a_refusal_by_assumed_names_is_renewed_once_a_library_has_built_the_base(harness: Harness) -> None:
    spec = spec_of(samples.llama("wrapped"))
    assumed = {path: module for path, module in spec.modules.items() if not path.endswith("1.self_attn.q_proj")}
    harness.bases["wrapped"] = spec.model_copy(update={"modules": assumed})
    harness.admin.add_base(BaseAdd(spec=harness.bases["wrapped"]))
    assert compat(harness, samples.lora(samples.llama("wrapped"))) is Outcome.FAIL
    assert compat(harness, samples.lora(samples.llama("wide", hidden=128))) is Outcome.FAIL
    harness.admin.set_base_modules("wrapped", built())
    harness.transport.settle()
    assert [newest_compat(harness, number) for number in (1, 2)] == [Outcome.PASS, Outcome.FAIL]
    smoke_tests = [job.subject for job in harness.admin.jobs(kind="smoke-test").items]
    assert smoke_tests == ["acme/a@1"], "what did not fail any more is tested as if it were pushed now"


def test_a_base_that_the_library_cannot_build_is_reported_and_keeps_its_headers(unfamiliar: Harness) -> None:
    spec = unfamiliar.bases["wrapped"]
    view = unfamiliar.admin.set_base_modules("wrapped", built(modules={}, problem="KeyError: 'x'"))
    assert (view.spec.library_problem, view.spec.modules) == ("KeyError: 'x'", spec.modules)
    assert not view.spec.names_known


@pytest.mark.security
def test_only_workers_of_all_namespaces_record_them(unfamiliar: Harness) -> None:
    with pytest.raises(Denied):
        unfamiliar.actor("work", "push", namespaces=["acme"], name="tenant").set_base_modules("wrapped", built())
    claimed = unfamiliar.bases["wrapped"].model_copy(update={"name": "other", "library": LIBRARY})
    assert unfamiliar.admin.add_base(BaseAdd(spec=claimed)).spec.library == ""
