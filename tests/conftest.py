"""Fixtures of several test files, and a word on which package is tested."""

import os
import pathlib

import pytest

import fastrnn
from fastrnn._kernels import runtime

# processes that tests start shall import the installed package too, not the folder they start in
os.environ["PYTHONSAFEPATH"] = "1"
os.environ["PYTHONPATH"] = str(pathlib.Path(fastrnn.__file__).parents[1])
# that threads change no bit is shown with more of them than a small machine has CPUs
os.environ["FASTRNN_OVERSUBSCRIBE"] = "1"


def pytest_report_header():
    return (f"fastrnn {fastrnn.__version__} from {pathlib.Path(fastrnn.__file__).parent}, "
            f"{runtime.get_isa()}, {runtime.get_num_threads()} threads")


@pytest.fixture(params=[name for name, has in runtime.isa_names().items() if has])
def isa(request):
    """Run the test once under each instruction set that this CPU has."""
    before = runtime.get_isa()
    runtime.set_isa(request.param)
    yield request.param
    runtime.set_isa(before)


@pytest.fixture
def threads():
    """Return numbers of threads to try; the test may set any."""
    before = runtime.get_num_threads()
    yield (1, 2, 3, 4, 8)
    runtime.set_num_threads(before)


# What FASTRNN_CHECK=1 cannot leave as it is: memory and time of a call (a second call runs), and
# stderr (a warning that the scalar instruction set has nothing to compare).
UNCHECKED = ("allocates_nothing", "gives_its_memory_back", "test_no_memory.py", "test_pressure.py",
             "takes_the_memory_of_the_one_before", "peaks_at_twice_the_file",
             "test_the_environment_decides[{'FASTRNN_ISA': 'scalar'}")


# What a sanitizer cannot leave as it is: it has a malloc of its own, keeps memory that was freed,
# and takes addresses beyond any limit.
UNSANITIZED = ("test_a_stream_stays_beside_float64", "test_leaks.py", "test_no_memory",
               "test_pressure.py", "test_file_memory.py", "peaks_at_twice_the_file")
# The thread sanitizer ends a process that gets no thread, and reports a caller who changes an array
# during a call, which these tests do on purpose.
ONE_AT_A_TIME = ("test_another_thread_may_change", "refuses_threads", "test_a_limit_of_processes",
                 "no_room_for_stacks", "test_a_limit_of_address_space", "warning_as_an_error")


def pytest_collection_modifyitems(items):
    loaded = os.environ.get("LD_PRELOAD", "")
    changed = {"FASTRNN_CHECK=1": UNCHECKED if os.environ.get("FASTRNN_CHECK") == "1" else (),
               "a sanitizer": UNSANITIZED if "san.so" in loaded else (),
               "the thread sanitizer": ONE_AT_A_TIME if "tsan.so" in loaded else ()}
    for what, names in changed.items():
        for item in items:
            if any(name in item.nodeid for name in names):
                item.add_marker(pytest.mark.skip(reason=f"measures what {what} changes"))
