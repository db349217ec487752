"""What gradient_flow and model_flow measure: against what backward records and layer.grads."""

import copy
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
import stacks
from flows import NAMES, layer_of, recorded, walk

import fastrnn
from fastrnn import GRU, LSTM
from fastrnn.gradflow import gradient_flow, jacobians, model_flow
from fastrnn.losses import softmax_cross_entropy
from fastrnn.models import EncoderDecoder, SequenceModel, Stack

ARRAYS = ("norms", "c_norms", "units", "terms_ih", "terms_hh", "shares_ih", "shares_hh",
          "saturation", "dead")
X = np.zeros((4, 2, 3))


def assert_flows_close(got, expected, tol):
    for a, b in zip(got, expected, strict=True):
        assert a.cell == b.cell
        for name in ARRAYS:
            if getattr(b, name) is None:
                assert getattr(a, name) is None, name
            else:
                cases.assert_close(name, getattr(a, name), getattr(b, name), tol)


@stacks.per_kind
@pytest.mark.parametrize("B", [2, 70])  # Gram matrices; products
def test_norms_terms_and_shares(cell, B):
    layer = layer_of(cell, num_layers=2, bidirectional=True)
    data = stacks.draw(layer, 6, B)
    state, dstate = (stacks.state_of(data, *s) for s in (("h0", "c0"), ("dhn", "dcn")))
    found = gradient_flow(layer, data["x"], data["dy"], dstate, state)
    flows = recorded(layer, data, (*NAMES, "dc") if cell == "lstm" else NAMES)
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
        for g, gate in enumerate(layer.cell.gates):
            low, high = {"tanh": (-0.95, 0.95), "sigmoid": (0.05, 0.95), "relu": (0, np.inf)}[
                gate.activation]
            a = gates[:, :, :, g]
            for end, beyond in enumerate((a <= low, a >= high)):
                np.testing.assert_allclose(found.saturation[k, :, :, g, end],
                                           beyond.mean((1, 3)).T, atol=1e-15)
    assert found.saturation.shape == (2, 2, 7, cases.GATES[cell], 2)
    assert found.saturation[..., 0].max() > 0
    assert found.gates == tuple(gate.name for gate in layer.cell.gates)
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


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_the_layer_stays_as_it_is(mode):
    layer = layer_of("lstm", num_layers=2, dropout=0.5)
    data = stacks.draw(layer, 4, 2)
    expected = stacks.both(copy.deepcopy(layer), data)
    stacks.forward(layer, data)  # a pass that waits for its backward
    layer.train(mode == "training")
    grads, dropout = layer.flat_grads.copy(), layer.dropout_state
    flows = [gradient_flow(layer, data["x"]) for _ in range(2)]
    assert_flows_close(flows[:1], flows[1:], 0)  # the masks that the next call will draw
    assert layer.mode == mode
    assert layer.dropout_state == dropout
    np.testing.assert_array_equal(layer.flat_grads, grads)
    got = stacks.backward(layer, data)
    stacks.assert_same(got, {name: expected[name] for name in got})


def test_dropout_is_that_of_the_next_call():
    layer = layer_of("gru", num_layers=2, dropout=0.5)
    x = np.random.default_rng(0).standard_normal((5, 3, 3))
    got = gradient_flow(layer, x, parts=("norms",))
    evaluated = gradient_flow(copy.deepcopy(layer).eval(), x, parts=("norms",))
    _, hn, p = layer.forward(x)
    dhn = np.zeros_like(hn)
    dhn[-1] = 1
    flows = p.backward(None, dhn, record=("dh",))[2]
    for k, flow in enumerate(flows):
        cases.assert_close("norms", got.norms[k, 0], np.linalg.norm(flow["dh"][:, :, 0], axis=2),
                           1e-14)
    np.testing.assert_array_equal(evaluated.norms, got.norms)


def test_the_flow_of_rounded_weights_is_that_of_the_weights():
    layer = layer_of("lstm", 3, 40, dtype=np.float32)
    x = np.random.default_rng(0).standard_normal((5, 3, 3)).astype(np.float32)
    expected = gradient_flow(layer, x)
    assert_flows_close([gradient_flow(layer.eval("bfloat16"), x)], [expected], 0)
    assert layer.mode == "bfloat16"


@stacks.per_dtype
def test_norms_far_below_the_root_of_the_least_number(dtype):
    layer = layer_of("rnn_tanh", dtype=dtype)
    scale = float(np.finfo(dtype).tiny) * 1e4
    x = np.zeros((3, 2, 3), dtype)
    plain = gradient_flow(layer, x, np.ones((3, 2, 5), dtype)).norms
    small = gradient_flow(layer, x, np.full((3, 2, 5), scale, dtype)).norms
    np.testing.assert_allclose(small / scale, plain, rtol=1e-3)


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


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: gradient_flow(3, X), TypeError, "^gradient_flow: layer is of type int"),
        (lambda m: gradient_flow(m, X, parts="norms"), ValueError, "parts is 'norms', expected"),
        (lambda m: gradient_flow(m, X, parts=("norm",)), ValueError, r"parts is \('norm',\)"),
        (lambda m: gradient_flow(m, X, parts=3), ValueError, "parts is 3, expected a tuple"),
        (lambda m: gradient_flow(m, X[..., :2]), ValueError, "x has 2 features"),
        (lambda m: gradient_flow(m, X, np.zeros((4, 2, 3))), ValueError, "dy has shape"),
        (lambda m: gradient_flow(m, X, dstate=(X, X)), TypeError, "dhn is a tuple of 2"),
        (lambda m: gradient_flow(m, X[:0]), ValueError,
         r"x has shape \(0, 2, 3\), expected at least one step and one row"),
        (lambda m: gradient_flow(m, X[:, :0]), ValueError, r"x has shape \(4, 0, 3\), expected"),
        (lambda m: gradient_flow(m, X[:0, 0]), ValueError, r"x has shape \(0, 3\), expected"),
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


# ---- models -----------------------------------------------------------------------------------


def model_and_batch(*, dropout=0.0, readout="every", loss="softmax", cells=(LSTM, GRU)):
    layers = [cells[0](3, 4, 2, dropout=dropout, seed=1, dtype=np.float64),
              cells[1](4, 5, seed=2, dtype=np.float64)]
    model = SequenceModel(layers, 6, loss=loss, readout=readout, vocab_size=7, seed=3)
    rng = np.random.default_rng(0)
    outputs = (9, 3) if readout == "every" else (3,)
    targets = rng.integers(0, 6, outputs) if loss == "softmax" else rng.random((*outputs, 6))
    return model, rng.integers(0, 7, (9, 3)), targets, rng.random(outputs)


def test_a_models_flow_is_that_of_its_layers():
    layers = [LSTM(3, 4, 2, bidirectional=True, seed=1, dtype=np.float64),
              GRU(8, 5, seed=2, dtype=np.float64)]
    model = SequenceModel(layers, 6, vocab_size=7, seed=3)
    rng = np.random.default_rng(0)
    symbols, targets, weights = (rng.integers(0, 7, (6, 3)), rng.integers(0, 6, (6, 3)),
                                 rng.random((6, 3)))
    flows = model_flow(model, lambda m: m.loss(symbols, targets, weights=weights))

    p = model.parameters()
    x = p["embedding.weight"][symbols]
    y, _ = layers[0](x)
    z, _ = layers[1](y)
    _, dlogits = softmax_cross_entropy(z @ p["head.weight"].T + p["head.bias"], targets, weights)
    dz = dlogits @ p["head.weight"]
    dy, _ = layers[1].backward(dz)
    assert_flows_close(flows, [gradient_flow(layers[0], x, dy), gradient_flow(layers[1], y, dz)],
                       1e-10)


@pytest.mark.parametrize("every", [1, 2, 5, 9, 100])
@pytest.mark.parametrize("readout", ["every", "last"])
def test_gradient_checkpointing_changes_no_flow(every, readout):
    """One piece of the sequence must not pass for the whole."""
    model, x, targets, weights = model_and_batch(readout=readout)
    expected = model_flow(model, lambda m: m.loss(x, targets, weights=weights))
    got = model_flow(model, lambda m: m.loss(x, targets, weights=weights, recompute_every=every))
    assert got[0].norms.shape == (2, 1, 9, 3)
    assert_flows_close(got, expected, 1e-12)
    for flow in got:
        np.testing.assert_allclose(flow.shares_ih.sum(-1), 1, rtol=1e-12)
        np.testing.assert_allclose(flow.shares_hh.sum(-1), 1, rtol=1e-12)


def test_gradient_checkpointing_draws_the_same_dropout():
    model, x, targets, _ = model_and_batch(dropout=0.5)
    expected = model_flow(model, lambda m: m.loss(x, targets))
    assert_flows_close(model_flow(model, lambda m: m.loss(x, targets, recompute_every=4)),
                       expected, 1e-12)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize("every", [None, 4])
def test_a_model_stays_as_it_is(mode, every):
    model, x, targets, _ = model_and_batch(dropout=0.5)
    for part in model.parts().values():
        part.flat_grads[...] = 1
    model.train(mode == "training")
    before = model.state_dict(), model.dropout_state
    flows = [model_flow(model, lambda m: m.loss(x, targets, recompute_every=every))
             for _ in range(2)]
    assert_flows_close(flows[0], flows[1], 0)
    assert {part.mode for part in model.parts().values()} == {mode}
    assert model.dropout_state == before[1]
    stacks.assert_same(model.state_dict(), before[0])
    assert all((grad == 1).all() for grad in model.grads.values())


def test_a_model_in_any_evaluation_mode_is_measured_as_in_training():
    model = SequenceModel(GRU(3, 5, seed=0), 2, vocab_size=4, seed=0)
    rng = np.random.default_rng(0)
    x, targets = rng.integers(0, 4, (6, 3)), rng.integers(0, 2, (6, 3))
    expected = model_flow(model, lambda m: m.loss(x, targets))
    for change in (lambda m: m.eval(), lambda m: m.eval("bfloat16"),
                   lambda m: m.train().layers[0].eval("bfloat16")):
        change(model)
        before = [part.mode for part in model.parts().values()]
        assert_flows_close(model_flow(model, lambda m: m.loss(x, targets)), expected, 0)
        assert [part.mode for part in model.parts().values()] == before


@pytest.mark.parametrize("every", [None, 4])
def test_a_pass_can_be_measured_and_go_back_afterwards(every):
    model, x, targets, _ = model_and_batch(dropout=0.5)
    twin = copy.deepcopy(model)
    expected = model_flow(twin, lambda m: m.loss(x, targets, recompute_every=every))
    twin.loss(x, targets, recompute_every=every).backward()
    p = model.loss(x, targets, recompute_every=every)
    assert_flows_close(model_flow(model, p), expected, 1e-12)
    assert not any(grad.any() for grad in model.grads.values())
    p.backward()
    stacks.assert_same(dict(model.grads), dict(twin.grads))
    with pytest.raises(RuntimeError, match="has had its one backward"):
        model_flow(model, p)


def test_an_encoder_and_a_decoder_have_a_flow_each():
    encoder = Stack(LSTM(3, 5, seed=0, dtype=np.float64))
    decoder = SequenceModel(LSTM(2, 5, seed=1, dtype=np.float64), 4, seed=2)
    model = EncoderDecoder(encoder, decoder)
    rng = np.random.default_rng(0)
    source, inputs = rng.standard_normal((7, 3, 3)), rng.standard_normal((4, 3, 2))
    targets = rng.integers(0, 4, (4, 3))
    first, second = model_flow(model, lambda m: m.loss(source, inputs, targets))
    assert first.norms.shape == (1, 1, 7, 3)
    assert second.norms.shape == (1, 1, 4, 3)

    _, state = encoder.layers[0](source)
    y, _ = decoder.layers[0](inputs, state)
    p = decoder.parameters()
    _, dlogits = softmax_cross_entropy(y @ p["head.weight"].T + p["head.bias"], targets)
    dy = dlogits @ p["head.weight"]
    _, dstate = decoder.layers[0].backward(dy)
    assert_flows_close(
        [first, second],
        [gradient_flow(encoder.layers[0], source, dstate=dstate),
         gradient_flow(decoder.layers[0], inputs, dy, state=state)], 1e-10)


def test_a_layer_that_two_models_share_is_measured_in_each():
    shared = GRU(3, 5, seed=0, dtype=np.float64)
    models = [SequenceModel(shared, n, seed=n) for n in (2, 4)]
    x = np.random.default_rng(0).standard_normal((6, 3, 3))
    for model, n in zip(models, (2, 4), strict=True):
        targets = np.arange(18).reshape(6, 3) % n
        (got,) = model_flow(model, lambda m, targets=targets: m.loss(x, targets))
        (alone,) = model_flow(copy.deepcopy(model), lambda m, targets=targets: m.loss(x, targets))
        assert_flows_close([got], [alone], 0)
    assert not shared.flat_grads.any()


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_threads_share_a_layer_and_a_model(mode):
    model, x, targets, _ = model_and_batch()
    layer = layer_of("gru", 3, 20, num_layers=2).train(mode == "training")
    model.train(mode == "training")
    inputs = [np.random.default_rng(i).standard_normal((9, 3, 3)) for i in range(8)]

    def both(i):
        return [gradient_flow(layer, inputs[i]),
                *model_flow(model, lambda m: m.loss((x + i) % 7, targets))]

    expected = [both(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for got, serial in zip(pool.map(both, range(8)), expected, strict=True):
            assert_flows_close(got, serial, 0)


SMALL = np.zeros((3, 2, 2), np.float32), np.zeros((3, 2), np.int64)


@pytest.mark.parametrize(
    ("run", "error", "match"),
    [
        (lambda m: None, TypeError, r"^model_flow: run returned None, expected the pass of a loss"),
        (lambda m: m.loss(*SMALL).value, TypeError, r"run returned 0\.\d+, expected the pass of a"),
        (lambda m: m(SMALL[0]), TypeError, "run returned .*, expected the pass of a loss"),
        (lambda m: m.forward(SMALL[0])[2], TypeError, "run returned .*, expected the pass of a"),
        (None, TypeError, "run is None, expected a function that takes the model, or the pass"),
        (lambda m: m.loss(*SMALL, grad=False), RuntimeError, "grad=False"),
        (lambda m: m.loss(SMALL[0][:0], SMALL[1][:0]), ValueError,
         "the loss is over 0 steps of 2 rows, expected at least one of each"),
        (lambda m: m.loss(SMALL[0][:0], SMALL[1][:0], recompute_every=2), ValueError,
         "the loss is over 0 steps of 2 rows, expected at least one of each"),
        (lambda m: m.loss(SMALL[0][:, :0], SMALL[1][:, :0]), ValueError,
         "the loss is over 3 steps of 0 rows, expected at least one of each"),
    ],
)
def test_errors_of_what_a_run_returns(run, error, match):
    model = SequenceModel(GRU(2, 3, seed=0), 2, seed=0)
    with pytest.raises(error, match=match) as raised:
        model_flow(model, run)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: model_flow(m, lambda m: None, parts=("all",)), ValueError, "parts is"),
        (lambda m: model_flow(m.layers[0], lambda m: None), TypeError, "model is of type GRU"),
        (lambda m: model_flow(3, lambda m: None), TypeError, "^model_flow: model is of type int"),
        (lambda m: model_flow(m, m.eval().loss(*SMALL)), RuntimeError, "evaluation mode"),
    ],
)
def test_errors_of_a_models_flow(call, error, match):
    with pytest.raises(error, match=match):
        call(SequenceModel(GRU(2, 3, seed=0), 2, seed=0))


def test_an_error_of_the_run_restores_the_generators_of_dropout():
    model, x, targets, _ = model_and_batch(dropout=0.5)
    before = model.dropout_state

    def run(m):
        m.loss(x, targets)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model_flow(model, run)
    assert model.dropout_state == before


def test_the_loss_of_another_model_is_refused():
    model, other = (SequenceModel(GRU(3, 4, seed=s), 2, seed=s) for s in (0, 1))
    x, y = np.zeros((5, 2, 3), np.float32), np.zeros((5, 2), int)
    for run in (other.loss(x, y), lambda _: other.loss(x, y)):
        with pytest.raises(ValueError, match="run gives the loss of another SequenceModel"):
            model_flow(model, run)
    with pytest.raises(ValueError, match="run gives the loss of another SequenceModel"):
        model_flow(Stack(model.layers[0]), model.loss(x, y))
    assert len(model_flow(model.eval(), lambda m: model.loss(x, y, grad=True))) == 1
