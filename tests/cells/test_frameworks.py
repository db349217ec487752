"""Cells of the frameworks against other implementations: PyTorch, and the formulas of Keras.

test_onnx.py has those of ONNX. Letters: T steps, B batch, I input, H hidden, P the width of a
projected h, L layers, D directions.
"""

import copy
import pickle
import threading

import numpy as np
import pytest

import fastrnn
from fastrnn import cells, init
from fastrnn.cells.table import CELLS
from fastrnn.layers.passes import adding

T, B, I, H, P = 6, 4, 3, 7, 5


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def close(mine, theirs, name="", tolerance=1e-12):
    np.testing.assert_allclose(mine, theirs, tolerance, tolerance, err_msg=name)


# ------------------------------------------------------------------- LSTM(proj_size=) against torch

STACKS = [(1, 1), (1, 2), (3, 1), (2, 2)]  # L, D
per_stack = pytest.mark.parametrize(("L", "D"), STACKS)


@pytest.fixture(name="torch")
def torch_of_one_thread():
    """Two pools of threads would wait for each other."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


def pair(torch, L, D, **options):
    """Return ours and torch's layer of the same weights, in float64."""
    theirs = torch.nn.LSTM(I, H, L, options.pop("bias", True), options.pop("batch_first", False),
                           0.0, D == 2, P, dtype=torch.float64, **options)
    ours = fastrnn.LSTM(I, H, L, theirs.bias, theirs.batch_first, 0.0, D == 2, P,
                        dtype=np.float64, seed=0)
    assert {n: tuple(p.shape) for n, p in theirs.named_parameters()} == {
        n: p.shape for n, p in ours.parameters().items()}
    assert [n for n, _ in theirs.named_parameters()] == list(ours.parameters())
    theirs.load_state_dict({n: torch.tensor(p) for n, p in ours.state_dict().items()})
    return ours, theirs


def states_of(L, D, seed):
    return draw(L * D, B, P, seed=seed), draw(L * D, B, H, seed=seed + 1)


def hold_gradients(ours, theirs):
    for name, param in theirs.named_parameters():
        close(ours.grads[name], param.grad.numpy(), name)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"batch_first": True}],
                         ids=["", "no bias", "batch first"])
@per_stack
def test_a_projected_lstm_is_torchs(torch, L, D, options):
    ours, theirs = pair(torch, L, D, **options)
    shape = (B, T) if options.get("batch_first") else (T, B)
    x, dy = draw(*shape, I), draw(*shape, D * P, seed=1)
    state, dstate = states_of(L, D, 2), states_of(L, D, 4)
    y, (hn, cn) = ours(x, state)
    dx, (dh, dc) = ours.backward(dy, dstate)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, *state)]
    ty, (th, tc) = theirs(tensors[0], tuple(tensors[1:]))
    torch.autograd.backward((ty, th, tc), tuple(map(torch.tensor, (dy, *dstate))))
    assert (y.shape[-1], hn.shape, cn.shape) == (D * P, (L * D, B, P), (L * D, B, H))
    for mine, other in ((y, ty), (hn, th), (cn, tc)):
        close(mine, other.detach().numpy())
    for mine, other in zip((dx, dh, dc), tensors, strict=True):
        close(mine, other.grad.numpy())
    hold_gradients(ours, theirs)


@per_stack
def test_a_projected_lstm_with_lengths_is_torchs_of_packed_sequences(torch, L, D):
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    ours, theirs = pair(torch, L, D)
    lengths = np.array([3, T, 1, 5])
    x, dy, dstate = draw(T, B, I), draw(T, B, D * P, seed=1), states_of(L, D, 4)
    y, (hn, cn) = ours(x, states_of(L, D, 2), lengths=lengths)
    dx, (dh, dc) = ours.backward(dy, dstate)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, *states_of(L, D, 2))]
    packed = pack_padded_sequence(tensors[0], torch.tensor(lengths), enforce_sorted=False)
    ty, (th, tc) = theirs(packed, tuple(tensors[1:]))
    ty = pad_packed_sequence(ty, total_length=T)[0]
    torch.autograd.backward((ty, th, tc), tuple(map(torch.tensor, (dy, *dstate))))
    for mine, other in ((y, ty), (hn, th), (cn, tc)):
        close(mine, other.detach().numpy())
    for mine, other in zip((dx, dh, dc), tensors, strict=True):
        close(mine, other.grad.numpy())
    hold_gradients(ours, theirs)


def test_a_projected_lstm_begins_in_torchs_range():
    layer = fastrnn.LSTM(I, 64, 2, proj_size=32, dtype=np.float64, seed=0)
    for name, param in layer.parameters().items():
        assert abs(param).max() <= 1 / 8, name
        assert abs(param).max() > 0.11, name
    assert layer.parameters()["weight_hr_l1"].shape == (32, 64)
    assert layer.parameters()["weight_ih_l1"].shape == (4 * 64, 32)


@pytest.mark.parametrize("value", [-1, H, H + 1, 2.5, None, "3"])
def test_a_projection_is_narrower_than_the_layer(value):
    with pytest.raises(ValueError, match=rf"proj_size is .*, expected a whole number from 0 to "
                                         rf"{H - 1}"):
        fastrnn.LSTM(I, H, proj_size=value)


# ------------------------------------------------------------- GRU(reset_after=False) against Keras


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def keras_gru(x, h, kernel, recurrent, bias):
    """Return all states of Keras' GRU with reset_after=False: gates z r h in columns, one bias."""
    xz, xr, xh = np.split(x @ kernel + bias, 3, -1)
    uz, ur, uh = np.split(recurrent, 3, -1)
    y = []
    for t in range(len(x)):
        z, r = sigmoid(xz[t] + h @ uz), sigmoid(xr[t] + h @ ur)
        h = z * h + (1 - z) * np.tanh(xh[t] + (r * h) @ uh)
        y.append(h)
    return np.array(y)


def keras_layer(params, x, h, suffix):
    """Run it with weights by torch's names and order r z n."""
    w, u, b, c = (params[f"{name}_{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih",
                                                          "bias_hh"))
    order = np.r_[H : 2 * H, :H, 2 * H : 3 * H]
    return keras_gru(x, h, w[order].T, u[order].T, (b + c)[order])


def test_a_gru_with_the_reset_before_the_product_is_keras():
    gru = fastrnn.GRU(I, H, 2, bidirectional=True, reset_after=False, dtype=np.float64, seed=0)
    x, h0 = draw(T, B, I), draw(4, B, H, seed=1)
    y, hn = gru(x, h0)
    params, below, finals = gru.parameters(), x, []
    for number in range(2):
        ahead = keras_layer(params, below, h0[2 * number], f"l{number}")
        back = keras_layer(params, below[::-1], h0[2 * number + 1], f"l{number}_reverse")[::-1]
        finals += [ahead[-1], back[0]]
        below = np.concatenate([ahead, back], -1)
    close(y, below)
    close(hn, finals)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_a_gru_with_the_reset_before_the_product(bias):
    gru = fastrnn.GRU(I, H, bias=bias, reset_after=False, dtype=np.float64, seed=0)
    x, h0, dy = draw(T, B, I), draw(1, B, H, seed=1), draw(T, B, H, seed=2)
    gru(x, h0)
    dx, dh0 = gru.backward(dy)
    zero = {"bias_ih_l0": np.zeros(3 * H), "bias_hh_l0": np.zeros(3 * H)}

    def loss():
        return (keras_layer(zero | dict(gru.parameters()), x, h0[0], "l0") * dy).sum()

    for array, gradient in ((x, dx), (h0, dh0), *(
            (param, gru.grads[name]) for name, param in gru.parameters().items())):
        for place in np.ndindex(array.shape):
            before = array[place]
            array[place] = before + 1e-6
            above = loss()
            array[place] = before - 1e-6
            slope = (above - loss()) / 2e-6
            array[place] = before
            assert gradient[place] == pytest.approx(slope, 1e-6, 1e-7)
    if bias:
        np.testing.assert_array_equal(gru.grads["bias_ih_l0"], gru.grads["bias_hh_l0"])


# ---------------------------------------------------------------------------- options as such

OPTIONS = {
    "projected": (lambda **o: fastrnn.LSTM(I, H, 2, proj_size=P, **o), "proj_size=5", "weight_hr"),
    "reset before": (lambda **o: fastrnn.GRU(I, H, 2, reset_after=False, **o), "reset_after=False",
                     "weight_hh"),
}
per_option = pytest.mark.parametrize("which", OPTIONS)


def test_without_an_option_nothing_changes():
    lstm, gru = fastrnn.LSTM(I, H, proj_size=0), fastrnn.GRU(I, H, reset_after=True)
    assert lstm.cell is CELLS["lstm"]
    assert gru.cell is CELLS["gru"]
    assert "proj_size" not in lstm.config
    assert "reset_after" not in gru.config
    assert repr(lstm) == f"LSTM({I}, {H})"
    assert repr(gru) == f"GRU({I}, {H})"


@per_option
def test_copies_pickles_and_files_keep_the_option(which, tmp_path):
    make, words, _ = OPTIONS[which]
    layer = make(seed=0)
    x = draw(T, B, I).astype(np.float32)
    y = layer(x)[0]
    assert words in repr(layer)
    layer.save(tmp_path / "layer.safetensors")
    config = {key: value for key, value in layer.config.items() if key != "layer"}
    same = type(layer)(**config)
    same.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), same,
                  fastrnn.load(tmp_path / "layer.safetensors")):
        assert repr(other) == repr(layer)
        assert other.config == layer.config
        np.testing.assert_array_equal(other(x)[0], y)
    back = pickle.loads(pickle.dumps(layer))
    back(x)
    back.backward(np.ones_like(y))
    assert all(grad.any() for grad in back.grads.values())


@per_option
def test_the_option_is_fixed(which):
    layer = OPTIONS[which][0]()
    option = OPTIONS[which][1].partition("=")[0]
    with pytest.raises(AttributeError, match=f"{option} is fixed"):
        setattr(layer, option, 1)


@per_option
def test_a_model_of_it_learns_and_is_loaded(which, tmp_path):
    layer = OPTIONS[which][0](seed=0)
    model = fastrnn.SequenceModel([layer], 2, loss="mse", seed=0)
    path = tmp_path / "model.safetensors"
    x = draw(5, T, I).astype(np.float32)
    targets = draw(5, T, 2, seed=1).astype(np.float32)
    history = fastrnn.fit(model, x, targets, batch_size=5, epochs=20, lr=0.01, progress=False)
    assert history.losses[-1] < 0.9 * history.losses[0]
    before = model.predict(x)
    model.save(path)
    np.testing.assert_array_equal(fastrnn.load(path).predict(x), before)


@per_option
def test_bfloat16_rounds_the_weights(which):
    layer = OPTIONS[which][0](seed=0)
    x = draw(T, B, I).astype(np.float32)
    exact = layer.eval()(x)[0]
    rounded = layer.eval("bfloat16")(x)[0]
    assert 0 < abs(rounded - exact).max() < 2e-2


@per_option
def test_two_threads_may_not_add_to_the_same_gradients(which):
    layer = OPTIONS[which][0](seed=0)
    y, _, p = layer.forward(draw(T, B, I).astype(np.float32))
    grads, dy = layer.new_grads(), np.ones_like(y)
    for into, first in ((grads, grads["weight_ih_l0"]), (None, layer._grads["weight_ih_l0"])):
        refused = []

        def other(into=into, refused=refused):
            with pytest.raises(RuntimeError, match="another thread is adding") as error:
                p.backward(dy, grads=into)
            refused.append(error)

        with adding(first):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert refused
    p.backward(dy, grads=grads)


@per_option
def test_gradients_of_their_own_are_the_same_ones(which):
    layer = OPTIONS[which][0](seed=0)
    x = draw(T, B, I).astype(np.float32)
    y, _, p = layer.forward(x)
    grads = layer.new_grads()
    p.backward(np.ones_like(y), grads=grads)
    assert not layer.flat_grads.any()
    layer(x)
    layer.backward(np.ones_like(y))
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, layer.grads[name])


# --------------------------------------------------------------------------------- initialisations


def test_initialisations_of_a_projected_lstm():
    layer = fastrnn.LSTM(I, H, 2, proj_size=P, bidirectional=True, dtype=np.float64, seed=0)
    hr = layer.weight_hr_l0.copy()
    init.forget_bias(layer, 2.0)
    for suffix in ("l0", "l1_reverse"):
        total = layer.parameters()[f"bias_ih_{suffix}"] + layer.parameters()[f"bias_hh_{suffix}"]
        np.testing.assert_array_equal(total[H : 2 * H], 2.0)
        assert not (total[:H] == 2.0).any()
    init.orthogonal(layer, 0.5, seed=1)
    for gate in layer.weight_hh_l1.reshape(4, H, P):
        close(gate.T @ gate, 0.25 * np.eye(P))
    np.testing.assert_array_equal(layer.weight_hr_l0, hr)
    init.chrono(layer, 20, seed=0)
    np.testing.assert_array_equal(layer.bias_ih_l0[:H], -layer.bias_ih_l0[H : 2 * H])
    init.glorot(layer, seed=0)
    bound = np.sqrt(6 / (P + H))
    assert 0.8 * bound < abs(layer.weight_hr_l0).max() <= bound
    init.normal(layer, 0.1, seed=0)
    assert 0.05 < layer.weight_hr_l0.std() < 0.15
    with pytest.raises(ValueError, match="expected one without a projection"):
        init.sparse(layer, 1.1, 3)
    fresh = fastrnn.LSTM(I, H, 2, proj_size=P, bidirectional=True, dtype=np.float64, seed=3)
    np.testing.assert_array_equal(init.torch_uniform(layer, 3).flat, fresh.flat)


def test_initialisations_of_a_gru_do_not_ask_where_the_reset_is():
    one, other = (fastrnn.GRU(I, H, 2, reset_after=after, dtype=np.float64, seed=0)
                  for after in (True, False))
    np.testing.assert_array_equal(one.flat, other.flat)
    for change in (lambda a: init.orthogonal(a, seed=1), lambda a: init.chrono(a, 20, seed=2),
                   lambda a: init.sparse(a, 1.1, 3, seed=3)):
        np.testing.assert_array_equal(change(one).flat, change(other).flat)
    with pytest.raises(ValueError, match="expected an LSTM"):
        init.forget_bias(other)


# ------------------------------------------------------------------------- definitions by function


def lstm_params(seed=0):
    return {"W_l0": draw(4 * H, I, seed=seed), "U_l0": draw(4 * H, H, seed=seed + 1),
            "b_l0": draw(4 * H, seed=seed + 2)}


@pytest.mark.parametrize(("cell_clip", "gate_clip"), [(0.3, None), (None, 0.5), (0.4, 0.6)])
def test_a_clipped_lstm_clips(cell_clip, gate_clip):
    layer = fastrnn.Layer(cells.clipped_lstm(cell_clip, gate_clip), I, H, dtype=np.float64)
    layer.load_state_dict(lstm_params())
    x = draw(T, B, I)
    y, (_, cn) = layer(x)
    params = lstm_params()
    h, c = np.zeros((B, H)), np.zeros((B, H))
    for t in range(T):
        a = x[t] @ params["W_l0"].T + h @ params["U_l0"].T + params["b_l0"]
        if gate_clip is not None:
            a = a.clip(-gate_clip, gate_clip)
        i, f, g, o = np.split(a, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        if cell_clip is not None:
            c = c.clip(-cell_clip, cell_clip)
        h = sigmoid(o) * np.tanh(c)
        close(y[t], h)
    close(cn[0], c)


def test_a_layer_takes_its_own_bound():
    layer = fastrnn.Layer(cells.ClippedLSTM, I, H, cell_clip=0.1, dtype=np.float64)
    layer.load_state_dict(lstm_params())
    _, (_, cn) = layer(draw(T, B, I))
    assert abs(cn).max() == 0.1


def test_a_projected_cell_of_the_zoo_is_the_layer_with_the_option():
    ours = fastrnn.LSTM(I, H, proj_size=P, bias=False, dtype=np.float64, seed=0)
    layer = fastrnn.Layer(cells.ProjectedLSTM, I, H, bias=False, P=P, dtype=np.float64)
    layer.load_state_dict({"W_l0": ours.weight_ih_l0, "U_l0": ours.weight_hh_l0,
                           "R_l0": ours.weight_hr_l0})
    x = draw(T, B, I)
    np.testing.assert_array_equal(layer(x)[0], ours(x)[0])
    assert fastrnn.Layer(cells.ProjectedLSTM, I, H).output_size == H // 2


def test_the_zoos_gru_is_the_layer_with_the_option():
    ours = fastrnn.GRU(I, H, reset_after=False, dtype=np.float64, seed=0)
    layer = fastrnn.Layer(cells.ResetBeforeGRU, I, H, dtype=np.float64)
    params, k = ours.parameters(), 2 * H
    W, U = params["weight_ih_l0"], params["weight_hh_l0"]
    b = params["bias_ih_l0"] + params["bias_hh_l0"]
    layer.load_state_dict({"W_l0": W[:k], "U_l0": U[:k], "b_l0": b[:k], "W_n_l0": W[k:],
                           "U_n_l0": U[k:], "b_n_l0": b[k:]})
    x = draw(T, B, I)
    close(layer(x)[0], ours(x)[0])


def test_a_projection_with_peepholes():
    layer = fastrnn.Layer(cells.ProjectedPeepholeLSTM, I, H, P=P, dtype=np.float64, seed=0)
    params = {name.removesuffix("_l0"): p for name, p in layer.parameters().items()}
    x, h, c = draw(T, B, I), np.zeros((B, P)), np.zeros((B, H))
    y, _ = layer(x)
    for t in range(T):
        i, f, g, o = np.split(x[t] @ params["W"].T + h @ params["U"].T + params["b"], 4, -1)
        c = (sigmoid(f + params["p_f"] * c) * c
             + sigmoid(i + params["p_i"] * c) * np.tanh(g))
        h = (sigmoid(o + params["p_o"] * c) * np.tanh(c)) @ params["R"].T
        close(y[t], h)


def test_elmans_network_of_any_activation():
    layer = fastrnn.Layer(cells.elman("leaky_relu", 0.2), I, H, dtype=np.float64)
    params = {"W_l0": draw(H, I), "U_l0": draw(H, H, seed=1) / 3, "b_l0": draw(H, seed=2)}
    layer.load_state_dict(params)
    x, h = draw(T, B, I), np.zeros((B, H))
    y, _ = layer(x)
    for t in range(T):
        a = x[t] @ params["W_l0"].T + h @ params["U_l0"].T + params["b_l0"]
        h = np.where(a >= 0, a, 0.2 * a)
        close(y[t], h)


@pytest.mark.parametrize(("call", "error"), [
    (lambda: cells.clipped_lstm(None), "cell_clip and gate_clip are None"),
    (lambda: cells.clipped_lstm(-1), "cell_clip is -1"),
    (lambda: cells.clipped_lstm(1, 0), "gate_clip is 0"),
    (lambda: cells.elman("wave"), "activation is 'wave', expected one of"),
])
def test_wrong_arguments(call, error):
    with pytest.raises(ValueError, match=error):
        call()
