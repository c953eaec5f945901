"""Modules of a base as a library builds them: which replace which, and what they change in the spec."""

from __future__ import annotations

import pytest

from registry.bases.library import LibraryModules, is_newer
from registry.bases.modules import ModuleShape
from tests import samples
from tests.domain.specs import base_spec

LINEAR = ModuleShape(kind="linear", in_features=64, out_features=64)


@pytest.mark.parametrize(
    ("library", "other", "newer"),
    [
        ("transformers 5.24.0", "", True),
        ("transformers 5.24.0", "transformers 5.9.1", True),
        ("transformers 5.24.0", "transformers 5.24.0", False),
        ("transformers 5.24.0+cpu", "transformers 5.24.0", False),
        ("transformers 5.9.1", "transformers 5.24.0", False),
        ("transformers 5.9.1", "other 9.0", True),
    ],
)
def test_a_newer_version_or_another_library_replaces_the_modules(library: str, other: str, newer: bool) -> None:
    assert is_newer(library, other) is newer
    assert LibraryModules(library=library).replaces(other) is newer


def test_its_modules_are_sure_and_experts_keep_the_names_of_the_files() -> None:
    spec = base_spec(samples.llama()).model_copy(update={"names_known": False})
    starred = {"model.layers.0.mlp.experts.*.w1": ModuleShape(kind="linear", count=4)}
    spec = spec.model_copy(update={"modules": spec.modules | starred})
    built = LibraryModules(library="transformers 5.24.0", modules={"model.q": LINEAR}, vocab=700, tied=True)
    applied = built.apply(spec)
    assert applied.modules == {"model.q": LINEAR} | starred
    assert (applied.library, applied.names_known, applied.vocab, applied.tied) == (built.library, True, 700, True)
    assert applied.fingerprint == spec.fingerprint


def test_a_base_that_it_cannot_build_keeps_what_its_headers_say() -> None:
    spec = base_spec(samples.llama())
    applied = LibraryModules(library="transformers 5.24.0", problem="KeyError: 'other'").apply(spec)
    assert (applied.modules, applied.library_problem) == (spec.modules, "KeyError: 'other'")
