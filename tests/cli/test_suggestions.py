"""A misspelled command or option gets the nearest names, except where they would do harm."""

from __future__ import annotations

import pytest

from tests.cli.runner import CommandRunner


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["pul", "acme/x"], "Did you mean 'pull'?"),
        (["versons", "acme/x"], "Did you mean 'versions'?"),
        (["token", "lst"], "Did you mean 'list'?"),
        (["push", "x", "acme/x", "--bse", "y"], "--base"),
        (["download", "acme/x"], "Did you mean 'pull'?"),
        (["list", "acme"], "Next: adapter list --namespace acme"),
        (["convert", "./x", "--format", "plain"], "'./x' is a path, and convert needs REF of the registry"),
        (["check", "nowhere"], "Next: name a folder that exists, or a version as NAMESPACE/NAME"),
        (["job", "list", "--kind", "merge", "--kind", "convert"], "--kind is written twice, and takes one value"),
    ],
)
def test_a_misspelled_word_gets_the_nearest(cli: CommandRunner, words: list[str], suggested: str) -> None:
    assert suggested in cli(*words, expect=2).stderr


@pytest.mark.parametrize(
    "words", [["delet", "acme/x"], ["yan", "acme/x@1"], ["token", "revok", "x"], ["delete", "acme/x", "--ye"]]
)
def test_what_cannot_be_undone_is_not_suggested(cli: CommandRunner, words: list[str]) -> None:
    stderr = cli(*words, expect=2).stderr
    assert "No such" in stderr
    assert "mean" not in stderr


def test_an_empty_list_says_that_it_is_of_the_embedded_registry(cli: CommandRunner) -> None:
    for words in (["list"], ["base", "list"]):
        assert cli(*words).stdout.startswith("This is the embedded registry, because no other is set. No ")
        assert "embedded" not in cli(*words, ADAPTER_REGISTRY="embedded").stdout
        assert cli(*words, "--json").json["items"] == []


def test_weights_that_were_not_downloaded_whole_are_named_as_such(cli: CommandRunner) -> None:
    weights = cli.make_adapter("support") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "the file is truncated" in cli("check", weights.parent, "--base", "x", expect=2).stderr
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "Next: download the files themselves" in cli("check", weights.parent, "--base", "x", expect=2).stderr


def test_help_is_a_word_too(cli: CommandRunner) -> None:
    assert cli("help").stdout == cli("--help").stdout
    assert cli("version").stdout == cli("--version").stdout
    assert cli("help", "token", "create").stdout == cli("token", "create", "--help").stdout
    assert "Did you mean 'pull'?" in cli("help", "pul", expect=2).stderr


def test_a_misspelled_adapter_or_alias_gets_the_nearest_where_no_harm_is_done(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    cli.push("acme/sales", seed=2)
    for words, nearest in (
        (("show", "acme/suport"), "acme/support"), (("cat", "acme/slaes:main", "README.md"), "acme/sales"),
        (("promote", "acme/support:canry", "prod"), "acme/support:canary"),
        (("base", "show", "tiny-lama"), "tiny-llama"),
    ):  # fmt: skip
        assert f"Next: did you mean '{nearest}'? `adapter " in cli(*words, expect=4).stderr
        assert cli(*words, "--json", expect=4).problem["candidates"] == [nearest]
    for command in (
        "delete acme/suport --yes", "yank acme/support:canry --reason x", "show acme/billing", "show acme/support:prod",
    ):  # fmt: skip
        assert "did you mean" not in cli(*command.split(), expect=4).stderr


def test_a_misspelled_base_of_a_list_gets_the_nearest(cli: CommandRunner) -> None:
    cli.add_base()
    assert "No adapters." in (empty := cli("list", "--base", "tiny-lama").stdout)
    assert empty.endswith("Did you mean --base tiny-llama?\n")
    cli.push("acme/support")
    assert "1 without filters. Did you mean --base tiny-llama?" in cli("list", "--base", "tiny-lama").stdout
    assert "mean" not in cli("list", "--base", "tiny-llama", "--alias", "prod").stdout


def test_a_blank_before_a_version_or_alias_is_named(cli: CommandRunner) -> None:
    for words, ref in (
        (("show", "acme/x", "@2"), "acme/x@2"),
        (("history", "acme/x", ":prod", "-o", "wide"), "acme/x:prod"),
    ):
        assert f"unexpected extra argument ({words[2]}). Did you mean '{ref}'?" in cli(*words, expect=2).stderr
    assert "mean" not in cli("yank", "acme/x", "@2", "--reason", "r", expect=2).stderr


def test_a_tag_among_patterns_of_names_is_an_error(cli: CommandRunner) -> None:
    words = ("promote", "--namespace", "acme", "--from", "canary", "--to", "prod", "--select", "team=nlp")
    assert "a tag is 'tag=team=nlp'" in cli(*words, expect=2).stderr
