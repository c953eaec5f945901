"""Key succession: a signed note in which one key of a log names the key that follows it.

lora-registry log key succession v1
registry.example.org/3f9c                             the origin of the log
registry.example.org/3f9c+1a2b3c4d+AYEK…              the new key

— registry.example.org/3f9c Az3grl…                   signed by the old key and by the new one
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from registry.errors import Invalid
from registry.tlog.notes import Signer, Verifier, open_note, sign_note

TITLE = "lora-registry log key succession v1"
NOTES_LIMIT = 100
"""Keys that one log can have had, and notes that a client reads."""


def endorse(old: Signer, new: Signer) -> str:
    """Return the note in which `old` names `new` as its successor. Both sign it, so that both keys were at hand."""
    return sign_note(f"{TITLE}\n{new.name}\n{new.verifier.text}\n", old, new)


def successor(note: str, *trusted: Verifier) -> Verifier | None:
    """The key that a note names, if one of the trusted keys of the same log and the new key have signed it."""
    text = open_note(note, *trusted)
    lines = text.split("\n") if text is not None else []
    if len(lines) != 4 or lines[0] != TITLE or lines[3]:
        return None
    try:
        new = Verifier.parse(lines[2])
    except Invalid:
        return None
    same_log = new.name == lines[1] and new.name in {key.name for key in trusted}
    return new if same_log and open_note(note, new) is not None else None


def follow(trusted: Sequence[Verifier], notes: Iterable[str]) -> tuple[Verifier, ...]:
    """The trusted keys and all that the newest of them leads to; newest first, in the argument as well.

    A key that has a successor names no other: the thief of a retired key cannot continue the log with it. Of a key
    that names two successors none is followed.
    """
    remaining = list(notes)[:NOTES_LIMIT]
    keys = list(trusted)
    while keys:
        named = {key for note in remaining if (key := successor(note, keys[0])) is not None} - set(keys)
        if len(named) != 1:
            break
        keys.insert(0, named.pop())
    return tuple(keys)
