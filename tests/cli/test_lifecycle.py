"""The life of an adapter by command: push, smoke test, promote, roll back, pull, lineage, yank."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from registry.digest import Digest
from registry.evaluation.reports import Answer
from registry.server.audit import keys
from registry.server.settings import Settings
from tests import samples
from tests.cli.runner import CommandRunner, lines


def test_show_prints_everything_about_a_version(released: CommandRunner) -> None:
    assert lines(released("show", "acme/support").stdout) == [
        "acme/support@2  DIGEST",
        "  aliases    main → @2  since TIME by owner  pushed",
        "             prod → @1  since TIME by owner  first release",
        "  verdicts   compat  pass",
        "             weights pass",
        "             smoke   pass",
        "  base       tiny-llama",
        "  served as  acme-support-v2",
        "  method     LoRA, rank 8, alpha 16, scale 2, 7.2 k parameters, F32",
        "  targets    q_proj, v_proj in 8 modules",
        "  size       31.2 kB in 3 files",
        "  pushed     TIME by owner",
        "  message    less rude",
        "  parents    continued acme/support@1 DIGEST",
        "  files      README.md  23 B",
        "             adapter_config.json  478 B",
        "             adapter_model.safetensors  30.7 kB",
    ]
    assert lines(released("show", "acme/support", "--norms").stdout)[14:22] == [
        "  norms      of the update, scale · BA, by layer",
        *[f"             {layer} BAR" for layer in range(4)],
        "             by kind of module",
        *[f"             {module} BAR" for module in ("q_proj", "v_proj")],
    ]


def test_show_answers_prints_what_base_and_adapter_say(released: CommandRunner) -> None:
    none = "No smoke test of this version has recorded answers.\n"
    assert released("show", "acme/support@2", "--answers").stdout == none
    released.push("acme/support", "--message", "friendlier")
    released.finish_smoke_test("acme/support@3", answers=(Answer(prompt="Shop:", base=" No\n", adapter="\x1b[2J"),))
    printed = released("show", "acme/support", "--answers").stdout
    assert printed == "Shop:\n  base      No\\n\n  adapter  \\x1b[2J\n"
    answers = released("show", "acme/support", "--answers", "--json").json["answers"]
    assert answers == [{"prompt": "Shop:", "base": " No\\n", "adapter": "\\x1b[2J"}]


def test_history_shows_who_moved_what_why_and_on_which_evidence(released: CommandRunner) -> None:
    before = released("history", "acme/support:prod", "--json").json["moves"][0]["at"]
    released("promote", "acme/support@2", "prod", "--reason", "ticket 812")
    released("rollback", "acme/support", "prod", "--reason", "night shift")
    assert lines(released("history", "acme/support:prod").stdout) == [
        "acme/support:prod",
        "TIME                     ALIAS  VERSION  BY     GENERATION",
        "TIME  prod   @2 → @1  owner           3",
        "      “night shift”",
        "      on the evidence of generation 1",
        "TIME  prod   @1 → @2  owner           2",
        "      “ticket 812”",
        "      on compat pass, smoke pass",
        "TIME  prod   @1       owner           1",
        "      “first release”",
        "      on compat pass, smoke pass",
    ]
    then = released("history", "acme/support:prod", "--at", before, "--json").json["moves"]
    assert [(move["alias"], move["number"], move["generation"]) for move in then] == [("prod", 1, 1)]
    assert released("history", "acme/support:prod", "--at", "2020-01-01", "--json").json["moves"] == []
    today = before[:10]
    in_effect = released("history", "acme/support:prod", "--at", today, "--json").json["moves"]
    assert [move["generation"] for move in in_effect] == [3], "a date is the end of its day"
    of_today = ("history", "acme/support", "--since", today, "--until", today, "--json")
    assert len(released(*of_today).json["moves"]) == len(released("history", "acme/support", "--json").json["moves"])
    assert released(*of_today, "--actor", "somebody").json["moves"] == []
    assert "0 of " in released("history", "acme/support", "--until", "2020-01-01").stderr
    newest = released("history", "acme/support:prod", "--limit", 2)
    assert [line.split()[4:7] for line in newest.stdout.splitlines() if " UTC " in line] == [
        ["@2", "→", "@1"], ["@1", "→", "@2"],
    ]  # fmt: skip
    assert "2 of 3" in newest.stderr


def test_lineage_is_a_tree_up_and_down(released: CommandRunner) -> None:
    assert lines(released("lineage", "acme/support").stdout) == [
        "acme/support@2  SHORT",
        "├─ continued acme/support@1  SHORT",
        "│  └─ on tiny-llama (base)",
        "└─ on tiny-llama (base)",
    ]
    assert lines(released("lineage", "acme/support@1", "--down").stdout) == [
        "acme/support@1  SHORT",
        "└─ continued acme/support@2  SHORT",
    ]


def test_lineage_is_drawn_for_other_programs(released: CommandRunner) -> None:
    dot = released("lineage", "acme/support", "--as", "dot").stdout
    assert dot.startswith("digraph lineage {")
    assert '[label="acme/support@1"' in dot
    mermaid = released("lineage", "acme/support", "--as", "mermaid").stdout
    assert mermaid.startswith("flowchart LR")
    assert "-->|continued|" in mermaid
    result = json.loads(released("lineage", "acme/support", "--json").stdout)
    assert {edge["relation"] for edge in result["edges"]} >= {"continued"}
    assert released("lineage", "acme/support", "--json").json == result


def test_a_pulled_folder_has_the_pushed_bytes(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    folder = cli.make_adapter("mine")
    cli("push", folder, "acme/support", "--base", "tiny-llama")
    result = cli("pull", "acme/support", tmp_path / "served", "--json").json
    assert result["path"] == str(tmp_path / "served")
    for path in folder.iterdir():
        assert (tmp_path / "served" / path.name).read_bytes() == path.read_bytes()


def test_pull_verify_hashes_again_and_repairs(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    cli("push", cli.make_adapter("mine"), "acme/support", "--base", "tiny-llama")
    cli("pull", "acme/support", tmp_path / "served")
    weights = tmp_path / "served" / "adapter_model.safetensors"
    right = weights.read_bytes()
    assert cli("pull", "acme/support", tmp_path / "served", "--verify", "--json").json["damaged"] == []
    weights.chmod(0o644)
    weights.write_bytes(b"x" + right[1:])
    assert f"damaged, fetched again: {weights}" in cli("pull", "acme/support", tmp_path / "served", "--verify").stdout
    assert weights.read_bytes() == right


def test_a_partial_pull_never_looks_whole(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    folder = cli.make_adapter("mine")
    cli("push", folder, "acme/support", "--base", "tiny-llama")
    bundle, dest = tmp_path / "bundle.json", tmp_path / "some"
    result = cli("pull", "acme/support", dest, "--include", "*.json", "--include", "*.md")
    assert "partial: 2 of 3 files" in result.stdout
    assert sorted(path.name for path in dest.iterdir()) == [".adapter.partial.json", "README.md", "adapter_config.json"]
    assert json.loads((dest / ".adapter.partial.json").read_text())["include"] == ["*.json", "*.md"]
    cli("verify", "acme/support", "--out", bundle)
    assert "adapter_model.safetensors" in cli("verify", "--offline", bundle, "--folder", dest, expect=70).stdout

    pull = ("pull", "acme/support", dest, "--verify", "--json")
    checked = cli(*pull, "--include", "*.json").json
    assert (checked["partial"], checked["damaged"]) == (["adapter_config.json"], [])
    assert "README.md" in [path.name for path in dest.iterdir()], "what is intact is not replaced"
    assert cli(*pull).json["damaged"] == []
    assert {path.name for path in dest.iterdir()} == {".adapter.json", *(path.name for path in folder.iterdir())}
    refused = cli("pull", "acme/support", dest, "--include", "*.json", expect=2)
    assert "has a whole version" in refused.stderr
    assert (dest / "adapter_model.safetensors").exists()
    none = cli("pull", "acme/support", tmp_path / "none", "--include", "*.gguf", expect=4)
    assert "no file matches *.gguf; the version has README.md, adapter_config.json" in none.stderr
    assert not (tmp_path / "none").exists()


def test_cat_prints_verified_bytes(cli: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.add_base()
    folder = cli.make_adapter("mine")
    (folder / "README.md").write_text("# \x1b]0;mine\x07 card\n")
    cli("push", folder, "acme/support", "--base", "tiny-llama")
    assert cli("cat", "acme/support", "README.md").stdout == "# \x1b]0;mine\x07 card\n"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        response = cli("cat", "acme/support@1", name, "--json").json
        assert base64.b64decode(response["data"]) == (folder / name).read_bytes()
        assert response["digest"] == Digest.of_file(folder / name)
    assert "the version has README.md" in cli("cat", "acme/support", "other.json", expect=4).stderr

    monkeypatch.setattr("cli.pull.sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    assert cli("cat", "acme/support", "README.md").stdout == "# \\x1b]0;mine\\x07 card\n"
    refused = cli("cat", "acme/support", "adapter_model.safetensors", expect=2)
    assert refused.stdout == ""
    assert "Next: adapter cat acme/support adapter_model.safetensors > FILE" in refused.stderr


def test_cat_prints_nothing_of_damaged_bytes(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    folder = cli.make_adapter("mine")
    cli("push", folder, "acme/support", "--base", "tiny-llama")
    digest = Digest.of_file(folder / "adapter_model.safetensors")
    (stored,) = (path for path in (tmp_path / "data").rglob("*") if path.is_file() and digest.hex[2:] in str(path))
    stored.chmod(0o644)
    data = stored.read_bytes()
    stored.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cli("cat", "acme/support", "adapter_model.safetensors", expect=70).stdout == ""


def test_a_push_lists_skipped_files_and_finds_the_base(cli: CommandRunner) -> None:
    cli.add_base()
    folder = cli.make_adapter("mine")
    (folder / "optimizer.pt").write_bytes(b"state")
    result = cli("push", folder, "acme/support")
    assert "left out: optimizer.pt" in result.stderr
    assert "smoke   not tested yet, its job is queued: adapter worker --once" in result.stdout
    for words in (["show", "acme/support"], ["push", folder, "acme/support"]):
        assert "smoke   not tested yet, its job is queued: adapter worker --once" in cli(*words).stdout


def test_a_whole_model_is_refused_before_it_is_sent(cli: CommandRunner) -> None:
    name = cli.add_base()
    folder = cli.folder / "bases" / name
    for words in (["push", folder, "acme/support", "--base", name], ["push", folder, "acme/x"], ["check", folder]):
        problem = cli(*words, "--json", expect=2).problem
        assert problem["detail"] == "model.safetensors holds a whole model, not an adapter"
        assert "adapter base add" in problem["next_step"]
    assert cli("list", "--json").json["items"] == []


def test_a_promotion_against_a_stale_generation_is_a_conflict(released: CommandRunner) -> None:
    result = released("promote", "acme/support@2", "prod", "--generation", 0, "--json", expect=5)
    assert result.problem["code"] == "ALIAS_MOVED"
    assert released("show", "acme/support:prod", "--json").json["number"] == 1


def test_a_rollback_goes_to_the_given_version(released: CommandRunner) -> None:
    released("promote", "acme/support@2", "prod")
    back = ("rollback", "acme/support", "prod", "--reason", "slow")
    planned = released(*back, "--dry-run").stdout
    assert "acme/support:prod @2 → @1 " in planned
    assert "planned: nothing was changed" in planned
    assert "acme/support:prod @2 → @1 " in released(*back, "--yes", "--version", "@1").stdout
    assert released(*back, "--version", "acme/support@2", "--json").json["from_number"] == 1
    assert "acme/support:prod → @2 already" in released("promote", "acme/support@2", "prod", "--dry-run").stdout
    assert "belongs to acme/support" in released(*back, "--version", "a/b@2", expect=2).stderr
    assert "--reason" in released(*back[:3], expect=2).stderr


def test_a_new_alias_that_looks_like_another_one_is_meant(released: CommandRunner) -> None:
    """The name that is typed → whether it needs --create-alias, where `prod` is an alias and `staging` has a gate."""
    released("gate", "set", "acme", "staging", "--require", "compat")
    for alias, is_near in {
        "prd": True,
        "porduction": True,
        "stagin": True,
        "preprod": False,
        "prod2": False,
        "staging": False,
    }.items():
        words = ("promote", "acme/support@2", alias)
        result = released(*words, expect=4 if is_near else 0)
        assert is_near or "a new alias, " in result.stdout
        if is_near:
            assert f"adapter 'acme/support' has no alias '{alias}', which looks like" in result.stderr
            assert "For a new alias pass --create-alias" in result.stderr
    pushed = released("push", released.make_adapter("next"), "acme/support", "--alias", "prd", expect=6).stdout
    assert "The alias did not move: adapter 'acme/support' has no alias 'prd', which looks like 'prod'" in pushed
    assert pushed.endswith(" prd\n"), "the command that says what the alias lacks, and takes --create-alias"
    assert released("promote", "acme/support@2", "prd", "--create-alias", "--json").json["generation"] == 1
    assert released("promote", "acme/support@1", "prd", "--json").json["generation"] == 2


def test_a_version_is_named_as_people_write_it(released: CommandRunner) -> None:
    digest = released("show", "acme/support@v1", "--json").json["digest"]
    short = f"acme/support@{digest[:15]}"
    assert released("show", short, "--json").json["number"] == 1
    assert (
        released("rollback", "acme/support:prod", "--reason", "slow", "--version", short, "--json").json["number"] == 1
    )
    unknown = released("show", "acme/support@sha256:00000000", "--json", expect=4)
    assert unknown.problem["code"] == "VERSION_UNKNOWN"


def test_a_key_that_has_signed_nothing_is_not_lost(cli: CommandRunner) -> None:
    cli.add_base()
    refused = cli("audit-key", "replace", "--reason", "the disk is gone", expect=5)
    assert "no key has signed a checkpoint of this log yet\nNext: start the server, which makes a key" in refused.stderr
    keys.load_keys(Settings.from_env())
    refused = cli("audit-key", "replace", "--reason", "the disk is gone", expect=5)
    assert "Next: `adapter audit-key rotate` changes a key that is there" in refused.stderr
    cli("audit-key", "rotate")


def test_push_all_and_pull_name_each_check_that_failed(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    cli.make_adapter("good")
    weights = cli.make_adapter("nan") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\xc0\x7f")
    output = cli("push-all", tmp_path / "adapters", "globex", "--base", "tiny-llama").stdout
    assert "globex/good@1  new  compat pass\n" in output
    assert "globex/nan@1  new  compat pass  weights fail\n" in output
    warning = cli("pull", "globex/nan", tmp_path / "nan").stderr
    assert "Warning: globex/nan@1 failed its check: weights\n" in warning
    assert "Warning" not in cli("pull", "globex/good", tmp_path / "good").stderr
    assert "is now version 2\n" in cli("push", cli.make_adapter("better"), "globex/nan").stdout
    weights = cli.make_adapter("worse") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\xc0\x7f")
    pushed = cli("push", tmp_path / "adapters" / "worse", "globex/nan", "--json").json
    assert (pushed["main_number"], pushed["main"]) == (2, "main stays at version 2: weights fails")


def test_push_all_continues_after_a_failure(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    cli.make_adapter("good")
    cli.make_adapter("wrong", samples.llama(hidden=32))
    broken = cli.make_adapter("broken")
    (broken / "adapter_model.safetensors").write_bytes(b"not safetensors")
    result = cli("push-all", tmp_path / "adapters", "globex", "--base", "tiny-llama", expect=2)
    assert "globex/good@1  new  compat pass" in result.stdout
    assert "globex/wrong@1  new  compat fail" in result.stdout
    assert "globex/broken  refused" in result.stdout
    assert result.stdout.splitlines()[-1] == "2 new versions, 0 unchanged, 1 refused; 1 with a failing verdict"
    items = cli("push-all", tmp_path / "adapters", "globex", "--base", "tiny-llama", "--json", expect=2).json["items"]
    assert [bool(item["pushed"]) for item in items] == [False, True, True]
    assert items[0]["error"]["code"] == "TENSORS_INVALID"
    refused = cli("push", tmp_path / "adapters", "globex/all", expect=2).stderr
    assert (
        f"3 folders in it may be\nNext: push one of them, or all: `adapter push-all {tmp_path}/adapters globex`"
        in refused
    )


def test_a_name_in_the_place_of_the_folder_is_noticed(cli: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.make_adapter("out/good")
    monkeypatch.chdir(cli.folder / "adapters")
    cli.make_adapter("a1")
    for folder in ("out/good", "a1"):
        refused = cli("push", "acme/support", folder, "--json", expect=2).problem
        assert refused["next_step"] == f"the folder comes first: adapter push {folder} acme/support"


def test_pull_all_continues_after_a_failure(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    folders = [cli.make_adapter(name) for name in ("a", "b", "c")]
    cli("push-all", tmp_path / "adapters", "globex")
    there = tmp_path / "out" / "globex" / "b"
    there.mkdir(parents=True)
    (there / "mine.txt").write_text("not yours")
    result = cli("pull-all", "tiny-llama", tmp_path / "out", expect=2)
    assert result.stdout.splitlines()[-1] == f"2 adapters in {tmp_path / 'out'}, 1 failed"
    assert "globex/b  refused" in result.stdout
    for folder in (folders[0], folders[2]):
        weights = (tmp_path / "out" / "globex" / folder.name / "adapter_model.safetensors").read_bytes()
        assert weights == (folder / "adapter_model.safetensors").read_bytes()
    items = cli("pull-all", "tiny-llama", tmp_path / "new", "--json").json["items"]
    assert [item["resolved"]["number"] for item in items] == [1, 1, 1]
    for words in (["tiny-llama", "--namespace", "elsewhere"], ["tiny-llama", "--alias", "production"], ["tiny-lama"]):
        none = cli("pull-all", words[0], tmp_path / "new", *words[1:], "--json", expect=4)
        assert none.problem["code"] == "ADAPTER_UNKNOWN", "a mistyped word must not end a deployment as done"


def test_base_show_and_list(cli: CommandRunner) -> None:
    assert "Register one" in cli("base", "list").stdout
    cli.add_base()
    assert "4 layers, width 64, 4 heads (2 for keys), vocabulary 512" in cli("base", "show", "tiny-llama").stdout
    assert [item["name"] for item in cli("base", "list", "--json").json["items"]] == ["tiny-llama"]
    assert cli("base", "show", "none", "--json", expect=4).problem["code"] == "BASE_UNKNOWN"


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["show", "acme/none"], 4, "there is no adapter"),
        (["show", "Acme/none"], 2, "use 'acme'"),
        (["show", "acme/x@0"], 2, "version numbers start at 1"),
        (["pull", "acme/x:prod@3"], 2, "name 'x:prod' must be"),
        (["push", "nowhere", "acme/x", "--base", "b"], 2, "folder 'nowhere' does not exist"),
        (["push-all", "nowhere", "acme"], 2, "nowhere"),
        (["base", "show", "tiny-lama"], 4, "`adapter base list` shows"),
        (["history", "acme/x@3"], 2, "NAME or NAME:ALIAS"),
        (["history", "acme/x", "--at", "yesterday"], 2, "is not a time"),
        (["promote", "acme/x", "3"], 4, "there is no adapter"),
        (["yank", "acme/x"], 2, "--reason"),
        (["job", "list", "--state", "odd"], 2, "odd"),
        (["token", "revoke", "--yes", "tok_none"], 4, "there is no token"),
        (["base", "add", "x", "nowhere"], 2, "nowhere"),
    ],
)
def test_bad_input_ends_in_a_message_and_its_exit_code(
    cli: CommandRunner, words: list[str], code: int, part: str
) -> None:
    result = cli(*words, expect=code)
    assert part in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_push_with_a_closed_gate_stores_the_version_and_exits_6(cli: CommandRunner) -> None:
    cli.add_base()
    result = cli("push", cli.make_adapter("mine"), "acme/support", "--base", "tiny-llama", "--alias", "prod", expect=6)
    assert "acme/support@1" in result.stdout
    assert "The alias did not move: version 1 of 'acme/support' may not become 'prod'" in result.stdout
    assert cli("show", "acme/support", "--json").exit_code == 0
