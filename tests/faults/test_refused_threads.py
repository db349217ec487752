"""A system that gives no threads: results are those of one thread, and there is one warning."""

import resource
import shutil
import subprocess
import sys

import children
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD, /proc")

# The library's pthread_create fails where FEW threads have been made.
STUB = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

static int made, asked;

int stub_asked(void) { return asked; }

typedef int create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                   void *arg) {
  create *real = (create *)dlsym(RTLD_NEXT, "pthread_create");
  asked++;
  if (made >= atoi(getenv("FEW"))) return EAGAIN;
  made++;
  return real(thread, attributes, run, arg);
}
"""

# Prints how many workers there are, how many warnings, the first warning's numbers, and with the
# stub how often threads were asked for in how many seconds
PROGRAM = children.JOB + """
import ctypes, os, sys, time, warnings
from fastrnn._kernels import runtime

caught = []
warnings.showwarning = lambda message, category, *_: caught.append((category, str(message)))
warnings.simplefilter("always")
fastrnn.set_num_threads(1)
expected = job()
fastrnn.set_num_threads(4)
begin = time.monotonic()
assert all(job() == expected for _ in range(200))
seconds = time.monotonic() - begin
print(runtime.pool_workers())
assert all(category is RuntimeWarning for category, _ in caught)
print(len(caught))
if caught:
    text = caught[0][1]
    assert text.startswith("fastrnn: the system refused a thread, so calls run on "), text
    print(text.split(" run on ")[1].split(":")[0].replace(" ", "_"))
if os.environ.get("FEW"):
    print(ctypes.CDLL(None).stub_asked(), seconds)
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    if not shutil.which("cc"):
        pytest.skip("needs a compiler")
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.c").write_text(STUB)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", folder / "stub.so", folder / "stub.c",
                    "-ldl"], check=True)
    return str(folder / "stub.so")


@linux
@pytest.mark.parametrize("few", [0, 1, 2])
def test_a_system_that_refuses_threads_is_one_warning(stub, few):
    found, warned, text, asked, seconds = children.words(
        PROGRAM, LD_PRELOAD=children.preload(stub), FEW=str(few), FASTRNN_OVERSUBSCRIBE="1",
        OPENBLAS_NUM_THREADS="1")
    assert (int(found), int(warned)) == (few, 1)
    assert text == f"{few + 1}_of_4_threads"
    # not at each of the 600 calls: after a refusal nobody asks for a tenth of a second
    assert few + 1 <= int(asked) <= few + 2 + 10 * float(seconds)


@linux
def test_threads_that_are_given_are_no_warning(stub):
    assert children.words(
        PROGRAM, LD_PRELOAD=children.preload(stub), FEW="9", FASTRNN_OVERSUBSCRIBE="1",
        OPENBLAS_NUM_THREADS="1")[:3] == ["3", "0", "3"]


@linux
def test_the_warning_as_an_error_does_not_break_a_call(stub):
    done = children.start(
        children.JOB + "assert job() == job()", options=("-W", "error"),
        LD_PRELOAD=children.preload(stub), FEW="0", FASTRNN_OVERSUBSCRIBE="1",
        FASTRNN_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Exception ignored in") == 1


@linux
def test_a_limit_of_processes():
    # root has no such limit, so the process becomes nobody after it has imported what it needs
    found, warned, text = children.words(PROGRAM.replace("fastrnn.set_num_threads(4)\n", """
import resource
fastrnn.set_num_threads(4)
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
"""), FASTRNN_OVERSUBSCRIBE="1", OPENBLAS_NUM_THREADS="1")
    assert (found, warned, text) == ("0", "1", "1_of_4_threads")


def large_stacks():
    resource.setrlimit(resource.RLIMIT_STACK, (2**30, resource.getrlimit(resource.RLIMIT_STACK)[1]))


@linux
def test_a_limit_of_memory_that_has_no_room_for_stacks():
    found, warned, text = children.words(PROGRAM.replace("fastrnn.set_num_threads(4)\n", """
import resource
fastrnn.set_num_threads(4)
with open("/proc/self/status") as file:
    now = next(int(line.split()[1]) for line in file if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, -1))
"""), setup=large_stacks, FASTRNN_OVERSUBSCRIBE="1", OPENBLAS_NUM_THREADS="1")
    assert (found, warned, text) == ("0", "1", "1_of_4_threads")
