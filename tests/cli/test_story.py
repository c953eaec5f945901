"""The story of one adapter, told by the commands: pushed, tried, promoted, rolled back, pulled, traced, withdrawn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from registry.evaluation.verdicts import Finding
from tests import forge
from tests.cli.desk import Desk


@pytest.fixture
def story(desk: Desk) -> Desk:
    """Two versions of acme/support, both tried; the first is prod."""
    desk.base()
    desk.push("acme/support", "--message", "first try")
    desk.tried("acme/support@1")
    desk("promote", "acme/support@1", "prod", "--reason", "first release")
    desk.push("acme/support", "--message", "less rude", "--parent", "acme/support@1")
    desk.tried("acme/support@2")
    return desk


def lines(text: str) -> list[str]:
    """The text without times and digests, which differ from run to run."""
    text = re.sub(r"sha256:[0-9a-f]{64}", "DIGEST", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "SHORT", text)
    text = re.sub(r"█\S* +[0-9.]+", "BAR", text)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "TIME", text).splitlines()


def test_show_tells_everything_about_a_version_on_one_screen(story: Desk) -> None:
    assert lines(story("show", "acme/support").stdout) == [
        "acme/support@2  DIGEST",
        "  base      tiny-llama",
        "  method    LoRA, rank 8, alpha 16, scale 2, 7.2 k parameters, F32",
        "  targets   q_proj, v_proj in 8 modules",
        "  size      31.2 kB in 3 files",
        "  pushed    TIME by owner",
        "  message   less rude",
        "  parents   continued acme/support@1 DIGEST",
        "  verdicts  compat  pass",
        "            weights pass",
        "            smoke   pass",
        "  norms     of the update, scale · BA, by layer",
        *[f"            {layer} BAR" for layer in range(4)],
        "            by kind of module",
        *[f"            {module} BAR" for module in ("q_proj", "v_proj")],
        "            tiny-llama was not identified, so its own weights are not known: "
        "adapter base identify tiny-llama DIR",
        "  aliases   main → @2  since TIME by owner  pushed",
        "            prod → @1  since TIME by owner  first release",
        "  files     README.md  23 B",
        "            adapter_config.json  478 B",
        "            adapter_model.safetensors  30.7 kB",
    ]


def test_list_is_one_line_for_each_adapter(story: Desk) -> None:
    story.push("beta/other")
    assert lines(story("list").stdout) == [
        "NAME          NEWEST  BASE        METHOD  RANK     SIZE  COMPAT  SMOKE  ALIASES  UPDATED",
        "acme/support  @2      tiny-llama  LoRA       8  31.2 kB  pass    pass   prod@1   TIME",
        "beta/other    @1      tiny-llama  LoRA       8  31.2 kB  pass    -      -        TIME",
    ]
    assert [item["name"] for item in story("list", "--namespace", "beta", "--json").json["items"]] == ["beta/other"]
    assert len(story("list", "--limit", 1, "--json").json["items"]) == 1


def test_history_tells_who_moved_what_and_why_and_what_held_then(story: Desk) -> None:
    before = story("history", "acme/support:prod", "--json").json["moves"][0]["at"]
    story("promote", "acme/support@2", "prod", "--reason", "ticket 812")
    story("rollback", "acme/support", "prod", "--reason", "night shift")
    assert lines(story("history", "acme/support:prod").stdout) == [
        "acme/support:prod",
        "  TIME  prod  @2 → @1  by owner  generation 3",
        "      “night shift”",
        "      on as in generation 1",
        "  TIME  prod  @1 → @2  by owner  generation 2",
        "      “ticket 812”",
        "      on compat pass, smoke pass",
        "  TIME  prod  @1  by owner  generation 1",
        "      “first release”",
        "      on compat pass, smoke pass",
    ]
    then = story("history", "acme/support:prod", "--at", before, "--json").json["moves"]
    assert [(move["alias"], move["number"], move["generation"]) for move in then] == [("prod", 1, 1)]
    assert story("history", "acme/support:prod", "--at", "2020-01-01", "--json").json["moves"] == []


def test_lineage_is_a_tree_up_and_down(story: Desk) -> None:
    assert lines(story("lineage", "acme/support").stdout) == [
        "acme/support@2  SHORT",
        "├─ continued acme/support@1  SHORT",
        "│  └─ on tiny-llama (base)",
        "└─ on tiny-llama (base)",
    ]
    assert lines(story("lineage", "acme/support@1", "--down").stdout) == [
        "acme/support@1  SHORT",
        "└─ continued acme/support@2  SHORT",
    ]


def test_lineage_is_also_a_picture_for_other_programs(story: Desk) -> None:
    dot = story("lineage", "acme/support", "--format", "dot").stdout
    assert dot.startswith("digraph lineage {")
    assert '[label="acme/support@1"' in dot
    mermaid = story("lineage", "acme/support", "--format", "mermaid").stdout
    assert mermaid.startswith("flowchart LR")
    assert "-->|continued|" in mermaid
    found = json.loads(story("lineage", "acme/support", "--format", "json").stdout)
    assert {edge["relation"] for edge in found["edges"]} >= {"continued"}
    assert story("lineage", "acme/support", "--json").json == found


def test_a_pulled_folder_holds_the_bytes_that_were_pushed(desk: Desk, tmp_path: Path) -> None:
    desk.base()
    folder = desk.adapter("mine")
    desk("push", folder, "acme/support", "--base", "tiny-llama")
    said = desk("pull", "acme/support", tmp_path / "served", "--json").json
    assert said["path"] == str(tmp_path / "served")
    for path in folder.iterdir():
        assert (tmp_path / "served" / path.name).read_bytes() == path.read_bytes()


def test_a_pulled_folder_is_hashed_again_and_mended(desk: Desk, tmp_path: Path) -> None:
    desk.base()
    desk("push", desk.adapter("mine"), "acme/support", "--base", "tiny-llama")
    desk("pull", "acme/support", tmp_path / "served")
    weights = tmp_path / "served" / "adapter_model.safetensors"
    right = weights.read_bytes()
    assert desk("pull", "acme/support", tmp_path / "served", "--verify", "--json").json["damaged"] == []
    weights.chmod(0o644)
    weights.write_bytes(b"x" + right[1:])
    assert f"damaged, fetched again: {weights}" in desk("pull", "acme/support", tmp_path / "served", "--verify").stdout
    assert weights.read_bytes() == right


def test_the_same_folder_again_is_the_same_version(desk: Desk) -> None:
    desk.base()
    folder = desk.adapter("mine")
    first = desk("push", folder, "acme/support", "--base", "tiny-llama", "--json").json
    again = desk("push", folder, "acme/support", "--base", "tiny-llama", "--json").json
    assert (first["created"], again["created"]) == (True, False)
    assert first["version"]["digest"] == again["version"]["digest"]
    assert "nothing sent" in desk("push", folder, "acme/support").stdout


def test_a_push_says_what_it_leaves_out_and_finds_the_base_itself(desk: Desk) -> None:
    desk.base()
    folder = desk.adapter("mine")
    (folder / "optimizer.pt").write_bytes(b"state")
    said = desk("push", folder, "acme/support")
    assert "left out: optimizer.pt" in said.stderr
    assert "smoke   not tried yet: adapter smoke-test acme/support@1 --wait" in said.stdout


def test_an_adapter_for_another_base_is_kept_and_goes_nowhere(desk: Desk) -> None:
    desk.base()
    folder = desk.adapter("wrong", forge.llama(hidden=32))
    said = desk("push", folder, "acme/wrong", "--base", "tiny-llama", "--strict", expect=6)
    assert "has shape [8, 32]; tiny-llama takes [8, 64]" in said.stdout
    assert "gates stay closed" in said.stdout
    assert "does not fit" in said.stdout
    assert desk("promote", "acme/wrong", "canary", "--json", expect=6).problem["code"] == "GATE_CLOSED"
    assert desk("push", folder, "acme/wrong", "--base", "tiny-llama").exit_code == 0


def test_prod_opens_for_what_was_tried_and_not_for_what_was_not(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support")
    said = desk("promote", "acme/support", "prod", expect=6)
    assert "Next: run `adapter smoke-test acme/support@1 --wait`" in said.stderr
    desk.tried("acme/support", Finding(code="smoke.not_finite", severity="error", location="logits", message="NaN"))
    assert "says fail: NaN" in desk("promote", "acme/support", "prod", expect=6).stderr


def test_a_promotion_against_a_stale_generation_is_a_conflict(story: Desk) -> None:
    said = story("promote", "acme/support@2", "prod", "--generation", 0, "--json", expect=5)
    assert said.problem["code"] == "ALIAS_MOVED"
    assert story("show", "acme/support:prod", "--json").json["number"] == 1


def test_a_rollback_goes_to_the_version_that_is_named(story: Desk) -> None:
    story("promote", "acme/support@2", "prod")
    assert story("rollback", "acme/support", "prod", "--to", "@1", "--json").json["number"] == 1
    assert story("rollback", "acme/support", "prod", "--to", "acme/support@2", "--json").json["number"] == 2
    assert "belongs to acme/support" in story("rollback", "acme/support", "prod", "--to", "a/b@2", expect=2).stderr


def test_a_yanked_version_is_refused_by_name_and_given_by_digest(story: Desk, tmp_path: Path) -> None:
    digest = story("show", "acme/support@2", "--json").json["digest"]
    said = story("yank", "acme/support@2", "--reason", "rude after all")
    assert "rude after all" in said.stdout
    assert "answers YANKED until the next push" in said.stdout
    assert story("pull", "acme/support", tmp_path / "x", "--json", expect=6).problem["code"] == "YANKED"
    assert not (tmp_path / "x").exists()
    assert "is yanked" in story("pull", f"acme/support@{digest}", tmp_path / "x").stdout


def test_every_folder_of_a_fleet_is_pushed_whatever_becomes_of_the_others(desk: Desk, tmp_path: Path) -> None:
    desk.base()
    desk.adapter("good")
    desk.adapter("wrong", forge.llama(hidden=32))
    broken = desk.adapter("broken")
    (broken / "adapter_model.safetensors").write_bytes(b"not safetensors")
    said = desk("push-all", tmp_path / "adapters", "fleet", "--base", "tiny-llama", expect=2)
    assert "fleet/good@1  new  compat pass" in said.stdout
    assert "fleet/wrong@1  new  compat fail" in said.stdout
    assert "fleet/broken  refused" in said.stdout
    assert said.stdout.splitlines()[-1] == "2 new versions, 0 unchanged, 1 refused; 1 with a failing verdict"
    items = desk("push-all", tmp_path / "adapters", "fleet", "--base", "tiny-llama", "--json", expect=2).json["items"]
    assert [bool(item["pushed"]) for item in items] == [False, True, True]
    assert items[0]["error"]["code"] == "TENSORS_INVALID"


def test_the_whole_fleet_of_a_base_is_pulled_and_one_that_cannot_be_stops_none(desk: Desk, tmp_path: Path) -> None:
    desk.base()
    folders = [desk.adapter(name) for name in ("a", "b", "c")]
    desk("push-all", tmp_path / "adapters", "fleet")
    there = tmp_path / "out" / "fleet" / "b"
    there.mkdir(parents=True)
    (there / "mine.txt").write_text("not yours")
    said = desk("pull-all", tmp_path / "out", "--base", "tiny-llama", expect=2)
    assert said.stdout.splitlines()[-1] == f"2 adapters in {tmp_path / 'out'}, 1 not"
    assert "fleet/b  refused" in said.stdout
    for folder in (folders[0], folders[2]):
        weights = (tmp_path / "out" / "fleet" / folder.name / "adapter_model.safetensors").read_bytes()
        assert weights == (folder / "adapter_model.safetensors").read_bytes()
    items = desk("pull-all", tmp_path / "new", "--base", "tiny-llama", "--json").json["items"]
    assert [item["resolved"]["number"] for item in items] == [1, 1, 1]
    none = desk("pull-all", tmp_path / "new", "--base", "tiny-llama", "--namespace", "elsewhere")
    assert none.stdout.startswith("0 adapters")
    none = desk("pull-all", tmp_path / "new", "--base", "tiny-llama", "--alias", "production")
    assert none.stdout.startswith("0 adapters")


def test_the_audit_log_tells_everything_in_order(story: Desk) -> None:
    items = story("audit", "log", "--json").json["items"]
    assert [item["seq"] for item in items] == sorted(item["seq"] for item in items)
    assert {"base.add", "version.push", "alias.move", "verdict.add"} <= {item["action"] for item in items}
    text = story("audit", "log", "--limit", 3).stdout.splitlines()
    assert len(text) == 3
    assert story("audit", "log", "--after", items[-1]["seq"], "--json").json["items"] == []


def test_base_show_and_list_read_the_registered_facts(desk: Desk) -> None:
    assert "Register one" in desk("base", "list").stdout
    desk.base()
    assert "4 layers, width 64, 4 heads (2 for keys), vocabulary 512" in desk("base", "show", "tiny-llama").stdout
    assert [item["name"] for item in desk("base", "list", "--json").json["items"]] == ["tiny-llama"]
    assert desk("base", "show", "none", "--json", expect=4).problem["code"] == "BASE_UNKNOWN"


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["show", "acme/none"], 4, "there is no adapter"),
        (["show", "Acme/none"], 2, "use 'acme'"),
        (["show", "acme/x@0"], 2, "looks like a version number"),
        (["pull", "acme/x:prod@3"], 2, "name 'x:prod' must be"),
        (["push", "nowhere", "acme/x", "--base", "b"], 2, "there is no folder 'nowhere'"),
        (["push-all", "nowhere", "acme"], 2, "nowhere"),
        (["history", "acme/x@3"], 2, "NAME or NAME:ALIAS"),
        (["history", "acme/x", "--at", "yesterday"], 2, "is not a time"),
        (["promote", "acme/x", "3"], 4, "there is no adapter"),
        (["yank", "acme/x"], 2, "--reason"),
        (["job", "list", "--state", "odd"], 2, "odd"),
        (["token", "revoke", "tok_none"], 4, "there is no token"),
        (["base", "add", "x", "nowhere"], 2, "nowhere"),
    ],
)
def test_bad_input_ends_in_a_sentence_and_its_exit_code(desk: Desk, words: list[str], code: int, part: str) -> None:
    said = desk(*words, expect=code)
    assert part in said.stderr.replace("\n", " ")
    assert "Traceback" not in said.stderr


def test_an_alias_whose_gate_stays_shut_is_told_and_exits_6_though_the_version_is_there(desk: Desk) -> None:
    desk.base()
    said = desk("push", desk.adapter("mine"), "acme/support", "--base", "tiny-llama", "--alias", "prod", expect=6)
    assert "acme/support@1" in said.stdout
    assert "The alias did not move: version 1 of 'acme/support' may not become 'prod'" in said.stdout
    assert desk("show", "acme/support", "--json").exit_code == 0
