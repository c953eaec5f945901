"""Which modules a configuration means: targets, exclusions, saved modules, and the values of its patterns.

The rules are PEFT's (0.21): a name in a list means the module with that path or a path that ends in `.name`; one
text means every path that matches it whole; a key of `rank_pattern` or `alpha_pattern` matches the end of a path,
and the first key that matches wins. A name in `target_parameters` means every parameter whose path ends in it:
`gate_up_proj` alone, as PEFT writes it for fused experts, or `mlp.experts.gate_up_proj`.
Time is linear in the number of paths, whatever the lists and patterns hold.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from registry.adapters.peft.config import AdapterConfig
from registry.errors import Invalid
from registry.findings import Finding
from registry.strict import patterns
from registry.versions.files import CONFIG

ALL_LINEAR = "all-linear"
EMBEDDINGS = ("embed_tokens", "lm_head")
"""Modules that may be tied, and whose base weights PEFT stores beside the adapter when they are targets."""

COMPARED_LIMIT = 2**26
"""Characters of paths that patterns are matched with, some seconds at most. 16 MiB of names and 1,024 patterns took
minutes."""

T = TypeVar("T")
_FIRST_NUMBER = re.compile(r"\.[^.]+\.(\d{1,9})\.")
_NUMBER = re.compile(r"\.(\d{1,9})(?=\.)")


class Choice(Generic[T]):
    """A value by pattern: `pick(path)` is the value of the first key that matches the end of the path.

    `Invalid` (CONFIG_INVALID) if paths and patterns are so many that matching them would take long.
    """

    def __init__(self, by_key: Mapping[str, T]) -> None:
        self._values = list(by_key.values())
        self._plain: dict[str, int] = {}
        self._matching: list[tuple[int, patterns.Pattern]] = []
        self._compared = 0
        for index, key in enumerate(by_key):
            if patterns.is_plain(key):
                self._plain.setdefault(key, index)
            else:
                self._matching.append((index, patterns.compile_pattern(patterns.to_suffix_pattern(key))))

    def pick(self, path: str) -> T | None:
        """The value for this path; None where no key matches."""
        matches = [self._plain[end] for end in endings(path) if end in self._plain] if self._plain else []
        best = min(matches, default=len(self._values))
        self._compared += len(path) * len(self._matching)
        if self._compared > COMPARED_LIMIT:
            message = f"{len(self._matching)} patterns beyond plain names take too long on so many tensors"
            raise Invalid.from_finding("CONFIG_INVALID", Finding("config.pattern_refused", CONFIG, message))
        for index, pattern in self._matching:
            if index < best and pattern.matches(path):
                best = index
                break
        return self._values[best] if best < len(self._values) else None


class Targets:
    """What one configuration targets, asked path by path."""

    def __init__(self, config: AdapterConfig) -> None:
        self._config = config
        self._targets = _Names(config.targets)
        self._excluded = _Names(config.excluded)
        self._saved, self._endings = frozenset(config.saved_modules), Endings(config.saved_modules)
        self._layers = frozenset(config.layers or ())
        self._layer_lists = {name: at for at, name in reversed([*enumerate(config.layers_pattern)])}
        self._layer_endings = Endings(config.layers_pattern)
        parameters = [name.rpartition(".") for name in config.target_parameters]
        self._weights = {owner for owner, _, leaf in parameters if owner and leaf == "weight"}
        self._nested: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._parameters: dict[str, set[str]] = {}
        for owner, _, leaf in parameters:
            if leaf != "weight":
                self._parameters.setdefault(owner, set()).add(leaf)
        self.all_linear = isinstance(config.targets, str) and config.targets.lower() == ALL_LINEAR
        self.has_targets = config.targets is not None
        self.names_embeddings = self._targets.names(EMBEDDINGS)
        saved = {name.rpartition(".")[2] for name in config.saved_modules}
        self._ties = config.ensure_weight_tying and saved.isdisjoint(EMBEDDINGS) and self.names_embeddings

    def covers(self, path: str) -> bool:
        """Whether the module at this path is a target. With `all-linear`, only what is excluded is False."""
        is_target = self.all_linear or self.means_weight(path) or self._names_target(path)
        if not is_target or self._excluded.has(path):
            return False
        return not self._saved or not self._lies_in_saved(path)

    def _lies_in_saved(self, path: str) -> bool:
        """Whether whole parts of the path, one after the other, are a saved name."""
        ends = ((start, name) for start in starts(path) for name in self._endings.of(start))
        return any(len(name) == len(start) or start[-len(name) - 1] == "." for start, name in ends)

    def _names_target(self, path: str) -> bool:
        """Whether a name or the pattern in `target_modules` means the module, in a layer that is meant."""
        if not self._targets.has(path):
            return False
        if self._targets.names_whole(path):  # PEFT asks for the layer only where a name is the end of a path
            return True
        return not self._layers or isinstance(self._config.targets, str) or self._layer(path) in self._layers

    def ties(self, path: str) -> bool:
        """Whether the module at this path is an embedding or head that gets a pair if the base ties the two."""
        return self._ties and path.rpartition(".")[2] in EMBEDDINGS

    def means_weight(self, path: str) -> bool:
        """Whether `target_parameters` names the module's own matrix: `gate.weight`, a router of fused experts."""
        return bool(self._weights) and not self._weights.isdisjoint(endings(path))

    def saves(self, path: str) -> bool:
        """Whether the module is, or lies inside, one that PEFT trains as a whole: its path ends in a saved name.

        In letters, not at a dot: `norm` means every `input_layernorm`, too.
        """
        return bool(self._saved) and any(any(self._endings.of(start)) for start in starts(path))

    def parameters(self, path: str) -> tuple[str, ...]:
        """What `target_parameters` may mean of the fused module at this path, innermost first, as PEFT nests them.

        Names that say whose they are count before those that do not; these may be of any module that is no target.
        PEFT nests in the order in which the model declares its parameters: what projects down comes last.
        """
        if not self._parameters:
            return ()
        owners = tuple(end for end in endings(path) if end in self._parameters)
        if not owners and not self.covers(path):
            owners = ("",)
        if owners not in self._nested:
            names = {leaf for owner in owners for leaf in self._parameters.get(owner, ())}
            self._nested[owners] = tuple(sorted(names, key=lambda leaf: (leaf.startswith("down"), leaf)))
        return self._nested[owners]

    def _layer(self, path: str) -> int:
        """The number of the layer that holds the module, by the first list of layers in its path; -1 outside all."""
        if not self._layer_lists:
            match = _FIRST_NUMBER.search(path)
            return int(match[1]) if match else -1
        first, layer = len(self._config.layers_pattern), -1
        for number in _NUMBER.finditer(path):
            start = number.start()
            for name in self._layer_endings.of(path[:start]):
                is_whole = start == len(name) or path[start - len(name) - 1] == "."
                if is_whole and self._layer_lists[name] < first:
                    first, layer = self._layer_lists[name], int(number[1])
        return layer


class Endings:
    """Names by their letters from the last to the first: all that a text ends in are found in one walk along it."""

    def __init__(self, names: Iterable[str]) -> None:
        self._root: dict[str, Any] = {}
        for name in names:
            node = self._root
            for letter in reversed(name):
                node = node.setdefault(letter, {})
            node[""] = name

    def of(self, text: str) -> Iterator[str]:
        """Every name that the text ends in, shortest first."""
        node = self._root
        for letter in reversed(text):
            node = node.get(letter, {})
            if not node:
                return
            if "" in node:
                yield node[""]


class _Names:
    """Names or one pattern, as `target_modules` and `exclude_modules` have them."""

    def __init__(self, value: str | tuple[str, ...] | None) -> None:
        is_pattern = isinstance(value, str) and value.lower() != ALL_LINEAR
        self._pattern = patterns.compile_pattern(value) if is_pattern and isinstance(value, str) else None
        self._names = frozenset(value) if isinstance(value, tuple) else frozenset()
        self._dotted = any("." in name for name in self._names)

    def names_whole(self, path: str) -> bool:
        return path in self._names

    def names(self, leaves: Iterable[str]) -> bool:
        """Whether one of these is the last part of a name, or matches the pattern by itself."""
        if self._pattern is not None:
            return any(map(self._pattern.matches, leaves))
        return not {name.rpartition(".")[2] for name in self._names}.isdisjoint(leaves)

    def has(self, path: str) -> bool:
        if self._pattern is not None:
            return self._pattern.matches(path)
        if path.rpartition(".")[2] in self._names:
            return True
        return self._dotted and not self._names.isdisjoint(endings(path))


def endings(path: str) -> Iterator[str]:
    """The path and each of its ends after a dot, longest first: `a.b.c`, `b.c`, `c`."""
    while True:
        yield path
        _, dot, path = path.partition(".")
        if not dot:
            return


def starts(path: str) -> Iterator[str]:
    """The path and each of its beginnings before a dot, longest first: `a.b.c`, `a.b`, `a`."""
    while path:
        yield path
        path = path.rpartition(".")[0]
