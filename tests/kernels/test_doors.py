"""What the modules of Cython refuse when they are called without the layers, and rare paths.

The layers check their arguments first, so users never see these errors. They keep a mistake in a
layer from writing past an array.
"""

import copy
import os
import pickle
import subprocess
import sys

import calls
import numpy as np
import programs
import pytest

import fastrnn
from fastrnn._kernels import packed, program, runtime, sequence, stream, timeline
from fastrnn.cells.instance import Instance, Plan


def test_a_sequence_has_one_or_two_directions_and_a_known_cell():
    call = calls.make("gru", 3, 2, 4, 5)
    for weights, reverse in ((call.weights * 3, (False,) * 3), (call.weights, (False, True))):
        call.reverse = reverse
        with pytest.raises(ValueError, match=r"weights: \d directions, expected 1 or 2"):
            call.forward(keep=False, weights=weights)
    y = np.empty_like(call.dy)
    for kind in (-1, 5):
        with pytest.raises(ValueError, match=f"kind: is {kind}, expected 0 to 4"):
            sequence.forward(kind, call.x, None, call.weights, (False,), (call.h0,), y, (call.h0,),
                             False, runtime.Workspace())


def test_one_hot_input_has_no_gradient_but_its_weights_have():
    call = calls.make("lstm", 3, 2, 4, 5, source="one_hot")
    _, kept = call.forward(keep=True)
    call.dx_shape = (3, 2, 4)
    with pytest.raises(ValueError, match="dx: is an array, expected None: x was one-hot"):
        call.backward(kept)
    call.dx_shape = None
    whole, call.weights = call.weights, tuple((None, *w[1:]) for w in call.weights)
    with pytest.raises(ValueError, match="weight_ih is None, expected an array: x was one-hot"):
        call.backward(kept)
    call.weights = whole * 2
    with pytest.raises(ValueError, match="grads: 2 directions, expected 1"):
        call.backward(kept)
    call.weights = whole
    assert np.isfinite(call.backward(kept)["dweight0"]).all()  # the tape is still whole


@pytest.mark.parametrize(("I", "H"), [(0, 3), (3, 0)])
def test_packed_weights_have_rows(I, H):
    weights = np.zeros((H, I), "f4"), np.zeros((H, H), "f4"), None, None
    with pytest.raises(ValueError, match=f"have I = {I} and H = {H}, expected at least 1"):
        packed.Packed(0, weights)


def test_a_timeline_checks_its_rows():
    with pytest.raises(ValueError, match="lengths: has 4, expected 0 to 3"):
        timeline.Timeline(np.array([1, 4]), 3, None, False)
    with pytest.raises(ValueError, match="lengths: has -1, expected 0 to 3"):
        timeline.Timeline(np.array([-1, 2]), 3, None, False)
    for reset in (np.zeros((3, 2), "u1"), np.zeros((2, 3), bool)):
        with pytest.raises(ValueError, match=r"reset: is .* expected bool of shape \(3, 2\)"):
            timeline.Timeline(np.array([1, 2]), 3, reset, False)


def highway(dtype=np.float32):
    """Return a program of two states whose cell reads x itself, and an input (T, B, I)."""
    made = programs.Made("highway", 4, 4, dtype, 0)
    return made, np.random.default_rng(1).standard_normal((3, 2, 4)).astype(dtype)


def run(made, x, weights=None, *, time=None, initial=None, final=None):
    """Return y and the tape of a program."""
    weights = ((made.parameters, None),) if weights is None else weights
    y = np.full_like(x, np.nan)
    if final is None:
        final = tuple(np.empty((1, 2, width), x.dtype) for width in made.widths)
    return y, program.forward(made.kind, x, None, weights, (False,), initial, y, final, True,
                              runtime.Workspace(), time)


def back(made, tape, dy, dx=None, *, dinitial=None, grads=None, record=()):
    """Return what backward of a program records."""
    if dinitial is None:
        dinitial = tuple(np.empty((1, 2, width), dy.dtype) for width in made.widths)
    grads = tuple(map(np.zeros_like, made.parameters)) if grads is None else grads
    return program.backward(tape, dy, None, dx, dinitial, (grads,), record)


def test_a_program_checks_weights_and_states():
    made, x = highway()
    direction = (made.parameters, None)
    with pytest.raises(ValueError, match="weights: 3 directions, expected 1 or 2"):
        run(made, x, (direction,) * 3)
    with pytest.raises(ValueError, match=f"expected a tuple of {len(made.parameters)} arrays"):
        run(made, x, ((made.parameters[1:], None),))
    with pytest.raises(ValueError, match="expected a tuple"):
        run(made, x, ((list(made.parameters), None),))
    for other in (programs.Made("own", 4, 4, x.dtype, 0), highway(np.float64)[0]):
        with pytest.raises(ValueError, match="packed for another cell, dtype, size"):
            run(made, x, ((other.packed(), None),))
    states = tuple(np.zeros((1, 2, width), x.dtype) for width in made.widths)
    for few in ({"initial": states[1:]}, {"final": states[1:]}):
        with pytest.raises(ValueError, match=f"states: expected {len(states)}"):
            run(made, x, **few)


def test_backward_of_a_program_checks_first():
    made, x = highway()
    _, kept = run(made, x)
    with pytest.raises(ValueError, match=f"states: expected {len(made.widths)}"):
        back(made, kept, x, dinitial=())
    dinitial = tuple(np.empty((1, 2, width), x.dtype) for width in made.widths)
    with pytest.raises(ValueError, match=f"states: expected {len(made.widths)}"):
        program.backward(kept, x, (), None, dinitial, (made.parameters,))
    with pytest.raises(ValueError, match="record: has 'nothing', expected names out of"):
        back(made, kept, x, record=("nothing",))
    with pytest.raises(ValueError, match="grads: 2 directions, expected 1"):
        program.backward(kept, x, None, None, (), (made.parameters,) * 2)
    dx = np.full_like(x, np.nan)
    back(made, kept, x, dx)  # the tape is still whole
    assert np.isfinite(dx).all()
    with pytest.raises(RuntimeError, match="a tape serves one backward"):
        back(made, kept, x, dx)


def test_a_program_records_what_is_asked_for():
    made, x = programs.Made("lstm", 4, 4, np.float64, 0), highway(np.float64)[1]
    made.kind = Plan(Instance(fastrnn.cell(programs.CELLS["lstm"])), 4, 4, True)
    names = ("dc", "dh", "c", "h")
    whole = back(made, run(made, x)[1], x, record=names)
    for name in names:
        only = back(made, run(made, x)[1], x, record=(name,))
        assert list(only) == [name]
        assert only[name].tobytes() == whole[name].tobytes()


def test_both_directions_of_a_program_run_on_two_teams(threads):
    layer = fastrnn.Layer(fastrnn.cell(programs.CELLS["lstm"]), 64, 64, bidirectional=True, seed=0)
    x = np.random.default_rng(2).standard_normal((20, 8, 64), np.float32)
    found = []
    for n in (1, 2, 4):
        runtime.set_num_threads(n)
        layer.zero_grad()
        y, state = layer(x)
        dx, dstate = layer.backward(y)
        found.append([a.tobytes() for a in (y, *state, dx, *dstate, layer.flat_grads)])
    assert found[0] == found[1] == found[2]


def test_a_stream_takes_no_vector_for_a_matrix():
    layer = fastrnn.GRU(3, 4, seed=0)
    packs = layer.stream_packs()
    with pytest.raises(ValueError, match=r"head\[0\] has shape \(4,\), expected \(N, 4\)"):
        stream.Stream([packs], 1, np.float32, head=(np.zeros(4, "f4"), np.zeros(4, "f4")))
    with pytest.raises(ValueError, match=r"embedding has shape \(3,\), expected \(V, 3\)"):
        stream.Stream([packs], 1, np.float32, np.zeros(3, "f4"))
    with pytest.raises(ValueError, match=r"groups\[1\] is 7, expected a list of Packed"):
        stream.Stream([packs, 7], 1, np.float32)


@pytest.mark.parametrize("x", [np.zeros((2, 1), int), np.zeros(3, int), [], [[0], [1]], [0.0, 1.0]])
def test_a_stream_of_symbols_takes_one_for_each_row(x):
    step = fastrnn.GRU(3, 4, seed=0).eval().stream(2, one_hot=True)
    with pytest.raises((ValueError, TypeError), match=r"^GRU.stream: x .*expected"):
        step(x)
    assert step([0, 1]).shape == step(np.array([0, 1])).shape == (2, 4)


def test_row_numbers_have_one_axis():
    step = fastrnn.GRU(3, 4, seed=0).eval().stream(5)
    with pytest.raises((ValueError, IndexError, TypeError), match=r"^GRU.stream: rows"):
        step(np.zeros((2, 3), "f4"), rows=np.array([[0], [1]]))


@pytest.mark.skipif(runtime.get_isa() == "scalar", reason="needs two instruction sets")
def test_packs_are_of_the_instruction_set_in_use():
    call, before = calls.make("gru", 3, 2, 4, 5), runtime.get_isa()
    runtime.set_isa("scalar")
    pack = packed.Packed(call.kind, call.weights[0])
    runtime.set_isa(before)
    with pytest.raises(ValueError, match="packed for another cell, dtype, size or instruction"):
        call.forward(keep=False, weights=(pack,))


@pytest.mark.parametrize(("I", "H"), [(4, 6), (3, 5)])
def test_both_directions_have_packs_of_one_size(I, H):
    call, other = calls.make("gru", 3, 2, 4, 5, D=2), calls.make("gru", 3, 2, I, H)
    packs = tuple(packed.Packed(call.kind, w) for w in (call.weights[0], other.weights[0]))
    with pytest.raises(ValueError, match="packed for another cell, dtype, size"):
        call.forward(keep=False, weights=packs)


def test_a_row_that_comes_three_times_is_refused():
    step = fastrnn.GRU(3, 4, seed=0).eval().stream(5)
    with pytest.raises(ValueError, match="rows"):
        step(np.zeros((3, 3), "f4"), rows=np.array([2, 2, 2]))
    step(np.zeros((3, 3), "f4"), rows=np.array([2, 1, 0]))


def test_a_long_row_leaves_a_thread_without_rows(threads):
    layer = fastrnn.Layer(fastrnn.cell(programs.CELLS["lstm"]), 64, 64, seed=0)
    x = np.random.default_rng(2).standard_normal((60, 12, 64), np.float32)
    lengths = np.array([1] * 5 + [60] + [1] * 6)  # a third of all steps is less than half this row
    found = []
    for n in (1, 3):
        runtime.set_num_threads(n)
        layer.zero_grad()
        y, state = layer(x, lengths=lengths)
        dx, dstate = layer.backward(y)
        found.append([a.tobytes() for a in (y, *state, dx, *dstate, layer.flat_grads)])
    assert found[0] == found[1]


def test_a_program_without_a_real_step():
    made, x = highway()
    time = timeline.Timeline(np.array([0, 0]), 3, None, False)
    x = x.reshape(6, 4)
    y, kept = run(made, x, time=time)
    assert (y == 0).all()
    dx, grads = np.full_like(x, np.nan), tuple(map(np.zeros_like, made.parameters))
    back(made, kept, x, dx, grads=grads)
    assert (dx == 0).all()
    assert all((grad == 0).all() for grad in grads)
    _, kept = run(made, x, time=time)
    back(made, kept, x, None, grads=grads)
    assert all((grad == 0).all() for grad in grads)


def test_a_workspace_is_copied_without_its_memory():
    for made in (copy.deepcopy(runtime.Workspace()),
                 pickle.loads(pickle.dumps(runtime.Workspace()))):
        assert isinstance(made, runtime.Workspace)


def test_an_instruction_set_that_this_cpu_lacks_is_refused(monkeypatch):
    before = runtime.get_isa()
    monkeypatch.setattr(runtime, "isa_names", lambda: {before: True, "future": False})
    with pytest.raises(ValueError, match=f"this CPU does not have 'future', it has {before}"):
        runtime.set_isa("future")
    assert runtime.get_isa() == before


def test_without_an_affinity_mask_all_cpus_may_be_used(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert runtime.cpu_limit() == 1


@pytest.mark.parametrize(("quota", "limit"), [("150000 100000", 2), ("10000 100000", 1),
                                              ("max 100000", 8), ("-1 100000", 8)])
def test_a_quota_limits_the_threads(quota, limit):
    done = subprocess.run([sys.executable, "-c", f"""if True:
        import builtins, io, os
        there = open

        def opened(path, *rest, **options):
            path = str(path)
            if path == "/sys/fs/cgroup/cpu.max":
                return io.StringIO({quota!r})
            if path == "/proc/self/cgroup" or path.startswith("/sys/fs/cgroup"):
                raise FileNotFoundError(path)
            return there(path, *rest, **options)

        builtins.open = opened  # before the module looks it up
        os.path.exists = lambda path: path == "/sys/fs/cgroup/cpu.max"
        from fastrnn._kernels.runtime import cpu_limit

        os.sched_getaffinity = lambda process: set(range(8))
        print(cpu_limit())"""], capture_output=True, text=True)
    assert done.stdout.split() == [str(limit)], done.stderr
