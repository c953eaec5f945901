"""The one grammar of names: `AdapterName`, `Alias`, base names, file paths and `Ref`. Parse and print, nothing else.

    ref        = name                      the version of `main`
               | name ":" alias            what an alias points at
               | name "@" number           version 3 of this adapter, also as `v3`
               | name "@" digest           exactly these bytes
               | name "@" short digest     the one version whose digest begins with these 8 or more hex digits
    name       = namespace "/" word
    namespace  = word
    word       = 1 to 64 of [a-z0-9._-], beginning and ending in [a-z0-9], without `..`
    alias      = a word that looks neither like a number, nor `v3`, nor a digest

ASCII lower case only, so no two names differ by case, normal form or look-alike letter.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NewType

from registry.digest import Digest, DigestPrefix
from registry.errors import Invalid
from registry.findings import Finding

NAME_LIMIT = 64
BASE_NAME_LIMIT = 128
SERVED_WORDS_LIMIT = 89
VERSION_NUMBER_LIMIT = 999_999_999
PATH_LIMIT_BYTES = 255
PATH_DEPTH_LIMIT = 8

Alias = NewType("Alias", str)
BaseName = NewType("BaseName", str)
NEWEST = Alias("main")
"""The alias that follows the newest version that did not fail a check when it was pushed. Only pushes move it."""

_WORD = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z")
_BASE_WORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?\Z")
_LIKE_A_VERSION = re.compile(r"(v?[0-9]+|sha256.*|[0-9a-f]{7,64})\Z")
_NUMBER = re.compile(r"v?([1-9][0-9]{0,8})\Z")
_LIKE_A_DIGEST = re.compile(r"sha256:|(?=[0-9]*[a-f])[0-9a-f]{7,64}\Z")
_DIGITS = re.compile(r"[0-9a-f]{8,64}\Z")
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))})
_PATH_SIGNS = "._-+()[],'@&=!"
_PATH_CHARACTERS = frozenset(f"{string.ascii_letters}{string.digits} /{_PATH_SIGNS}")
"""What every file system, URL and HTTP header can hold; a part of a path begins and ends with fewer of them."""
_LOOKS_LIKE = {"l": "1", "i": "1", "o": "0"}
_SERVER_PATHS = {
    "adapters", "admin", "ads.txt", "api", "app-ads.txt", "apple-touch-icon-precomposed.png", "apple-touch-icon.png",
    "assets", "audit", "bases", "browserconfig.xml", "campaigns", "compare", "docs", "favicon.ico", "fleet", "health",
    "humans.txt", "jobs", "live", "livez", "metrics", "namespaces", "openapi.json", "readyz", "registry", "resolve",
    "robots.txt", "security.txt", "sign-in", "sign-out", "site.webmanifest", "sitemap.xml", "static", "status",
}  # fmt: skip
_HUB_PATHS = {
    "blob", "blobs", "collections", "commit", "commits", "datasets", "discussions", "join", "login", "logout", "models",
    "new", "organizations", "orgs", "raw", "refs", "search", "settings", "spaces", "tree", "upload", "users", "whoami",
    "v1", "v2",
}  # fmt: skip
_PLACEHOLDERS = {"all", "any", "default", "false", "latest", "main", "nil", "none", "null", "self", "true", "undefined"}
RESERVED = frozenset(_SERVER_PATHS | _HUB_PATHS | _PLACEHOLDERS)
"""Words that mean something else where a namespace stands, in paths or in programs: no namespace may have them."""


def _word(text: str, noun: str, pattern: re.Pattern[str] = _WORD) -> str:
    problem = _problem_with_word(text, pattern)
    if problem:
        # Only the case is corrected: a name with other letters may be that of another object.
        is_upper_case = pattern is _WORD and text.isascii() and _WORD.match(text.lower())
        raise Invalid(
            "NAME_INVALID",
            f"{noun} {text[:80]!r} {problem}",
            findings=[Finding("name.invalid", noun, problem)],
            next_step=f"use {text.lower()!r}" if is_upper_case else "",
        )
    return text


def _problem_with_word(text: str, pattern: re.Pattern[str]) -> str:
    if not text:
        return "is empty"
    if len(text) > (BASE_NAME_LIMIT if pattern is _BASE_WORD else NAME_LIMIT):
        return f"is over {BASE_NAME_LIMIT if pattern is _BASE_WORD else NAME_LIMIT} characters"
    if not text.isascii():
        odd = next(c for c in text if not c.isascii())
        return f"holds U+{ord(odd):04X} ({unicodedata.name(odd, 'no name')}), which is not ASCII"
    if not pattern.match(text):
        letters = "lower-case letters" if pattern is _WORD else "letters"
        return f"must be {letters}, digits, '.', '_' and '-', and begin and end with a letter or digit"
    if ".." in text:
        return "holds '..'"
    if text.lower().split(".")[0] in _DEVICES:
        return "is a device name on Windows"
    return ""


def namespace(text: str) -> str:
    """A namespace, checked. `Invalid` (NAME_INVALID) names the rule that is broken."""
    word = _word(text, "namespace")
    if word in RESERVED:
        reason = Finding("name.reserved", "namespace", f"{word!r} is reserved for the server")
        raise Invalid.from_finding("NAME_INVALID", reason)
    return word


def skeleton(word: str) -> str:
    """What is left of a name when look-alikes count as one: without separators, `l` and `i` as `1`, `o` as `0`.

    The rule of PyPI's `ultranormalize_name`, but a separator between two digits stays: `shop-1-23` and `shop-12-3` are
    told apart by it.

    >>> skeleton("my-lora"), skeleton("my_1ora")
    ('my10ra', 'my10ra')
    """
    result, last, apart = "", "", False
    for letter in word:
        if letter in "._-":
            apart = True
            continue
        between_digits = apart and last.isdigit() and letter.isdigit()
        result += ("-" if between_digits else "") + _LOOKS_LIKE.get(letter, letter)
        last, apart = letter, False
    return result


def alias(text: str) -> Alias:
    """An alias, checked: a word that cannot be mistaken for a number, a tag `v3` or a digest."""
    word = _word(text, "alias")
    if _LIKE_A_VERSION.match(word):
        reason = Finding("name.invalid", "alias", f"{word!r} looks like a version number or a digest")
        raise Invalid.from_finding("NAME_INVALID", reason)
    return Alias(word)


def base_name(text: str) -> BaseName:
    """A base's name: one word or `org/word`, upper case allowed, because models have such names."""
    parts = text.split("/")
    if len(parts) > 2:
        raise Invalid("NAME_INVALID", f"base name {text[:80]!r} has more than one '/'")
    for part in parts:
        if not part or len(part) > BASE_NAME_LIMIT or not _BASE_WORD.match(part) or ".." in part:
            problem = _problem_with_word(part, _BASE_WORD) or "is not a base name"
            reason = Finding("config.base_model_invalid", "base name", f"{text[:80]!r} {problem}")
            raise Invalid.from_finding("NAME_INVALID", reason)
    return BaseName(text)


def node_name(text: str) -> str:
    """The name of a node of the fleet, or of an engine on it, checked: what hosts are called."""
    return _word(text, "node or engine", _BASE_WORD)


@dataclass(frozen=True, slots=True, order=True)
class AdapterName:
    """`namespace/name`: a named line of versions."""

    namespace: str
    name: str

    def __post_init__(self) -> None:
        namespace(self.namespace)
        _word(self.name, "name")

    @classmethod
    def parse(cls, text: str) -> AdapterName:
        """The name in this text. `Invalid` (NAME_INVALID)."""
        parts = text.split("/")
        if len(parts) != 2:
            raise Invalid("NAME_INVALID", f"{text[:120]!r} is not 'namespace/name'", next_step="write NAMESPACE/NAME")
        return cls(parts[0], parts[1])

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def served_name(name: AdapterName, number: int) -> str:
    """The name of one version in a serving engine: `acme-support-v3`. Letters, digits and `-`, at most 100 characters.

    That is what every engine, a Kubernetes object and an S3 prefix take. Two adapters may read the same here
    (`a-b/c` and `a/b-c`): `distinguish_served_names` adds what tells them apart.
    """
    words = re.sub(r"[^a-z0-9]+", "-", f"{name.namespace}-{name.name}")
    if len(words) > SERVED_WORDS_LIMIT:
        words = f"{words[: SERVED_WORDS_LIMIT - 9]}-{Digest.of(str(name).encode()).hex[:8]}"
    return f"{words}-v{number}"


def distinguish_served_names(plain: Sequence[str], versions: Iterable[tuple[str, str]]) -> list[str]:
    """The names of these versions (adapter, digest) in one engine: those that are not unique get a piece of a hash.

    It is of the adapter, too, because two may have the same bytes, and long enough that no one can make a version with
    the name of another adapter's.

    >>> distinguish_served_names(["a-b-c-v1", "b-v1", "a-b-c-v1"], [("a-b/c", "1"), ("b/b", "2"), ("a/b-c", "1")])
    ['a-b-c-v1-9d172deed6be30b5', 'b-v1', 'a-b-c-v1-c7bc8a52876e065d']
    """
    often = Counter(plain)
    return [
        name if often[name] == 1 else distinct_served_name(name, adapter, digest)
        for name, (adapter, digest) in zip(plain, versions, strict=True)
    ]


def distinct_served_name(plain: str, adapter: str, digest: str) -> str:
    """The served name of this version that no other version has."""
    return f"{plain}-{Digest.of(f'{adapter}@{digest}'.encode()).hex[:16]}"


Selector = Alias | int | Digest | DigestPrefix
"""What picks one version of an adapter: an alias (text), a number, or a manifest digest or the beginning of one."""


def selector(text: str) -> Selector:
    """Parse the part after `:` or `@`, or a path segment of the resolve route."""
    if number := _NUMBER.match(text):
        return int(number[1])
    if not _LIKE_A_DIGEST.match(text):
        return alias(text)
    digits = text.removeprefix("sha256:")
    if not _DIGITS.match(digits):
        raise Invalid("DIGEST_INVALID", f"digest {text[:80]!r} is not 'sha256:' and 8 to 64 lower-case hex digits")
    digest = f"sha256:{digits}"
    return Digest(digest) if len(digits) == 64 else DigestPrefix(digest)


def is_alias(selector: Selector) -> bool:
    """Whether a selector is an alias, which may move, and not a number or a digest."""
    return not isinstance(selector, int | Digest | DigestPrefix)


@dataclass(frozen=True, slots=True)
class Ref:
    """Text that resolves to one version. `selector` is the alias `main` when none is written."""

    name: AdapterName
    selector: Selector = NEWEST

    @classmethod
    def parse(cls, text: str) -> Ref:
        """The reference in this text. `Invalid` (NAME_INVALID, DIGEST_INVALID)."""
        name, at, rest = text.partition("@")
        if at:
            if re.fullmatch("0+", rest):
                raise Invalid("NAME_INVALID", f"{text[:160]!r}: version numbers start at 1")
            picked = selector(rest)
            if is_alias(picked):
                raise Invalid(
                    "NAME_INVALID",
                    f"{text[:160]!r}: after '@' comes a version number or a digest, not {rest[:64]!r}",
                    next_step=f"for an alias write '{name}:{rest[:64]}'",
                )
            return cls(AdapterName.parse(name), picked)
        name, colon, rest = text.partition(":")
        return cls(AdapterName.parse(name), alias(rest) if colon else NEWEST)

    def __str__(self) -> str:
        if not is_alias(self.selector):
            return f"{self.name}@{self.selector}"
        return str(self.name) if self.selector == NEWEST else f"{self.name}:{self.selector}"


def file_path(text: str) -> str:
    """A file's path in a version: relative, `/`-separated, portable to every system. `Invalid` (FILE_REFUSED)."""
    problem = _problem_with_path(text)
    if problem:
        findings = [Finding("file.path_invalid", text[:120], problem)]
        raise Invalid("FILE_REFUSED", f"file path {text[:120]!r} {problem}", findings=findings)
    return text


def _problem_with_path(text: str) -> str:
    if not text or len(text.encode("utf-8", "replace")) > PATH_LIMIT_BYTES:
        return f"is empty or over {PATH_LIMIT_BYTES} bytes"
    if odd := next((c for c in text if c not in _PATH_CHARACTERS), ""):
        return f"holds {odd!r}; portable are letters, digits, spaces and {_PATH_SIGNS}"
    parts = text.split("/")
    if len(parts) > PATH_DEPTH_LIMIT:
        return f"is over {PATH_DEPTH_LIMIT} folders deep"
    for part in parts:
        if part in ("", ".", ".."):
            return "is absolute, or has an empty, '.' or '..' part"
        if part.startswith((".", "-", " ")) or part.endswith((".", " ")):
            return f"has a part {part!r} that begins with a dot, dash or space, or ends with a dot or space"
        if part.split(".")[0].rstrip(" ").lower() in _DEVICES:
            return f"has a part {part!r} that is a device name on Windows"
    return ""
