#!/usr/bin/env python3
"""Mutation tests: puts small faults into the kernels' C and into Python, and runs tests on each.

A mutant is killed if a test fails, crashes or does not end. pytest collects once, and each mutant
runs in a fork of that process. A mutant of C is a library with the kernels that its file concerns,
whose addresses take the place of others in the table of kernels; one of Python is new code of the
functions that exist. Files are changed in a copy alone. The package must have been built in place,
as the kept object files are linked once more. Rules: mutations.py.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from functools import partial
from glob import glob
from pathlib import Path

from mutations import commutes, sample

HERE = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c11", "-O1", "-g0", "-w", "-fPIC", "-fno-strict-aliasing", "-fno-math-errno",
         "-fno-trapping-math", "-ffp-contract=off", "-fno-unroll-loops", "-fvisibility=hidden",
         "-DNDEBUG", "-DFR_ROLLED"]
SECONDS = 10  # of CPU time, for one test
QUICK = 4  # for all tests of a mutant, without --thorough

KERNELS = {  # of the table, what is compiled for a file: enough of what uses it
    "cell": "FR_RNN_TANH FR_LSTM", "chain": "FR_LSTM product_plain gradient",
    "row": "FR_RNN_TANH FR_LSTM",
    "tiles": "FR_LSTM product_plain", "product": "product_plain product_gates",
    "gradient": "gradient sum_rows pack_plain", "gru": "FR_GRU", "lstm": "FR_LSTM",
    "rnn": "FR_RNN_TANH FR_RNN_RELU FR_RNN_SIGMOID", "loss": "softmax_loss",
    "machine": "elementwise sum_units add_rows", "vlog": "elementwise",
    "vmath": "activate softmax_loss elementwise",
    "pack": "pack_plain pack_plain_t pack_gates pack_slots pack_bias",
    "symbols": "scatter_add gather_columns scatter_columns",
    "update": "sum_squares sgd rmsprop adam",
}
VECTOR = ("FR_LSTM pack_plain pack_plain_t gradient softmax_loss sum_squares adam elementwise "
          "sum_units activate scatter_add")
KERNELS |= dict.fromkeys(("step", "scalar", "avx2", "avx512"), VECTOR)
LAYERS = [f"tests/kernels/test_{name}.py" for name in (
    "kernels", "lengths", "packed", "stream_rows", "stream_kernels", "stream_block", "linear",
    "activations", "functional", "symbols")]
RECORDS = ["tests/gradflow/test_record.py"]  # dL/dh and dL/dc of every step
PROGRAMS = ["tests/kernels/test_machine.py", "tests/kernels/test_cell_functional.py",
            "tests/cells/test_program_edges.py", "tests/kernels/test_stream_programs.py"]
LOSS, UPDATE = ["tests/kernels/test_loss_kernels.py"], ["tests/kernels/test_update.py"]
# Not those that start other processes: a mutant is seen in this one alone. The guard pages, which
# find reads and writes beyond an array, need a build of the mutant.
TESTS = {"cell": LAYERS + RECORDS, "lstm": LAYERS + RECORDS,
         "symbols": [LAYERS[9], LAYERS[0], "tests/layers/test_one_hot_layers.py"],
         "loss": LOSS, "update": UPDATE,
         "machine": PROGRAMS,
         "vlog": [*PROGRAMS, "tests/kernels/test_activations.py"],
         "vmath": [LAYERS[7], *PROGRAMS, *LOSS, *LAYERS[:4]], "pack": LAYERS + PROGRAMS,
         "gradient": [*LAYERS, *PROGRAMS, "tests/kernels/test_tape.py"]}
PYTHON = {
    "fastrnn/reference.py": "kernels/test_reference kernels/test_reference_lengths",
    "fastrnn/layers/init.py": "layers/test_init",
    "fastrnn/layers/dropout.py": "layers/test_layer_modes layers/test_layers",
    "fastrnn/layers/passes.py": "layers/test_passes layers/test_pass_gradients",
    "fastrnn/cells/functions.py": "cells/test_evaluate cells/test_definition kernels/test_machine",
    "fastrnn/cells/derive.py": "cells/test_evaluate cells/test_program_edges",
    "fastrnn/cells/evaluate.py": "cells/test_evaluate cells/test_wrong",
    "fastrnn/cells/numbers.py": "cells/test_evaluate cells/test_definition cells/test_wrong",
    "fastrnn/models/losses.py": "models/test_losses kernels/test_loss_kernels",
    "fastrnn/training/optim.py": "training/test_optim training/test_groups kernels/test_update",
    "fastrnn/training/regularisers.py": "training/test_regularisers",
    "fastrnn/training/schedules.py": "training/test_schedules",
}
WIDER = {  # with --thorough, in a process of its own: what was computed at import is computed anew
    "fastrnn/cells": "cells kernels/test_machine.py kernels/test_cell_functional.py "
                     "models/test_equation_models.py gradflow/test_equation_flow.py",
    "fastrnn/layers": "layers kernels/test_functional.py", "fastrnn": "kernels/test_kernels.py",
    "fastrnn/models": "models training/test_fit.py", "fastrnn/training": "training",
}
HOOK = """
#include "fastrnn.h"
#include <string.h>
#include <sys/mman.h>
/* Puts what is not 0 of `from` into a table, or all of it. */
__attribute__((visibility("default"))) void put(int isa, int bits, const void *from, int whole) {
  char *to = (char *)fr_isa_table(isa, bits), *page = (char *)((size_t)to & ~(size_t)4095);
  mprotect(page, (size_t)(to - page) + sizeof(fr_table), PROT_READ | PROT_WRITE);
  for (size_t at = 0; at < sizeof(fr_table); at += 8) {
    static const char none[8];
    const char *p = (const char *)from + at;
    if (whole || memcmp(p, none, 8)) memcpy(to + at, p, 8);
  }
}
__attribute__((visibility("default"))) const void *table(int isa, int bits) {
  return fr_isa_table(isa, bits);
}
"""


def stem(file):
    """Return a file's name without folder and ending."""
    return Path(file).stem


def tests_of(file):
    """Return the test files that exercise a file, the nearest first."""
    if file.endswith(".py"):
        return [f"tests/{name}.py" for name in PYTHON[file].split()]
    if file.startswith("src_c/vec") or stem(file) in ("table", "step"):
        return LAYERS + LOSS + UPDATE + PROGRAMS
    return TESTS.get(stem(file), LAYERS)


def copy_of_tree(folder):
    """Copy the repository, and link the runtime with a door to its tables."""
    ignore = shutil.ignore_patterns(".git", "build", "dist", "*.egg-info", ".hypothesis")
    shutil.copytree(HERE, folder, ignore=ignore, dirs_exist_ok=True)
    objects = [o for o in glob(f"{HERE}/build/temp.*/**/*.o", recursive=True)
               if "/src_c/" in o or o.endswith("_kernels/runtime.o")]
    if not objects:
        sys.exit("no object files: python setup.py build_ext --inplace")
    (folder / "hook.c").write_text(HOOK)
    target = glob(f"{folder}/fastrnn/_kernels/runtime.*.so")[0]
    os.remove(target)
    subprocess.run(["cc", "-shared", "-fPIC", "-pthread", "-I", folder / "src_c",
                    folder / "hook.c", *objects, "-o", target], check=True)


def reduced(text, file):
    """Return table.h with only the kernels that a file concerns: the rest is not compiled."""
    if stem(file) not in KERNELS:
        return text
    wanted = KERNELS[stem(file)].split()
    if stem(file) == "row":
        text = re.sub(r"\.(forward|forward_half|backward) = cell##\w+,?", "", text)
    head, _, body = text.partition("const fr_table FR_PASTE")
    rows = re.findall(r"\[(FR_\w+)\] = ((?:RNN_ROW\(\w+\)|\{.*?KERNELS\(\w+\)\}))", body, re.S)
    cells = ", ".join(f"[{name}] = {row}" for name, row in rows if name in wanted)
    entries = "".join(f".{name} = {name}," for name in wanted if not name.startswith("FR_"))
    cells = f".cell = {{{cells}}}," if cells else ""
    return f"{head}const fr_table FR_PASTE(fr_table, FR_ISA, FR_BITS) = {{{cells}{entries}}};\n"


class Compiler:
    """Compiles one mutant at a time, beside a copy of the C side that is not changed."""

    def __init__(self, folder):
        self.folder, self.plain = folder, {}
        shutil.copytree(HERE / "src_c", folder / "src_c", dirs_exist_ok=True)

    def object(self, file, isa, bits):
        """Return the object file's content, or None if the compiler refuses."""
        source = self.folder / "src_c" / "isa" / f"{isa}{'' if bits == 32 else '_f64'}.c"
        target = self.folder / "one.o"
        done = subprocess.run(["cc", *FLAGS, "-c", source, "-o", target], capture_output=True,
                              check=False)
        return target.read_bytes() if done.returncode == 0 else None

    def library(self, mutant, isa, bits):
        """Return the path of a library, or "invalid" or "equivalent"."""
        place = self.folder / mutant.file
        table = self.folder / "src_c" / "tmpl" / "table.h"
        plain = (HERE / mutant.file).read_text()
        text = (HERE / "src_c" / "tmpl" / "table.h").read_text()
        key = stem(mutant.file), isa, bits
        table.write_text(reduced(text, mutant.file))
        if key not in self.plain:
            place.write_text(plain) if place != table else None
            self.plain[key] = self.object(mutant.file, isa, bits)
            assert self.plain[key], "the file itself does not compile"
        place.write_text(mutant.text)
        found = self.object(mutant.file, isa, bits)
        place.write_text(plain)
        if found is None:
            return "invalid"
        if found == self.plain[key]:
            return "equivalent"
        target = self.folder / f"mutant_{isa}_{bits}_{time.monotonic_ns()}.so"
        (self.folder / "give.c").write_text(
            f"extern const char fr_table_{isa}{bits}[];\n"
            '__attribute__((visibility("default"))) const void *given(void) '
            f"{{ return fr_table_{isa}{bits}; }}\n")
        subprocess.run(["cc", "-shared", "-fPIC", self.folder / "give.c", self.folder / "one.o",
                        "-o", target], check=True)
        return target


class Server:
    """A plugin of pytest: its loop runs the tests of each mutant in a fork."""

    def __init__(self, options, mutants):
        self.options, self.mutants, self.inside = options, mutants, False
        self.kills, self.seconds, self.broken, self.sound, self.items = {}, {}, set(), set(), {}

    def pytest_runtestloop(self, session):
        """Run all mutants in place of the tests."""
        from fastrnn._kernels import runtime
        names = list(runtime.isa_names())
        self.runtime, self.isas = runtime, names
        self.door = ctypes.CDLL(runtime.__file__)
        self.door.table.restype = ctypes.c_void_p
        self.compiler = Compiler(Path(self.options.work) / "c")
        for item in session.items:
            self.items.setdefault(item.nodeid.partition("::")[0], []).append(item)
        for result in results(self.options.out):
            self.count(result["file"], result.get("by", "").partition(" (")[0])
        start = time.monotonic()
        for mutant in self.mutants:
            result = self.judge(mutant)
            result |= {"name": mutant.name, "file": mutant.file}
            with open(self.options.out, "a") as out:
                out.write(json.dumps(result) + "\n")
            print(f"{time.monotonic() - start:6.0f} s {result['status']:10} {mutant.name}"
                  f"  [{result.get('by', '')}]", flush=True)
        return True

    def judge(self, mutant):
        """Return the result of one mutant."""
        if mutant.file.endswith(".py"):
            found = self.run(mutant, partial(put_python, mutant))
            if found["status"] == "survived" and self.options.thorough:
                return in_a_new_process(mutant)
            return found
        if commutes(mutant):
            return {"status": "equivalent"}
        vector = mutant.file.startswith("src_c/vec")
        isas = [stem(mutant.file)] if vector else ["avx2", "avx512", "scalar"]
        status, compiled = "equivalent", 0
        for isa in isas:
            for bits in bits_of(mutant):
                library = self.compiler.library(mutant, isa, bits)
                if library == "invalid":
                    return {"status": "invalid"}
                if library == "equivalent":
                    continue
                compiled += 1
                put = partial(self.put, mutant, library, isa, bits, vector)
                found = self.run(mutant, put, isa, bits)
                library.unlink()
                found |= {"isa": isa, "bits": bits}
                if found["status"] != "survived" or not self.options.thorough:
                    return found
                status = "survived"
            if compiled and not self.options.thorough:
                break
        return {"status": status, "isa": isa}

    def put(self, mutant, library, isa, bits, vector):
        """Put the kernels of a library into the table, in all instruction sets' places."""
        given = ctypes.CDLL(str(library)).given
        given.restype = ctypes.c_void_p
        number = self.isas.index(isa)
        whole = int(stem(mutant.file) not in KERNELS)
        self.door.put(number, bits, ctypes.c_void_p(given()), whole)
        if not vector:  # a fault of a template is one of every instruction set
            for other in range(len(self.isas)):
                for b in (32, 64):
                    table = ctypes.c_void_p(self.door.table(number, b))
                    if other != number:
                        self.door.put(other, b, table, 1)
        self.runtime.set_isa(isa)

    def chosen(self, file, isa, bits):
        """Return the tests of a file: those that killed before, then some of each function."""
        found = []
        for name in tests_of(file):
            turn, items = {}, list(self.items.get(name, ()))
            random.Random(name).shuffle(items)
            for item in items:
                params = item.callspec.params if hasattr(item, "callspec") else {}
                if isa and params.get("isa", isa) != isa:
                    continue
                dtypes = re.findall(r"float(\d\d)", item.nodeid)
                if bits and dtypes and str(bits) not in dtypes:
                    continue
                count = turn[item.originalname] = turn.get(item.originalname, -1) + 1
                if count >= 3 and not self.options.thorough:
                    continue
                kills = self.kills.get((stem(file), item.nodeid), 0) * 5
                kills += self.kills.get(item.nodeid, 0)
                seconds = self.seconds.get(item.nodeid, 1)
                found.append(((-kills / seconds, count, seconds), item))
        found.sort(key=lambda pair: pair[0])
        return [item for _, item in found]

    def run(self, mutant, put, isa=None, bits=None):
        """Run the tests of a mutant in a fork; return what became of it."""
        vector = mutant.file.startswith("src_c/vec")
        while True:
            items = [i for i in self.chosen(mutant.file, isa, bits)
                     if (i.nodeid, vector) not in self.broken]
            name = self.fork(put, items)
            if not name:
                return {"status": "survived"}
            why = self.why
            if name == "import (4)":
                return {"status": "invalid", "why": why}
            item = [i for i in items if i.nodeid == name.partition(" (")[0]]
            key = name, isa, vector
            if key in self.sound or not self.fork(lambda: self.put_plain(mutant, isa), item):
                break
            print(f"       not used, it fails without a fault: {name}", flush=True)
            self.broken.add((name.partition(" (")[0], vector))
        self.sound.add(key)
        self.count(mutant.file, item[0].nodeid)
        return {"status": "killed", "by": name, "why": why}

    def count(self, file, name):
        """Remember which test has killed."""
        for known in ((stem(file), name), name):
            self.kills[known] = self.kills.get(known, 0) + 1

    def put_plain(self, mutant, isa):
        """Give all instruction sets the same kernels, as a mutant of a template does."""
        if isa and not mutant.file.startswith("src_c/vec"):
            number = self.isas.index(isa)
            for other in range(len(self.isas)):
                for b in (32, 64):
                    if other != number:
                        self.door.put(other, b, ctypes.c_void_p(self.door.table(number, b)), 1)
        if isa:
            self.runtime.set_isa(isa)

    def fork(self, put, items):
        """Run tests until one fails, crashes or does not end; return its name, or None."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self.child(put, items, write)
            finally:
                os._exit(3)
        os.close(write)
        name, self.why = "import", ""
        with os.fdopen(read) as lines:
            begun = None
            for line in lines:
                now = time.monotonic()
                if begun:
                    self.seconds[name] = min(self.seconds.get(name, 100), now - begun + 0.01)
                begun = now
                if line.startswith("WHY "):
                    self.why = line[4:].strip()
                else:
                    name = line.strip()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            return None
        return name if code == 1 else f"{name} ({signal.Signals(-code).name if code < 0 else code})"

    def child(self, put, items, write):
        """Put the fault in and run the tests."""
        begun = time.process_time()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        manager = items[0].config.pluginmanager
        manager.unregister(name="terminalreporter")
        self.inside = write
        try:
            put()
        except Exception as error:
            os.write(write, f"WHY {error!r}\n".encode())
            os._exit(4)
        for item, following in zip(items, [*items[1:], None], strict=True):
            if time.process_time() > begun + QUICK and not self.options.thorough:
                break
            limit = 6 * SECONDS if "guard" in item.nodeid else SECONDS
            signal.setitimer(signal.ITIMER_PROF, limit)
            signal.alarm(30 * limit)
            os.write(write, f"{item.nodeid}\n".encode())
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        os._exit(0)

    def pytest_runtest_logreport(self, report):
        """End a fork at the first test that fails."""
        if self.inside and report.failed:
            why = report.longreprtext.strip().splitlines()[-1:] or [""]
            os.write(self.inside, f"WHY {why[0]}\n".encode())
            os._exit(1)


def bits_of(mutant):
    """Return the dtypes whose code the line is in."""
    inside = []  # of the conditions around the line
    for line in (HERE / mutant.file).read_text().splitlines()[:mutant.line]:
        if line.startswith("#if"):
            inside.append(32 if line.startswith("#if FR_BITS == 32") else 0)
        elif line.startswith("#else"):
            inside[-1] = {32: 64}.get(inside[-1], 0)
        elif line.startswith("#endif"):
            inside.pop()
    return [bits for bits in inside if bits] or (32, 64)


def codes(code):
    """Yield a code object and all that are inside it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from codes(inner)


def put_python(mutant):
    """Give the functions that exist the code of a mutant."""
    new = {}
    for code in codes(compile(mutant.text, mutant.file, "exec")):
        new.setdefault(code.co_qualname, []).append(code)
    old = {}
    plain = compile((HERE / mutant.file).read_text(), mutant.file, "exec")
    for code in codes(plain):
        old.setdefault(code.co_qualname, []).append(code.co_firstlineno)
    for function in gc.get_objects():
        if isinstance(function, types.FunctionType):
            code = function.__code__
            if code.co_filename.endswith(mutant.file) and code.co_qualname in new:
                places = old[code.co_qualname]
                if code.co_firstlineno in places:
                    function.__code__ = new[code.co_qualname][places.index(code.co_firstlineno)]


def in_a_new_process(mutant):
    """Return the result of a mutant whose file is changed, in the folder of the copy."""
    place, plain = Path(mutant.file), Path(mutant.file).read_text()
    place.write_text(mutant.text)
    folder = [f"tests/{name}" for name in WIDER[str(place.parent)].split()]
    try:
        done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
                               *tests_of(mutant.file), *folder], capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": "."}, check=False, timeout=1800)
    except subprocess.TimeoutExpired:
        return {"status": "killed", "by": "half an hour"}
    finally:
        place.write_text(plain)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    if done.returncode == 0:
        return {"status": "survived"}
    return {"status": "killed", "by": " ".join(failed) or str(done.returncode)}


def results(path):
    """Return what earlier runs have found."""
    lines = Path(path).read_text().splitlines() if os.path.exists(path) else ()
    return [json.loads(line) for line in lines]


def report(path):
    """Print the counts of each file, and the survivors."""
    found = list({r["name"]: r for r in results(path)}.values())  # the latest
    print("\n| file | killed | survived | equivalent | not compiled |\n|---|---|---|---|---|")
    for file in [*sorted({r["file"] for r in found}), ""]:
        of = [r["status"] for r in found if r["file"] == file or not file]
        print(f"| {file or 'all'} | " + " | ".join(
            str(of.count(s)) for s in ("killed", "survived", "equivalent", "invalid")) + " |")
    for r in found:
        if r["status"] == "survived":
            print(r["name"])


def main():
    """Sample mutants and run them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", nargs="+", help="of src_c, or of PYTHON here; default: all C")
    parser.add_argument("--sample", type=int, default=250, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", required=True, help="a folder for the copy of the repository")
    parser.add_argument("--out", default="mutants.jsonl", help="one line a mutant; continued")
    parser.add_argument("--only", help="a regular expression that the names of mutants match")
    parser.add_argument("--thorough", action="store_true",
                        help="all tests, dtypes, instruction sets; survivors once more")
    options = parser.parse_args()
    options.out, options.work = os.path.abspath(options.out), os.path.abspath(options.work)
    files = options.files or [
        f"src_c/{name}" for name in ("step.h", "vec/scalar.h", "vec/avx2.h", "vec/avx512.h")] + [
        f"src_c/tmpl/{Path(f).name}" for f in sorted(glob(f"{HERE}/src_c/tmpl/*.h"))]
    mutants = sample({f: (HERE / f).read_text() for f in files}, options.sample, options.seed)
    done = {r["name"] for r in results(options.out)
            if not (options.thorough and r["status"] == "survived")}
    mutants = [m for m in mutants if m.name not in done
               and (not options.only or re.search(options.only, m.name))]
    tree = Path(options.work) / "tree"
    copy_of_tree(tree)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    import pytest
    wanted = {name for f in {m.file for m in mutants} for name in tests_of(f)}
    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", *sorted(wanted)],
                plugins=[Server(options, mutants)])
    report(options.out)


if __name__ == "__main__":
    main()
