"""Symbols that another thread changes while a call reads them: refused or not, never a crash."""

import os
import sys

import calls
import numpy as np
import pytest
from children import start

CODE = """
import sys, threading
import numpy as np
import calls
from fastrnn._kernels.packed import Packed
from fastrnn._kernels.stream import Stream

call = calls.make("lstm", 40, 64, 6, 8, source="one_hot")
good = call.index.copy()
pack = Packed(call.kind, call.weights[0])
step = Stream([[pack]], 64, np.float32, one_hot=True)
done = False

def change():
    while not done:
        call.index[:] = 2**30
        call.index[:] = good

thread = threading.Thread(target=change)
sys.setswitchinterval(1e-6)
thread.start()
ended = {"refused": 0, "ran": 0}
for i in range(200_000):
    if i >= 2000 and all(ended.values()):
        break
    try:
        step(call.index[0])
        if i % 4 == 0:
            call.forward(keep=False)
        ended["ran"] += 1
    except IndexError:
        ended["refused"] += 1
done = True
thread.join()
assert ended["ran"] and ended["refused"], ended
print("done")
"""


def test_symbols_changed_by_another_thread_crash_nothing():
    done = start(CODE, timeout=300, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


@pytest.mark.parametrize("wrong", [-1, 6, 2**31 - 1, -(2**31)])
def test_numbers_out_of_range_are_refused(wrong):
    for source in ("one_hot", "embedding"):
        call = calls.make("gru", 3, 2, 6, 4, source=source)
        before = call.index.copy()
        call.forward(keep=True)
        np.testing.assert_array_equal(call.index, before)
        call.index[2, 1] = wrong
        with pytest.raises(IndexError, match=f"row number {wrong}, expected 0 to 5"):
            call.forward(keep=False)
