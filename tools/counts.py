#!/usr/bin/env python3
"""Count the instructions of the calls in tools/calls.py, and compare them with a record.

    tools/counts.py                    # compare with bench/counts.json
    tools/counts.py --record           # write it
    tools/counts.py --file FILE        # another record: of another build, compiler or commit
    tools/counts.py --only LSTM        # the calls whose names begin so

Counts do not depend on how busy the machine is. valgrind's callgrind counts them, one call after
the other, in one process with one thread and the AVX2 kernels (valgrind does not know AVX-512).
There are three counts for each call: in the module `runtime`, which has all kernels; in the other
compiled modules; and in all code, with CPython and NumPy. The first depends on the compiler, the
second also on Cython: the record names these versions, and a count is compared only if its versions
are the same. What is not compared is printed and is not an error. The third varies by up to 4%
between installations of one build, so it is shown and decides nothing. The exit status is 1 if one
of the first two is more than 2% above the record, or a call is not in it.
"""

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).parent.parent / "bench" / "counts.json"
TOLERANCE = 0.02
COUNTS = ("kernels", "modules", "all")
JUDGED = {"kernels": ("compiler",), "modules": ("compiler", "cython")}
WARM = 10  # calls before the counted ones: CPython rewrites its bytecode in the first ones
REPEATS = 5  # counted calls, of which the least count is kept: malloc tidies up in some of them


class CannotCount(Exception):
    """The machine cannot count."""


def versions():
    """Return what the counts depend on."""
    from fastrnn._kernels import runtime

    text = Path(runtime.__file__).read_bytes()
    compiler = (re.search(rb"[ \w]*clang version [^\0]+", text)
                or re.search(rb"GCC: [^\0]+", text))
    cython = re.search(rb"_cython_(\d+_\d+_\d+)", text)
    return {"compiler": compiler[0].decode().strip() if compiler else "unknown",
            "cython": cython[1].decode().replace("_", ".") if cython else "unknown"}


def count_here(library, package, only):
    """Make the calls: what the process under valgrind does. Each leaves a file of counts."""
    import ctypes

    import calls

    import fastrnn

    if Path(fastrnn.__file__).parent != Path(package):
        raise ImportError(f"fastrnn is in {Path(fastrnn.__file__).parent}, expected {package}")
    request = ctypes.CDLL(library)
    fastrnn.set_num_threads(1)
    made = calls.make(only)
    for call in made.values():
        for _ in range(WARM):
            call()
    gc.collect()
    gc.disable()
    request.start()
    for name, call in [("", nothing), *made.items()]:
        label = name.encode()
        for _ in range(REPEATS):
            request.zero()
            call()
            request.dump(label)


def nothing():
    """Do nothing: what the counting itself costs."""


def read(path, package):
    """Return the name of the call and its counts, from one file of callgrind.

    A line "ob=(1) path" begins the lines of a module, and has the path the first time only. The
    second word of a line that begins with a number, "+", "-" or "*" is a count; the line after
    "calls=" is of the code that was called, which has its own lines.
    """
    counts = dict.fromkeys(COUNTS, 0)
    paths, module, called, name = {}, "", False, None
    for line in path.read_text().splitlines():
        if match := re.match(r"(c?ob)=(\(\d+\)) ?(.*)", line):
            kind, number, found = match.groups()
            if found:
                paths[number] = found
            if kind == "ob":
                module = paths[number]
        elif match := re.match(r"desc: Trigger: Client Request: ?(.*)", line):
            name = match[1]
        elif line.startswith("calls="):
            called = True
        elif re.match(r"[-+*\d]", line):
            words = line.split()
            if not called and len(words) == 2:
                counts["all"] += int(words[1])
                if module.startswith(f"{package}/"):
                    is_runtime = Path(module).name.startswith("runtime.")
                    counts["kernels" if is_runtime else "modules"] += int(words[1])
            called = False
    return name, counts


def count(only):
    """Return the counts of each call."""
    import fastrnn
    from fastrnn._kernels import runtime

    if not shutil.which("valgrind"):
        raise CannotCount("valgrind is not installed")
    if not runtime.isa_names().get("avx2"):
        raise CannotCount("this CPU has no AVX2")
    package = str(Path(fastrnn.__file__).parent)
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/callgrind.so"
        source = Path(__file__).with_name("callgrind.c")
        built = subprocess.run([os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", str(source),
                                "-o", library], capture_output=True, text=True)
        if built.returncode:
            raise CannotCount(f"tools/callgrind.c does not compile: {built.stderr.strip()}")
        # a small environment: its size moves the stack
        environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "FASTRNN_ISA": "avx2",
                       "FASTRNN_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                       "PYTHONDONTWRITEBYTECODE": "1",
                       "PYTHONPATH": str(Path(package).parent)}
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--log-file={folder}/log",
             f"--callgrind-out-file={folder}/out", sys.executable, __file__, "--here", library,
             package, only], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the calls failed:\n{done.stdout}{done.stderr}"
                               f"{Path(folder, 'log').read_text()}")
        outputs = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        found = {}
        for name, counts in (read(path, package) for path in outputs):
            before = found.get(name, counts)
            found[name] = {kind: min(before[kind], counts[kind]) for kind in COUNTS}
    empty = found.pop("")
    found.pop(None, None)  # what came after the last call
    return {name: {kind: counts[kind] - empty[kind] for kind in COUNTS}
            for name, counts in found.items()}


def compare(here, record):
    """Print a table; return the sentences about what failed."""
    kinds = []
    for kind, needs in JUDGED.items():
        other = [f"{need} {record['versions'].get(need)}, here {here['versions'][need]}"
                 for need in needs if record["versions"].get(need) != here["versions"][need]]
        if other:
            print(f"counts: {kind}: not compared, the record is of {'; '.join(other)}")
        else:
            kinds.append(kind)
    print(f"counts: {'call':36}" + "".join(f"{kind:>22}" for kind in COUNTS))
    failed = []
    for name, counts in here["calls"].items():
        before = record["calls"].get(name)
        cells = []
        for kind, n in counts.items():
            cell = f"{n:,}"
            if before:
                change = n / before[kind] - 1
                cell += f" {change:+7.2%}"
                if kind in kinds and change > TOLERANCE:
                    cell += "!"
                    failed.append(f"{name}: {kind}: {n:,}, recorded {before[kind]:,}, "
                                  f"{change:+.2%}")
            cells.append(f"{cell:>22}")
        print(f"counts: {name:36}" + "".join(cells))
    if kinds:
        failed += [f"{name}: not in the record" for name in here["calls"].keys() - record["calls"]]
    return failed


def main():
    """Count, then record or compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="write the record")
    parser.add_argument("--file", type=Path, default=RECORD, help="the record")
    parser.add_argument("--only", default="", help="how the names of the calls begin")
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        count_here(*arguments.here)
        return 0
    try:
        counted = count(arguments.only)
    except CannotCount as reason:
        print(f"counts: NOT CHECKED: {reason}")
        return int(arguments.record)
    here = {"versions": versions(), "calls": counted}
    if arguments.record:
        arguments.file.write_text(json.dumps(here, indent=1) + "\n")
        print(f"counts: {len(here['calls'])} calls written")
        return 0
    failed = compare(here, json.loads(arguments.file.read_text()))
    for sentence in failed:
        print(f"counts: {sentence}")
    print(f"counts: {'failed' if failed else 'passed'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
