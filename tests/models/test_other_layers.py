"""Models whose layers have several states of different widths: the cell of three.py.

Letters: T steps, B batch, I input, H hidden, O features of one direction's output, V symbols, N
outputs, C size of a context.
"""

import numpy as np
import pytest
import three
from three import THREE, ThreeLayer

import fastrnn
from fastrnn import LSTM
from fastrnn.models import EncoderDecoder, SequenceModel, Stack

T, B, I, H, N, C = 4, 3, 2, 5, 3, 2


def layer_of(inputs=I, seed=0, **options):
    return ThreeLayer(inputs, H, seed=seed, **options)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def check_slopes(loss, grads, params, step=1e-6):
    """Hold gradients by name against differences of `loss`."""
    rng = np.random.default_rng(0)
    for name, param in params.items():
        place = tuple(rng.integers(n) for n in param.shape)
        before = param[place]
        values = []
        for change in (step, -step):
            param[place] = before + change
            values.append(loss())
        param[place] = before
        expected = (values[0] - values[1]) / (2 * step)
        assert grads[name][place] == pytest.approx(expected, abs=1e-7), name


def mixed(**options):
    """Return a model of a three, an LSTM and a three of two layers and directions."""
    layers = [layer_of(), LSTM(H - 1, 4, dtype=np.float64, seed=1),
              layer_of(4, seed=2, num_layers=2, bidirectional=True)]
    return SequenceModel(layers, N, seed=3, **options)


@pytest.mark.parametrize("readout", ["every", "last"])
def test_the_gradients_of_a_model(readout):
    model = mixed(loss="mse", readout=readout, context_size=C)
    x, context = draw(T, B, I), draw(B, C)
    targets = draw(T, B, N) if readout == "every" else draw(B, N)
    p = model.loss(x, targets, context=context)
    dstate = tuple(tuple(draw(*a.shape, seed=5) for a in of) for of in p.state)

    def loss():
        p = model.loss(x, targets, context=context)
        return p.value + sum((a * d).sum() for of, own in zip(p.state, dstate, strict=True)
                             for a, d in zip(of, own, strict=True))

    dx, dcontext = p.backward(dstate, need_dx=True)
    params = dict(model.parameters()) | {"x": x, "context": context}
    check_slopes(loss, dict(model.grads) | {"x": dx, "context": dcontext}, params)


def test_sizes_of_a_model():
    model = mixed()
    assert model.width == 2 * (H - 1)
    assert model.head.weight.shape == (N, 2 * (H - 1))
    assert Stack([layer_of(), layer_of(H - 1)]).width == H - 1
    with pytest.raises(ValueError, match=rf"input_size {H}, expected {H - 1}: what layers\[0\]"):
        Stack([layer_of(), layer_of(H)])


@pytest.mark.parametrize("one_hot", [True, False], ids=["one_hot", "embedding"])
def test_symbols(one_hot):
    V = 6
    model = SequenceModel(layer_of(V if one_hot else I), V, vocab_size=V, one_hot=one_hot, seed=0)
    x = np.random.default_rng(0).integers(V, size=(T, B))
    p = model.loss(x, x)
    p.backward()
    check_slopes(lambda: model.loss(x, x).value, model.grads, model.parameters())


def test_each_layer_records_what_its_cell_has():
    model = mixed(loss="mse")
    p = model.loss(draw(T, B, I), draw(T, B, N))
    names = ("dh", "dc", "dn", "gates", "x")
    _, _, recorded = p.backward(record=names)
    expected = [n for n in names if n != "gates"], [n for n in names if n != "dn"]
    assert [[list(one) for one in of] for of in recorded] == [
        [expected[0]], [expected[1]], [expected[0]] * 2]
    p = model.loss(draw(T, B, I), draw(T, B, N))
    known = r"\['dh', 'dc', 'gates', 'dgates_x', 'dgates_h', 'x', 'h', 'dn', 'c', 'n'\]"
    with pytest.raises(ValueError, match=f"expected names out of {known}"):
        p.backward(record=("m",))


@pytest.mark.parametrize("readout", ["every", "last"])
def test_gradient_checkpointing(readout):
    model = SequenceModel([layer_of(), layer_of(H - 1, seed=2)], N, loss="mse", readout=readout,
                          seed=3)
    x, targets = draw(T, B, I), draw(T, B, N) if readout == "every" else draw(B, N)
    expected, got = model.new_grads(), model.new_grads()
    model.loss(x, targets).backward(grads=expected)
    model.loss(x, targets, recompute_every=3).backward(grads=got)
    for name, array in expected.items():
        assert np.allclose(got[name], array, rtol=1e-12, atol=1e-14), name


def test_an_encoders_state_goes_to_a_decoder_of_the_same_states():
    other = fastrnn.cell(THREE.text, name="other")
    decoder = SequenceModel(layer_of(seed=1), I, loss="mse", seed=2)
    model = EncoderDecoder(Stack(layer_of()), decoder)
    x, inputs = draw(T, B, I), draw(T, B, I, seed=1)

    def loss():
        return model.loss(x, inputs, inputs).value

    model.loss(x, inputs, inputs).backward()
    check_slopes(loss, model.grads, model.parameters())
    with pytest.raises(ValueError, match=r"'other', \{'h': 4, 'c': 5, 'n': 2\}\)\]\], expected|"
                                         r"'three', \{'h': 4, 'c': 5, 'n': 2\}\)\], decoder's"):
        EncoderDecoder(Stack(layer_of()), SequenceModel(layer_of(cell=other), I, loss="mse"))


def test_a_state_that_does_not_fit():
    model = mixed(loss="mse")
    with pytest.raises(TypeError, match=r"state\[2\] is tuple of 2, expected a tuple \(h, c, n\)"):
        model(draw(T, B, I), (None, None, (None, None)))
    with pytest.raises(ValueError, match=r"state\[0\]\[2\] has shape \(1, 3, 9\), expected "
                                         rf"\(1, 3, {three.M}\)"):
        model(draw(T, B, I), ((None, None, np.zeros((1, B, 9))), None, None))


def test_the_last_output_is_read_from_a_state():
    cell = fastrnn.cell(f"output y\n{THREE.text}\n    y = tanh(Q h)", name="read")
    with pytest.raises(ValueError, match="cell whose output y is no state, expected 'every'"):
        SequenceModel(layer_of(cell=cell), N, readout="last")
