"""Shapes are built when they are first needed, and that may be in two threads at once.

pydantic before 2.14 let the second of them see the class that a shape inherits from: every document passed for one.
"""

from __future__ import annotations

import subprocess
import sys

from tests.import_table import ROOT

CODE = """
import importlib, pkgutil, random, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pydantic import ValidationError
from registry import api
from registry.errors import RegistryError
from registry.model import FrozenModel
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
        return type(shape.model_validate_json('{}')) is shape
    except ValidationError as e:
        return e.title == shape.__name__
    except RegistryError:
        return True  # a rule of that shape's own

with ThreadPoolExecutor(THREADS) as pool:
    found = wrong = 0
    every_shape = [*shapes(Request), *shapes(Response), *shapes(FrozenModel)]
    random.shuffle(every_shape)  # what holds others may come first
    for shape in every_shape:
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
