"""The files around the code agree with it: workflows, templates, hooks, classifiers and version tags."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import registry
from scripts import lock, nightly
from tests import releases
from tests.import_table import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))


def workflow(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
    return content


def commands(name: str) -> list[str]:
    """Every command of a workflow, once for each value of its matrix."""
    commands = []
    for job in workflow(name)["jobs"].values():
        (key, values), *_ = job.get("strategy", {}).get("matrix", {"-": [""]}).items()
        for step in job["steps"]:
            commands += [step.get("run", "").replace(f"${{{{ matrix.{key} }}}}", value) for value in values]
    return sorted(set(commands) - {""})


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_workflows_only_install_packages_and_call_make_targets_that_exist(name: str) -> None:
    others = [command for command in commands(name) if not command.startswith("sudo apt-get install --yes ")]
    called = [re.fullmatch(r"make ([a-z-]+) PY=python", command) for command in others]
    assert None not in called, commands(name)
    assert {match.group(1) for match in called if match} <= TARGETS


def test_actions_of_others_are_named_by_commit() -> None:
    """A tag can be moved to other code, which would run with the job's rights."""
    paths = [path for root in (".github", "docs", "templates") for path in (ROOT / root).rglob("*")]
    used = [
        (path.name, action)
        for path in paths if path.suffix in (".md", ".yml", ".yaml")
        for action in re.findall(r"^[ -]*uses: *(.+)$", path.read_text(), re.MULTILINE)
        if not action.startswith(("./", "OWNER/adapter-registry/"))
    ]  # fmt: skip
    assert {name for name, _ in used} == {"ci.yml", "release.yml", "ci.md"}
    assert [use for use in used if not re.fullmatch(r"[\w-]+/[\w/.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use[1])] == []


def test_images_of_others_are_named_by_digest() -> None:
    named = re.findall(r"_IMAGE:-([^}]+)}", (ROOT / "deploy/compose.yaml").read_text())
    named += re.findall(r"^ARG BASE=(.+)$", (ROOT / "deploy/Containerfile").read_text(), re.MULTILINE)
    others = [image for image in named if not image.startswith("adapter-registry/")]
    assert {image.partition(":")[0].rpartition("/")[2] for image in others} == {
        "postgres",
        "seaweedfs",
        "caddy",
        "python",
    }
    assert [
        image for image in others if not re.fullmatch(r"docker\.io/[a-z/]+:[\w.-]+@sha256:[0-9a-f]{64}", image)
    ] == []


def test_the_workflow_runs_what_the_ci_script_runs() -> None:
    lines = re.findall(r"^make (?:--\S+ )*([a-z -]+?)(?: [A-Z_]+=\S+)*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    targets = " ".join(lines).split()
    assert {"lint", "docs", "sample", "test"} == set(targets)
    assert {f"make {target} PY=python" for target in targets} <= set(commands("ci.yml"))


def test_the_workflow_runs_every_tier_of_the_night() -> None:
    assert {f"make {tier} PY=python" for tier in nightly.TIERS} <= set(commands("ci.yml"))


def test_version_tags_and_changelog_agree() -> None:
    assert releases.problems_of(ROOT, registry.__version__) == []


@pytest.mark.parametrize(
    ("version", "heading", "here", "before"),
    [
        ("0.2.0", "0.2.0", {"v0.1.0"}, set()),
        ("0.2.0", "0.2.0", set(), {"v0.1.0", "v0.2.0"}),
        ("0.2.0", "Unreleased", {"v0.2.0"}, {"v0.1.0"}),
        ("0.2.0", "0.1.0", set(), {"v0.1.0"}),
        ("0.2", "0.2", set(), set()),
    ],
)
def test_a_release_that_contradicts_the_rule_is_named(
    version: str, heading: str, here: set[str], before: set[str]
) -> None:
    assert len(releases.problems(version, f"# Changelog\n\n## {heading}\n", here, before)) == 1


def locked(name: str) -> dict[str, set[str]]:
    """Package → versions in a file of the lock; Pythons may need different versions."""
    versions: dict[str, set[str]] = {}
    for requirement in map(Requirement, entries(name)):
        versions.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier)[2:])
    return versions


def entries(name: str) -> list[str]:
    """The requirements of a file of the lock, without their hashes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", "")
    return [line.partition(" --hash=")[0].strip() for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.security
@pytest.mark.parametrize("name", sorted(lock.EXTRAS))
def test_the_lock_holds_an_allowed_version_of_every_dependency(name: str) -> None:
    dependencies = [*PROJECT["dependencies"]]
    dependencies += [line for extra in lock.EXTRAS[name] for line in PROJECT["optional-dependencies"][extra]]
    requirements = {Requirement(line) for line in dependencies}
    if name == "dev":
        requirements = {requirement for requirement in requirements if requirement.name != "torch"}
    versions = locked(name)
    for requirement in requirements:
        pinned = versions.get(canonicalize_name(requirement.name), set())
        assert pinned, f"{requirement.name} is not in requirements/{name}.txt: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in pinned), f"{requirement}: run `make lock`"


@pytest.mark.security
@pytest.mark.parametrize("name", [*sorted(lock.EXTRAS), "model"])
def test_every_line_of_the_lock_has_hashes_and_none_names_an_index(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.search(r"==\S+.*( --hash=sha256:[0-9a-f]{64})+$", line)] == []
    assert not re.search(r"://|^-", text, re.MULTILINE)


def test_all_files_of_the_lock_agree_and_the_one_for_development_leaves_torch_to_the_machine() -> None:
    dev, server, worker = locked("dev"), locked("server"), locked("worker")
    for name in server.keys() | worker.keys():
        others = [versions[name] for versions in (dev, server, worker) if name in versions]
        assert others[1:] == others[:-1], name
    assert {"torch", "triton"} & dev.keys() == set()
    assert [name for name in dev if name.startswith(("nvidia-", "cuda-"))] == []
