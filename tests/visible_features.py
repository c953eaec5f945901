"""What a user can see and name: commands, options, routes (pages among them) and settings, one line each.

python -m tests.visible_features > tests/visible_features.txt        at a tag, with REMOVED of the test emptied
"""

from collections.abc import Iterator

import click
from fastapi.routing import APIRoute

from cli import main
from registry.server import app
from scripts.reference import cli, settings


def features() -> Iterator[str]:
    for name, command in cli.commands("adapter", main.main):
        yield f"command {name}"
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                yield from (f"option {name} {option}" for option in (*param.opts, *param.secondary_opts))
            elif isinstance(param, click.Argument):
                yield f"argument {name} {param.human_readable_name}"
    for router in app.ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute):
                yield from (f"route {method} {route.path}" for method in route.methods or ())
    for variable, _, _ in settings.server():
        yield f"setting {variable}"
    for group in settings.client().values():
        yield from (f"setting {variable}" for variable in group)


if __name__ == "__main__":
    print("\n".join(sorted(set(features()))))
