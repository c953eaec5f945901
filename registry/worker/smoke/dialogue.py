"""The adapter's own chat templates and special tokens: a template renders a dialogue, the tokens are in range.

A template is an untrusted program. It is checked by the rules of a push, and then rendered in the library's sandbox in
a process of its own, with limits of CPU time, memory and output: one that breaks them fails, and no attempt is lost.
"""

import json
import os
import selectors
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2.exceptions import SecurityError
from transformers.utils.chat_template_utils import render_jinja_template

from registry.adapters import templates
from registry.errors import Invalid
from registry.versions.files import CHAT_TEMPLATE, TOKENIZER_CONFIG
from registry.worker.model.language import LoadedBase
from registry.worker.sandbox import confine
from registry.worker.smoke.result import SmokeResult, first_line

WORDS = ("What is in the blue cup?", "Tea and a little milk.")
"""A turn of the user and one of the assistant; both must occur in the rendered text."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What templates may call the special tokens of a tokenizer."""
CPU_SECONDS, MEMORY_BYTES, OUTPUT_LIMIT = 5, 256 * 2**20, 2**20
"""What the rendering of one dialogue may use, and how many characters it may have."""
WALL_SECONDS = 120
"""After this time a rendering on a busy machine says nothing about the adapter."""


def examine(base: LoadedBase, folder: Path, result: SmokeResult) -> None:
    """Note an unsafe or endless template, one that fails or loses text, and added tokens beyond the vocabulary."""
    settings = _settings(folder)
    for number, content in _added(settings):
        if number >= base.vocabulary:
            message = f"the added token {content!r} has the number {number}, and the base has {base.vocabulary} tokens"
            limit = f"under {base.vocabulary}"
            result.note("error", "smoke.token_out_of_range", TOKENIZER_CONFIG, message, limit, str(number))
    has_file = (folder / CHAT_TEMPLATE).is_file()
    try:
        for location, template in _templates(folder):
            templates.check_template(location, template)
            is_default = location == CHAT_TEMPLATE or (not has_file and template == settings.get("chat_template"))
            render = partial(_dialogue, base.tokenizer, template, settings)
            _render(render, location, result, is_default=is_default)
    except Invalid as e:
        result.note("error", "smoke.template_unsafe", CHAT_TEMPLATE if has_file else TOKENIZER_CONFIG, e.detail)


def _templates(folder: Path) -> Iterator[tuple[str, str]]:
    for name in (CHAT_TEMPLATE, TOKENIZER_CONFIG):
        if (folder / name).is_file():
            yield from templates.templates_in(name, name, (folder / name).read_bytes())


def _dialogue(tokenizer: Any, template: str, settings: Mapping[str, Any]) -> str:
    """The dialogue as the base's tokenizer renders it; of a base without one, with the adapter's special tokens."""
    turns = [{"role": "user", "content": WORDS[0]}, {"role": "assistant", "content": WORDS[1]}]
    if hasattr(tokenizer, "apply_chat_template"):
        return str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False))
    tokens = {name: settings.get(name) for name in SPECIAL_TOKENS}  # each a string, or an object with the string
    texts = {name: str(t.get("content", "") if isinstance(t, dict) else t or "") for name, t in tokens.items()}
    return str(render_jinja_template([turns], chat_template=template, **texts)[0][0])


def _render(render: Callable[[], str], location: str, result: SmokeResult, *, is_default: bool) -> None:
    outcome = _run_limited(render)
    if "limit" in outcome:
        message = f"the chat template exceeds its limit of {outcome['limit']} on a question and an answer"
        result.note("error", "smoke.template_unbounded", location, message, outcome["limit"], "more")
    elif "unsafe" in outcome:
        message = f"the chat template reads what the sandbox forbids: {outcome['unsafe']}"
        result.note("error", "smoke.template_unsafe", location, message)
    elif "error" in outcome and is_default:
        message = f"the chat template fails on a question and an answer: {outcome['error']}"
        result.note("warning", "smoke.template_failed", location, message)
    elif is_default:
        lost = outcome["lost"]
        if lost:
            message = f"the chat template loses text: {lost[0]!r} does not occur in the output"
            result.note("warning", "smoke.template_loses_text", location, message)
        result.measurements["template_rendered"] = not lost


def _run_limited(render: Callable[[], str]) -> dict[str, Any]:
    """Render in a forked process: `{"lost": words}`, `{"limit": text}`, `{"unsafe": reason}` or `{"error": reason}`."""
    from_process, to_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        _render_and_exit(render, to_parent)
    os.close(to_parent)
    with os.fdopen(from_process, "rb") as pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        ended = bool(selector.select(WALL_SECONDS))
        if not ended:
            os.kill(pid, signal.SIGKILL)
        data = pipe.read() if ended else b""
    _, status = os.waitpid(pid, 0)
    if data:
        outcome: dict[str, Any] = json.loads(data)
        return outcome
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return {"limit": f"{CPU_SECONDS} seconds"}
    raise RuntimeError(f"the process that renders the chat template ended with status {status}")


def _render_and_exit(render: Callable[[], str], to_parent: int) -> None:
    """Never returns, and cleans up nothing of the parent's."""
    outcome: dict[str, Any]
    try:
        confine.die_with_parent()
        confine.grant(seconds=CPU_SECONDS - 1, memory_bytes=MEMORY_BYTES)
        text = render()
        too_long = len(text) > OUTPUT_LIMIT
        lost = [words for words in WORDS if words not in text]
        outcome = {"limit": f"{OUTPUT_LIMIT} characters"} if too_long else {"lost": lost}
    except SecurityError as e:
        outcome = {"unsafe": first_line(e)}
    except (MemoryError, OverflowError):
        outcome = {"limit": f"{MEMORY_BYTES} bytes of memory"}
    except BaseException as e:
        outcome = {"error": first_line(e)}
    try:
        os.write(to_parent, json.dumps(outcome).encode())
    finally:
        os._exit(0)


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
