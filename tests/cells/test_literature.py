"""Cells from the literature against loops in torch, and against published packages.

Every step below is written from its paper and from no text of the cells. Letters: T steps, B batch,
I input, H hidden.
"""

import math

import loops
import numpy as np
import pytest

from fastrnn import Layer
from fastrnn.cells import literature
from fastrnn.cells.zoo import ZOO

torch = pytest.importorskip("torch")
sigmoid, tanh, relu = torch.sigmoid, torch.tanh, torch.relu

STEPS = {}  # by name: the step, and the layer's options


def of(name, **options):
    def register(step):
        STEPS[name] = step, options
        return step
    return register


def chunks(a, n):
    return a.chunk(n, -1)


@of("MGU")
def mgu(p, x, states):
    h, = states
    (W_f, W_g), (b_f, b_g) = p["W"].chunk(2), p["b"].chunk(2)
    f = sigmoid(x @ W_f.T + h @ p["U_f"].T + b_f)
    g = tanh(x @ W_g.T + (f * h) @ p["U_g"].T + b_g)
    h = h - f * h + f * g
    return h, (h,)


@of("JANET", beta=0.7)
def janet(p, x, states):
    c, = states
    s = p["W_f"] @ x.T + p["U_f"] @ c.T + p["b_f"][:, None]
    candidate = tanh(p["W_g"] @ x.T + p["U_g"] @ c.T + p["b_g"][:, None])
    c = sigmoid(s).T * c + (1 - sigmoid(s - 0.7)).T * candidate.T
    return c, (c,)


@of("LiGRU")
def ligru(p, x, states):
    h, = states
    H = h.shape[-1]
    a, g = (torch.nn.functional.layer_norm(x @ W.T, (H,), weight=gain)
            for W, gain in zip(p["W"].chunk(2), (p["p_z"], p["p_g"]), strict=True))
    u_z, u_g = chunks(torch.addmm(p["b"], h, p["U"].T), 2)
    z = sigmoid(a + u_z)
    h = torch.lerp(relu(g + u_g), h, z)
    return h, (h,)


@of("UGRNN", forget=0.3)
def ugrnn(p, x, states):
    h, = states
    g, c = chunks(torch.cat([x, h], -1) @ torch.cat([p["W"], p["U"]], -1).T + p["b"], 2)
    g = sigmoid(g + 0.3)
    h = torch.lerp(tanh(c), h, g)
    return h, (h,)


@of("FastRNN")
def fast_rnn(p, x, states):
    h, = states
    h = (sigmoid(p["alpha"]) * tanh(x @ p["W"].T + h @ p["U"].T + p["b"])
         + sigmoid(p["beta"]) * h)
    return h, (h,)


@of("FastGRNN")
def fast_grnn(p, x, states):
    h, = states
    a = x @ p["W"].T + h @ p["U"].T
    z, g = sigmoid(a + p["b_z"]), tanh(a + p["b_g"])
    h = z * h + (sigmoid(p["zeta"]) * (1 - z) + sigmoid(p["nu"])) * g
    return h, (h,)


@of("BRC")
def brc(p, x, states):
    h, = states
    w_a, w_c, w = chunks(x @ p["W"].T + p["b"], 3)
    a, c = 1 + tanh(w_a + p["p_a"] * h), sigmoid(w_c + p["p_z"] * h)
    h = c * h + (1 - c) * tanh(w + a * h)
    return h, (h,)


@of("nBRC")
def nbrc(p, x, states):
    h, = states
    w_a, w_c, w = chunks(x @ p["W"].T + p["b"], 3)
    U_a, U_c = p["U"].chunk(2)
    a, c = 1 + tanh(w_a + h @ U_a.T), sigmoid(w_c + h @ U_c.T)
    h = c * h + (1 - c) * tanh(w + a * h)
    return h, (h,)


def heads(U, h, gates, n):
    """Return the products of all gates with block-diagonal matrices, head by head."""
    d = h.shape[-1] // n
    blocks = U.reshape(gates, n, d, d)
    return [torch.cat([h[:, k * d:(k + 1) * d] @ blocks[g, k].T for k in range(n)], -1)
            for g in range(gates)]


@of("sLSTM", heads=2)
def slstm(p, x, states):
    """Say the paper's equations without the stabiliser m, which changes c and n and not h."""
    _, c, n, m = states
    i, g, o = (a + b for a, b in zip(chunks(x @ p["W"].T + p["b"], 3),
                                     heads(p["U"], states[0], 3, 2), strict=True))
    f = x @ p["W_f"].T + heads(p["U_f"], states[0], 1, 2)[0] + p["b_f"]
    c, n = c * torch.exp(m), n * torch.exp(m)  # the true ones
    c = sigmoid(f) * c + torch.exp(i) * tanh(g)
    n = sigmoid(f) * n + torch.exp(i)
    h = sigmoid(o) * c / n
    m = torch.maximum(torch.log(sigmoid(f)) + m, i)
    return h, (h, c * torch.exp(-m), n * torch.exp(-m), m)


@of("IndRNN")
def indrnn(p, x, states):
    h, = states
    h = relu(x @ p["W"].T + p["u"] * h + p["b"])
    return h, (h,)


@of("minGRU")
def min_gru(p, x, states):
    h, = states
    z, g = chunks(x @ p["W"].T + p["b"], 2)
    h = torch.lerp(h, g, sigmoid(z))
    return h, (h,)


@of("minLSTM")
def min_lstm(p, x, states):
    h, = states
    f, i, g = chunks(x @ p["W"].T + p["b"], 3)
    f, i = sigmoid(f), sigmoid(i)
    total = f + i
    h = (f * h + i * g) / total
    return h, (h,)


def sru_step(p, c, candidate, gates, past, alpha):
    W_f, W_r = chunks(gates + p["b"], 2)
    f, r = sigmoid(W_f + p["p_f"] * c), sigmoid(W_r + p["p_r"] * c)
    c = f * c + (1 - f) * candidate
    return r * c + (1 - r) * past * alpha, (c,)


@of("SRU")
def sru(p, x, states):
    return sru_step(p, *states, x @ p["W"].T, x @ p["W_r"].T, x, math.sqrt(3))


@of("ProjectedSRU", alpha=1.3)
def projected_sru(p, x, states):
    candidate, past = chunks(x @ p["W"].T, 2)
    return sru_step(p, *states, candidate, x @ p["W_r"].T, past, 1.3)


@of("QRNN")
def qrnn(p, x, states):
    c, last = states
    both = torch.stack([last, x], -1)  # (B, I, 2)
    kernel = torch.stack([p["V"], p["W"]], -1)  # (3H, I, 2)
    z, f, o = torch.nn.functional.conv1d(both, kernel, p["b"])[..., 0].chunk(3, -1)
    c = torch.lerp(tanh(z), c, sigmoid(f))
    return sigmoid(o) * c, (c, x)


@of("SCRN", C=3, alpha=0.8)
def scrn(p, x, states):
    s, h = states
    s = 0.2 * (x @ p["B"].T) + 0.8 * s
    h = sigmoid(s @ p["P"].T + x @ p["A"].T + h @ p["R"].T + p["b"])
    return h @ p["U"].T + s @ p["V"].T + p["b_y"], (s, h)


@of("LeakyESN", a=0.9, gamma=0.4)
def leaky_esn(p, x, states):
    h, = states
    h = (1 - 0.9 * 0.4) * h + 0.4 * tanh(x @ p["W"].T + h @ p["U"].T)
    return h, (h,)


def antisymmetric(U, gamma):
    return U - U.T - gamma * torch.eye(len(U), dtype=U.dtype)


@of("AntisymmetricRNN", epsilon=0.5, gamma=0.2)
def antisymmetric_rnn(p, x, states):
    h, = states
    h = h + 0.5 * tanh(h @ antisymmetric(p["U"], 0.2).T + x @ p["W"].T + p["b"])
    return h, (h,)


@of("GatedAntisymmetricRNN", epsilon=0.5, gamma=0.2)
def gated_antisymmetric_rnn(p, x, states):
    h, = states
    z, g = chunks(x @ p["W"].T + p["b"], 2)
    u = h @ antisymmetric(p["U"], 0.2).T
    h = h + 0.5 * sigmoid(u + z) * tanh(u + g)
    return h, (h,)


@of("coRNN", dt=0.3, gamma=1.2, epsilon=0.9)
def cornn(p, x, states):
    y, z = states
    force = tanh(y @ p["W"].T + z @ p["U"].T + x @ p["V"].T + p["b"])
    z = z + 0.3 * (force - 1.2 * y - 0.9 * z)
    y = y + 0.3 * z
    return y, (y, z)


@of("LEM", dt=0.8)
def lem(p, x, states):
    y, z = states
    a1, a2, a_z = chunks(y @ p["W"].T + x @ p["V"].T + p["b"], 3)
    dt1, dt2 = (0.8 * 0.5 * (1 + tanh(a / 2)) for a in (a1, a2))
    z = (1 - dt1) * z + dt1 * tanh(a_z)
    y = (1 - dt2) * y + dt2 * tanh(z @ p["W_y"].T + x @ p["V_y"].T + p["b_y"])
    return y, (y, z)


@of("CfC", N=11, dt=0.6)
def cfc(p, x, states):
    h, = states
    s = 1.7159 * tanh(0.666 * (x @ p["W"].T + h @ p["U"].T + p["b"]))
    g, k, time_a, time_b = chunks(s @ p["V"].T + p["b_v"], 4)
    z = sigmoid(time_a * 0.6 + time_b)
    h = tanh(g) * (1 - z) + z * tanh(k)
    return h, (h,)


def test_every_cell_has_a_loop_and_says_where_it_comes_from():
    names = {name for name, module in ZOO.items() if module == "literature"}
    assert names == STEPS.keys() == set(literature.__all__)
    for name in names:
        definition = getattr(literature, name)
        assert definition.name == name
        assert any(year in definition.paper for year in map(str, range(2007, 2025)))


@pytest.mark.parametrize("sizes", loops.SIZES)
@pytest.mark.parametrize("name", STEPS)
def test_a_cell_is_its_papers_equations(name, sizes):
    I, H, B = sizes
    step, options = STEPS[name]
    layer = loops.make(getattr(literature, name), H if name == "SRU" else I, H, **options)
    given = loops.drawn(layer, 6, B)
    if name == "sLSTM":  # n is a sum of exponentials
        given[1][2][:] = np.abs(given[1][2]) + 0.5
    if name == "IndRNN":
        layer.parameters()["b_l0"][:] += 0.5  # some units are on, and some off
    loops.assert_equal(layer, loops.run(layer, *given), loops.unrolled(layer, step, *given))


# ---------------------------------------------------------------------------- what they begin with


@pytest.mark.parametrize(("name", "expected"), [
    ("BRC", {"p_a": 1, "p_z": 1}),
    ("FastRNN", {"alpha": -3, "beta": 3}),
    ("FastGRNN", {"zeta": 1, "nu": -4, "b_z": 1, "b_g": 1}),
    ("LiGRU", {"p_z": 1, "p_g": 1}),
])
def test_vectors_begin_with_their_numbers(name, expected):
    own = Layer(getattr(literature, name), 3, 5, seed=0).parameters()
    for vector, value in expected.items():
        assert (own[f"{vector}_l0"] == value).all()


@pytest.mark.parametrize(("name", "vector", "low", "high"), [
    ("IndRNN", "u", 0, 1), ("JANET", "b_f", 0, 6), ("SRU", "p_f", -1.2247, 1.2247),
    ("SRU", "p_r", -1.2247, 1.2247), ("sLSTM", "b_f", 0, 5)])
def test_vectors_are_drawn_from_their_ranges(name, vector, low, high):
    drawn = Layer(getattr(literature, name), 400, 400, seed=0).parameters()[f"{vector}_l0"]
    assert low <= drawn.min() < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < drawn.max() <= high


@pytest.mark.parametrize(("name", "constants"), [
    ("JANET", {"beta": 1}), ("UGRNN", {"forget": 1}), ("SCRN", {"alpha": 0.95}),
    ("coRNN", {"dt": 0.042, "gamma": 2.7, "epsilon": 4.7}), ("LEM", {"dt": 1}),
    ("SRU", {"alpha": math.sqrt(3)}), ("CfC", {"dt": 1})])
def test_constants_are_the_papers(name, constants):
    assert getattr(literature, name).constants == constants


def test_a_reservoir_is_sparse_has_its_radius_and_stays():
    layer = Layer(literature.LeakyESN, 3, 200, dtype=np.float64, seed=0)
    W, U = (layer.parameters()[f"{name}_l0"].copy() for name in "WU")
    assert np.abs(np.linalg.eigvals(U)).max() == pytest.approx(0.9)
    assert (U != 0).mean() == pytest.approx(0.1, abs=0.01)
    assert -1 <= W.min() < -0.9 < 0.9 < W.max() <= 1
    other = Layer(literature.LeakyESN, 3, 200, seed=0, density=0.5).parameters()["U_l0"]
    assert (other != 0).mean() == pytest.approx(0.5, abs=0.01)
    y, _ = layer(np.ones((4, 2, 3)))
    layer.zero_grad()
    dx, _ = layer.backward(np.ones_like(y))
    assert dx.all()
    assert not layer.flat_grads.any()


# ---------------------------------------------------------------------------- single cells


def test_slstm_has_no_overflow_where_its_gates_would():
    """Gates to some hundreds, of both signs: their exponentials fit float64, and not float32."""
    layer = loops.make(literature.sLSTM, 3, 8, heads=2)
    layer.parameters()["W_l0"][:8] *= 200
    layer.parameters()["W_f_l0"][:] *= 50
    x, states, dy, final = loops.drawn(layer, 8, 5)
    states, final = ([0 * a for a in arrays] for arrays in (states, final))
    ours = loops.run(layer, x, states, dy, final)
    theirs = loops.unrolled(layer, STEPS["sLSTM"][0], x, states, dy, final)
    assert np.abs(ours[1][3]).max() > 200  # m is the logarithm of the greatest gate
    np.testing.assert_allclose(ours[0], theirs[0].numpy(), 1e-9, 1e-12)
    np.testing.assert_allclose(ours[2], theirs[2].numpy(), 1e-8, 1e-8)
    for name, gradient in ours[4].items():
        np.testing.assert_allclose(gradient, theirs[4][name].numpy(), 1e-8, 1e-8)
    single = Layer(literature.sLSTM, 3, 8, heads=2)
    single.flat[:] = layer.flat
    y, _ = single(x.astype(np.float32))
    np.testing.assert_allclose(y, ours[0], 0, 1e-3)
    dx, _ = single.backward(dy.astype(np.float32))
    assert np.isfinite(dx).all()
    assert np.isfinite(single.flat_grads).all()


def test_sru_wants_an_input_as_wide_as_itself_and_its_other_form_does_not():
    with pytest.raises(ValueError, match="I is 3 and H is 4"):
        Layer(literature.SRU, 3, 4)
    assert Layer(literature.SRU, 4, 4, bidirectional=True).width == 8  # a single layer can be both
    with pytest.raises(ValueError, match="I is 8 and H is 4"):
        Layer(literature.SRU, 4, 4, 2, bidirectional=True)
    layer = Layer(literature.ProjectedSRU, 3, 4, num_layers=2)
    assert layer(np.zeros((2, 1, 3), np.float32))[0].shape == (2, 1, 4)


def test_stacked_qrnns_want_an_input_as_wide_as_themselves():
    with pytest.raises(ValueError, match="num_layers"):
        Layer(literature.QRNN, 3, 4, num_layers=2)
    layer = Layer(literature.QRNN, 4, 4, num_layers=2, dtype=np.float64, seed=0)
    _, (_, last) = layer(np.ones((3, 2, 4)))
    assert (last[0] == 1).all()
    assert not (last[1] == 1).any()  # what the first layer gives


def test_antisymmetric_weights_neither_grow_nor_decay_without_diffusion():
    """The eigenvalues of what a step adds have no real part at gamma = 0, and -gamma otherwise."""
    from fastrnn.cells.weights import effective

    weight = literature.AntisymmetricRNN.weights["U"]
    U = np.random.default_rng(0).normal(size=(6, 6))
    for gamma in (0.0, 0.3):
        matrix = effective(weight, U, {"H": 6}, {"gamma": gamma})
        np.testing.assert_allclose(np.linalg.eigvals(matrix).real, -gamma, atol=1e-12)
