"""Layer normalisation and dropout inside a step: against loops in torch, and what the masks do.

Every step below is written from its paper and from no text of the cells; it takes the masks of its
call. Letters: T steps, B batch, I input, H hidden.
"""

import loops
import numpy as np
import pytest

from fastrnn import Layer
from fastrnn.cells import regularised
from fastrnn.cells.zoo import ZOO
from fastrnn.layers.programs import draw

torch = pytest.importorskip("torch")
sigmoid, tanh = torch.sigmoid, torch.tanh

STEPS = {}
RATES = {  # other than the cells' own
    "RecurrentDropoutGRU": {"p": 0.4}, "RecurrentDropoutLSTM": {"p": 0.4},
    "VariationalGRU": {"p_x": 0.2, "p_h": 0.4}, "VariationalLSTM": {"p_x": 0.2, "p_h": 0.4},
    "WeightDroppedGRU": {"p": 0.3}, "WeightDroppedLSTM": {"p": 0.3},
    "ZoneoutGRU": {"p": 0.3}, "ZoneoutLSTM": {"p_c": 0.6, "p_h": 0.2},
}


def of(step):
    STEPS[step.__name__] = step
    return step


def lstm(gates, c):
    i, f, g, o = gates.chunk(4, -1)
    return sigmoid(i), sigmoid(f), tanh(g), sigmoid(o), c


def layer_norm(a, gain=None, bias=None):
    return torch.nn.functional.layer_norm(a, a.shape[-1:], gain, bias)


@of
def LayerNormLSTM(p, x, states, masks):
    h, c = states
    a = {gate: layer_norm(x @ W.T, p[f"p_{gate}"], p[f"b_{gate}"])
         + layer_norm(h @ U.T, p[f"q_{gate}"])
         for gate, W, U in zip("ifgo", p["W"].chunk(4), p["U"].chunk(4), strict=True)}
    c = sigmoid(a["f"]) * c + sigmoid(a["i"]) * tanh(a["g"])
    h = sigmoid(a["o"]) * tanh(layer_norm(c, p["p_c"], p["b_c"]))
    return h, (h, c)


@of
def LayerNormGRU(p, x, states, masks):
    h, = states
    w = {gate: layer_norm(x @ W.T, p[f"p_{gate}"], p[f"b_{gate}"])
         for gate, W in zip("rzn", p["W"].chunk(3), strict=True)}
    u = {gate: layer_norm(h @ U.T, p[f"q_{gate}"])
         for gate, U in zip("rzn", p["U"].chunk(3), strict=True)}
    z = 1 - sigmoid(w["z"] + u["z"])  # the paper's
    candidate = tanh(w["n"] + sigmoid(w["r"] + u["r"]) * (u["n"] + p["b_u"]))
    h = (1 - z) * h + z * candidate
    return h, (h,)


@of
def VariationalLSTM(p, x, states, masks):
    h, c = states
    m_x, m_h = masks
    i, f, g, o, c = lstm((x * m_x) @ p["W"].T + (h * m_h) @ p["U"].T + p["b"], c)
    c = f * c + i * g
    h = o * tanh(c)
    return h, (h, c)


@of
def VariationalGRU(p, x, states, masks):
    h, = states
    m_h, m_x = masks  # in the order of the text
    (W_r, W_z, W_n), (b_r, b_z, b_n) = p["W"].chunk(3), p["b"].chunk(3)
    U_r, U_z = p["U"].chunk(2)
    r = sigmoid((x * m_x) @ W_r.T + (h * m_h) @ U_r.T + b_r)
    z = sigmoid((x * m_x) @ W_z.T + (h * m_h) @ U_z.T + b_z)
    n = tanh((x * m_x) @ W_n.T + (r * (h * m_h)) @ p["U_n"].T + b_n)
    h = torch.lerp(n, h, z)
    return h, (h,)


@of
def RecurrentDropoutLSTM(p, x, states, masks):
    h, c = states
    i, f, g, o, c = lstm(x @ p["W"].T + h @ p["U"].T + p["b"], c)
    c = f * c + i * (masks[0] * g)
    h = o * tanh(c)
    return h, (h, c)


@of
def RecurrentDropoutGRU(p, x, states, masks):
    h, = states
    w_r, w_z, w_n = (x @ p["W"].T + p["b"]).chunk(3, -1)
    u_r, u_z = (h @ p["U"].T).chunk(2, -1)
    z = sigmoid(-(w_z + u_z))  # the paper's
    g = tanh(w_n + (sigmoid(w_r + u_r) * h) @ p["U_n"].T)
    h = (1 - z) * h + z * (masks[0] * g)
    return h, (h,)


@of
def ZoneoutLSTM(p, x, states, masks):
    h, c = states
    keep_c, keep_h = masks
    i, f, g, o, c = lstm(x @ p["W"].T + h @ p["U"].T + p["b"], c)
    new_c = f * c + i * g
    new_h = o * tanh(new_c)
    h, c = torch.lerp(new_h, h, keep_h), torch.lerp(new_c, c, keep_c)
    return h, (h, c)


def gru(p, x, h, U):
    w_r, w_z, w_n = (x @ p["W"].T + p["b"]).chunk(3, -1)
    u_r, u_z, u_n = (h @ U.T + p["b_u"]).chunk(3, -1)
    z = sigmoid(w_z + u_z)
    return z * h + (1 - z) * tanh(w_n + sigmoid(w_r + u_r) * u_n)


@of
def ZoneoutGRU(p, x, states, masks):
    h, = states
    h = torch.lerp(gru(p, x, h, p["U"]), h, masks[0])
    return h, (h,)


@of
def WeightDroppedLSTM(p, x, states, masks):
    h, c = states
    i, f, g, o, c = lstm(x @ p["W"].T + h @ (p["U"] * masks[0]).T + p["b"], c)
    c = f * c + i * g
    h = o * tanh(c)
    return h, (h, c)


@of
def WeightDroppedGRU(p, x, states, masks):
    h = gru(p, x, states[0], p["U"] * masks[0])
    return h, (h,)


# ---------------------------------------------------------------------------- against the loops


def masks_to_come(layer, T, B):
    """Return the masks of the layer's next call in training: a list for each step."""
    rng = np.random.default_rng()
    rng.bit_generator.state = layer.dropout_state
    kind, = layer._kinds
    found = draw(kind, (), rng, B, T * B, np.float64)
    steps = [[] for _ in range(T)]
    for of_mask, mask in zip(kind.masks, found.masks or (), strict=True):
        for t, step in enumerate(steps):
            rows = mask[t * B:(t + 1) * B] if of_mask.each_step else mask
            step.append(torch.tensor(rows))
    for mask in found.weight_masks.values():
        for step in steps:
            step.append(torch.tensor(mask))
    return steps


def with_masks(step, steps):
    """Return a step that takes the masks of one step after the other."""
    following = iter(steps)
    return lambda p, x, states: step(p, x, states, next(following))


def test_every_cell_has_a_loop_and_says_where_it_comes_from():
    names = {name for name, module in ZOO.items() if module == "regularised"}
    assert names == STEPS.keys() == set(regularised.__all__)
    for name in names:
        definition = getattr(regularised, name)
        assert definition.name == name
        assert any(year in definition.paper for year in ("2016", "2017", "2018"))


@pytest.mark.parametrize("sizes", loops.SIZES)
@pytest.mark.parametrize("name", STEPS)
def test_a_cell_is_its_papers_equations_with_the_masks_of_its_call(name, sizes):
    I, H, B = sizes
    layer = loops.make(getattr(regularised, name), I, H, **RATES.get(name, {}))
    steps = masks_to_come(layer, 5, B)
    assert bool(steps[0]) == (name in RATES)
    given = loops.drawn(layer, 5, B)
    loops.assert_equal(layer, loops.run(layer, *given),
                       loops.unrolled(layer, with_masks(STEPS[name], steps), *given))


@pytest.mark.parametrize("name", RATES)
def test_a_layer_in_evaluation_takes_the_means(name):
    rates = RATES[name]
    layer = loops.make(getattr(regularised, name), 3, 5, **rates)
    x, states, dy, final = loops.drawn(layer, 5, 2)
    means = [1.0] * 2
    if name.startswith("Zoneout"):
        means = list(rates.values())
    means = [torch.tensor(mean, dtype=torch.float64) for mean in means]
    expected = loops.unrolled(layer, with_masks(STEPS[name], [means] * 5), x, states, dy, final)
    layer.eval()
    state = tuple(a[None] for a in states)
    y, _ = layer(x, state if len(state) > 1 else state[0])
    np.testing.assert_allclose(y, expected[0].numpy(), 1e-9, 1e-10)


@pytest.mark.parametrize("name", RATES)
def test_backward_has_the_masks_of_forward(name):
    """Differences of the loss at equal states of the masks' generator, in a random direction."""
    layer = loops.make(getattr(regularised, name), 3, 5, **RATES[name], num_layers=2,
                       bidirectional=True)
    rng = np.random.default_rng(3)
    x, dy = rng.normal(size=(6, 4, 3)), rng.normal(size=(6, 4, 10))
    before = layer.dropout_state
    layer.zero_grad()
    y, _ = layer(x)
    layer.backward(dy)
    direction = rng.normal(size=layer.flat.shape)

    def loss(step):
        layer.flat[:] += step * direction
        layer.dropout_state = before
        y, _ = layer(x)
        layer.flat[:] -= step * direction
        return (y * dy).sum()

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    np.testing.assert_allclose(layer.flat_grads @ direction, slope, 1e-6)
    layer.dropout_state = before
    np.testing.assert_array_equal(layer(x)[0], y)
    assert (layer(x)[0] != y).any()  # other masks


# ------------------------------------------------------------------------------ what masks do


def within(found, rate, n):
    """Check a share of n draws, to five standard deviations."""
    assert abs(found - rate) < 5 * np.sqrt(rate * (1 - rate) / n)


def bare(name, I, H, **options):
    """Return a layer whose parameters are all 0."""
    layer = Layer(getattr(regularised, name), I, H, dtype=np.float64, seed=0, **options)
    layer.flat[:] = 0
    return layer


def test_recurrent_dropout_drops_candidates_anew_in_each_step_and_keeps_the_mean():
    T, B, H, p = 30, 20, 50, 0.3
    layer = bare("RecurrentDropoutLSTM", 2, H, p=p)
    layer.parameters()["b_l0"][:] = np.repeat([50.0, -50.0, 0.5, 50.0], H)  # c is the candidate
    y, _ = layer(np.zeros((T, B, 2)))
    dropped = np.abs(y) < 1e-9
    within(dropped.mean(), p, dropped.size)
    np.testing.assert_allclose(y[~dropped], np.tanh(np.tanh(0.5) / (1 - p)), 1e-9)
    within((dropped[1:] & dropped[:-1]).mean(), p * p, dropped[1:].size)  # steps are independent


def test_recurrent_dropout_never_drops_the_memory():
    layer = bare("RecurrentDropoutLSTM", 2, 6, p=0.9)
    layer.parameters()["b_l0"][:] = np.repeat([-50.0, 50.0, 0.5, 50.0], 6)  # c stays
    c = np.random.default_rng(0).normal(size=(1, 3, 6))
    _, (_, c_n) = layer(np.zeros((20, 3, 2)), (np.zeros((1, 3, 6)), c))
    np.testing.assert_allclose(c_n, c, 1e-12)


@pytest.mark.parametrize("which", ["x", "h"])
def test_variational_masks_stay_for_a_sequence(which):
    T, B, H, p = 7, 40, 50, 0.3
    layer = bare("VariationalLSTM", H, H, p_x=p if which == "x" else 0,
                 p_h=p if which == "h" else 0)
    own = layer.parameters()
    own["b_l0"][:] = np.repeat([50.0, -50.0, 0.0, 50.0], H)  # h is the candidate, nearly
    own["W_l0" if which == "x" else "U_l0"][2 * H:3 * H] = np.eye(H)
    x = np.full((T, B, H), 0.5 if which == "x" else 0.0)
    start = np.full((1, B, H), 0.5)
    y, _ = layer(x, (start, np.zeros_like(start)))
    dropped = y == 0
    within(dropped[0].mean(), p, dropped[0].size)
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[:1], dropped.shape))
    assert (dropped[0, 0] != dropped[0, 1]).any()  # each row has its own
    np.testing.assert_allclose(y[0][~dropped[0]], np.tanh(np.tanh(0.5 / (1 - p))), 1e-9)


def test_zoneout_keeps_values_exactly_and_as_often_as_it_says():
    B, H = 40, 100
    layer = loops.make(regularised.ZoneoutLSTM, 2, H)
    rng = np.random.default_rng(1)
    h, c = rng.normal(size=(2, 1, B, H))
    _, (h_n, c_n) = layer(rng.normal(size=(1, B, 2)), (h, c))
    kept_h, kept_c = h_n == h, c_n == c
    within(kept_h.mean(), 0.05, h.size)
    within(kept_c.mean(), 0.5, c.size)
    within((kept_h & kept_c).mean(), 0.025, h.size)  # apart from each other


def test_zoneout_of_the_memory_is_not_seen_by_h():
    layers = [loops.make(regularised.ZoneoutLSTM, 2, 5, p_h=0, p_c=p_c) for p_c in (0, 1)]
    x = np.random.default_rng(1).normal(size=(1, 3, 2))
    (one, (_, c)), (other, (_, zero)) = (layer(x) for layer in layers)
    np.testing.assert_array_equal(one, other)
    assert c.all()
    assert not zero.any()


def test_weights_are_dropped_once_a_call():
    T, B, H, p = 3, 4, 60, 0.3
    layer = bare("WeightDroppedLSTM", 2, H, p=p)
    own = layer.parameters()
    own["b_l0"][:] = np.repeat([50.0, -50.0, 0.0, 50.0], H)
    own["U_l0"][2 * H:3 * H] = 0.5
    found = []
    for j in range(H):  # each column, in a call of its own
        h = np.zeros((1, B, H))
        h[..., j] = 1
        y, _ = layer(np.zeros((T, B, 2)), (h, np.zeros_like(h)))
        np.testing.assert_array_equal(y, np.repeat(y[:, :1], B, 1))
        found.append(y[0, 0])
    dropped = np.array(found) == 0
    within(dropped.mean(), p, dropped.size)
    assert (dropped[0] != dropped[1]).any()
    np.testing.assert_allclose(np.array(found)[~dropped], np.tanh(np.tanh(0.5 / (1 - p))), 1e-9)


# ------------------------------------------------------------------------------ layer normalisation


@pytest.mark.parametrize("name", ["LayerNormLSTM", "LayerNormGRU"])
def test_gains_begin_with_1_and_biases_with_0_but_the_forget_gates(name):
    own = Layer(getattr(regularised, name), 3, 5, seed=0).parameters()
    for vector, array in own.items():
        if vector[0] in "pqb":
            one = vector[0] in "pq" or (name, vector) == ("LayerNormLSTM", "b_f_l0")
            assert (array == one).all(), vector


@pytest.mark.parametrize("name", ["LayerNormLSTM", "LayerNormGRU"])
def test_layer_norm_does_not_see_the_scale_of_the_weights(name):
    """With x and U h away from 0, where eps does not matter."""
    layer = loops.make(getattr(regularised, name), 4, 8)
    x = np.random.default_rng(0).normal(size=(5, 3, 4))
    layer.parameters()["W_l0"][:] *= 1000
    layer.parameters()["U_l0"][:] *= 1000
    before, _ = layer(x)
    layer.parameters()["W_l0"][:] *= 7
    layer.parameters()["U_l0"][:] *= 11
    np.testing.assert_allclose(layer(x)[0], before, 1e-6)
