"""Print figures about the code as one line of JSON (`make facts`).

`python -m scripts.facts NAME` lists where they come from: vague_names, arrows_back.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator

from tests import import_table, measures, vocabulary
from tests.import_table import ROOT


def places(figure: str) -> Iterator[str]:
    """Where a figure comes from, one line each."""
    paths = {name: path for name, path in import_table.modules().items() if not name.startswith("migrations")}
    sources = {name: path.read_text() for name, path in paths.items()}
    if figure == "vague_names":
        for name, source in sources.items():
            names = vocabulary.vague_names(ast.parse(source))
            yield from (f"{paths[name].relative_to(ROOT)}:{line} {word}" for line, word in names)
    elif figure == "arrows_back":
        yield from measures.arrows_back(import_table.graph(sources))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if sys.argv[1:]:
        print("\n".join(places(sys.argv[1])))
    else:
        print(json.dumps(measures.facts(ROOT)))
