"""`adapter versions`, `tag`, `describe`, and what `show`, `list` and `diff` tell about metadata."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.cli.runner import CommandRunner, lines


def test_versions_lists_verdicts_aliases_tags_and_who(released: CommandRunner) -> None:
    released("tag", "add", "acme/support@1", "team=nlp", "reviewed")
    released("yank", "acme/support@1", "--reason", "diverged")
    table = lines(released("versions", "acme/support").stdout)
    assert [row.split() for row in table] == [
        ["VERSION", "COMPAT", "WEIGHTS", "SMOKE", "ALIASES", "STATE", "PUSHED", "BY", "DIGEST", "TAGS", "METHOD",
         "SIZE"],
        ["@2", "pass", "pass", "pass", "main", "-", "TIME", "owner", "sha256:SHORT", "-", "LoRA", "31.2", "kB"],
        ["@1", "pass", "pass", "pass", "prod", "yanked", "TIME", "owner", "sha256:SHORT", "reviewed,team=nlp", "LoRA",
         "31.2", "kB"],
    ]  # fmt: skip
    assert [item["number"] for item in released("versions", "acme/support", "--limit", 1, "--json").json["items"]] == [
        2
    ]


def test_tags_and_descriptions_are_set_shown_and_found(released: CommandRunner) -> None:
    released("tag", "add", "acme/support", "team=nlp")
    link = "dashboard=https://wandb.example/acme"
    released("describe", "acme/support", "Responses about returns", "--link", link)
    released("tag", "add", "acme/support:prod", "reviewed")
    assert released("tag", "list", "acme/support@1", "--json").json["tags"] == {"reviewed": ""}
    assert lines(released("describe", "acme/support").stdout) == [
        "acme/support",
        "  description  Responses about returns",
        "  tags         team=nlp",
        "  links        dashboard  https://wandb.example/acme",
    ]
    shown = released("show", "acme/support:prod").stdout
    for line in (
        "adapter description  Responses about returns",
        "adapter tags         team=nlp",
        "tags                 reviewed",
    ):
        assert line in shown
    assert (
        released("list", "--text", "RETURNS", "--tag", "team=nlp", "--json").json["items"][0]["name"] == "acme/support"
    )
    released("tag", "delete", "acme/support", "team")
    released("describe", "acme/support", "", "--delete-link", "dashboard")
    assert released("describe", "acme/support").stdout == "acme/support  no description, tags or links\n"


def test_a_bad_tag_is_refused_with_the_rule_in_words(released: CommandRunner) -> None:
    rule = "a key has 1 to 63 letters, digits and . _ / -, and begins with a letter or digit"
    assert cli_detail(released, "tag", "add", "acme/support", "a b=c").endswith(f"tags: {rule}")
    assert cli_detail(released, "tag", "add", "acme/support@1", "a b=c").endswith(f"tags: {rule}")
    assert "must have at most 200 characters" in cli_detail(released, "tag", "add", "acme/support", f"a={'c' * 201}")


def test_the_reasons_against_a_deletion_are_whole_clauses(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support")
    cli("promote", "acme/support@1", "canary")
    assert cli("delete", "acme/support@1", "--yes", expect=5).stderr.splitlines()[:3] == [
        "Error: cannot delete acme/support@1: there are 2 reasons",
        "  - it is the only version of acme/support",
        "  - the alias acme/support:canary points at it",
    ]
    assert cli("delete", "acme/support@1", "--dry-run").stdout.splitlines() == [
        "Would not delete acme/support@1.",
        "  it is the only version of acme/support",
        "  the alias acme/support:canary points at it",
        "Next: delete the adapter: adapter delete acme/support",
    ]
    plan = cli("delete", "acme/support", "--dry-run")
    assert plan.stdout.splitlines() == [
        "Would not delete acme/support.",
        "  the alias acme/support:canary points at it",
        "Next: pass --force with a --reason to delete it all the same",
    ]
    forced = ("delete", "acme/support", "--force", "--reason", "typo")
    prompt = cli(*forced, stdin="n\n", expect=2).stderr.splitlines()
    assert prompt[0] == "  the alias acme/support:canary points at it"
    assert "Delete acme/support and 1 version? [y/N]" in prompt[1]
    cli.push("acme/support", "--message", "another")
    plan = cli("delete", "acme/support@2", "--dry-run", "--json").json
    assert (plan["name"], plan["versions"], plan["needs"]) == ("acme/support@2", 1, [])
    assert cli("show", "acme/support@2", "--json").json["deleted_at"] is None
    cli("delete", "acme/support@2", "--yes")
    gone = cli("delete", "acme/support@2", "--dry-run").stdout
    assert gone.startswith("Would not delete acme/support@2: deleted since ")
    assert (
        "give one of --dry-run, --undo and" in cli("delete", "acme/support@2", "--dry-run", "--undo", expect=2).stderr
    )


def cli_detail(cli: CommandRunner, *words: str) -> str:
    detail: str = cli(*words, "--json", expect=2).problem["detail"]
    return detail


def test_a_push_seals_annotations_and_sets_tags(cli: CommandRunner) -> None:
    cli.add_base()
    pushed = cli.push("acme/support", "--annotation", "seed=7", "--tag", "team=nlp", "--param", "lr=2e-4")["version"]
    assert (pushed["annotations"], pushed["tags"]) == ({"seed": "7"}, {"team": "nlp"})
    shown = cli("show", "acme/support").stdout
    assert "annotations  seed=7" in shown
    assert "parameters   lr=2e-4" in shown


def test_diff_compares_what_was_declared_and_what_was_found_out(cli: CommandRunner) -> None:
    cli.add_base()
    folder = cli.make_adapter("one")
    for lr, data in (("2e-4", "s3://d/a"), ("1e-4", "s3://d/b")):
        cli("push", folder, "acme/x", "--base", "tiny-llama", "--param", f"lr={lr}", "--dataset", f"tickets={data}",
            "--tag", f"lr={lr}", "--run", "mlflow:4f1c", "--annotation", f"note={lr}")  # fmt: skip
    difference = cli("diff", "acme/x@1", "acme/x@2", "--json").json
    assert difference["params"] == [{"field": "lr", "a": "2e-4", "b": "1e-4"}]
    assert difference["data"] == [{"field": "tickets", "a": "s3://d/a", "b": "s3://d/b"}]
    assert (difference["run"], difference["verdicts"], difference["files"]) == ([], [], [])
    assert [len(difference[section]) for section in ("tags", "annotations")] == [1, 1]
    assert "  params  lr: 2e-4 → 1e-4" in cli("diff", "acme/x@1", "acme/x@2").stdout
    assert "params" not in cli("diff", "acme/x@1", folder, "--json").json


def test_a_version_is_deleted_restored_and_listed(released: CommandRunner) -> None:
    released("delete", "acme/support@1", "--yes", expect=5)
    released("rollback", "acme/support", "prod", "--version", "2", "--reason", "slow")
    assert (
        "is deleted. Restore it with"
        in released("delete", "acme/support@1", "--yes", "--force", "--reason", "leaked").stdout
    )
    assert [item["number"] for item in released("versions", "acme/support", "--json").json["items"]] == [2]
    assert released("versions", "acme/support", "--deleted").stdout.splitlines()[-1].split()[5] == "deleted"
    assert released("pull", "acme/support@1", "x", "--json", expect=4).problem["code"] == "VERSION_DELETED"
    assert "is restored" in released("delete", "acme/support@1", "--undo").stdout
    assert "acme/support@1 was not deleted" in released("delete", "acme/support@1", "--undo").stdout
    assert "acme/support was not deleted" in released("delete", "acme/support", "--undo").stdout
    released("delete", "acme/support", "--yes", "--force", "--reason", "merchant left")
    assert "is restored with 2 versions" in released("delete", "acme/support", "--undo").stdout
    assert "no version '9'" in released("delete", "acme/support@9", expect=4).stderr, "before the question"


def test_a_version_is_pushed_with_an_expiry_that_is_shown(released: CommandRunner) -> None:
    pushed = released.push("acme/support", "--expires", "30d")["version"]
    assert "\n  expires " in released("show", "acme/support@3").stdout
    assert pushed["expires_at"] == released("show", "acme/support@3", "--json").json["expires_at"]
    assert "\n  expires " not in released("show", "acme/support@1").stdout


def test_show_and_push_name_who_signed(cli: CommandRunner, tmp_path: Path) -> None:
    created = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "key.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(created.private_bytes(encoding, form, serialization.NoEncryption()))
    cli.add_base()
    (signer,) = cli.push("acme/signed", "--signing-key", path)["version"]["signed_by"]
    assert f"  signed by  {signer}" in cli("show", "acme/signed").stdout.splitlines()
    cli.push("acme/other")
    assert "signed by" not in cli("show", "acme/other").stdout
