"""Bases at the command line: weights that are read where asked for, and how bases are related."""

from __future__ import annotations

import pytest

from registry.worker.model import identify
from tests import forge
from tests.cli.desk import Desk

needs_torch = pytest.mark.skipif(not identify.is_possible(), reason="the worker extra is not installed")


@needs_torch
def test_bases_whose_weights_were_read_say_how_they_are_related(desk: Desk) -> None:
    first = forge.llama("first").write(desk.folder / "first")
    desk("base", "add", "first", first, "--identify")
    desk("base", "add", "org/renamed", forge.llama("first", shards=2).write(desk.folder / "renamed"), "--identify")
    desk("base", "add", "strange", forge.llama("strange", seed=2).write(desk.folder / "strange"))
    assert "exact" not in desk("base", "show", "strange").stdout
    desk("base", "identify", "strange", desk.folder / "strange")
    shown = desk("base", "show", "first").stdout
    assert "exact        org/renamed has the same weights, byte for byte" in shown
    assert "unrelated    strange" in shown
    found = desk("base", "show", "first", "--json").json["relatives"]
    assert [(one["other"], one["match"]) for one in found] == [("org/renamed", "exact"), ("strange", "unrelated")]


@needs_torch
def test_other_weights_under_the_name_of_a_base_are_refused_in_one_sentence(desk: Desk) -> None:
    desk("base", "add", "first", forge.llama("first").write(desk.folder / "first"), "--identify")
    other = forge.llama("first", seed=2).write(desk.folder / "other")
    for words in (("add", "first", other, "--identify"), ("identify", "first", other)):
        refused = desk("base", *words, "--json", expect=5).problem
        assert refused["code"] == "BASE_EXISTS"
        assert "exists with other weights" in refused["detail"]
        assert "has unrelated weights" in refused["detail"]
    wide = forge.llama("first", hidden=128).write(desk.folder / "wide")
    assert "is not the base first" in desk("base", "identify", "first", wide, expect=2).stderr


def test_without_the_worker_extra_reading_weights_says_what_to_install(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identify, "PACKAGE", "no_such_package")
    folder = forge.llama("first").write(desk.folder / "first")
    assert "adapter-registry[worker]" in desk("base", "add", "first", folder, "--identify", expect=2).stderr
    desk("base", "add", "first", folder)


def test_thresholds_are_shown_set_one_by_one_and_reset(desk: Desk) -> None:
    name = desk.base()
    own = {"drift_warn_kl_nats": 1.5}
    assert desk("base", "thresholds", name, "drift_warn_kl_nats=1.5", "--json").json["thresholds"] == own
    both = own | {"update_share_warn": 20.0}
    assert desk("base", "thresholds", name, "update_share_warn=20", "--json").json["thresholds"] == both
    shown = desk("base", "thresholds", name).stdout.splitlines()
    assert [line.split() for line in shown if "of this base" in line] == [
        ["drift_warn_kl_nats", "1.5", "of", "this", "base"], ["update_share_warn", "20", "of", "this", "base"],
    ]  # fmt: skip
    assert desk("base", "thresholds", name, "--json").json["thresholds"] == both
    assert desk("base", "thresholds", name, "--reset", "drift_warn_kl_nats=2", "--json").json["thresholds"] == {
        "drift_warn_kl_nats": 2.0
    }
    assert desk("base", "thresholds", name, "--reset", "--json").json["thresholds"] == {}
