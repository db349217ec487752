"""How the compiled modules are linked, and which instructions they have where."""

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fastrnn
from fastrnn._kernels import runtime, stream

ROOT = Path(__file__).parent.parent.parent
PACKAGE = Path(fastrnn.__file__).parent
MODULES = sorted([*PACKAGE.rglob("*.so")])

needs_binutils = pytest.mark.skipif(
    sys.platform != "linux" or not (shutil.which("readelf") and shutil.which("objdump")),
    reason="needs readelf and objdump")


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_binutils
def test_wide_instructions_are_behind_the_tables():
    check_wheel = load("check_wheel")
    found = {path.name.split(".")[0]: check_wheel.wide_code(path) for path in MODULES
             if "X86-64" in check_wheel.output("readelf", "-h", path)}
    if not found:
        pytest.skip("another architecture")
    assert {name for name, (wide, _) in found.items() if wide} == {"runtime"}
    assert found["runtime"][1] == []


@needs_binutils
@pytest.mark.skipif(not shutil.which("cc"), reason="needs a compiler")
def test_wide_code_without_a_table_is_found(tmp_path):
    source = tmp_path / "bad.c"
    source.write_text("""
        __attribute__((target("avx2"), noinline)) static void wide(float *x) {
          for (int i = 0; i < 64; i++) x[i] *= 2;
        }
        void (*const table[])(float *) = {wide};
        void PyInit_bad(float *x) { wide(x); }
    """)
    if subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-Wl,-z,relro", source, "-o",
                       tmp_path / "bad.so"]).returncode:
        pytest.skip("the compiler does not know AVX2")
    _, wrong = load("check_wheel").wide_code(tmp_path / "bad.so")
    assert [text for text in wrong if "PyInit_bad leads to wide code" in text]


@needs_binutils
def test_modules_are_linked_hardened():
    linking = load("check_wheel").linking
    allowed = ("has a search path", "needs ")  # of a Python with its own LDSHARED, of a sanitizer
    problems = {path.name: [text for text in linking(path)[0] if not text.startswith(allowed)]
                for path in MODULES}
    assert not any(problems.values()), problems


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's list of flags")
def test_the_instruction_sets_of_the_cpu_are_found():
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    needs = {"avx2": {"avx2", "fma"}, "avx512": {"avx2", "fma", "avx512f", "avx512dq"}}
    for name, supported in runtime.isa_names().items():
        assert supported == (needs.get(name, set()) <= flags), name


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")) or sys.platform == "win32",
                    reason="no stable ABI here")
def test_modules_use_the_stable_abi():
    assert len(MODULES) >= 26
    assert all(path.name.endswith(".abi3.so") for path in MODULES)


def test_a_stream_is_called_without_a_tuple():
    # Py_TPFLAGS_HAVE_VECTORCALL of the class, which CPython does not show in another way
    assert stream.Stream.__flags__ & 1 << 11
    assert stream.Stream.__module__ == "fastrnn._kernels.stream"
    assert stream.Stream.__qualname__ == "Stream"
    assert stream.Stream.__doc__ == stream.Stream.__base__.__doc__
