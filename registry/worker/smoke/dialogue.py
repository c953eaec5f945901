"""The adapter's own chat template and special tokens: the template renders a dialogue, the tokens are in range.

A template is an untrusted program: it is rendered in the library's sandbox, within the limits of this process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from registry.files import CHAT_TEMPLATE, TOKENIZER_CONFIG
from registry.worker.model.language import LoadedBase
from registry.worker.smoke.result import SmokeResult, first_line, machine_fault

WORDS = ("What is in the blue box?", "A lamp and two books.")
"""A turn of the user and one of the assistant; both must occur in the rendered text."""


def examine(base: LoadedBase, folder: Path, result: SmokeResult) -> None:
    """Note a template that fails or loses text, and added tokens beyond the base's vocabulary."""
    settings = _settings(folder)
    for number, content in _added(settings):
        if number >= base.vocabulary:
            message = f"the added token {content!r} has the number {number}, and the base has {base.vocabulary} tokens"
            limit = f"under {base.vocabulary}"
            result.note("error", "smoke.token_out_of_range", TOKENIZER_CONFIG, message, limit, str(number))
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
