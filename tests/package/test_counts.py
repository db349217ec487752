"""The gate of instruction counts: what it reads, what it lets pass, what it catches."""

import json
import shutil
import subprocess
import sys

import pytest
from test_package import ROOT, load

from fastrnn._kernels import runtime

VERSIONS = {"compiler": "GCC: 12", "cython": "3.2.9"}

DUMP = """\
desc: Trigger: Client Request: GRU, a step
events: Ir
ob=(1) /p/fastrnn/_kernels/runtime.abi3.so
fn=(1) 0x1
0 100
+3 20
cob=(2) /p/fastrnn/_kernels/stream.abi3.so
cfn=(2) 0x2
calls=1 0
* 7
ob=(2)
fn=(2)
0 7
ob=(3) /usr/lib/libpython3.11.so
fn=(3) eval
12 1000
-2 5
totals: 1132
"""


@pytest.fixture(scope="module")
def counts():
    return load("counts")


def made(**calls):
    return {"versions": dict(VERSIONS),
            "calls": {name: dict.fromkeys(("kernels", "modules", "all"), n)
                      for name, n in calls.items()}}


def test_counts_are_read_by_module(counts, tmp_path):
    path = tmp_path / "out.1"
    path.write_text(DUMP)
    assert counts.read(path, "/p/fastrnn") == (
        "GRU, a step", {"kernels": 120, "modules": 7, "all": 1132})


@pytest.mark.parametrize(("now", "caught"), [(1000, 0), (1019, 0), (1021, 2), (1050, 2), (900, 0)])
def test_more_than_two_per_cent_fail(counts, now, caught):
    failed = counts.compare(made(step=now, other=500), made(step=1000, other=500))
    assert len(failed) == caught
    assert all("step" in sentence for sentence in failed)


def test_a_new_call_must_be_recorded(counts):
    assert counts.compare(made(step=1, new=1), made(step=1)) == ["new: not in the record"]
    assert counts.compare(made(step=1), made(step=1, other=1)) == []


@pytest.mark.parametrize(("version", "compared"), [
    ("compiler", set()), ("cython", {"kernels"}),
])
def test_only_equal_versions_are_compared(counts, capsys, version, compared):
    here = made(step=2000)
    here["versions"][version] = "another"
    failed = counts.compare(here, made(step=1000))
    assert {sentence.split(": ")[1] for sentence in failed} == compared
    printed = capsys.readouterr().out
    assert {kind for kind in counts.JUDGED if f"{kind}: not compared" in printed} == (
        set(counts.JUDGED) - compared)


def test_the_record_has_all_calls():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        names = list(load("calls").make())
    finally:
        sys.path.pop(0)
    record = json.loads((ROOT / "bench" / "counts.json").read_text())
    assert list(record["calls"]) == names
    assert len(names) >= 30
    assert all(0 < counts["kernels"] < counts["all"] for counts in record["calls"].values())


@pytest.mark.skipif(not shutil.which("valgrind") or not shutil.which("cc")
                    or not runtime.isa_names().get("avx2"),
                    reason="needs valgrind, a compiler and AVX2")
def test_a_kernel_that_is_five_per_cent_slower_is_caught(tmp_path):
    path = tmp_path / "record.json"

    def run(*words):
        command = [sys.executable, ROOT / "tools" / "counts.py", "--only", "GRU, a step"]
        return subprocess.run([*command, "--file", path, *words], capture_output=True, text=True)

    recorded = run("--record")
    if not path.exists() and "NOT CHECKED" in recorded.stdout:
        pytest.skip(recorded.stdout)
    assert recorded.returncode == 0, recorded.stderr
    same = run()
    assert same.returncode == 0, same.stdout  # the same counts again
    assert "+0.00%" in same.stdout
    record = json.loads(path.read_text())
    (step,) = record["calls"].values()
    step["kernels"] = round(step["kernels"] / 1.05)  # as if this kernel were 5% slower than it was
    path.write_text(json.dumps(record))
    slower = run()
    assert slower.returncode == 1
    assert "GRU, a step of a stream: kernels:" in slower.stdout
    assert "counts: failed" in slower.stdout
