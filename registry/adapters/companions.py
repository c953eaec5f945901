"""Files beside an adapter's weights: JSON and YAML that every reader reads alike, and that make no loader import code.

`tokenizer.json` and `vocab.json` may have 64 MiB and a million tokens as keys: they are searched, not parsed.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from registry.adapters.methods import CODE_FIELDS, code_references
from registry.adapters.safetensors import wrong_file
from registry.errors import Invalid, TooLarge
from registry.findings import Finding
from registry.strict import json as strict_json
from registry.strict import yaml as strict_yaml
from registry.strict.fields import FINDINGS_LIMIT
from registry.versions import files

VALUES_LIMIT = 1_000_000
"""Commas and brackets, counted before anything is parsed: a value takes some hundred bytes of memory."""
TOTAL_LIMIT_BYTES = 16 * 2**20
"""Bytes of all JSON and YAML files of a version that are parsed, in all folders together."""
JSON_FILES = frozenset({files.TOKENIZER_CONFIG, files.SPECIAL_TOKENS_MAP, files.ADDED_TOKENS, files.TRAINER_STATE})
_DIALECT = strict_json.Dialect("CONFIG_INVALID", "config", depth=16)
_TRAINERS_DIALECT = strict_json.Dialect("CONFIG_INVALID", "config", depth=16, not_finite=True)
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\n")
_TOKEN_FILES = frozenset({files.TOKENIZER, files.VOCABULARY})
_PIECE_BYTES = 16 * 2**20
_LETTERS = {letter: rf"(?:{letter}|(?i:\\u00{ord(letter):02x}))" for letter in "".join(CODE_FIELDS)}
_CODE_KEYS = "|".join("".join(map(_LETTERS.__getitem__, name)) for name in sorted(CODE_FIELDS))
_CODE_KEY = rf'("(?:{_CODE_KEYS})"):[^-0-9]'.encode()
"""A key of JSON without spaces, each letter also as an escape. The value of a token is a number."""
_KEY_LIMIT_BYTES = 256


def check_companions(sizes: Mapping[str, int], read: files.Read) -> None:
    """Refuse unsafe files among these (path → size). `Invalid` (CONFIG_INVALID, FILE_REFUSED) names file and rule."""
    total = sum(size for path, size in sizes.items() if path.endswith((*JSON_FILES, ".yaml")))
    if total > TOTAL_LIMIT_BYTES:
        message = f"and other JSON and YAML files have {total} bytes; the limit is {TOTAL_LIMIT_BYTES}"
        raise TooLarge.from_finding("SIZE_INVALID", Finding("config.too_large", min(JSON_FILES), message))
    for path, size_bytes in sizes.items():
        name = path.rpartition("/")[2]
        if name in JSON_FILES:
            check_json(path, read(path, 0, size_bytes))
        elif name.endswith(".yaml"):
            if problem := strict_yaml.problem(read(path, 0, size_bytes), aliases=True):
                raise Invalid.from_finding("CONFIG_INVALID", Finding("config.yaml_refused", path, problem))
        elif name == files.SENTENCEPIECE:
            _check_sentencepiece(path, read(path, 0, min(size_bytes, 4096)))


def is_token_file(path: str) -> bool:
    """Whether tokens are the keys of this JSON file."""
    return path.rpartition("/")[2] in _TOKEN_FILES


def check_token_files(sizes: Mapping[str, int], read: files.Read) -> None:
    """Refuse code references in the files whose keys are tokens. `Invalid` (CONFIG_INVALID). Keeps one piece of a file.

    No loader takes code from these files today.
    """
    for path, size_bytes in sizes.items():
        searched = b""
        for start in range(0, size_bytes if is_token_file(path) else 0, _PIECE_BYTES):
            piece = read(path, start, min(_PIECE_BYTES, size_bytes - start))
            if b"\0" in piece:  # in UTF-16 and UTF-32, which some parsers read
                strict_json.refuse(_DIALECT, path, "invalid", "must be JSON in UTF-8")
            searched = searched[-_KEY_LIMIT_BYTES:] + piece.translate(None, b" \t\r\n")
            if match := re.search(_CODE_KEY, searched):
                refuse_code({json.loads(match[1]): None}, path)


def check_json(path: str, data: bytes) -> dict[str, Any]:
    """The object in a JSON file of a tokenizer or a trainer. `Invalid` (CONFIG_INVALID) for any code reference."""
    name = path.rpartition("/")[2]
    if strict_json.has_more_values(data, VALUES_LIMIT):
        raise TooLarge.from_finding(
            "SIZE_INVALID", Finding("config.too_large", path, f"has over {VALUES_LIMIT} values")
        )
    values = strict_json.parse_object(data, _TRAINERS_DIALECT if name == files.TRAINER_STATE else _DIALECT, file=path)
    if name == files.ADDED_TOKENS:  # its keys are tokens
        if not all(type(number) is int for number in values.values()):
            strict_json.refuse(_DIALECT, path, "value_invalid", "must map tokens to whole numbers")
        return values
    refuse_code(values, path)
    return values


def refuse_code(values: Any, path: str) -> None:
    """Refuse fields that make a loader fetch or import code, at any depth. `Invalid` (CONFIG_INVALID) lists them."""
    message = "makes a loader import code"
    locations = [f"{path}: {location}" for location in code_references(values)]
    findings = [Finding("config.code_reference", location, message) for location in locations[:FINDINGS_LIMIT]]
    if findings:
        step = "remove the field, or leave the file out: the base has its own"
        raise Invalid("CONFIG_INVALID", f"{locations[0]} {message}", findings=findings, next_step=step)


def _check_sentencepiece(path: str, head: bytes) -> None:
    """A SentencePiece model begins with its first piece, a tiktoken vocabulary with a token in base64 and its rank."""
    if head.startswith(b"\n") or _TIKTOKEN.match(head):
        return
    message = f"is {wrong_file(head) or 'neither a SentencePiece model nor a tiktoken vocabulary'}"
    raise Invalid.from_finding("FILE_REFUSED", Finding("file.tokenizer_refused", path, message))
