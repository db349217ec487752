#!/usr/bin/env python3
"""Check the compiled modules of a wheel, or of a folder.

    tools/check_wheel.py WHEEL_OR_FOLDER ...

Needs readelf and objdump (binutils). Every module needs nothing but the C library, exports only its
PyInit function, has relro, immediate binding, no executable stack and no search path, and the
package has stack protectors. Instructions of AVX and later are only in functions that nothing
refers to but each other and the constant tables of kernels: a CPU without them never comes there.
"""

import bisect
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIBRARIES = re.compile(r"(libc|libm|libpthread|libdl|ld-linux[\w-]*|libc\.musl-\w+)\.so\.\d")
# A register of 256 or 512 bits or a mask, or the letter with which all instructions of AVX begin.
WIDE = re.compile(r"%[yz]mm|%k[0-7]|^v\w+ .*%xmm|^vzero")


def output(*command):
    """Return what a command prints."""
    return subprocess.run([str(word) for word in command], check=True, text=True,
                          stdout=subprocess.PIPE).stdout


def linking(path):
    """Return what is wrong with how a module is linked, and the names that it takes and exports."""
    dynamic, program = output("readelf", "-dW", path), output("readelf", "-lW", path)
    symbols = [line.split() for line in output("readelf", "--dyn-syms", "-W", path).splitlines()]
    symbols = [words for words in symbols if len(words) >= 8 and words[0][:-1].isdigit()]
    taken = {words[7].split("@")[0] for words in symbols if words[6] == "UND"}
    exported = {words[7].split("@")[0] for words in symbols
                if words[6] != "UND" and words[4] in ("GLOBAL", "WEAK")}
    wrong = []
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    wrong += [f"needs {name}" for name in needed if not LIBRARIES.fullmatch(name)]
    wrong += [f"exports {name}" for name in sorted(exported) if not name.startswith("PyInit_")]
    if "RPATH" in dynamic or "RUNPATH" in dynamic:
        wrong.append("has a search path")
    if "BIND_NOW" not in dynamic and not re.search(r"FLAGS_1.*NOW", dynamic):
        wrong.append("binds late")
    if "GNU_RELRO" not in program:
        wrong.append("has no relro")
    if not re.search(r"GNU_STACK .* RW +0", program):
        wrong.append("may execute its stack")
    return wrong, taken


def functions(path):
    """Return the sorted starts of all functions, from the tables that unwind the stack."""
    frames = output("readelf", "--debug-dump=frames", path)
    return sorted({int(start, 16) for start in re.findall(r"FDE .*pc=([0-9a-f]+)\.\.", frames)})


def instructions(path):
    """Yield the address and the text of each instruction."""
    for line in output("objdump", "-dw", "--no-show-raw-insn", path).splitlines():
        match = re.match(r"\s*([0-9a-f]+):\s+(\S.*)", line)
        if match:
            yield int(match[1], 16), match[2]


def wide_code(path):
    """Return the functions with wide instructions, and what is wrong with how they are reached."""
    starts = functions(path)

    def function_of(address):
        place = bisect.bisect_right(starts, address) - 1
        return starts[place] if place >= 0 else None

    wide, callers = set(), {}
    for address, text in instructions(path):
        here = function_of(address)
        if WIDE.search(text):
            wide.add(here)
        target = re.search(r"^(?:(?:call|j\w+)\s+|lea.*# )([0-9a-f]+)", text)
        if target and (there := function_of(int(target[1], 16))) != here:
            callers.setdefault(there, set()).add(here)
    reaching, front = set(wide), set(wide)
    while front := {caller for name in front for caller in callers.get(name, ())} - reaching:
        reaching |= front
    problems = unguarded(path, reaching) if wide else ()
    return wide, [f"{path.name}: {problem}" for problem in problems]


def unguarded(path, reaching):
    """Yield who reaches functions other than through a constant table."""
    if None in reaching:
        yield "wide instructions outside of all functions"
    sections = {}
    for line in output("readelf", "-SW", path).splitlines():
        match = re.match(r"\s*\[ *\d+\] (\S+)\s+\S+\s+([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)", line)
        if match:
            sections[match[1]] = range(int(match[2], 16), int(match[2], 16) + int(match[3], 16))
    tables = sections.get(".data.rel.ro", range(0))
    found = 0
    for line in output("readelf", "-rW", path).splitlines():
        match = re.match(r"([0-9a-f]+)\s+[0-9a-f]+\s+R_X86_64_RELATIVE\s+([0-9a-f]+)", line)
        if match and int(match[2], 16) in reaching:
            found += 1
            if int(match[1], 16) not in tables:
                yield f"a pointer at {match[1]}, not in constant data, to wide code"
    if not found:
        yield "no table of wide functions"
    for line in output("readelf", "--dyn-syms", "-W", path).splitlines():
        words = line.split()
        if len(words) >= 8 and words[3] == "FUNC" and int(words[1], 16) in reaching:
            yield f"{words[7]} leads to wide code without a table"


def check(folder):
    """Return what is wrong with the modules below a folder."""
    modules = sorted(Path(folder).rglob("*.so"))
    wrong = [] if modules else ["no compiled module"]
    taken, wide = set(), {}
    for path in modules:
        problems, names = linking(path)
        wrong += [f"{path.name} {problem}" for problem in problems]
        taken |= names
        if "X86-64" in output("readelf", "-h", path):
            wide[path.name.split(".")[0]], problems = wide_code(path)
            wrong += problems
    if "__stack_chk_fail" not in taken:
        wrong.append("no stack protector")
    elsewhere = sorted(name for name, found in wide.items() if found and name != "runtime")
    if elsewhere:
        wrong.append(f"wide instructions in {', '.join(elsewhere)}, expected them in runtime only")
    if wide and not wide.get("runtime"):
        wrong.append("no wide instructions at all: the kernels of AVX2 are missing")
    return wrong


def main():
    """Run the command; end with what is wrong."""
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            if Path(name).is_dir():
                wrong = check(name)
            else:
                with zipfile.ZipFile(name) as archive:
                    archive.extractall(folder)
                wrong = check(folder)
        if wrong:
            sys.exit("\n".join([name, *wrong]))


if __name__ == "__main__":
    main()
