"""`adapter list`: its table and its filters."""

from __future__ import annotations

from tests.cli.runner import CommandRunner, lines


def test_list_without_a_match_says_how_many_there_are(released: CommandRunner) -> None:
    assert released("list", "--text", "none").stdout == "No adapter matches; 1 without filters.\n"


def test_list_has_one_line_for_each_adapter(released: CommandRunner) -> None:
    released.push("beta/other")
    assert lines(released("list").stdout) == [
        "NAME          NEWEST  BASE        COMPAT  WEIGHTS  SMOKE  ALIASES  UPDATED  METHOD  RANK     SIZE",
        "acme/support  @2      tiny-llama  pass    pass     pass   prod@1   TIME  LoRA       8  31.2 kB",
        "beta/other    @1      tiny-llama  pass    pass     -      -        TIME  LoRA       8  31.2 kB",
    ]
    assert [item["name"] for item in released("list", "--namespace", "beta", "--json").json["items"]] == ["beta/other"]
    assert len(released("list", "--limit", 1, "--json").json["items"]) == 1
    assert [item["name"] for item in released("list", "acme/support", "--json").json["items"]] == ["acme/support"]
    assert released("list", "acme/support").stderr == "adapter versions acme/support lists its versions\n"
    assert "filters do not go with NAME" in released("list", "acme/support", "--method", "lora", expect=2).stderr
