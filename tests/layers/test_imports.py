"""What an import loads, what it does not, and that every module stands on its own."""


import pytest
from children import start

import fastrnn


def run(code, *options):
    done = start(code, options=options, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(code):
    """Return the modules that the code loads beside NumPy's and Python's own at the start."""
    return set(run("import __future__, importlib, sys, typing, numpy\nbefore = set(sys.modules)\n"
                   f"{code}\nprint(*sorted(set(sys.modules) - before))").split())


# Each module is imported as the first of the package: what it needs it must import itself. The
# compiled ones stay loaded, because they can be loaded only once.
EVERY_MODULE = """
import importlib, pkgutil, sys
import fastrnn

names = [m.name for m in pkgutil.walk_packages(fastrnn.__path__, "fastrnn.")]
missing = []
for name in names:
    if name.endswith("__main__"):
        continue
    for loaded in [m for m in sys.modules if m.startswith("fastrnn")]:
        if not loaded.startswith("fastrnn._kernels"):
            del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # of an optional extra
        if error.name.partition(".")[0] == "fastrnn":
            raise
        missing.append(name)
print(*names)
print("without an extra:", *missing, file=sys.stderr)
"""


@pytest.mark.parametrize("options", [(), ("-OO",), ("-W", "error")], ids="".join)
def test_every_module_can_be_the_first_one_imported(options):
    names = run(EVERY_MODULE, *options).split()
    assert {"fastrnn.cells", "fastrnn.layers.init", "fastrnn._kernels.runtime", "fastrnn.losses",
            "fastrnn.init", "fastrnn.models.losses"} <= set(names)


def test_import_loads_next_to_nothing():
    assert loaded_by("import fastrnn") == {"fastrnn"}


@pytest.mark.parametrize("use", ["fastrnn.LSTM", "fastrnn.functional", "fastrnn.get_num_threads",
                                 "fastrnn.SequenceModel", "fastrnn.init", "fastrnn.losses"])
def test_using_a_part_loads_no_extra_and_nothing_above_it(use):
    loaded = loaded_by(f"import fastrnn; {use}")
    outside = {name.partition(".")[0] for name in loaded}
    assert not outside & {"matplotlib", "tqdm", "safetensors", "torch", "sklearn", "json", "scipy"}
    above = {"fastrnn.training", "fastrnn.gradflow", "fastrnn.formats", "fastrnn.cli"}
    if use in ("fastrnn.functional", "fastrnn.get_num_threads"):
        above |= {"fastrnn.layers", "fastrnn.models"}
    if use in ("fastrnn.LSTM", "fastrnn.init"):
        above |= {"fastrnn.models"}
    assert not loaded & above


def test_the_public_names():
    names = dir(fastrnn)
    assert names == sorted(names)
    assert [name for name in names if name.startswith("_")] == ["__version__"]
    assert set(fastrnn.__all__) == set(names) - {"__version__"}
    for name in names:
        assert getattr(fastrnn, name) is getattr(fastrnn, name)
    for private in ("config", "bfloat16", "np", "stack", "nothing"):
        with pytest.raises(AttributeError, match=f"module 'fastrnn' has no attribute '{private}'"):
            getattr(fastrnn, private)
    assert isinstance(fastrnn.__version__, str)


def test_a_star_import_gives_the_public_names():
    given = run("from fastrnn import *; print(*[n for n in dir() if n[0] != '_'])").split()
    assert set(given) == set(fastrnn.__all__)
