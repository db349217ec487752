"""Builds the C side once and the Cython modules over it.

Metadata stands in pyproject.toml. Switches: FASTRNN_SANITIZE=address,undefined (or thread) builds
an instrumented package, and FASTRNN_COVERAGE=1 one that counts its lines (tools/coverage);
FASTRNN_DEBUG=1 keeps assertions and bounds checks.

The extensions use only CPython's stable ABI, so one wheel serves every CPython from 3.11. Builds of
CPython without the GIL have no stable ABI yet; for them the wheel is of one version.
"""

import os
import sys
import sysconfig
from glob import glob

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

sanitize = os.environ.get("FASTRNN_SANITIZE", "")
debug = os.environ.get("FASTRNN_DEBUG", "") == "1"
coverage = os.environ.get("FASTRNN_COVERAGE", "") == "1"
observed = bool(debug or sanitize or coverage)

# -g0: Python's own flags ask for debug information, which would be nine tenths of the package.
# -ffp-contract=off: a product and a sum become one rounding only where the source says so (vfma),
# so that results do not depend on the compiler.
flags = ["-std=c11", "-O3", "-g0", "-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=off"]
# -fno-unroll-loops: the kernels' source has its loops unrolled; Clang would do it once more.
flags += ["-fno-unroll-loops", "-fvisibility=hidden", "-fstack-protector-strong"]
link = ["-pthread"]
if sys.platform == "linux":
    link += ["-Wl,-z,relro,-z,now,-z,noexecstack", "-Wl,--hash-style=gnu"]
if sanitize:
    flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g1", "-O1", "-DFR_ROLLED"]
    link += [f"-fsanitize={sanitize}"]
elif coverage:
    # atomic: the compiler may run a loop by a counter of lines, and other threads change that, too
    flags += ["--coverage", "-fprofile-update=atomic", "-g", "-O1", "-DFR_ROLLED"]
    link += ["--coverage"]
else:  # Python's own flags may have it, too, and another level of it is an error
    flags += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
if not debug:
    flags.append("-DNDEBUG")
if not observed and sys.platform == "linux":
    link.append("-Wl,-s")  # no tables of symbols

stable = not sysconfig.get_config_var("Py_GIL_DISABLED")
macros = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]
if stable:
    macros.append(("Py_LIMITED_API", "0x030b0000"))


# Modules without loops of their own, which no step of a stream enters: made small.
small = () if observed else (
    "exchange", "layout", "linear", "loss", "machine_gradients", "machine_packs", "packed",
    "packed_program", "program", "program_tape", "project", "stream_program", "timeline", "update")
# Nothing is thrown through them, so nobody needs tables of how to unwind their frames.
smaller = ["-Os"]
if sys.platform == "linux":
    smaller += ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]


def module(name, extra=(), package="_kernels"):
    """Return the extension of one .pyx file."""
    return Extension(
        f"fastrnn.{package}.{name}",
        [f"fastrnn/{package}/{name}.pyx", *extra],
        include_dirs=["src_c", np.get_include()],
        depends=glob("src_c/**/*.h", recursive=True) + glob("fastrnn/_kernels/*.pxd"),
        define_macros=macros,
        py_limited_api=stable,
        extra_compile_args=[*flags, *(smaller if name in small else [])],
        extra_link_args=link,
    )


# Only `runtime` is linked with the C side: one pool, one choice of instruction set in a process.
kernels = sorted(glob("src_c/*.c") + glob("src_c/isa/*.c"))
names = ("check", "timeline", "project", "walk", "packed", "tape", "state", "sequence",
         "layout", "machine", "machine_packs", "machine_gradients",
         "packed_program", "program_tape", "program",
         "stack", "stream_program", "stream_states", "block", "stream", "linear", "loss", "update",
         "exchange")
modules = [module("runtime", kernels), *map(module, names), module("door", package="torch")]

setup(
    ext_modules=cythonize(
        modules,
        compiler_directives={
            "language_level": 3,
            "boundscheck": debug,
            "wraparound": debug,
            "cdivision": True,
            "embedsignature": True,
        },
    ),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable else {},
)
