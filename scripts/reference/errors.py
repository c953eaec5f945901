"""docs/reference/errors.md: every error code, from registry/errors.py and registry/errors.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

import registry
from cli.console import output
from registry import errors
from registry.server.http import problems
from scripts.reference.tables import table

INTRODUCTION = """\
# Errors

An error means that a request failed. A failing verdict is not an error: it is a result with
[findings](findings.md).

Over HTTP an error is `application/problem+json` (RFC 9457) with `status`, `title`, `code`, `detail` (one sentence),
`findings` (every broken rule with its location), `next_step` if there is one, and `request_id`, which is also in the
server's log and in the header `X-Request-Id`. The command line prints the sentence and the next step and exits with
the code below; with `--json` it prints the same object. What you may not see looks exactly like what does not
exist.
"""


def rows() -> dict[str, dict[str, str]]:
    """Code → what it means, and what to do."""
    return tomllib.loads((Path(registry.__file__).parent / "errors.toml").read_text())


def markdown() -> str:
    """The whole page."""
    texts = rows()
    parts = [INTRODUCTION]
    kinds: tuple[type[errors.RegistryError], ...] = (*errors.CLASSES, errors.RegistryError)
    for kind in kinds:
        parts.append(f"## {kind.__name__}: {kind.TITLE}\n")
        parts.append(
            table(
                ["code", "HTTP", "exit", "meaning", "what to do"],
                (
                    (
                        f"`{code}`",
                        str(problems.status_of(kind(code, "an example"))),
                        str(output.EXIT_CODES.get(kind, 1)),
                        texts[code]["means"],
                        texts[code]["fix"],
                    )
                    for code in sorted(kind.CODES)
                ),
            )
        )
    return "\n".join(parts)
