"""`adapter completion`: the shell's script, and what it completes from the registry: refs, names, bases, aliases.

A completion asks the registry one to three times, for `CANDIDATES_LIMIT` names and `SECONDS` each, and completes
nothing if it is away. It does not create an embedded registry.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
)
from click.shell_completion import split_arg_string as split_words

from registry.client import registries
from registry.client.core import Versions
from registry.errors import Denied, NotFound, RegistryError
from registry.filesystem import replace_file
from registry.names import NEWEST, AdapterName

from . import output, session
from .options import Command

CANDIDATES_LIMIT = 50
SECONDS = 1.0
_PLAIN = re.compile(r"(?!-)[A-Za-z0-9._/:@-]*\Z")
"""What names consist of. A shell could execute anything else that a registry sends."""
_BASH = """\
_adapter_completion() {
    local IFS=$'\\n' type value
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_WORDS="${COMP_LINE:0:COMP_POINT}" _ADAPTER_COMPLETE=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F _adapter_completion adapter
"""


class AdapterBashComplete(BashComplete):
    """Reads the line itself: bash takes `acme/support:prod` for three words, and replaces only the last one."""

    source_template = _BASH.replace("%", "%%")

    def source(self) -> str:
        """The script. It needs bash 4.4, as click's does."""
        return ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that it is in."""
        line = os.environ.get("COMP_WORDS", "")
        words = split_words(line)
        self._incomplete = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], self._incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """One line: the kind, and what replaces the word that bash sees."""
        start = max(map(self._incomplete.rfind, ":@")) + 1
        value = item.value[start:] if item.value.startswith(self._incomplete[:start]) else item.value
        return f"{item.type},{value}"


def register() -> None:
    """Complete for bash by `AdapterBashComplete`."""
    add_completion_class(AdapterBashComplete)


def _refs(registry: Versions, text: str) -> Iterable[str]:
    mark = next((mark for mark in ":@" if mark in text), "")
    if not mark:
        return _names(registry, text)
    name = AdapterName.parse(text.partition(mark)[0])
    if mark == ":":
        return [f"{name}:{alias}" for alias in registry.adapter(name).aliases if alias != NEWEST]
    return [f"{name}@{view.number}" for view in registry.versions(name, limit=CANDIDATES_LIMIT).items]


def _names(registry: Versions, text: str) -> Iterable[str]:
    return [view.name for view in registry.adapters(prefix=text, limit=CANDIDATES_LIMIT).items]


def _bases(registry: Any, _text: str) -> Iterable[str]:
    return [view.name for view in registry.bases(modules=False).items]


def _aliases(registry: Any, _text: str, name: str = "") -> Iterable[str]:
    """Aliases of the adapter `name` and of its gates, those of its namespace, too; without a name those of any."""
    if not name:
        views = registry.adapters(limit=CANDIDATES_LIMIT).items
        return {alias: None for view in views for alias in view.aliases if alias != NEWEST}
    namespace = name.partition("/")[0]
    aliases = list(registry.adapter(name).aliases) if name != namespace else []
    for scope in dict.fromkeys((name, namespace)):
        with suppress(Denied, NotFound):  # a token of one adapter does not read the gates of the namespace
            aliases += [gate.alias for gate in registry.gates(scope).items]
    return [alias for alias in dict.fromkeys(aliases) if alias != NEWEST]


def _namespaces(registry: Versions, text: str) -> Iterable[str]:
    return {name.partition("/")[0]: None for name in _names(registry, text)}


_CANDIDATES: Mapping[str, Callable[[Versions, str], Iterable[str]]] = {
    "ref": _refs, "subject": _refs, "name": _names, "base": _bases, "alias": _aliases, "namespace": _namespaces,
}  # fmt: skip


def candidates(kind: str, incomplete: str, name: str = "") -> list[str]:
    """The names of a kind that begin so; none if the registry does not respond, whatever the reason.

    `name`: the adapter or namespace whose aliases are meant, if the line names it already. Contexts are names on this
    machine, which need no registry.
    """
    try:
        if kind == "context":
            return [name for name in registries.read_profile().contexts if name.startswith(incomplete)]
        if registries.target().embedded and not session.has_embedded():
            return []
        is_of_name = kind == "alias" and bool(name)
        opened = session.registry if kind == "base" or is_of_name else session.versions  # others need no larger client
        with opened() as registry:
            registry.connection.timeout_seconds, registry.connection.repeats = SECONDS, False
            names = _aliases(registry, incomplete, name) if is_of_name else _CANDIDATES[kind](registry, incomplete)
            return [name for name in names if name.startswith(incomplete) and _PLAIN.match(name)]
    except Exception:  # a completion has no place for an error
        return []


def nearest(kind: str, text: str) -> str:
    """The name of a kind that is nearest to an unknown one; empty if none is near, or if it is known."""
    names = candidates(kind, "")
    return "".join(difflib.get_close_matches(text, names, n=1)) if text not in names else ""


def suggest(error: RegistryError) -> None:
    """Give an error about an unknown adapter, alias or base the nearest one as its candidate, if one is near."""
    if base := error.parameters.get("base"):
        error.candidates = tuple(filter(None, [nearest("base", base)]))
    elif adapter := error.parameters.get("adapter"):
        alias = error.parameters.get("alias")
        prefix = f"{adapter}:" if alias else ""  # left out of the comparison: it would make all aliases alike
        names = [name.removeprefix(prefix) for name in candidates("ref", prefix or _beginning_of(adapter))]
        error.candidates = tuple(prefix + name for name in difflib.get_close_matches(alias or adapter, names, n=1))


def _beginning_of(adapter: str) -> str:
    """The namespace and the first letter, with which the nearest name begins as well."""
    return adapter[: adapter.find("/") + 2]


_KINDS = {"base_name": "base", "onto": "base", "group_alias": "alias", "soak_in": "alias", "scope": "name"}
"""Parameters that are named otherwise than what they hold."""
_KINDS_OF_GROUP = {("base", "name"): "base", ("namespace", "name"): "namespace", ("adapter", "name"): "ref",
                   ("context", "name"): "context"}  # fmt: skip
"""Group and parameter → kind, of texts that the command itself parses."""


def attach(command: click.Command, group: str = "adapter") -> None:
    """Let the parameters of a command, or of every command of the group, complete from the registry."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            attach(inner, str(command.name))
        return
    for param in command.params:
        name, type_name = str(param.name), param.type.name
        kind = type_name if type_name in _CANDIDATES else _KINDS_OF_GROUP.get((group, name), _KINDS.get(name, name))
        if kind in (*_CANDIDATES, "context") and not isinstance(param.type, click.Choice):
            param.shell_complete = _completer(kind)  # type: ignore[method-assign, assignment]


def _completer(kind: str) -> Callable[[click.Context, str], list[CompletionItem]]:
    def complete(context: click.Context, incomplete: str) -> list[CompletionItem]:
        subject = next(filter(None, map(context.params.get, ("ref", "scope", "name", "namespace"))), "")
        adapter = re.split("[@:]", str(subject))[0]
        return [CompletionItem(name) for name in candidates(kind, incomplete, adapter)]

    return complete


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default)


def _target(shell: str) -> Path:
    if shell == "bash":
        return _folder("XDG_DATA_HOME", ".local/share") / "bash-completion/completions/adapter"
    if shell == "fish":
        return _folder("XDG_CONFIG_HOME", ".config") / "fish/completions/adapter.fish"
    return Path.home() / ".zfunc/_adapter"


NOTES = {
    "bash": "it is read by the package bash-completion; without that, add to ~/.bashrc: source {path}",
    "zsh": "add to ~/.zshrc, unless it is there: fpath+=~/.zfunc; autoload -Uz compinit; compinit",
    "fish": "",
}


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(list(NOTES)), default=lambda: Path(os.environ.get("SHELL", "")).name)
@click.option("--install", is_flag=True, help="Write it to where the shell reads it.")
def completion(shell: str, install: bool) -> None:
    """Print or install the completion of commands, options, refs, bases and aliases.

    Completion waits at most a second for the registry, and completes no names while it is unreachable.
    """
    register()
    root = click.get_current_context().find_root().command
    script = (get_completion_class(shell) or BashComplete)(root, {}, "adapter", "_ADAPTER_COMPLETE").source()
    if not install:
        output.result({"shell": shell, "script": script}, lambda: click.echo(script, nl=False))
        return
    path = _target(shell)
    replace_file(path, script.encode(), mode=0o644)
    output.result({"shell": shell, "path": str(path)}, lambda: output.line(f"Written to {path}; open a new shell."))
    if note := NOTES[shell].format(path=path):
        output.note(note)
