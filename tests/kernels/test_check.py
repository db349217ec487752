"""FASTRNN_CHECK=1 finds damaged kernels, and lets right ones pass.

The variable is read at import, so the tests run in one child process: `python test_check.py NAME`
runs one function of this file whose name begins with "child_". A kernel is damaged there by a
function in the place of the compiled one, which changes a result of every instruction set but the
scalar one.
"""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest

import fastrnn
from fastrnn._kernels import runtime

FASTEST = [name for name, has in runtime.isa_names().items() if has][-1]
needs_two = pytest.mark.skipif(FASTEST == "scalar", reason="there is only the scalar table")


def run_child(name):
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, name], capture_output=True, text=True,
        timeout=300, check=False,
        env=os.environ | {"FASTRNN_CHECK": "1", "FASTRNN_ISA": FASTEST})
    assert done.returncode == 0, done.stdout + done.stderr


# ---- in the child -------------------------------------------------------------------------------

def damaged(original, damage):
    """Return a function that calls damage(result, *arguments) after a call by a fast table."""
    def call(*arguments, **options):
        result = original(*arguments, **options)
        if runtime.get_isa() == "scalar":
            return result
        changed = damage(result, *arguments)
        return result if changed is None else changed
    return call


def refused(words, act, *arguments, **options):
    """Call a function; the check must find a difference, and say these words."""
    from fastrnn._kernels.checked import WrongResult

    with pytest.raises(WrongResult) as found:
        act(*arguments, **options)
    for word in (*words, FASTEST, "allowed", "CONTRIBUTING.md"):
        assert word in str(found.value), f"{word!r} is not in: {found.value}"


class Damage:
    """Puts a damaged function in the place of a module's checked one, for a while."""

    def __init__(self, module, name, damage):
        from fastrnn._kernels import checked

        self.module, self.name, self.before = module, name, getattr(module, name)
        if name in checked.BASE:
            self.table, self.was = checked.BASE, checked.BASE[name]
            self.new = damaged(self.was, damage)
        else:
            self.table = None
            wrap = {"forward": lambda f: checked.checked_forward(f"{module.__name__}.forward", f),
                    "backward": checked.checked_backward}[name]
            self.new = wrap(damaged(self.before.__wrapped__, damage))

    def __enter__(self):
        if self.table is None:
            setattr(self.module, self.name, self.new)
        else:
            self.table[self.name] = self.new

    def __exit__(self, *error):
        if self.table is None:
            setattr(self.module, self.name, self.before)
        else:
            self.table[self.name] = self.was


def draw(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def wrong_y(_, *arguments):
    arguments[6][-1, -1, -1] += 1e-3  # one number of y


def wrong_final(_, *arguments):
    arguments[7][0][0, 0, 0] *= 1.001


def wrong_dx(_, *arguments):
    arguments[3][0, 0, 0] += 1e-2


def wrong_gradient(_, *arguments):
    arguments[5][0][1][...] *= 1.0001  # of weight_hh


def wrong_record(found, *_):
    found["dh"][0, 0, 0] += 0.01


def layers():
    for seed, make in enumerate((fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM)):
        for options in ({}, {"bidirectional": True}, {"num_layers": 2, "dtype": np.float64}):
            yield make(5, 7, seed=seed, **options)


def child_sequence():
    from fastrnn._kernels import sequence

    for layer in layers():
        x = draw(9, 3, 5, dtype=layer.dtype)
        y, _, p = layer.forward(x)
        p.backward(np.ones_like(y), record=("dh", "gates"))
        cell = layer.cell.name
        for damage, name in ((wrong_y, "y differs"), (wrong_final, "final[0]")):
            with Damage(sequence, "forward", damage):
                refused(["sequence.forward", name, cell, "T 9", "B 3"], layer.forward, x)
        for damage, name in ((wrong_gradient, "grads[0][1]"), (wrong_record, "record dh"),
                             *([(wrong_dx, "dx")] if layer.num_layers == 1 else [])):
            y, _, p = layer.forward(x)
            with Damage(sequence, "backward", damage):
                refused(["sequence.backward", name, cell], p.backward, np.ones_like(y),
                        record=("dh",))
        y, _, p = layer.forward(x, lengths=[9, 4, 0])
        with Damage(sequence, "backward", wrong_gradient):
            refused(["with lengths"], p.backward, np.ones_like(y), retain=True)
        p.backward(np.ones_like(y))  # by a copy of the tape that the other one was
        layer.eval()
        layer(x)
        with Damage(sequence, "forward", wrong_y):
            refused(["sequence.forward"], layer, x)


def child_not_finite():
    from fastrnn._kernels import sequence

    layer = fastrnn.GRU(5, 7, seed=0)
    x = draw(4, 3, 5)
    x[2, 1, 0] = np.nan
    x[3, 0, 0] = np.inf
    y, _, p = layer.forward(x)
    p.backward(np.ones_like(y))

    def wrong_kind(_, *arguments):
        arguments[6][2, 1, 3] = np.inf  # it was NaN

    with Damage(sequence, "forward", wrong_kind):
        refused(["kind", "(2, 1, 3)"], layer.forward, x)


def child_packed():
    from fastrnn._kernels.compared import Change, scalar

    other = fastrnn.LSTM(5, 7, seed=1)
    for layer in (fastrnn.LSTM(5, 7, seed=0), program_layer()):
        for mode in ("evaluation", "bfloat16"):
            layer.set_mode(mode)
            other.set_mode(mode)
            x = draw(4, 3, 5)
            layer(x)
            (pack,), = layer._packs
            with scalar():
                right, pack.shadow = pack.shadow, pack.changed(Change(0, 1e-3))
            if pack.shadow is right:  # bfloat16 words are not changed
                pack.shadow = other._packs[0][0].shadow
            refused(["forward", "y differs"], layer, x)
            pack.shadow = right
            layer(x)


def program_layer(seed=0, inputs=5):
    from fastrnn.cells import MGU

    return fastrnn.Layer(MGU, inputs, 7, seed=seed)


def child_program():
    import copy
    import pickle

    from fastrnn._kernels import program

    layer = program_layer()
    x = draw(9, 3, 5)
    y, _, p = layer.forward(x)
    p.backward(np.ones_like(y))
    for damage, name in ((wrong_y, "y differs"), (wrong_final, "final[0]")):
        with Damage(program, "forward", damage):
            refused(["program.forward", name, "equations", "T 9"], layer.forward, x)
    for damage, name in ((wrong_gradient, "grads[0][1]"), (wrong_dx, "dx")):
        y, _, p = layer.forward(x)
        with Damage(program, "backward", damage):
            refused(["program.backward", name], p.backward, np.ones_like(y))
    step = layer.stream(3)
    step(x[0])
    restored = pickle.loads(pickle.dumps(step))
    assert restored(x[1]).tobytes() == copy.copy(step)(x[1]).tobytes()
    for wrong in (step, restored):
        wrong.twin = program_layer(1).stream(3).twin
        refused(["Stream", "y differs"], wrong, x[0])


def child_stream():
    import copy
    import pickle

    for layer in (fastrnn.RNN(5, 7, seed=0), fastrnn.LSTM(5, 7, num_layers=2, seed=0)):
        step = layer.stream(3)
        for t, x in enumerate(draw(4, 3, 5)):
            step(x)
            step(x[:2], rows=[2, 0])
            step.block(draw(6, 3, 5, seed=t))
        for twin in (copy.copy(step), pickle.loads(pickle.dumps(step))):
            assert twin(x).tobytes() == copy.copy(step)(x).tobytes()
            twin.twin = type(layer)(5, 7, num_layers=layer.num_layers, seed=1).stream(3).twin
            refused(["Stream:", "y differs", "B 3"], twin, x)
            refused(["Stream.block", "y differs", "T 6"], twin.block, draw(6, 3, 5))
            refused(["state"], twin, x[:1], rows=[1])


def child_stream_in_use():
    step = fastrnn.GRU(5, 7, seed=0).stream(3)
    x, met = draw(3, 5), []

    class Input:
        def __array__(self, *arguments, **options):
            with pytest.raises(RuntimeError, match="this stream is in use by another thread"):
                step(x)
            met.append(self)
            return x

    y = step(Input())
    assert met
    step.reset()
    assert step(x).tobytes() == y.tobytes()


def child_refused():
    from fastrnn._kernels import checked, linear

    x, weight = draw(9, 5), draw(7, 5, seed=1)
    with pytest.raises(ValueError, match="shape") as raised:
        linear.linear_forward(x[:, :4], weight)
    assert raised.value.__context__ is not None  # the scalar table has refused it before
    right = checked.BASE["linear_forward"]

    def fails(*arguments):
        if runtime.get_isa() == "scalar":
            raise ArithmeticError("of plain C alone")
        return right(*arguments)

    checked.BASE["linear_forward"] = fails
    with pytest.raises(ArithmeticError, match="of plain C alone"):
        linear.linear_forward(x, weight)


def child_linear():
    from fastrnn._kernels import linear

    x, weight, bias, dy = draw(9, 5), draw(7, 5, seed=1), draw(7, seed=2), draw(9, 7, seed=3)

    def forward():
        return linear.linear_forward(x, weight, bias)

    def backward(**options):
        return linear.linear_backward(dy, x, weight, np.ones_like(weight), np.ones_like(bias),
                                      **options)

    assert forward().shape == (9, 7)
    assert backward().shape == (9, 5)
    assert backward(need_dx=False) is None
    with Damage(linear, "linear_forward", lambda y, *_: y * np.float32(1.00001)):
        refused(["linear_forward", "y differs", "R 9, K 5, N 7"], forward)

    def wrong_number(y, *_):
        y[3, 2] += 1e-3

    right, out = forward(), np.empty((9, 7), np.float32)
    with Damage(linear, "linear_forward", wrong_number):
        refused(["most at (3, 2)"], linear.linear_forward, x, weight, bias, out)
    assert np.argwhere(out != right).tolist() == [[3, 2]]  # the caller has what the call computed
    with Damage(linear, "linear_backward", lambda dx, *_: dx * np.float32(1.0001)):
        refused(["linear_backward", "dx differs"], backward)

    def wrong_dbias(_, dy, x, weight, dweight, dbias, *rest):
        dbias[3] = 1

    with Damage(linear, "linear_backward", wrong_dbias):
        refused(["linear_backward", "grads[1]"], backward)


def child_loss():
    from fastrnn._kernels import loss

    logits, targets = draw(9, 5), np.arange(9) % 5

    def run():
        return loss.softmax_cross_entropy(logits, targets, 0.1, np.empty_like(logits))

    assert np.isfinite(run())
    with Damage(loss, "softmax_cross_entropy", lambda value, *_: value + 1e-4):
        refused(["softmax_cross_entropy", "loss differs", "R 9, N 5"], run)

    def wrong_grad(value, logits, targets, scale, grad, weights):
        grad[2] *= 1.001

    with Damage(loss, "softmax_cross_entropy", wrong_grad):
        refused(["softmax_cross_entropy", "grad differs"], run)
    # A sure row has the logarithm of a sum near 1, and p - 1 for p near 1: rounded as 1 is.
    for size in (2, 5, 16, 33):
        for small in np.linspace(-16, -3, 27):
            sure = np.full((128, size), small, np.float32)
            sure[:, 1] = 0
            for weights in (None, np.linspace(0, 1, 128)):
                loss.softmax_cross_entropy(sure, np.full(128, 1), 0.1, np.empty_like(sure), weights)

    with Damage(loss, "softmax_cross_entropy", lambda value, *_: value + 0.02):
        refused(["softmax_cross_entropy", "loss differs"],
                lambda: loss.softmax_cross_entropy(sure, np.full(128, 1)))


def child_update():
    from fastrnn._kernels import update

    layer = fastrnn.GRU(5, 7, seed=0)
    for optimizer in (fastrnn.optim.Adam(layer), fastrnn.optim.RMSProp(layer),
                      fastrnn.optim.SGD(layer, lr=0.1, momentum=0.9)):
        for seed in range(3):
            layer.flat_grads[:] = draw(layer.flat.size, seed=seed)
            optimizer.step()
        (row,) = optimizer._ranges._rows
        optimizer._ranges._rows = [(*row[:3], row[3] * 1.01, row[4])]  # another rate
        refused(["Ranges.", "param[0]", "1 ranges"], optimizer.step)
    with Damage(update, "norms", lambda pair, *_: (pair[0] * (1 + 1e-12), pair[1])):
        refused(["norms", "norms[0]"], update.norms, [layer.flat])


def child_torch():
    import torch

    from fastrnn._kernels import sequence

    for make in (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN):
        torch.manual_seed(0)
        module = fastrnn.torch.accelerate(make(5, 7, num_layers=2, batch_first=True))
        with fastrnn.torch.mode("always"):
            x = torch.randn(3, 9, 5, requires_grad=True)
            module(x)[0].sum().backward()
            with Damage(sequence, "forward", wrong_y):
                refused(["sequence.forward", "y differs"], module, x)
            y = module(x)[0].sum()
            with Damage(sequence, "backward", wrong_gradient):
                refused(["sequence.backward", "grads[0][1]"], y.backward)


def child_chaos():
    """Do not call it a difference what chaos or a kink makes of rounding."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        layer = fastrnn.RNN(3, 50, seed=seed)
        layer.parameters()["weight_hh_l0"][...] *= 20  # chaotic: states differ after some steps
        y, _, p = layer.forward(draw(200, 2, 3, seed=seed))
        p.backward(draw(*y.shape))
    for seed in range(20):
        layer = fastrnn.RNN(3, 64, nonlinearity="relu", seed=seed)
        y, _, p = layer.forward(draw(50, 16, 3, seed=seed))
        p.backward(rng.standard_normal(y.shape).astype(np.float32))


def child_threads():
    """See that the scalar table is one thread's alone, while others are in the same functions."""
    from concurrent.futures import ThreadPoolExecutor

    from fastrnn._kernels.compared import scalar

    layer = fastrnn.GRU(5, 7, seed=0)
    x = draw(9, 3, 5)
    expected = layer.forward(x)[0].tobytes()

    def run(_):
        for _ in range(20):
            y, _, p = layer.forward(x)
            assert y.tobytes() == expected
            p.backward(np.ones_like(y), grads=layer.new_grads())

    with ThreadPoolExecutor(4) as pool:
        with scalar():
            assert runtime.get_isa() == "scalar"
            assert pool.submit(runtime.get_isa).result() == FASTEST
        assert runtime.get_isa() == FASTEST
        list(pool.map(run, range(4)))


def child_scalar():
    import copy
    import hashlib

    from fastrnn._kernels import sequence, update

    layer = fastrnn.LSTM(5, 7, seed=0)
    if os.environ["FASTRNN_CHECK"] == "1":
        with Damage(sequence, "forward", wrong_y):
            layer.forward(draw(4, 3, 5))
    results, x = [], draw(4, 3, 5)
    model = fastrnn.SequenceModel([layer, program_layer(inputs=7)], 3, seed=0)
    for optimizer in (fastrnn.optim.Adam(model), fastrnn.optim.RMSProp(model),
                      fastrnn.optim.SGD(model, lr=0.1)):
        model.zero_grad()
        model.loss(x, np.arange(12).reshape(4, 3) % 3).backward()
        results += [*update.norms([layer.flat]), optimizer.step(clip=1.0)]
    model.eval()
    step = layer.stream(3)
    step(x[0])
    results += [model(x)[0], copy.copy(step)(x[1])]
    print(hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in results)).hexdigest())


# ---- the tests ----------------------------------------------------------------------------------

CHILDREN = [name for name in list(globals()) if name.startswith("child_")]


@needs_two
@pytest.mark.parametrize("name", [name for name in CHILDREN if name != "child_scalar"])
def test_a_damaged_kernel_is_found_and_a_right_one_passes(name):
    if name == "child_torch":
        pytest.importorskip("torch")
    run_child(name)


def test_with_the_scalar_table_there_is_nothing_to_compare():
    code = "import warnings; warnings.simplefilter('always'); import fastrnn._kernels"
    environment = os.environ | {"FASTRNN_CHECK": "1", "FASTRNN_ISA": "scalar"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=environment)
    assert done.stderr.count("FASTRNN_CHECK=1 compares nothing") == 1
    printed = [subprocess.run([sys.executable, __file__, "child_scalar"], capture_output=True,
                              text=True, check=True, env=environment | changes).stdout
               for changes in ({}, {"FASTRNN_CHECK": "0"})]
    assert len(printed[0]) == 65
    assert printed[0] == printed[1]


@pytest.mark.parametrize(("got", "expected", "words"), [
    (np.zeros(3), np.zeros(4), "y differs by inf in shape or dtype, allowed are"),
    (np.zeros(3), np.zeros(3, np.float32), "y differs by inf in shape or dtype"),
    (np.zeros(0), np.zeros(0, np.float32), "y differs by inf in shape or dtype"),
    (np.array([1, 2]), np.array([1, 3]),
     r"y differs by inf in any element.*, most at \(1,\): 2, expected 3"),
    (np.array([1, 2]), np.array([1, 2]), None)])
def test_arrays_of_another_kind_differ_and_whole_numbers_are_equal_or_not(got, expected, words):
    from fastrnn._kernels.compared import Call, WrongResult, judge

    call = Call("entry", "sizes", np.float64)
    judged = pytest.raises(WrongResult, match=words) if words else contextlib.nullcontext()
    with judged:
        judge(call, {"y": got}, {"y": expected}, lambda change: {"y": expected})


def test_without_the_variable_nothing_is_checked():
    code = """if True:
        import sys, fastrnn
        layer = fastrnn.LSTM(2, 3)
        assert "fastrnn._kernels.checked" not in sys.modules
        from fastrnn._kernels import sequence
        assert not hasattr(sequence.forward, "__wrapped__")
    """
    for value in ("", "0"):
        subprocess.run([sys.executable, "-c", code], check=True,
                       env=os.environ | {"FASTRNN_CHECK": value})


if __name__ == "__main__":
    globals()[sys.argv[1]]()
