"""Random cells from equations: what the kernels compute, against the evaluation and differences.

Each test runs blocks of seeds; random_cells.py says what is drawn. Rows, threads, directions,
lengths and instruction sets change no bit. Letters: T steps, B batch, I input, H hidden, V symbols.
"""

import dataclasses
import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
import random_cells
from cases import assert_same_bytes
from hypothesis import HealthCheck, assume, given, settings
from random_cells import about, backward, drawn, expected, forward, make, record_names, run
from slopes import check_gradients

import fastrnn
from fastrnn._kernels import runtime
from fastrnn._kernels.timeline import Timeline
from fastrnn.cells import DefinitionError, cell
from fastrnn.cells.evaluate import forward as evaluate

FUSED = [name for name, has in runtime.isa_names().items() if has and name != "scalar"]
BLOCKS = range(4)


def seeds(block, count):
    return range(block * count, (block + 1) * count)


per_block = pytest.mark.parametrize("block", BLOCKS)


@pytest.fixture(autouse=True)
def restored():
    threads, isa = runtime.get_num_threads(), runtime.get_isa()
    yield
    runtime.set_num_threads(threads)
    runtime.set_isa(isa)


def check(case, seed):
    """Compare everything of one case with the reference."""
    out, tape = forward(case)
    with np.errstate(all="ignore"):
        for name, array in expected(case).items():
            np.testing.assert_allclose(out[name], array, 1e-9, 1e-9, err_msg=name)
    for options in ({}, {"packed": True}):
        assert_same_bytes(forward(case, keep=False, **options)[0], out, f"{options}: ")
    assert_same_bytes(forward(case, packed=True)[0], out)
    copy = tape.copy()
    got = backward(case, tape)
    recorded = backward(case, copy, record=record_names(case))
    assert_same_bytes({name: recorded[name] for name in got}, got, "with a record: ")
    check_records(case, recorded)
    if random_cells.tame(case):
        check_gradients(case, got, np.random.default_rng(seed))


def check_records(case, recorded):
    """Compare the recorded states with the ones that the evaluation has before each step."""
    np.testing.assert_array_equal(recorded["record x"], case.x)
    for s, state in enumerate(case.definition.states):
        first = recorded[f"record {state.name}"][0, :, 0]
        np.testing.assert_array_equal(first, case.state[s])


# --------------------------------------------------------------------------------- right numbers


@per_block
def test_values_and_gradients(block):
    for seed in seeds(block, 70):
        rng = random.Random(seed)
        case = drawn(seed, rng.randint(1, 4), rng.randint(1, 3), deep=rng.choice((1, 2, 3, 4)),
                     most=rng.choice((1, 2, 4, 6)))
        case = case if rng.random() < 0.7 else dataclasses.replace(case, masks=None)
        with about(case, seed):
            check(case, seed)


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                                 HealthCheck.filter_too_much])
@given(random_cells.texts(deep=2, most=3, powers=False))
def test_values_and_gradients_of_any_text(text):
    try:
        definition = cell(text)
    except DefinitionError:
        assume(False)
    check(make(definition, 3, 2, 4, 4, masks=True), 0)


@per_block
def test_a_program_for_records_has_the_same_tape(block):
    for seed in seeds(block, 40):
        case = drawn(seed, 1, 1)
        program, other = case.kind.program, case.kind.recording()
        for name in ("tape", "projected", "x_slot", "dx_slot", "groups", "forward", "inference",
                     "weights", "gradients", "vector_gradients", "output", "output_inference"):
            with about(case, seed):
                assert getattr(program, name) == getattr(other, name), name


@per_block
def test_single_precision(block):
    """Errors grow with the slopes inside, so the bar is a norm's, far above rounding alone."""
    for seed in seeds(block, 25):
        case = drawn(seed, 3, 2, dtype=np.float32)
        exact = run(case.astype(np.float64))
        with about(case, seed):
            for name, array in run(case).items():
                assert array.dtype == np.float32
                error = np.linalg.norm(array - exact[name])
                assert error <= 3e-4 * (1 + np.linalg.norm(exact[name])), name


# ------------------------------------------------------------------------------------ no other bits


def of_sequences(case):
    """Return the names of what has one row for each sequence, with the axis of the sequences."""
    names = [s.name for s in case.definition.states]
    return {"y": 1, "dx": 1, **{f"{n}n": 0 for n in names}, **{f"d{n}0": 0 for n in names}}


@per_block
def test_a_batch_in_parts(block):
    for seed in seeds(block, 20):
        rng = random.Random(seed)
        case = drawn(seed, rng.choice((1, 3)), rng.choice((5, 7, 13)), 11, rng.choice((13, 17, 24)),
                     rng.choice(cases.DTYPES))
        whole = run(case)
        for rows in (slice(0, 1), slice(1, 3), slice(3, None)):
            part = run(case.rows(rows))
            with about(case, seed, rows):
                for name, axis in of_sequences(case).items():
                    own = whole[name][(slice(None),) * axis + (rows,)]
                    assert part[name].tobytes() == own.tobytes(), name


@per_block
def test_any_number_of_threads(block):
    """Many rows are split, few rows of wide layers have their units split."""
    for seed in seeds(block, 16):
        rng = random.Random(seed)
        case = drawn(seed, rng.choice((3, 5)), rng.choice((1, 2, 3, 5, 17, 33)), 40,
                     rng.choice((130, 200, 260)), np.float32)
        record = record_names(case)

        def everything(case=case, record=record):
            lean, _ = forward(case, keep=False)
            return run(case, record=record) | {f"lean {name}": a for name, a in lean.items()}

        runtime.set_num_threads(1)
        alone = everything()
        for threads in (2, 3, 8):
            runtime.set_num_threads(threads)
            with about(case, seed, threads):
                assert_same_bytes(everything(), alone)


RACES = {
    "dy goes into a sum first": "output y\nh = tanh(W x + U h)\ny = mean(h)",
    "dy is narrower than the first phase": (
        "size P = 1\noutput y\nh = tanh(W x + U h)\ny[P] = sum(h)"),
    "y is made before the step's first product": (
        "learned p = 1\noutput y\ny = tanh(h) + p\nh = tanh(W x + U h)"),
    "a record is made in the first phase": "h = tanh(W x + U h)",
}


@pytest.mark.parametrize("name", RACES)
def test_threads_that_share_the_units_do_not_overtake_each_other(name):
    case = make(RACES[name], 60, 1, 8, 700, np.float32)
    record = record_names(case)
    runtime.set_num_threads(1)
    alone, (lean, _) = run(case, record=record), forward(case, keep=False)
    for threads in (2, 3, 8) * 4:
        runtime.set_num_threads(threads)
        assert_same_bytes(run(case, record=record), alone)
        assert_same_bytes(forward(case, keep=False)[0], lean)


@per_block
def test_backwards_in_time(block):
    for seed in seeds(block, 20):
        case = drawn(seed, 4, 2)
        record = record_names(case)
        ahead = run(case, record=record)
        turned = run(dataclasses.replace(case, x=case.x[::-1].copy(), dy=case.dy[::-1].copy()),
                     reverse=True, record=record)
        with about(case, seed):
            for name, array in ahead.items():
                each_step = name in ("y", "dx") or name.startswith("record")
                wanted = array[::-1] if each_step else array
                assert turned[name].tobytes() == wanted.tobytes(), name


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with FMA")
@per_block
def test_instruction_sets(block):
    for seed in seeds(block, 20):
        dtype = cases.DTYPES[seed % 2]
        case = drawn(seed, 3, 4, 9, 9, dtype)
        results = {}
        for isa in ("scalar", *FUSED):
            runtime.set_isa(isa)
            results[isa] = run(case, record=record_names(case))
        tolerance = 3e-3 if dtype == np.float32 else 1e-8
        with about(case, seed):
            for isa in FUSED[1:]:
                assert_same_bytes(results[isa], results[FUSED[0]], f"{isa}: ")
            for name, array in results["scalar"].items():
                error = np.linalg.norm(array - results[FUSED[0]][name])
                assert error <= tolerance * (1 + np.linalg.norm(array)), name


# ------------------------------------------------------------------------------- lengths and resets


def steps_of(case, row, steps, reverse):
    """Return the case of some steps of one sequence, which begins with its state and ends there."""
    alone = case.rows(slice(row, row + 1))
    order = slice(None, None, -1 if reverse else 1)
    masks = tuple(np.ascontiguousarray(mask[steps][order]) if drawn_mask.each_step else mask
                  for mask, drawn_mask in zip(alone.masks, case.kind.masks, strict=True))
    return dataclasses.replace(alone, x=alone.x[steps].copy(), dy=alone.dy[steps].copy(),
                               masks=masks)


def as_zeros(arrays):
    return tuple(map(np.zeros_like, arrays))


@per_block
def test_each_episode_is_that_episode_alone(block):
    for seed in seeds(block, 12):
        rng = np.random.default_rng(seed)
        T, B = ((5, 4), (7, 6))[seed % 2]
        reverse, to_initial = map(bool, rng.integers(2, size=2))
        case = drawn(seed, T, B, 5, 5, cases.DTYPES[seed % 2])
        lengths, reset = rng.integers(0, T + 1, B), rng.random((T, B)) < 0.25
        with about(case, seed, lengths, reset, reverse, to_initial):
            check_episodes(case, lengths, reset, to_initial, reverse)


def check_episodes(case, lengths, reset, to_initial, reverse):
    T, B = reset.shape
    time = Timeline(lengths, T, reset, to_initial)
    places = time.rows("time", reverse)
    masks = tuple(np.ascontiguousarray(mask[places]) if m.each_step else mask
                  for mask, m in zip(case.masks, case.kind.masks, strict=True))

    def put(array, rows=False):
        grid = rows and array.shape[:2] == (T, B)
        return array.reshape(T * B, -1).copy() if grid else array.copy()

    record = record_names(case)
    got = run(dataclasses.replace(case, masks=masks), time=time, reverse=reverse, record=record,
              put=put)
    y, dx = (got[name].reshape(T, B, -1) for name in ("y", "dx"))
    names = [s.name for s in case.definition.states]
    initial = dict(zip(names, as_zeros(case.state), strict=True))
    totals = {name: np.zeros_like(a, np.float64) for name, a in got.items() if "grad" in name}
    for b, length in enumerate(lengths):
        assert not y[length:, b].any()
        assert not dx[length:, b].any()
        cuts = [0, *(t for t in range(1, length) if reset[t, b]), length]
        episodes = [slice(*ends) for ends in itertools.pairwise(cuts)]
        for k, steps in enumerate(episodes[::-1] if reverse else episodes):
            begins_anew = k > 0 or (not reverse and length and reset[0, b])
            from_state, last = not begins_anew or to_initial, k == len(episodes) - 1
            alone = steps_of(case, b, steps, reverse)
            alone = dataclasses.replace(
                alone, state=alone.state if from_state else as_zeros(alone.state),
                dfinal=alone.dfinal if last else as_zeros(alone.dfinal))
            one = run(alone, reverse=reverse, record=record)
            pairs = {"y": y[steps, b:b + 1], "dx": dx[steps, b:b + 1]} | {
                f"record {name}": got[f"record {name}"][steps, b:b + 1] for name in record}
            pairs |= {f"{name}n": got[f"{name}n"][b:b + 1] for name in names if last}
            for name, array in pairs.items():
                assert one[name].tobytes() == array.tobytes(), (name, b, steps)
            for name in names:
                initial[name][b] += one[f"d{name}0"][0] if from_state else 0
            for name, total in totals.items():
                total += one[name]
    tolerance = 2e-4 if y.dtype == np.float32 else 1e-9
    sums = totals | {f"d{name}0": array for name, array in initial.items()}
    for name, total in sums.items():
        error = np.linalg.norm(got[name] - total)
        assert error <= tolerance * (1 + np.linalg.norm(total)), name


# ----------------------------------------------------------------------------------------- symbols


@per_block
def test_symbols_are_the_rows_they_stand_for(block):
    V = 5
    for seed in seeds(block, 25):
        case = drawn(seed, 4, 3)
        T, B, I = case.x.shape
        rng = np.random.default_rng(seed)
        embedding = rng.standard_normal((V, I))
        for rows, options in ((embedding, {"embedding": embedding}), (np.eye(I), {})):
            index = rng.integers(len(rows), size=(T, B), dtype=np.int32)
            dense = run(dataclasses.replace(case, x=rows[index]))
            got = run(case, index=index, record=record_names(case), **options)
            with about(case, seed, *options):
                assert ("dx" in got) == bool(options)
                np.testing.assert_array_equal(got["record x"], rows[index] if options else index)
                for name, wanted in dense.items():
                    if name == "dx":
                        per_row = np.zeros_like(rows)
                        np.add.at(per_row, index, wanted)
                        wanted = per_row
                    if name in got:
                        np.testing.assert_allclose(got[name], wanted, 1e-9, 1e-9, err_msg=name)


# -------------------------------------------------------------------------------------- not finite


@per_block
def test_what_is_not_finite_stays_in_its_row(block):
    for seed in seeds(block, 25):
        rng = np.random.default_rng(seed)
        case = drawn(seed, 4, 3, powers=False)
        plain = run(case)
        x = case.x.copy()
        x[rng.integers(3), 1, rng.integers(x.shape[2])] = (np.nan, np.inf, -np.inf)[seed % 3]
        case = dataclasses.replace(case, x=x)
        got = run(case)
        with about(case, seed):
            for name, array in expected(case).items():
                np.testing.assert_allclose(got[name], array, 1e-9, 1e-9, err_msg=name)
            for name, axis in of_sequences(case).items():
                for row in (0, 2):
                    at = (slice(None),) * axis + (row,)
                    assert got[name][at].tobytes() == plain[name][at].tobytes(), (name, row)


# ------------------------------------------------------------------------------------------ layers


def stacked(layer, definition, x, states):
    """Return y of a stacked layer, evaluated in NumPy."""
    parameters = layer.parameters()
    D, at = layer.directions, 0
    for number in range(layer.num_layers):
        found = []
        for suffix in ("", "_reverse")[:D]:
            own = {name: parameters[f"{name}_l{number}{suffix}"]
                   for name in (*definition.weights, *definition.vectors)}
            turn = slice(None, None, -1 if suffix else 1)
            y, _ = evaluate(definition, x[turn], tuple(s[at] for s in states), own,
                            sizes={"H": layer.hidden_size})
            found.append(y[turn])
            at += 1
        x = np.concatenate(found, -1)
    return x


@per_block
def test_layers_in_both_directions(block):
    for seed in seeds(block, 8):
        rng, numbers = random.Random(seed), np.random.default_rng(seed)
        definition = random_cells.definition_of(rng, masks=False, deep=2, most=3)
        while definition.equal_sizes:
            definition = random_cells.definition_of(rng, masks=False, deep=2, most=3)
        of_input = {"I", *(n for n, size in definition.sizes.items() if size.base == "I")}
        widths = {definition.output_width, *(state.width for state in definition.states)}
        several = 1 if of_input & widths else 2
        layer = fastrnn.Layer(definition, 3, 4, several, bidirectional=True, dtype=np.float64,
                              seed=seed)
        x = numbers.standard_normal((3, 2, 3))
        states = tuple(numbers.standard_normal(shape) / 2 for shape in layer.state_shapes(2))
        given = states if len(states) > 1 else states[0]
        y, _ = layer(x, given)
        np.testing.assert_allclose(y, stacked(layer, definition, x, states), 1e-9, 1e-9,
                                   err_msg=definition.text)
        dy = numbers.standard_normal(y.shape)
        dx, dstate = layer.backward(dy)
        dstate = dstate if isinstance(dstate, tuple) else (dstate,)
        more = zip(range(9), states, dstate, strict=False)
        for name, array, gradient in (("x", x, dx), ("flat", layer.flat, layer.flat_grads), *more):
            direction = numbers.standard_normal(array.shape)
            along, before = (gradient * direction).sum(), array.copy()
            slopes = []
            for step in (1e-5, 1e-6, 1e-7):  # beside kinks a smaller one is right
                ends = []
                for sign in (1, -1):
                    array[...] = before + sign * step * direction
                    ends.append((stacked(layer, definition, x, states) * dy).sum())
                slopes.append((ends[0] - ends[1]) / (2 * step))
            array[...] = before
            scale = 1 + np.linalg.norm(gradient) * np.linalg.norm(direction)
            assert min(abs(slope - along) for slope in slopes) <= 1e-5 * scale, (
                f"{name}: {along}, differences say {slopes}\n{definition.text}")


@pytest.mark.parametrize("text", ["output y\ns = tanh(W s + V x)\ny[I] = x * mean(s)",
                                  "s[I] = tanh(W s + x)\nh = V s"])
def test_layers_whose_widths_are_the_inputs_do_not_stack(text):
    assert fastrnn.Layer(cell(text), 3, 4).num_layers == 1
    with pytest.raises(ValueError, match="num_layers is 2, expected 1: the widths of the states "):
        fastrnn.Layer(cell(text), 3, 4, 2, bidirectional=True)


def test_a_layer_without_parameters():
    layer = fastrnn.Layer(cell("h = tanh(x + 0.5 * h)"), 3, 3, 2)
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    y, hn = layer(x)
    np.testing.assert_array_equal(y[-1], hn[1])
    assert layer.flat.size == 0
    dx, dh0 = layer.backward(np.ones_like(y))
    assert dx.any(axis=-1).all()
    assert dh0.any(axis=-1).all()


def test_callers_of_one_layer_do_not_meet():
    rng = random.Random(5)
    for _ in range(4):
        definition = random_cells.definition_of(rng, masks=False, deep=3, most=3)
        while definition.equal_sizes:
            definition = random_cells.definition_of(rng, masks=False, deep=3, most=3)
        layer = fastrnn.Layer(definition, 20, 30, 2, seed=0)
        xs = np.random.default_rng(0).standard_normal((4, 6, 5, 20)).astype(np.float32)

        def train(x, layer=layer):
            y, _, p = layer.forward(x)
            grads = layer.new_grads()
            dx, _ = p.backward(np.ones_like(y), grads=grads)
            return {"y": y, "dx": dx, **grads}

        alone = [train(x) for x in xs]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                for got, wanted in zip(pool.map(train, xs), alone, strict=True):
                    assert_same_bytes(got, wanted, definition.text)
        layer.eval()
        with ThreadPoolExecutor(4) as pool:
            for got, wanted in zip(pool.map(lambda x, layer=layer: layer(x)[0], [*xs] * 5),
                                   alone * 5, strict=True):
                assert got.tobytes() == wanted["y"].tobytes()


EXPONENTS = ("relu(W x) ** p", "abs(W x) ** p", "(2 + tanh(W x)) ** (p * h)", "3 ** (p * (W x))",
             "(1 + sum(abs(W x))) ** sigmoid(U h)", "(1 + relu(W x)) ** sum(p)")


@pytest.mark.parametrize(("text", "p"), [*((text, 1.5) for text in EXPONENTS), ("(W x) ** p", 0)])
def test_the_gradient_of_an_exponent(text, p):
    """Against PyTorch, whose powers of 0 have a slope of 0 along the exponent."""
    torch = pytest.importorskip("torch")
    learned = f"learned p = {p}\n" if "p" in text else ""
    layer = fastrnn.Layer(fastrnn.cell(f"{learned}h = 0.5 * h + {text}"), 2, 3, dtype="d", seed=3)
    x = np.random.default_rng(0).standard_normal((4, 2, 2))
    x[:] = np.where(np.arange(4)[:, None, None] == 1, 0, x if p else 0)  # a base of 0
    y, _ = layer(x)
    dx, _ = layer.backward(np.ones_like(y))
    of = {name[0]: torch.tensor(array, requires_grad=True)
          for name, array in layer.parameters().items()}
    source = torch.tensor(x, requires_grad=True)
    names = {"W x": "(x @ W.T)", "U h": "(h @ U.T)", "relu": "torch.relu", "sum(": "total(",
             "tanh": "torch.tanh", "sigmoid": "torch.sigmoid", "abs": "torch.abs"}
    for ours, theirs in names.items():
        text = text.replace(ours, theirs)
    h, outputs = torch.zeros(2, 3, dtype=torch.float64), []
    for step in source:
        h = 0.5 * h + eval(text, {"torch": torch, "x": step, "h": h, **of,
                                  "total": lambda a: a.sum(-1, keepdim=a.ndim > 1)})
        outputs.append(h)
    np.testing.assert_allclose(y, torch.stack(outputs).detach(), 1e-12, 1e-12)
    sum(a.sum() for a in outputs).backward()
    np.testing.assert_allclose(dx, source.grad, 1e-10, 1e-12)
    for name, array in of.items():
        np.testing.assert_allclose(layer.grads[f"{name}_l0"], array.grad, 1e-10, 1e-12)
