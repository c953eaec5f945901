"""Shapes are built when they are first needed, and that may be in two threads at once.

pydantic before 2.14 let the second of them see the class that a shape inherits from: every document passed for one.
msgspec 0.22 lets the second read the half-built description of a struct, which ends the process: structs are built
under a lock.
"""

from __future__ import annotations

import subprocess
import sys

from tests.import_table import ROOT

CODE = """
import importlib, json, pkgutil, random, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pydantic import ValidationError
from registry import api
from registry.errors import RegistryError
from registry.model import FrozenModel
from registry.structs import FrozenStruct
from registry.api.models import Request, Response

for module in pkgutil.iter_modules(api.__path__, 'registry.api.'):
    importlib.import_module(module.name)

THREADS = 16
sys.setswitchinterval(1e-6)

def shapes(of):
    return [shape for sub in of.__subclasses__() for shape in (sub, *shapes(sub))]

def asked(shape, gate):
    gate.wait()
    try:
        fields = dict.fromkeys(getattr(shape, '__struct_encode_fields__', ()))  # a struct reads what is there
        return type(shape.model_validate_json(json.dumps(fields))) is shape
    except ValidationError as e:
        return e.title == shape.__name__
    except (RegistryError, ValueError):
        return True  # a rule of that shape's own; a field that a struct needs

with ThreadPoolExecutor(THREADS) as pool:
    found = wrong = 0
    structs = shapes(FrozenStruct)
    random.shuffle(structs)  # what holds others may come first
    for shape in [*structs, *shapes(Request), *shapes(Response), *shapes(FrozenModel)]:
        gate = threading.Barrier(THREADS)
        wrong += not all(pool.map(asked, [shape] * THREADS, [gate] * THREADS))
        found += 1
print(found, wrong)
"""


def test_threads_that_need_a_shape_first_get_that_shape() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    schemas, wrong = map(int, done.stdout.split())
    assert schemas > 80
    assert wrong == 0
