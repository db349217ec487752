"""Models of Keras give Keras's values: every layer, option and merge mode, masks, states, files."""

import functools
import os
import warnings

import numpy as np
import pytest
from cases import assert_close, tolerance

from fastrnn.formats.keras import load
from fastrnn.reference import lstm_forward

os.environ.setdefault("KERAS_BACKEND", "numpy")  # the reference needs no speed
pytest.importorskip("h5py")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras")
L, Input, Sequential = keras.layers, keras.Input, keras.Sequential
# of Keras: its variables as arrays
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

N, T, I, H = 3, 7, 5, 4


def redraw(model, seed=0):
    """Give every weight another value, none of them zero: uniform, as the table of cases has it."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(-0.6, 0.6, w.shape) + (1 if "variance" in v.path else 0)
                       for v, w in zip(model.weights, model.get_weights(), strict=True)])
    return model


def x_of(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def theirs_of(model, x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = model(x, **options)
    return [keras.ops.convert_to_numpy(a) for a in (y if isinstance(y, (list, tuple)) else [y])]


def compare(got, expected, depth=1, K=4 * (I + H), steps=T):
    """Compare a tuple of outputs; each layer of the chain may add its own error."""
    got = got if isinstance(got, tuple) else (got,)
    assert len(got) == len(expected)
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert_close(f"output {number}", a, b, depth * tolerance(np.float32, K, steps))


def check(model, x, path, depth=2):
    """Save a model, load it here, and compare the outputs; return what was loaded."""
    redraw(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path / "m.keras")
    ours = load(path / "m.keras")
    assert isinstance(repr(ours), str)
    compare(ours(x), theirs_of(model, x), depth)
    return ours


CELLS = {
    "rnn": functools.partial(L.SimpleRNN, H),
    "rnn_relu": functools.partial(L.SimpleRNN, H, activation="relu"),
    "rnn_mish": functools.partial(L.SimpleRNN, H, activation="mish"),
    "lstm": functools.partial(L.LSTM, H),
    "lstm_hard": functools.partial(L.LSTM, H, recurrent_activation="hard_sigmoid",
                                   activation="softsign"),
    "gru": functools.partial(L.GRU, H),
    "gru_before": functools.partial(L.GRU, H, reset_after=False),
    "gru_hard": functools.partial(L.GRU, H, recurrent_activation="hard_sigmoid"),
    "gru_before_elu": functools.partial(L.GRU, H, reset_after=False, activation="elu"),
}
MERGES = ("concat", "sum", "mul", "ave", None)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_a_recurrent_layer(tmp_path, cell, backwards, sequences, bias):
    layer = CELLS[cell](use_bias=bias, go_backwards=backwards, return_sequences=sequences)
    ours = check(Sequential([Input((None, I)), layer]), x_of(N, T, I), tmp_path)
    assert len(ours.layers) == 1
    assert ours.layers[0].mode == "evaluation"
    assert ours.unused == ()


@pytest.mark.parametrize("cell", ["rnn", "lstm", "lstm_hard", "gru", "gru_before"])
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("merge", MERGES)
def test_bidirectional(tmp_path, cell, sequences, merge):
    model = Sequential([Input((None, I)), L.Bidirectional(
        CELLS[cell](return_sequences=sequences), merge_mode=merge)])
    ours = check(model, x_of(N, T, I), tmp_path)
    assert len(ours.layers) == 1


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("sequences", [True, False])
def test_bidirectional_of_two_kinds(tmp_path, sequences, merge):
    ahead = L.LSTM(H, go_backwards=True, return_sequences=sequences)
    back = L.GRU(H, activation="relu", return_sequences=sequences)
    model = Sequential([Input((None, I)), L.Masking(), L.Bidirectional(
        ahead, backward_layer=back, merge_mode=merge)])
    x = x_of(N, T, I)
    x[0, 3] = x[1, 5:] = x[2, :2] = 0
    ours = check(model, x, tmp_path)
    assert len(ours.layers) == 2


MASKS = {  # which steps are real
    "right": [[1, 1, 1, 1, 0, 0, 0], [1] * 7, [1, 0, 0, 0, 0, 0, 0]],
    "left": [[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0, 0, 0, 0, 0, 0, 1]],
    "inside": [[1, 0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1, 0], [1] * 7],
    "none": [[0] * 7, [1, 1, 0, 0, 1, 0, 0], [0] * 7],
}


@pytest.mark.parametrize("kind", ["forward", "backward", "both", "sum"])
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "gru_before_elu"])
@pytest.mark.parametrize("mask", MASKS)
def test_masks(tmp_path, mask, cell, sequences, kind):
    layer = CELLS[cell](return_sequences=sequences, go_backwards=kind == "backward")
    if kind in ("both", "sum"):
        layer = L.Bidirectional(layer, merge_mode="concat" if kind == "both" else "sum")
    model = Sequential([Input((None, I)), L.Masking(0.5), layer])
    x = x_of(N, T, I)
    x[~np.array(MASKS[mask], bool)] = 0.5
    check(model, x, tmp_path)


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_zero_output_for_mask(tmp_path, mask, sequences, zero):
    model = Sequential([Input((None, I)), L.Masking(), L.GRU(
        H, return_sequences=sequences, zero_output_for_mask=zero), L.Dense(2)])
    x = x_of(N, T, I)
    x[~np.array(MASKS[mask], bool)] = 0
    check(model, x, tmp_path)


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_goes_through_the_chain(tmp_path, mask):
    model = Sequential([
        Input((None,)), L.Embedding(11, I, mask_zero=True), L.SpatialDropout1D(0.1),
        L.Bidirectional(L.LSTM(H, return_sequences=True)), L.Dense(6, activation="tanh"),
        L.Activation("softplus"), L.TimeDistributed(L.Dense(5)), L.LeakyReLU(),
        L.GRU(H, return_sequences=True), L.GaussianNoise(0.1), L.GlobalAveragePooling1D()])
    x = np.random.default_rng(0).integers(1, 11, (N, T))
    x[~np.array(MASKS[mask], bool)] = 0
    redraw(model)
    model.save(tmp_path / "m.keras")
    ours, expected = load(tmp_path / "m.keras")(x), theirs_of(model, x)[0]
    real = np.array(MASKS[mask], bool).any(1)
    assert np.isnan(expected[~real]).all()  # Keras: the mean of no step
    assert np.isnan(ours[~real]).all()
    compare(ours[real], [expected[real]], depth=8)


ACTIVATIONS = ["linear", "relu", "relu6", "leaky_relu", "tanh", "sigmoid", "hard_sigmoid",
               "softmax", "log_softmax", "softplus", "softsign", "elu", "celu", "selu", "gelu",
               "silu", "swish", "hard_silu", "exponential", "mish", "hard_tanh", "tanh_shrink",
               "log_sigmoid", "squareplus", "sparse_sigmoid"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(tmp_path, name):
    model = Sequential([Input((None, I)), L.Dense(6, activation=name), L.Activation(name)])
    check(model, (1 if name == "exponential" else 3) * x_of(N, T, I), tmp_path, depth=4)


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n not in (
    "softmax", "log_softmax", "gelu", "exponential")])
def test_activations_of_cells(tmp_path, name):
    model = Sequential([Input((None, I)), L.SimpleRNN(H, activation=name, return_sequences=True),
                        L.GRU(H, activation=name, recurrent_activation="hard_sigmoid")])
    check(model, x_of(N, T, I), tmp_path, depth=8)


@pytest.mark.parametrize("layer", [
    L.ReLU(max_value=1.5, negative_slope=0.25, threshold=0.5), L.ReLU(), L.LeakyReLU(0.4),
    L.ELU(0.7), L.Softmax(), L.Dropout(0.5), L.GaussianDropout(0.5), L.AlphaDropout(0.5),
    L.Identity(), L.ActivityRegularization(0.1), L.BatchNormalization(),
    L.BatchNormalization(scale=False), L.LayerNormalization(), L.LayerNormalization(center=False),
    L.GlobalMaxPooling1D(), L.GlobalAveragePooling1D(keepdims=True), L.Flatten(),
    L.Reshape((-1, 1)), L.TimeDistributed(L.Dense(3, activation="relu", use_bias=False)),
    L.TimeDistributed(L.Dropout(0.1))], ids=lambda layer: layer.name)
def test_layers_that_are_not_recurrent(tmp_path, layer):
    check(Sequential([Input((T, I)), L.GRU(H, return_sequences=True), layer, L.Dense(2)]),
          x_of(N, T, I), tmp_path, depth=4)


def test_a_chain_of_a_functional_model_and_its_states(tmp_path):
    x = i = Input((None, I))
    x = L.LSTM(H, return_sequences=True, name="one")(x)
    x, h, c = L.LSTM(6, return_state=True, name="two")(L.Dropout(0.5)(x))
    model = keras.Model(i, [c, x, h])
    ours = check(model, x_of(N, T, I), tmp_path)
    assert len(ours(x_of(N, T, I))) == 3
    h = L.LSTM(H, return_state=True)(i)[2]
    check(keras.Model(i, L.Dense(3)(h)), x_of(N, T, I), tmp_path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("masks", ["masking", "embedding", "two", "pooled"])
def test_masks_of_a_functional_model(tmp_path, masks, suffix):
    """Keras keeps how a mask is computed as steps of the model; it calls layers with the result."""
    if masks in ("embedding", "pooled"):
        i = Input((None,))
        x = np.random.default_rng(0).integers(1, 9, (N, T))
        x[0, 3:] = x[1, :2] = 0
        y = L.Embedding(9, I, mask_zero=True)(i)
    else:
        i = Input((T, I))
        x = x_of(N, T, I)
        x[0, 3:] = x[1, :2] = 0
        y = L.Masking()(i)
    y = L.Bidirectional(L.GRU(H, return_sequences=True))(y)
    if masks == "two":
        y = L.Masking(mask_value=0.5)(y)
    y = L.GlobalAveragePooling1D()(y) if masks == "pooled" else L.Dense(2)(L.LSTM(H)(y))
    model = redraw(keras.Model(i, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / f"m{suffix}")
    compare(load(tmp_path / f"m{suffix}")(x), theirs_of(model, x), 4)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("policy", ["float64", "mixed_float16", "mixed_bfloat16"])
def test_masks_of_a_functional_model_of_another_dtype(tmp_path, policy, suffix):
    """Keras puts a Cast before what computes the mask."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        i = Input((T, I))
        model = redraw(keras.Model(i, L.GRU(H)(L.Masking()(i))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save(tmp_path / f"m{suffix}")
        x = x_of(N, T, I)
        x[0, 3:] = x[1, :2] = 0
        (expected,) = theirs_of(model, x)
    finally:
        keras.config.set_dtype_policy(before)
    near = 1e-5 if "16" not in policy else 0.05  # eight bits of bfloat16, over T steps
    np.testing.assert_allclose(load(tmp_path / f"m{suffix}")(x), expected.astype("d"), near, near)


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning")
@pytest.mark.parametrize("between", [
    L.Reshape((T, T)), L.GRU(T, name="last"), L.Bidirectional(L.GRU(T), merge_mode="sum"),
    L.GlobalAveragePooling1D(), Sequential([Input((T, T)), L.Dense(T)])], ids=lambda of: of.name)
def test_a_mask_that_is_handed_past_its_end_is_refused(tmp_path, between):
    """The layers of the chain would compute without it."""
    i = Input((T, I))
    mask = L.Masking()
    y = between(L.GRU(T, return_sequences=True)(mask(i)))
    y = y if len(y.shape) == 3 else L.Reshape((T, 1))(y)
    y = L.GRU(H, name="read")(y, mask=mask.compute_mask(i))
    keras.Model(i, y).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="'read' has a mask of its own, expected that of a Mask"):
        load(tmp_path / "m.keras")


@pytest.mark.parametrize("own", [
    lambda i, y: keras.ops.any(keras.ops.not_equal(i, 1.0), axis=-1),  # of another value
    lambda i, y: keras.ops.any(keras.ops.not_equal(y, 0.0), axis=-1)])  # of another layer
def test_a_mask_of_its_own_is_refused(tmp_path, own):
    i = Input((T, I))
    y = L.GRU(I, return_sequences=True)(L.Masking()(i))
    keras.Model(i, L.GRU(H, name="read")(y, mask=own(i, y))).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="'read' has a mask of its own, expected that of a Mask"):
        load(tmp_path / "m.keras")


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("merge", ["concat", None])
def test_states_of_a_bidirectional(tmp_path, cell, merge):
    i = Input((None, I))
    outputs = L.Bidirectional(CELLS[cell](return_state=True), merge_mode=merge)(i)
    check(keras.Model(i, outputs), x_of(N, T, I), tmp_path)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "lstm_hard", "gru_before"])
def test_a_stateful_model_takes_its_state_and_returns_it(tmp_path, cell, bidirectional):
    first = CELLS[cell](return_sequences=True, stateful=True)
    if bidirectional:
        first = L.Bidirectional(first)
    model = redraw(Sequential([Input((None, I), batch_size=N), L.Masking(), first,
                               L.GRU(5, stateful=True)]))
    model.save(tmp_path / "m.keras")
    ours, state = load(tmp_path / "m.keras"), None
    assert ours.stateful
    x = x_of(N, 3 * T, I)
    x[0, 2] = x[1, -4:] = 0
    for start in range(0, 3 * T, T):
        piece = x[:, start : start + T]
        y, state = ours(piece, state)
        compare(y, theirs_of(model, piece), 4)
    first_state = ours.initial_state(N)
    assert [len(s) for s in first_state] == [len(s) for s in state]
    assert all(not h.any() for s in first_state for h in s)
    again, _ = ours(x[:, :T], first_state)
    assert (again == ours(x[:, :T])[0]).all()  # nothing is kept
    with pytest.raises(ValueError, match="the state of"):
        ours(x, ours.initial_state(N + 1))


@pytest.mark.parametrize(("forward", "backward"), [
    ("gru", "lstm"), ("lstm", "gru"), ("rnn", "lstm")])
def test_a_stateful_bidirectional_of_two_kinds(tmp_path, forward, backward):
    """An LSTM has two arrays of state, the others one."""
    two = L.Bidirectional(CELLS[forward](stateful=True),
                          backward_layer=CELLS[backward](stateful=True, go_backwards=True))
    model = redraw(Sequential([Input((T, I), batch_size=N), two]))
    model.save(tmp_path / "m.keras")
    ours = load(tmp_path / "m.keras")
    x = x_of(N, 3 * T, I)
    state = ours.initial_state(N)
    assert len(state[0]) == 3
    for start in range(0, 3 * T, T):
        y, state = ours(x[:, start : start + T], state)
        compare(y, theirs_of(model, x[:, start : start + T]), 4)


def test_the_cell_of_a_generic_rnn_as_a_pair(tmp_path):
    model = redraw(Sequential([Input((T, I)), L.RNN(L.GRUCell(H, reset_after=False))]))
    model.save_weights(tmp_path / "m.weights.h5")
    ours = load(tmp_path / "m.weights.h5",
                layers=[("RNN", {"cell": ("GRUCell", {"reset_after": False})})])
    compare(ours(x_of(N, T, I)), theirs_of(model, x_of(N, T, I)), 4)


def test_a_generic_rnn_and_nested_models(tmp_path):
    inner = Sequential([Input((None, H)), L.GRU(H, return_sequences=True), L.Dense(3)])
    model = Sequential([Input((None, I)), L.RNN(L.LSTMCell(H), return_sequences=True),
                        L.Dense(H), inner, L.RNN(L.GRUCell(H, reset_after=False)), L.Dense(2)])
    check(model, x_of(N, T, I), tmp_path, depth=4)


def test_float64(tmp_path):
    # Keras's NumPy backend multiplies in float32, so the values are those of fastrnn.reference
    model = redraw(Sequential([Input((None, I), dtype="float64"), L.LSTM(
        H, return_sequences=True, dtype="float64")]))
    model.save(tmp_path / "m.keras")
    x = x_of(N, T, I).astype(np.float64)
    y = load(tmp_path / "m.keras")(x)
    zeros = np.zeros((N, H))
    kernel, recurrent, bias = model.get_weights()
    expected, _, _ = lstm_forward(x.swapaxes(0, 1), (zeros, zeros), kernel.T, recurrent.T, bias,
                                  np.zeros_like(bias))
    assert y.dtype == np.float64
    assert_close("y", y, expected.swapaxes(0, 1), tolerance(np.float64, I + H, T))


def test_odd_sizes(tmp_path):
    model = Sequential([Input((None, 17)), L.Bidirectional(L.LSTM(33, return_sequences=True)),
                        L.GRU(65, return_sequences=True), L.SimpleRNN(31), L.Dense(1)])
    redraw(model)
    model.set_weights([w / 4 for w in model.get_weights()])
    model.save(tmp_path / "m.keras")
    x = x_of(2, 23, 17)
    compare(load(tmp_path / "m.keras")(x), theirs_of(model, x), 4, K=4 * (66 + 65), steps=23)


# ---- files ---------------------------------------------------------------------------------------


def chain(**options):
    return redraw(Sequential([
        Input((None,)), L.Embedding(11, I), L.Bidirectional(L.LSTM(H, return_sequences=True)),
        L.Dropout(0.2), L.GRU(6, return_sequences=True, recurrent_dropout=0.1),
        L.SimpleRNN(3, **options), L.Dense(2, activation="softmax")]))


X = np.random.default_rng(5).integers(0, 11, (N, T))


def test_what_is_unused_is_named(tmp_path):
    model = chain()
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "m.keras")
    ours = load(tmp_path / "m.keras")
    compare(ours(X), theirs_of(model, X), 4)
    assert "optimizer/vars/0" in ours.unused
    assert not any(name.startswith("layers/") and "seed_generator" not in name
                   for name in ours.unused)


def test_weights_alone_with_a_configuration(tmp_path):
    model = chain()
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    expected = theirs_of(model, X)
    for config in (model.to_json(), {"class_name": "Sequential", "config": model.get_config()}):
        compare(load(path, config=config)(X), expected, 4)
    layers = [("Embedding", {}), ("Bidirectional", {"layer": ("LSTM", {"return_sequences": True})}),
              ("GRU", {"return_sequences": True}), ("SimpleRNN", {}),
              ("Dense", {"activation": "softmax"})]
    compare(load(path, layers=layers)(X), expected, 4)
    with pytest.raises(ValueError, match=r"expected config=.*'embedding': \[\(11, 5\)\]"):
        load(path)
    with pytest.raises(ValueError, match="one of them"):
        load(path, config=model.to_json(), layers=layers)
    for wrong in ([], "LSTM", [("LSTM",)], [("LSTM", 3)]):
        with pytest.raises(ValueError, match="pair"):
            load(path, layers=wrong)
    with pytest.raises(ValueError, match="not JSON"):
        load(path, config="{")
    with pytest.raises(TypeError, match="dictionary or JSON"):
        load(path, config=3)
    with pytest.raises(ValueError, match="unexpected variables"):
        load(path, layers=layers[:-1])
    with pytest.raises(ValueError, match=r"layer 5.*has 0 variables, expected 2"):
        load(path, layers=[*layers, ("Dense", {"units": 2})])
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="neither config nor layers"):
        load(tmp_path / "m.keras", config=model.to_json())


@pytest.mark.parametrize("functional", [True, False])
def test_the_older_whole_model_file(tmp_path, functional):
    model = chain()
    if functional:
        i = Input((None, I))
        x = L.TimeDistributed(L.Dense(H))(L.GRU(H, reset_after=False, return_sequences=True)(i))
        model = redraw(keras.Model(i, L.BatchNormalization()(x)))
    x = x_of(N, T, I) if functional else X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "m.h5")
    ours = load(tmp_path / "m.h5")
    compare(ours(x), theirs_of(model, x), 4)


def branches():
    i = Input((None, I))
    a, b = L.GRU(H, name="left")(i), L.GRU(H, name="right")(i)
    yield "read by two", keras.Model(i, L.Dense(2)(L.Add(name="join")([a, b])))
    yield "'join'.*2 inputs", keras.Model([i, j := Input((None, I))], L.Add(name="join")([i, j]))
    yield "one of each", keras.Model(i, [a, L.Dense(2)(a)])
    shared = L.Dense(I, name="shared")
    yield "'shared' is used 2 times", keras.Model(i, shared(L.Activation("relu")(shared(i))))
    h = Input((H,))
    yield "3 inputs|2 inputs", keras.Model([i, h], L.GRU(H, name="g")(i, initial_state=h))
    yield "training=True", keras.Model(i, L.Dropout(0.5)(i, training=True))


def test_a_normalisation_may_name_its_axis_from_the_front(tmp_path):
    check(Sequential([Input((T, I)), L.GRU(H, return_sequences=True), L.LayerNormalization(axis=2),
                      L.LSTM(H), L.BatchNormalization(axis=1)]), x_of(N, T, I), tmp_path, depth=4)
    Sequential([Input((T, I)), L.GRU(H, return_sequences=True), L.LayerNormalization(axis=1)]).save(
        tmp_path / "m.keras")
    with pytest.raises(ValueError, match="axis is 1, expected -1"):
        load(tmp_path / "m.keras")


def test_a_graph_that_branches_is_refused(tmp_path):
    for message, model in branches():
        model.save(tmp_path / "m.keras")
        with pytest.raises(ValueError, match=message) as error:
            load(tmp_path / "m.keras")
        assert str(tmp_path / "m.keras") in str(error.value)


def refused():
    yield "Lambda", [L.Lambda(lambda x: x + 1, name="odd")]
    yield "'odd'.*Conv1D", [L.Conv1D(3, 2, name="odd")]
    yield "'odd'.*gelu", [L.GRU(H, activation="gelu", name="odd")]
    yield "'odd'.*sparsemax", [L.Dense(3, activation="sparsemax", name="odd")]
    yield "'odd'.*StackedRNN", [L.RNN([L.GRUCell(3), L.LSTMCell(2)], name="odd")]
    yield "'odd'.*'GRU' inside", [L.Reshape((T, I, 1)), L.TimeDistributed(L.GRU(3), name="odd")]
    yield "'odd'.*dtype", [L.Dense(3, dtype="bfloat16", name="odd")]


@pytest.mark.parametrize("number", range(7))
def test_a_layer_without_a_counterpart_is_refused(tmp_path, number):
    message, layers = list(refused())[number]
    Sequential([Input((T, I)), *layers]).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "m.keras")


def test_a_class_that_is_not_of_keras_is_refused(tmp_path):
    class Odd(L.GRU):
        pass

    Sequential([Input((T, I)), Odd(H, name="odd")]).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"'odd' is a 'Odd' of .*not run"):
        load(tmp_path / "m.keras")


# ---- the trainable model -------------------------------------------------------------------------


@pytest.mark.parametrize("sequences", [True, False])
def test_to_model(tmp_path, sequences):
    model = chain(return_sequences=sequences)
    model.save(tmp_path / "m.keras")
    ours = load(tmp_path / "m.keras")
    trainable = ours.to_model()
    assert trainable.training
    assert trainable.readout == ("every" if sequences else "last")
    logits, _ = trainable.eval()(X.T)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    compare(p.swapaxes(0, 1) if sequences else p, [ours(X)], 2)
    before = ours(X)
    targets = np.zeros((T, N) if sequences else N, int)
    trainable.train().loss(X.T, targets).backward()
    assert all(g.any() for name, g in trainable.grads.items() if "bias_hh" not in name)
    trainable.parameters()["head.bias"][...] = 9
    assert (ours(X) == before).all()  # it has copies


def test_to_model_of_a_stack_and_of_equations(tmp_path):
    Sequential([Input((None, I)), L.LSTM(H, return_sequences=True), L.Dropout(0.5),
                L.TimeDistributed(L.Dropout(0.5)), L.TimeDistributed(L.Identity()), L.GRU(
        3, recurrent_activation="hard_sigmoid", return_sequences=True)]).save(tmp_path / "m.keras")
    ours, x = load(tmp_path / "m.keras"), x_of(N, T, I)
    y, _ = ours.to_model().eval()(x.swapaxes(0, 1))
    compare(np.ascontiguousarray(y.swapaxes(0, 1)), [ours(x)], 1)


@pytest.mark.parametrize("layers", [
    [L.GRU(H)], [L.Dense(2)], [L.GRU(H), L.Dense(3, activation="relu")],
    [L.GRU(H, return_sequences=True), L.LayerNormalization(), L.Dense(2)],
    [L.GRU(H, go_backwards=True), L.Dense(2)],
    [L.Bidirectional(L.GRU(H), merge_mode="sum"), L.Dense(2)]], ids=range(6))
def test_another_chain_is_no_model(tmp_path, layers):
    Sequential([Input((None, I)), *layers]).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"KerasModel\.to_model"):
        load(tmp_path / "m.keras").to_model()


# ---- calls ---------------------------------------------------------------------------------------


def test_calls_that_do_not_fit(tmp_path):
    model = chain()
    model.save(tmp_path / "m.keras")
    ours = load(tmp_path / "m.keras")
    with pytest.raises(IndexError, match="expected 0 to 10"):
        ours(X + 5)
    with pytest.raises(TypeError, match="whole numbers"):
        ours(X.astype(np.float32))
    with pytest.raises(ValueError, match=r"'?bidirectional.*3 dimensions"):
        ours(X[0])
    with pytest.raises(ValueError, match="no layer of the model is stateful"):
        ours(X, ())
    check(Sequential([Input((None, I)), L.GRU(H)]), x_of(N, T, I), tmp_path)
    ours = load(tmp_path / "m.keras")
    for wrong in (x_of(N, T, I + 1), x_of(T, I), x_of(2, N, T, I)):
        with pytest.raises(ValueError, match=r"KerasModel: gru.* has an input of shape"):
            ours(wrong)
    with pytest.raises(ValueError, match=r"gru.* has no steps"):
        ours(x_of(N, 0, I))
    with pytest.raises(ValueError, match="x is a ragged"):
        ours([[[1.0] * I], [[1.0] * I] * 2])
    x = x_of(N, T, I)
    assert (ours(x.astype(np.float64)) == ours(x)).all()
    assert (ours(x[:, ::-1][:, ::-1]) == ours(x)).all()


def nested(first="gru", second="other"):
    return Sequential([
        Input((None, I)),
        Sequential([Input((None, I)), L.GRU(H, return_sequences=True, name=first), L.Dense(H)]),
        Sequential([Input((None, H)), L.LSTM(H, return_sequences=True, name=second)]), L.Dense(2)])


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_models_inside_models(tmp_path, suffix):
    model, x = redraw(nested()), x_of(N, T, I)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / f"m.{suffix}")
    compare(load(tmp_path / f"m.{suffix}")(x), theirs_of(model, x), 4)


def test_layers_of_one_name_in_models_inside_an_older_file(tmp_path):
    """Its names do not say to which model each belongs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested("rnn", "rnn").save(tmp_path / "m.h5")
    with pytest.raises(ValueError, match="'rnn': 2 models inside the model have a layer of this"):
        load(tmp_path / "m.h5")
