"""`adapter base`: identify, relatives, thresholds."""

from __future__ import annotations

import pytest

from registry.worker.model import identify
from tests import samples
from tests.cli.runner import CommandRunner

needs_torch = pytest.mark.skipif(not identify.is_possible(), reason="the worker extra is not installed")


@needs_torch
@pytest.mark.usefixtures("forked_programs")
def test_identified_bases_show_how_they_are_related(cli: CommandRunner) -> None:
    first = samples.llama("first").write(cli.folder / "first")
    cli("base", "add", "first", first, "--identify")
    cli("base", "add", "org/renamed", samples.llama("first", shards=2).write(cli.folder / "renamed"), "--identify")
    cli("base", "add", "strange", samples.llama("strange", seed=2).write(cli.folder / "strange"))
    assert "exact" not in cli("base", "show", "strange").stdout
    cli("base", "identify", "strange", cli.folder / "strange")
    shown = cli("base", "show", "first").stdout
    assert "exact        org/renamed has the same weights, byte for byte" in shown
    assert "unrelated    strange" in shown
    result = cli("base", "show", "first", "--json").json["relatives"]
    assert [(relative["other"], relative["match"]) for relative in result] == [
        ("org/renamed", "exact"),
        ("strange", "unrelated"),
    ]


@needs_torch
@pytest.mark.usefixtures("forked_programs")
def test_bases_that_are_not_compared_are_unknown_in_one_line(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry may have 10,000 of them."""
    for limit in ("COMPARED_LIMIT", "COMPUTED_LIMIT"):
        monkeypatch.setattr(f"registry.server.catalog.base_weights.{limit}", 0)
    for seed, name in enumerate(("first", "second", "third")):
        cli("base", "add", name, samples.llama(name, seed=seed).write(cli.folder / name), "--identify")
    assert "unknown      second, third" in cli("base", "show", "first").stdout


@needs_torch
@pytest.mark.usefixtures("forked_programs")
def test_other_weights_under_the_name_of_a_base_are_refused(cli: CommandRunner) -> None:
    cli("base", "add", "first", samples.llama("first").write(cli.folder / "first"), "--identify")
    other = samples.llama("first", seed=2).write(cli.folder / "other")
    for words in (("add", "first", other, "--identify"), ("identify", "first", other)):
        refused = cli("base", *words, "--json", expect=5).problem
        assert refused["code"] == "BASE_EXISTS"
        assert "exists with other weights" in refused["detail"]
        assert "has unrelated weights" in refused["detail"]
    wide = samples.llama("first", hidden=128).write(cli.folder / "wide")
    assert "is not the base first" in cli("base", "identify", "first", wide, expect=2).stderr


def test_identify_without_the_worker_extra_says_what_to_install(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identify, "is_possible", lambda: False)
    folder = samples.llama("first").write(cli.folder / "first")
    assert "pip install '.[worker]'" in cli("base", "add", "first", folder, "--identify", expect=2).stderr
    cli("base", "add", "first", folder)


def test_thresholds_are_shown_set_one_by_one_and_reset(cli: CommandRunner) -> None:
    name = cli.add_base()
    own = {"drift_warn_kl_nats": 1.5}
    assert cli("base", "thresholds", name, "drift_warn_kl_nats=1.5", "--json").json["thresholds"] == own
    both = own | {"update_share_warn": 20.0}
    assert cli("base", "thresholds", name, "update_share_warn=20", "--json").json["thresholds"] == both
    shown = cli("base", "thresholds", name).stdout.splitlines()
    assert [line.split() for line in shown if "this base" in line] == [
        ["drift_warn_kl_nats", "1.5", "this", "base"], ["update_share_warn", "20", "this", "base"],
    ]  # fmt: skip
    assert cli("base", "thresholds", name, "--json").json["thresholds"] == both
    assert cli("base", "thresholds", name, "--reset", "drift_warn_kl_nats=2", "--json").json["thresholds"] == {
        "drift_warn_kl_nats": 2.0
    }
    assert cli("base", "thresholds", name, "--reset", "--json").json["thresholds"] == {}
