"""The public names: they exist, their lists are sorted, and their docstrings have the sections."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fastrnn

PACKAGE = Path(fastrnn.__file__).parent
# what a user imports from: fastrnn, its modules and the packages that have public names
MODULES = ["fastrnn", *sorted(
    f"fastrnn.{path.stem if path.is_file() else path.name}" for path in PACKAGE.iterdir()
    if (path.suffix == ".py" or (path / "__init__.py").exists())
    and not path.name.startswith(("_", "cli")))]  # the command line has no names to import
NEEDS = {"fastrnn.torch": "torch"}


def load(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return importlib.import_module(name)


def order(name):
    """Constants, then classes, then the others: as ruff sorts `__all__`."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("module", MODULES)
def test_lists_of_names_are_true_and_sorted(module):
    module = load(module)
    names = list(module.__all__)
    assert names == sorted(set(names), key=order)
    assert [name for name in names if not hasattr(module, name)] == []
    assert set(names) <= set(dir(module))


@pytest.mark.parametrize("module", ["fastrnn", "fastrnn.cells"])
def test_star_imports_names_that_come_late(module):
    script = (f"from {module} import *; import {module} as module; "
              "missing = set(module.__all__) - set(globals()); assert not missing, missing")
    subprocess.run([sys.executable, "-c", script], check=True)


def public_things():
    """Yield the public classes and functions by their full names, each once."""
    seen = set()
    for module in MODULES:
        if module in NEEDS and not importlib.util.find_spec(NEEDS[module]):
            continue
        found = importlib.import_module(module)
        for name in found.__all__:
            thing = getattr(found, name)
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and id(thing) not in seen:
                seen.add(id(thing))
                if thing.__module__.startswith("fastrnn"):
                    yield f"{module}.{name}", thing


THINGS = dict(public_things())


def methods(cls):
    """Yield the methods of a class; those of torch.nn that a class replaces are torch's."""
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        before = next((base for base in cls.__mro__[1:] if name in vars(base)), cls)
        if (inspect.isfunction(function) and before.__module__.startswith(("fastrnn", "builtins"))
                and (name == "__call__" or not name.startswith("_"))):
            yield name, function


def sections(doc):
    """Return the text of each section of a docstring, "" being what stands before them."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}$", inspect.cleandoc(doc), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def missing(function, doc, returns=True):
    """Return what the docstring of a function does not say."""
    found = sections(doc)
    text = " ".join(found[""].split())
    refers = re.search(r"(Arguments|Parameters)[^.]* are those of|, as fastrnn\.", text)
    if refers and "except" not in text:
        return []
    signature = inspect.signature(function)
    names = [name for name, parameter in signature.parameters.items()
             if name not in ("self", "cls") and parameter.kind is not parameter.VAR_KEYWORD]
    described = found.get("Parameters", "")
    wrong = [] if refers else [
        f"parameter {name}" for name in names
        if not re.search(rf"^\*{{0,2}}([\w*, ]+, )?\*{{0,2}}{name}\b", described, re.MULTILINE)]
    gives = signature.return_annotation not in (None, "None", inspect.Signature.empty)
    returns &= not inspect.isgeneratorfunction(inspect.unwrap(function))  # for a with block
    if returns and gives and not text.startswith("Return ") and "Returns" not in found:
        wrong.append("Returns")
    return wrong + ["Raises"] * (raises(function) and "Raises" not in found)


def raises(function):
    """Whether the function's own text raises or checks."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except OSError:  # a dataclass makes its constructor itself
        return False
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


@pytest.mark.parametrize("name", THINGS)
def test_public_names_are_described(name):
    thing = THINGS[name]
    assert thing.__doc__
    wrong = {}
    if inspect.isfunction(thing):
        wrong[name] = missing(thing, thing.__doc__)
    else:
        made = vars(thing).get("__init__")
        if made is not None and hasattr(made, "__wrapped__"):
            wrong["__init__"] = missing(made, thing.__doc__, returns=False)
        for method, function in methods(thing):
            if not inspect.getdoc(getattr(thing, method)):
                wrong[method] = ["a docstring"]
            elif hasattr(function, "__wrapped__"):  # users call it: see _checks.public
                wrong[method] = missing(function, function.__doc__)
    assert {key: value for key, value in wrong.items() if value} == {}
