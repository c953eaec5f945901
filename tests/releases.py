"""The rule for version tags: tag `v1.2.3` is the commit whose `registry.__version__` is `1.2.3`.

`make release-check` and tests/test_repository.py read it; CONTRIBUTING.md says how to release.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

VERSION = re.compile(r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){2}(?:(?:a|b|rc)\d+)?")


def problems(version: str, changelog: str, tags_here: set[str], tags_before: set[str]) -> list[str]:
    """What contradicts the rule: one message each.

    `tags_here` are the tags of the commit itself, `tags_before` those of the commits before it.
    """
    tag = f"v{version}"
    messages = []
    if not VERSION.fullmatch(version):
        messages.append(f"registry.__version__ is {version}; write X.Y.Z, X.Y.ZaN, X.Y.ZbN or X.Y.ZrcN")
    messages += [f"tag {other}: registry.__version__ is {version}" for other in sorted(tags_here - {tag})]
    if tag in tags_before:
        messages.append(f"{version} was released by an earlier commit, tag {tag}: raise registry.__version__")
    headings = re.findall(r"^## \[?([^\s\]]+)", changelog, re.MULTILINE)
    allowed = {version} if tags_here else {version, "Unreleased"}
    if headings[:1] and headings[0] not in allowed:
        messages.append(
            f"CHANGELOG.md begins with {headings[0]}; its first section must be {' or '.join(sorted(allowed))}"
        )
    elif not headings:
        messages.append("CHANGELOG.md has no section")
    return messages


def problems_of(folder: Path, version: str) -> list[str]:
    """`problems` of a checkout. A folder that is no git repository has no tags."""
    here = _version_tags(folder, "--points-at", "HEAD")
    return problems(
        version, (folder / "CHANGELOG.md").read_text(), here, _version_tags(folder, "--merged", "HEAD") - here
    )


def _version_tags(folder: Path, *options: str) -> set[str]:
    if not (folder / ".git").exists():
        return set()
    command = ["git", "-C", str(folder), "tag", "--list", "v[0-9]*", *options]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
