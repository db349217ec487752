"""How gradients flow: against finite differences, the reference and layer.grads."""

import copy
import math

import cases
import numpy as np
import pytest
import stacks

import fastrnn
from fastrnn import GRU, LSTM, gradflow, reference
from fastrnn._kernels import runtime
from fastrnn.gradflow import gradient_flow, jacobians, verdict
from fastrnn.history import History
from fastrnn.losses import softmax_cross_entropy
from fastrnn.model import SequenceModel

NAMES = ("dh", "gates", "dgates_x", "dgates_h", "x", "h")


def layer_of(cell, I=3, H=5, *, seed=2, **options):
    return cases.LAYERS[cell](I, H, dtype=options.pop("dtype", np.float64), seed=seed, **options)


def flow_of(layer, data, names=NAMES):
    layer(data["x"], stacks.state_of(data, "h0", "c0"))
    return layer.flow(names, data["dy"], stacks.state_of(data, "dhn", "dcn"))


def step(cell, params, x, h, c, push_c):
    """Take one step of a cell in NumPy: return h, c (B, H) and gates (B, G, H)."""
    H = h.shape[-1]
    w_ih, w_hh, b_ih, b_hh = params
    a, m = x @ w_ih.T + b_ih, h @ w_hh.T + b_hh
    if cell == "gru":
        r, z = reference.sigmoid((a + m)[:, :H]), reference.sigmoid((a + m)[:, H : 2 * H])
        n = np.tanh(a[:, 2 * H :] + r * m[:, 2 * H :])
        return (1 - z) * n + z * h, c, np.stack([r, z, n], 1)
    if cell == "lstm":
        i, f, g, o = np.split(a + m, 4, -1)
        i, f, g, o = *map(reference.sigmoid, (i, f)), np.tanh(g), reference.sigmoid(o)
        c = f * c + i * g + push_c
        return o * np.tanh(c), c, np.stack([i, f, g, o], 1)
    phi = {"tanh": np.tanh, "relu": lambda v: np.maximum(v, 0), "sigmoid": reference.sigmoid}
    h = phi[cell[4:]](a + m)
    return h, c, h[:, None]


def walk(layer, data, push=None, push_c=None):
    """Run a stack in NumPy, adding push (L, T, B, D, H) to every h(t) and push_c to every c(t).

    Returns the loss that has data's dy, dhn, dcn as its gradients, and the gates of the layers.
    """
    params, D, H = layer.parameters(), 1 + layer.bidirectional, layer.hidden_size
    x, loss, all_gates = data["x"], 0.0, []
    for k in range(layer.num_layers):
        y = np.empty((*x.shape[:2], D, H))
        gates = np.empty((*x.shape[:2], D, cases.GATES[layer.cell], H))
        for d in range(D):
            own = [params[f"{name}_l{k}{'_reverse' * d}"] for name in cases.PARAMETERS]
            h, c = (data[s][k * D + d] if s in data else 0 for s in ("h0", "c0"))
            for t in range(len(x))[:: 1 - 2 * d]:
                h, c, gates[t, :, d] = step(layer.cell, own, x[t], h, c,
                                            0 if push_c is None else push_c[k, t, :, d])
                h = y[t, :, d] = h + (0 if push is None else push[k, t, :, d])
            for name, final in (("dhn", h), ("dcn", c)):
                if name in data:
                    loss += (data[name][k * D + d] * final).sum()
        x = y.reshape(*y.shape[:2], D * H)
        all_gates.append(gates)
    return loss + (data["dy"] * x).sum(), all_gates


@stacks.per_cell
@pytest.mark.parametrize(("T", "B"), [(1, 2), (5, 3)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dh_and_dc_are_the_whole_derivatives(cell, T, B, bidirectional):
    layer = layer_of(cell, num_layers=2, bidirectional=bidirectional)
    data = stacks.draw(layer, T, B)
    names = ("dh", "dc") if cell == "lstm" else ("dh",)
    flows = flow_of(layer, data, names)
    for name in names:
        push = np.zeros((2, T, B, 1 + bidirectional, 5))
        option = {"push" if name == "dh" else "push_c": push}
        expected = cases.differences(lambda option=option: walk(layer, data, **option)[0], push)
        cases.assert_close(name, np.stack([flow[name] for flow in flows]), expected, 1e-8)


@stacks.per_cell
@stacks.per_dtype
def test_the_flow_holds_the_gates_and_what_the_gradients_are_made_of(cell, dtype):
    layer = layer_of(cell, 7, 17, dtype=dtype, num_layers=2, bidirectional=True)
    data = stacks.draw(layer, 6, 3)
    flows = flow_of(layer, data)
    wide = {name: array.astype(np.float64) for name, array in data.items()}
    tol = stacks.tolerance(layer, data, "dx")
    for k, (flow, gates) in enumerate(zip(flows, walk(layer, wide)[1], strict=True)):
        cases.assert_close("gates", flow["gates"], gates, tol, dtype=dtype)
        for d, suffix in enumerate(("", "_reverse")):
            for side, source in (("ih", flow["x"]), ("hh", flow["h"][:, :, d])):
                dgates = flow[f"dgates_{'x' if side == 'ih' else 'h'}"][:, :, d].reshape(6, 3, -1)
                grads = {"weight": np.tensordot(dgates, source, ((0, 1), (0, 1))),
                         "bias": dgates.sum((0, 1))}
                for name, grad in grads.items():
                    name = f"{name}_{side}_l{k}{suffix}"
                    cases.assert_close(name, layer.grads[name], grad, tol, dtype=dtype)


@stacks.per_kind
@pytest.mark.parametrize("H", [1, 13, 34, 65])
def test_every_instruction_set_hands_out_the_same(cell, H, isa):
    exact = layer_of(cell, 7, H, bidirectional=True)
    layer = layer_of(cell, 7, H, bidirectional=True, dtype=np.float32)
    exact.load_state_dict(layer.state_dict())
    data = stacks.draw(layer, 4, 5)
    names = ("dh", "dc") if cell == "lstm" else ("dh",)
    (got,) = flow_of(layer, data, names)
    runtime.set_isa("scalar")
    (expected,) = flow_of(exact, {k: v.astype(np.float64) for k, v in data.items()}, names)
    for name in names:
        cases.assert_close(name, got[name], expected[name], stacks.tolerance(layer, data, "dx"),
                           dtype=np.float32)


@stacks.per_cell
def test_asking_changes_no_result(cell):
    layer = layer_of(cell, 7, 17, num_layers=2, bidirectional=True, dtype=np.float32)
    data, other = stacks.draw(layer, 5, 3), copy.deepcopy(layer)
    stacks.both(layer, data)
    flow_of(other, data)
    assert layer.flat_grads.tobytes() == other.flat_grads.tobytes()


@stacks.per_cell
@stacks.per_dtype
@pytest.mark.parametrize(("B", "H"), [(13, 33), (2, 300)])  # rows are split; units are
def test_the_same_bits_for_any_number_of_threads(cell, dtype, B, H):
    layer = layer_of(cell, 9, H, dtype=dtype, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((7, B, 9)).astype(dtype)
    before, found = fastrnn.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            fastrnn.set_num_threads(threads)
            flow = gradient_flow(layer, x)
            found.append({k: v for k, v in vars(flow).items() if isinstance(v, np.ndarray)})
    finally:
        fastrnn.set_num_threads(before)
    for other in found[1:]:
        stacks.assert_same(other, found[0])


# ------------------------------------------------------------------------------ gradient_flow


@stacks.per_kind
@pytest.mark.parametrize("B", [2, 70])  # Gram matrices; products
def test_norms_terms_and_shares(cell, B):
    layer = layer_of(cell, num_layers=2, bidirectional=True)
    data = stacks.draw(layer, 6, B)
    state, dstate = (stacks.state_of(data, *s) for s in (("h0", "c0"), ("dhn", "dcn")))
    found = gradient_flow(layer, data["x"], data["dy"], dstate, state)
    flows = flow_of(layer, data, (*NAMES, "dc") if cell == "lstm" else NAMES)
    for k, flow in enumerate(flows):
        norms = np.linalg.norm(flow["dh"], axis=3)  # (T, B, D)
        cases.assert_close("norms", found.norms[k], norms.transpose(2, 0, 1), 1e-14)
        cases.assert_close("batch_norms", found.batch_norms[k],
                           np.linalg.norm(norms, axis=1).T, 1e-14)
        cases.assert_close("units", found.units[k],
                           np.linalg.norm(flow["dh"], axis=1).swapaxes(0, 1), 1e-14)
        if cell == "lstm":
            cases.assert_close("c_norms", found.c_norms[k],
                               np.linalg.norm(flow["dc"], axis=3).transpose(2, 0, 1), 1e-14)
        for d, suffix in enumerate(("", "_reverse")):
            for side, source in (("ih", flow["x"]), ("hh", flow["h"][:, :, d])):
                dgates = flow[f"dgates_{'x' if side == 'ih' else 'h'}"][:, :, d].reshape(6, B, -1)
                terms = np.einsum("tbn,tbk->tnk", dgates, source)
                whole = layer.grads[f"weight_{side}_l{k}{suffix}"]
                cases.assert_close("sum", terms.sum(0), whole, 1e-12)
                cases.assert_close("terms", getattr(found, f"terms_{side}")[k, d],
                                   np.linalg.norm(terms, axis=(1, 2)), 1e-12)
                cases.assert_close("shares", getattr(found, f"shares_{side}")[k, d],
                                   (terms * whole).sum((1, 2)) / (whole**2).sum(), 1e-12)
    for shares in (found.shares_ih, found.shares_hh):
        np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-12)


@stacks.per_cell
def test_saturation_is_counted_per_gate_and_end(cell):
    layer = layer_of(cell, 4, 11, num_layers=2, bidirectional=True)
    layer.flat *= 6
    data = stacks.draw(layer, 7, 3)
    found = gradient_flow(layer, data["x"], state=stacks.state_of(data, "h0", "c0"),
                          parts=("saturation",))
    assert found.norms is found.units is found.shares_hh is None
    for k, gates in enumerate(walk(layer, data)[1]):
        for g, kind in enumerate(gradflow.GATES[cell].values()):
            low, high = {"tanh": (-0.95, 0.95), "sigmoid": (0.05, 0.95), "relu": (0, np.inf)}[kind]
            a = gates[:, :, :, g]
            for end, beyond in enumerate((a <= low, a >= high)):
                np.testing.assert_allclose(found.saturation[k, :, :, g, end],
                                           beyond.mean((1, 3)).T, atol=1e-15)
    assert found.saturation.shape == (2, 2, 7, cases.GATES[cell], 2)
    assert found.saturation[..., 0].max() > 0
    assert (found.dead is None) == (cell != "rnn_relu")


def test_dead_units_never_fire():
    layer = layer_of("rnn_relu", 2, 4)
    layer.parameters()["bias_hh_l0"][:] = [-100, 100, -100, 100]
    found = gradient_flow(layer, np.ones((3, 2, 2)), parts=("saturation",))
    np.testing.assert_array_equal(found.dead, [[0.5]])


@pytest.mark.parametrize("layout", ["unbatched", "batch_first"])
def test_every_layout_gives_the_same(layout):
    layer = layer_of("gru", num_layers=2, batch_first=layout == "batch_first")
    plain = layer_of("gru", num_layers=2)
    data = stacks.draw(plain, 6, 1)
    other = stacks.one_for_all(data, layout)
    state = {n: data[n][:, 0] if layout == "unbatched" else data[n] for n in ("h0", "dhn")}
    expected = gradient_flow(plain, data["x"], data["dy"], data["dhn"], data["h0"])
    got = gradient_flow(layer, other["x"], other["dy"], state["dhn"], state["h0"])
    for name in ("norms", "units", "terms_hh", "shares_ih", "saturation"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    np.testing.assert_array_equal(jacobians(layer, other["x"], state["h0"], number=1).norms,
                                  jacobians(plain, data["x"], data["h0"], number=1).norms)


@pytest.mark.parametrize("mode", [True, False])
def test_the_layer_stays_as_it_is(mode):
    layer = layer_of("lstm", num_layers=2, dropout=0.5)
    data = stacks.draw(layer, 4, 2)
    expected = stacks.both(copy.deepcopy(layer), data)
    stacks.forward(layer, data)  # a tape that waits for its backward
    layer = layer if mode else layer.eval()
    before = layer.flat_grads.copy()
    gradient_flow(layer, data["x"])
    jacobians(layer, data["x"])
    assert layer.training == mode
    np.testing.assert_array_equal(layer.flat_grads, before)
    got = stacks.backward(layer, data)
    stacks.assert_same(got, {name: expected[name] for name in got})


@stacks.per_dtype
def test_norms_far_below_the_root_of_the_least_number(dtype):
    layer = layer_of("rnn_tanh", dtype=dtype)
    scale = float(np.finfo(dtype).tiny) * 1e4
    x = np.zeros((3, 2, 3), dtype)
    plain = gradient_flow(layer, x, np.ones((3, 2, 5), dtype)).norms
    small = gradient_flow(layer, x, np.full((3, 2, 5), scale, dtype)).norms
    np.testing.assert_allclose(small / scale, plain, rtol=1e-3)


# ---------------------------------------------------------------------------------- jacobians


@stacks.per_cell
@pytest.mark.parametrize(("number", "reverse"), [(0, False), (1, True)])
def test_jacobians_are_finite_differences(cell, number, reverse):
    layer = layer_of(cell, num_layers=2, bidirectional=True)
    data = stacks.draw(layer, 8, 3)
    t, n, H = (2, 5, 5) if reverse else (5, 5, 5)
    got = jacobians(layer, data["x"], stacks.state_of(data, "h0", "c0"), t=t, sequence=1,
                    distance=n, number=number, reverse=reverse)
    push = np.zeros((2, 8, 3, 2, H))

    def state_at(i):
        """h_i(t) as the loss of a walk over the layers up to the one looked at."""
        part = layer_of(cell, num_layers=number + 1, bidirectional=True)
        for name, param in part.parameters().items():
            param[...] = layer.parameters()[name]
        own = {k: v[: 2 * (number + 1)] for k, v in data.items() if k in ("h0", "c0")}
        dy = np.zeros_like(data["dy"])
        dy[t, 1, reverse * H + i] = 1
        return walk(part, {"x": data["x"], "dy": dy, **own}, push)[0]

    for distance, matrix in enumerate(got.matrices):
        k = t + distance if reverse else t - distance
        expected = np.zeros((H, H))
        for j in range(H):
            sides = []
            for sign in (1, -1):
                push[number, k, 1, int(reverse), j] = sign * 1e-5
                sides.append(np.array([state_at(i) for i in range(H)]))
            push[:] = 0
            expected[:, j] = (sides[0] - sides[1]) / 2e-5
        # the loss is of order 1, so a difference of step 1e-5 is good to about 1e-11
        np.testing.assert_allclose(matrix, expected, rtol=1e-7, atol=1e-10)
        assert got.norms[distance] == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-12)
    assert len(got.norms) == n + 1
    assert (got.c_norms is None) == (cell != "lstm")


def test_of_an_lstm_also_what_c_keeps():
    layer = layer_of("lstm")
    data = stacks.draw(layer, 6, 1)
    got = jacobians(layer, data["x"], (data["h0"], data["c0"]), distance=4)
    data["dy"][:] = 0
    rows = []
    for i in range(5):
        data["dhn"][:], data["dcn"][:] = np.eye(5)[i], 0
        rows.append(flow_of(layer, data, ("dc",))[0]["dc"][::-1, 0, 0])  # (T, H)
    expected = np.linalg.norm(np.stack(rows, 1)[:5], 2, axis=(1, 2))
    cases.assert_close("c_norms", got.c_norms, expected, 1e-13)


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "rnn_sigmoid"])
def test_no_norm_exceeds_the_bound(cell):
    layer = layer_of(cell, H=20)
    got = jacobians(layer, np.random.default_rng(0).standard_normal((30, 1, 3)), distance=25)
    w = layer.parameters()["weight_hh_l0"]
    gamma = 0.25 if cell == "rnn_sigmoid" else 1
    assert got.threshold == 1 / gamma
    np.testing.assert_allclose(got.singular_values, np.linalg.svd(w, compute_uv=False)[0])
    np.testing.assert_allclose(got.spectral_radii, np.abs(np.linalg.eigvals(w)).max())
    np.testing.assert_allclose(got.bounds, (got.singular_values[0] * gamma) ** np.arange(26))
    assert (got.norms <= got.bounds * (1 + 1e-12)).all()


@stacks.per_dtype
def test_power_iteration_finds_the_norm_of_wide_layers(dtype):
    layer = layer_of("rnn_tanh", H=150, dtype=dtype)
    got = jacobians(layer, np.zeros((6, 1, 3), dtype), distance=5)
    exact = np.linalg.norm(got.matrices.astype(np.float64), 2, axis=(1, 2))
    np.testing.assert_allclose(got.norms, exact, rtol=1e-4)
    assert (got.norms <= exact * (1 + 1e-9)).all()


def scaled(factor, cell="rnn_tanh", H=16):
    """Return a layer whose W_hh is `factor` times an orthogonal matrix."""
    layer = layer_of(cell, H=H)
    q, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((H, H)))
    layer.parameters()["weight_hh_l0"][:] = factor * q
    return layer


def test_memory_is_the_first_distance_below():
    got = jacobians(scaled(0.5, "rnn_relu"), np.ones((40, 1, 3)), state=np.ones((1, 1, 16)))
    below = [d for d in range(1, 40) if got.norms[d] < got.norms[1] / math.e]
    assert got.memory() == below[0]
    assert got.memory(0.01) > got.memory()
    still = scaled(0.0)
    still.parameters()["weight_hh_l0"][:] = np.eye(16)
    still.flat[: 16 * 3] = 0
    still.parameters()["bias_ih_l0"][:] = still.parameters()["bias_hh_l0"][:] = 0
    assert jacobians(still, np.ones((40, 1, 3))).memory() is None


# ------------------------------------------------------------------------------------ verdict


@pytest.mark.parametrize(
    ("factor", "word", "said"),
    [(0.5, "vanishing", "orthogonal"), (1.5, "exploding", "clipping"), (1.0, "healthy", "factor")],
)
def test_the_verdict_on_constructed_layers(factor, word, said):
    layer, x = scaled(factor), np.zeros((60, 2, 3))
    layer.parameters()["bias_ih_l0"][:] = layer.parameters()["bias_hh_l0"][:] = 0  # linear at 0
    flow, jacobian = gradient_flow(layer, x), jacobians(layer, x)
    for text in (verdict(flow), verdict(jacobian)):
        assert word in text
        assert said in text
        assert f"{factor:.4g} a step" in text
    np.testing.assert_allclose(jacobian.norms, factor ** np.arange(60.0), rtol=1e-12)
    assert gradflow.growth(flow.batch_norms[0, 0, ::-1]) == pytest.approx(factor, rel=1e-9)


def test_the_verdict_on_a_training_counts_what_was_clipped():
    norms = [1.0, 2.0, 3.0, 0.5, 4.0]
    assert verdict(History(norms=norms, clip=2.5)) == (
        "healthy: the gradient's norm has a median of 2 and is at most 4, at step 5; clipped above "
        "2.5 at 2 of 5 steps")
    assert "no limit was set" in verdict(History(norms=norms))
    assert verdict(History(norms=norms, clip=0.75)).endswith(
        "at 4 of 5 steps; so often it acts as a smaller learning rate")
    spiked = verdict(History(norms=[*norms, 251.0]))
    assert spiked.startswith("exploding: ")
    assert "at most 251, at step 6; no limit was set; try smaller" in spiked
    with pytest.raises(ValueError, match="of is a History without steps"):
        verdict(History())


def test_the_verdict_on_gradients_that_are_zero_or_not_finite():
    layer = scaled(0.0)
    assert "is 0 from 1 steps back on" in verdict(gradient_flow(layer, np.zeros((5, 1, 3))))
    nothing = gradient_flow(layer, np.zeros((5, 1, 3)), np.zeros((5, 1, 16)))
    assert "is 0 at every step" in verdict(nothing)
    np.testing.assert_array_equal(nothing.shares_hh, 0)
    huge = scaled(1e100, "rnn_relu")
    huge.flat[: 16 * 3] = 1
    got = gradient_flow(huge, np.zeros((9, 1, 3)), np.ones((9, 1, 16)))
    assert "exploding: |dL/dh| is not finite" in verdict(got)
    assert "too few steps" in verdict(gradient_flow(layer, np.zeros((1, 1, 3))))
    assert "too few steps" in verdict(jacobians(layer, np.zeros((1, 1, 3))))
    assert "is 0 at every step" in verdict(jacobians(layer, np.zeros((9, 1, 3))))
    huge.flat[:] = 0  # h grows from 1e-300 to 1e200, its Jacobians beyond
    huge.parameters()["weight_hh_l0"][:] = 1e100 * np.eye(16)
    huge.parameters()["bias_ih_l0"][:] = 1e-300
    assert "is not finite 4 steps back" in verdict(jacobians(huge, np.zeros((6, 1, 3))))


def test_an_lstm_is_judged_by_its_cell_state():
    layer = layer_of("lstm", H=8)
    layer.flat[:] = 0
    layer.parameters()["bias_hh_l0"][8:16] = 10  # the forget gate is open
    assert "healthy: |dL/dc|" in verdict(gradient_flow(layer, np.zeros((50, 2, 3))))
    layer.parameters()["bias_hh_l0"][8:16] = -1
    text = verdict(gradient_flow(layer, np.zeros((50, 2, 3))))
    assert "vanishing" in text
    assert "forget gate" in text


def test_a_stack_has_a_line_for_each_layer_and_direction():
    layer = layer_of("gru", num_layers=2, bidirectional=True)
    lines = verdict(gradient_flow(layer, np.ones((4, 2, 3)))).split("\n")
    assert [line.split(":")[0] for line in lines] == [
        "layer 0 forward", "layer 0 reverse", "layer 1 forward", "layer 1 reverse"]


# ---------------------------------------------------------------------------------- bad input


X = np.zeros((4, 2, 3))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: gradient_flow(3, X), TypeError, "layer is of type int, expected an RNN, LSTM"),
        (lambda m: gradient_flow(m, X, parts="norms"), ValueError, "parts is 'norms', expected"),
        (lambda m: gradient_flow(m, X, parts=("norm",)), ValueError, r"parts is \('norm',\)"),
        (lambda m: gradient_flow(m, X, parts=3), ValueError, "parts is 3, expected a tuple"),
        (lambda m: gradient_flow(m, X[..., :2]), ValueError, "x has 2 features"),
        (lambda m: gradient_flow(m, X, np.zeros((4, 2, 3))), ValueError, "dy has shape"),
        (lambda m: gradient_flow(m, X, dstate=(X, X)), TypeError, "dhn is a tuple of 2"),
        (lambda m: jacobians(None, X), TypeError, "layer is None"),
        (lambda m: jacobians(m, X.astype("f")), TypeError, "x is float32, expected float64"),
        (lambda m: jacobians(m, X[0, 0]), ValueError, r"x has shape \(3,\), expected \(T, B, 3\)"),
        (lambda m: jacobians(m, X[:0]), ValueError, "x has 0 steps of 2 sequences"),
        (lambda m: jacobians(m, X, X), ValueError, r"state has shape \(4, 2, 3\)"),
        (lambda m: jacobians(m, X, t=4), ValueError, "t is 4, expected a whole number from 0 to 3"),
        (lambda m: jacobians(m, X, t=-1), ValueError, "t is -1"),
        (lambda m: jacobians(m, X, sequence=2), ValueError, "sequence is 2, .* 0 to 1"),
        (lambda m: jacobians(m, X, distance=0), ValueError, "distance is 0"),
        (lambda m: jacobians(m, X, number=True), ValueError, "number is True"),
        (lambda m: jacobians(m, X, reverse=True), ValueError, "reverse is True, expected False"),
        (lambda m: jacobians(m, X).memory(1), ValueError, "level is 1, expected a number above 0"),
        (lambda m: verdict(m), TypeError, "of is of type RNN, expected a GradientFlow"),
        (lambda m: verdict(gradient_flow(m, X, parts=())), ValueError, "without norms"),
    ],
)
def test_errors_name_the_argument(call, error, match):
    layer = layer_of("rnn_tanh")
    layer.flat_grads[:] = 1
    before = layer.flat.copy()
    with pytest.raises(error, match=match) as raised:
        call(layer)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(layer.flat, before)
    np.testing.assert_array_equal(layer.flat_grads, 1)


def test_a_flow_of_other_names_can_be_repeated():
    layer = layer_of("gru")
    layer(X)
    for name in ("dc", "dx"):
        with pytest.raises(ValueError, match=f"flow: has '{name}', expected names out of"):
            layer.flow((name,))
    assert not layer.flat_grads.any()
    assert set(layer.flow(("dh",))[0]) == {"dh"}
    with pytest.raises(RuntimeError, match=r"GRU\.flow: no call to go back through"):
        layer.flow(("dh",))


def test_weights_that_are_not_finite_have_no_jacobians():
    layer = layer_of("rnn_tanh")
    layer.parameters()["weight_hh_l0"][0, 0] = np.nan
    with pytest.raises(ValueError, match="weight_hh_l0 has values that are not finite"):
        jacobians(layer, X)


# -------------------------------------------------------------------------------------- models


def test_a_models_flow_is_that_of_its_layers():
    layers = [LSTM(3, 4, 2, bidirectional=True, seed=1, dtype=np.float64),
              GRU(8, 5, seed=2, dtype=np.float64)]
    model = SequenceModel(layers, 6, symbols=7, seed=3)
    rng = np.random.default_rng(0)
    symbols, targets, weights = (rng.integers(0, 7, (6, 3)), rng.integers(0, 6, (6, 3)),
                                 rng.random((6, 3)))
    before = model.flat_grads.copy()
    flows = gradflow.model_flow(model, lambda m: m.loss(symbols, targets, weights=weights))
    np.testing.assert_array_equal(model.flat_grads, before)

    p = model.parameters()
    x = p["embedding.weight"][symbols]
    y, _ = layers[0](x)
    z, _ = layers[1](y)
    _, dlogits = softmax_cross_entropy(z @ p["head.weight"].T + p["head.bias"], targets, weights)
    dz = dlogits @ p["head.weight"]
    dy, _ = layers[1].backward(dz)
    for flow, expected in zip(flows, (gradflow.gradient_flow(layers[0], x, dy),
                                      gradflow.gradient_flow(layers[1], y, dz)), strict=True):
        assert flow.cell == expected.cell
        for field in ("norms", "c_norms", "units", "terms_ih", "shares_hh", "saturation"):
            if getattr(expected, field) is not None:
                cases.assert_close(field, getattr(flow, field), getattr(expected, field), 1e-10)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: gradflow.model_flow(m, lambda m: None, parts=("all",)), ValueError, "parts is"),
        (lambda m: gradflow.model_flow(m.layers[0], lambda m: None), TypeError, "model is of type"),
        (lambda m: gradflow.model_flow(3, lambda m: None), TypeError, "model is of type int"),
        (lambda m: gradflow.model_flow(m, lambda m: None), RuntimeError, "no call to go back"),
    ],
)
def test_errors_of_a_models_flow(call, error, match):
    with pytest.raises(error, match=match):
        call(SequenceModel(GRU(2, 3, seed=0), 2, seed=0))
