"""The adapter's own chat template and special tokens: the template renders a dialogue, the tokens are in range.

Invariants
- A template is a program from a stranger: it is rendered in the library's sandbox, within the limits of this process.
- Nothing is rendered where the adapter brings no template of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from registry.files import CHAT_TEMPLATE, TOKENIZER_CONFIG
from registry.worker.model.language import LoadedBase
from registry.worker.smoke.faults import first_line, machine_fault
from registry.worker.smoke.result import SmokeResult

WORDS = ("What stands in the blue room?", "A lamp and two chairs.")
"""A turn of the user and one of the assistant; both must occur in what the template makes of them."""


def examine(base: LoadedBase, folder: Path, result: SmokeResult) -> None:
    """Notes of a template that fails or loses text, and of added tokens that the base has no row for."""
    settings = _settings(folder)
    for number, content in _added(settings):
        if number >= base.vocabulary:
            message = f"the added token {content!r} has the number {number}, and the base has {base.vocabulary} rows"
            result.note(
                "error", "smoke.token_out_of_range", TOKENIZER_CONFIG, message, f"under {base.vocabulary}", str(number)
            )
    template, location = _template(folder, settings)
    if not template or base.tokenizer is None or not hasattr(base.tokenizer, "apply_chat_template"):
        return
    turns = [{"role": "user", "content": WORDS[0]}, {"role": "assistant", "content": WORDS[1]}]
    try:
        text = base.tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    except Exception as e:
        if machine_fault(e):
            raise
        message = f"the chat template fails on a question and an answer: {first_line(e)}"
        result.note("warning", "smoke.template_failed", location, message)
        return
    lost = [words for words in WORDS if words not in str(text)]
    if lost:
        message = f"the chat template loses text: {lost[0]!r} does not occur in the output"
        result.note("warning", "smoke.template_loses_text", location, message)
    result.measurements["template_rendered"] = not lost


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / TOKENIZER_CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _added(settings: dict[str, Any]) -> list[tuple[int, str]]:
    added = settings.get("added_tokens_decoder")
    if not isinstance(added, dict):
        return []
    return [
        (int(number), str(token.get("content", ""))[:80])
        for number, token in added.items()
        if str(number).isdecimal() and len(str(number)) < 12 and isinstance(token, dict)
    ]


def _template(folder: Path, settings: dict[str, Any]) -> tuple[str, str]:
    if (folder / CHAT_TEMPLATE).is_file():
        return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8", errors="replace"), CHAT_TEMPLATE
    written = settings.get("chat_template")
    return (written, TOKENIZER_CONFIG) if isinstance(written, str) else ("", "")
