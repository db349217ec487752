"""Files with cells from equations: the same bits; the text is parsed, bounded, or refused.

Letters: I input, H hidden, P a further size.
"""

import random
import time
import tracemalloc

import cases
import numpy as np
import pytest
from damage import HOSTILE, changed, check, config_with, join, places, split, value_at, without
from equations import MANY, PLAIN, PROJECTED, H, I, draw, layer_of

import fastrnn
from fastrnn import LSTM, EncoderDecoder, LanguageModel, SequenceModel, Stack, optim
from fastrnn.cells import reach
from fastrnn.training import History, Windows, checkpoint, fit

X, SYMBOLS = draw(5, 2, I), np.random.default_rng(0).integers(0, 5, (5, 2))
LEAKY = fastrnn.cell("h = 0.9 * h + 0.1 * x", name="Leaky")

MADE = {
    "layer": (lambda: layer_of(MANY, num_layers=2, bidirectional=True, dropout=0.5, P=3, rate=0.1),
              lambda m: m(X)),
    "float32": (lambda: layer_of(PLAIN, dtype=np.float32, bias=False), lambda m: m(X.astype("f"))),
    "batch first": (lambda: layer_of(PROJECTED, batch_first=True), lambda m: m(X)),
    "no parameters": (lambda: fastrnn.Layer(LEAKY, 3, 3, 2, bidirectional=False, seed=0),
                      lambda m: m(X.astype("f"))),
    "stack": (lambda: Stack([layer_of(MANY), LSTM(H, 2, dtype="float64", seed=0)]), lambda m: m(X)),
    "one-hot": (lambda: Stack(layer_of(MANY, 5), vocab_size=5, one_hot=True), lambda m: m(SYMBOLS)),
    "sequence": (lambda: SequenceModel([layer_of(MANY), layer_of(PROJECTED, H, P=3)], 2,
                                       readout="last", context_size=2, seed=1),
                 lambda m: m(X, context=np.ones((2, 2)))),
    "pair": (lambda: EncoderDecoder(Stack(layer_of(MANY)), SequenceModel(
        layer_of(MANY, 2, seed=1), 5, vocab_size=5, seed=2)),
        lambda m: m.loss(X, SYMBOLS, SYMBOLS, grad=False).value),
    "language": (lambda: LanguageModel(embedding_size=3, hidden_size=4, num_layers=2, cell=PLAIN,
                                       seed=0), lambda m: m(np.ones((3, 1), int))),
}


def flatten(tree):
    return [a for branch in tree for a in flatten(branch)] if isinstance(tree, tuple) else [tree]


@pytest.mark.parametrize("name", MADE)
def test_a_loaded_model_is_the_same_bits(tmp_path, name):
    make, call = MADE[name]
    model = make()
    fastrnn.save(model, tmp_path / "m", {"why": "a test"})
    other = fastrnn.load(tmp_path / "m")
    assert repr(other) == repr(model)
    assert other.config == model.config
    assert not other.training
    model.eval()
    for a, b in zip(flatten(call(model)), flatten(call(other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_definition_is_in_the_file(tmp_path):
    layer = layer_of(MANY, P=np.int64(3), rate=np.float32(0.5))
    layer.save(tmp_path / "m")
    _, about, _ = split((tmp_path / "m").read_bytes())
    config = about["config"]
    assert config["cell"] == {"text": MANY.text, "name": "Many", "paper": "Nobody 2024"}
    assert (config["P"], config["rate"]) == (3, 0.5)
    other = fastrnn.load(tmp_path / "m")
    assert other.definition.paper == "Nobody 2024"
    assert other.fixed_parameters == layer.fixed_parameters
    assert reach.carried(other.definition) == reach.carried(MANY)


# ------------------------------------------------------------------------------------- going on


def run_of(seed=0):
    model = SequenceModel([layer_of(MANY, 1, seed=seed, dtype=np.float32, num_layers=2,
                                    dropout=0.3)], 1, loss="mse", seed=seed)
    return model, optim.AdamW(model, 1e-2)


def values(model, optimizer):
    return ([part.flat.tobytes() for part in model.parts().values()], model.dropout_state,
            [a.tobytes() for a in optimizer.state_dict().values()])


@pytest.mark.parametrize("options", [{}, {"recompute_every": 3}], ids=str)
@pytest.mark.parametrize("stop", [1, 7])
def test_a_resumed_run_is_bitwise_one_that_never_stopped(tmp_path, stop, options):
    series = np.sin(np.arange(200) / 5).astype(np.float32)[:, None]

    def run(steps, **more):
        model, optimizer = run_of()
        history = fit(model, Windows(series, 7, 3), optimizer=optimizer, steps=steps,
                      progress=False, **options, **more)
        return values(model, optimizer), history.losses

    whole = run(12)
    run(stop, folder=tmp_path)
    rest = run(12, folder=tmp_path, resume=True)
    assert rest == whole


def test_a_checkpoint_of_another_definition_is_refused(tmp_path):
    model, optimizer = run_of()
    checkpoint.save(tmp_path / "c", model, optimizer, 0.1, None, History(), {})
    other = SequenceModel(layer_of(PLAIN, 1, dtype=np.float32, num_layers=2, dropout=0.3), 1,
                          loss="mse")
    with pytest.raises(ValueError, match=r"of another model: its .*cell.text is ") as raised:
        checkpoint.load(tmp_path / "c", other, optim.AdamW(other, 1e-2))
    assert "\n" not in str(raised.value)


# -------------------------------------------------------------------------------------- hostile


def bytes_of(tmp_path, what="sequence"):
    path = tmp_path / "whole"
    if what == "layer":
        fastrnn.save(layer_of(MANY, dtype=np.float32), path)
    elif what == "language":
        fastrnn.save(LanguageModel(5, 2, 3, cell=PLAIN, seed=0), path)
    else:
        fastrnn.save(SequenceModel(layer_of(MANY), 2, seed=0), path)
    return path.read_bytes()


def readers(path):
    return {"load": lambda: fastrnn.load(path)}


@pytest.mark.parametrize("what", ["layer", "language", "sequence"])
@pytest.mark.filterwarnings("ignore:.*dropout works between layers")
def test_every_value_of_the_json_replaced_by_others(tmp_path, what):
    header, about, arrays = split(bytes_of(tmp_path, what))
    path = tmp_path / "mutated"
    for at in places(about):
        if at:
            check(path, join(header, without(about, at), arrays), readers(path))
        for value in HOSTILE:
            check(path, join(header, changed(about, at, value), arrays), readers(path))


@pytest.mark.filterwarnings("ignore:.*dropout works between layers")
def test_random_changes_of_the_text(tmp_path):
    rng = random.Random(0)
    header, about, arrays = split(bytes_of(tmp_path, "layer"))
    path, at = tmp_path / "mutated", ("config", "cell", "text")
    text = value_at(about, at)
    pieces = ["(" * 60, "h", " x", "=", "\n", "size Q = H * 2147483647\n", "[P]", "**", "-",
              "1e308", "state ", ",", "W ", "\0", "\ud800", "é", "#", "norm(", ")", "0", "_",
              "exp(h)", "@"]
    for _ in range(400):
        new = text
        for _ in range(rng.choice((1, 1, 2, 5))):
            place = rng.randrange(len(new))
            new = new[:place] + rng.choice(pieces) + new[place + rng.choice((0, 0, 1, 5)):]
        check(path, join(header, changed(about, at, new), arrays), readers(path))


LAST = "\nh = tanh(W x + U h + b) + mean(s)"


@pytest.mark.parametrize(("text", "match"), [
    ("size P = 1000000000\nstate s[P]\ns = 0.9 * s + 0.1" + LAST, "P is 1000000000, its arrays"),
    ("size P = H * 2147483647\nstate s[P]\ns = 0.9 * s + 0.1" + LAST, "its arrays have"),
    ("size P = 1000000000\ns[P] = tanh(V h)" + LAST, "P is 1000000000, its arrays"),
    ("h = tanh(W x + U h + b)" + " + tanh(h) * 2" * 7000, "characters, expected at most 20000"),
    ("h = tanh(W x + U h + b)" + " + tanh(h)" * 1900, "operations, expected at most 2000 in a"),
    (", ".join(f"a{i}" for i in range(300)) + " = W x + U h + " + " + ".join("bhx" * 1 for _ in
     range(99)) + "\nh = " + " + ".join(f"a{i}" for i in range(300)), "expected at most 2000"),
    ("h = " + "(" * 60 + "x" + ")" * 60, "its cell is no definition: the expression nests deeper"),
    ("h = tanh(W x + U g)", r"its cell is no definition: .* \(line 1, column "),
    ("h = __import__('os').system('true')", "its cell is no definition"),
    ("h = tanh(W x + U h + b)\n" * 2, "its cell is no definition"),
    ("", "its cell is no definition"), ("#" * 20_001, "characters, expected at most 20000"),
    ("h = tanh(W x + V h)", "missing .*U_l0"), ("h = 0.5 * h + W x", "unexpected"),
    ("a, h = W x + U h + b\nh = a", "its cell is no definition"),
    ("constant seed = 0.1\nh = tanh(W x + U h + b) * seed", "has a constant 'seed'"),
])
def test_texts_that_are_refused(tmp_path, text, match):
    cell = fastrnn.cell("h = tanh(W x + U h + b)")
    fastrnn.save(layer_of(cell), tmp_path / "m")
    data = config_with((tmp_path / "m").read_bytes(),
                       cell={"text": text, "name": "Cell", "paper": ""})
    (tmp_path / "m").write_bytes(data)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError, match=match) as raised:
        fastrnn.load(tmp_path / "m")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = str(raised.value)
    assert said.startswith(f"load: {str(tmp_path / 'm')!r} is not a model of fastrnn: ")
    assert "\n" not in said
    assert len(said) < 1000
    assert peak < 2e7
    assert time.process_time() - start < 500 * cases.cpu_time(cases.compiling, 3)


@pytest.mark.parametrize(("cell", "match"), [
    ({"text": "h = W x", "name": "n" * 201, "paper": ""}, "name of a cell"),
    ({"text": "h = W x", "name": "a\nb", "paper": ""}, "name of a cell is 'a.nb'"),
    ({"text": 1, "name": "a", "paper": ""}, "its cell has the text 1, expected a text"),
    ({"text": "h = W x", "name": "a", "paper": None}, "its cell has the paper None"),
    ({"text": "h = W x", "name": "a"}, "its cell has the paper None"),
    ({"text": "h = W x", "name": "a", "paper": "", "more": 1}, "cell is of type dict"),
    ("lstm", "cell is of type str"), (None, "cell is None"), ([], "cell is of type list"),
])
def test_cells_that_are_none(tmp_path, cell, match):
    data = config_with(bytes_of(tmp_path, "layer"), cell=cell)
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(ValueError, match=match) as raised:
        fastrnn.load(tmp_path / "m")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("what", ["layer", "language", "sequence"])
@pytest.mark.filterwarnings("ignore:.*dropout works between layers")
def test_a_small_file_that_claims_any_size_takes_no_memory(tmp_path, what):
    header, about, arrays = split(bytes_of(tmp_path, what))
    config = about["config"]
    if what != "language":
        layer = config if what == "layer" else config["layers"][0]
        layer["P"] = 2
    path = tmp_path / "mutated"
    read = readers(path)
    check(path, join(header, about, arrays), read)
    tracemalloc.start()
    try:
        for at in places(config):
            if isinstance(value_at(config, at), int):
                for value in (10**4, 10**7, 10**9, 2**63, 10**400):
                    claimed = changed(config, at, value)
                    check(path, join(header, about | {"config": claimed}, arrays), read)
        assert tracemalloc.get_traced_memory()[1] < 2e7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("make", "match"), [
    (lambda: fastrnn.cell("h = tanh(W x + U h)" + " + tanh(h)" * 1000), "at most 2000 in a file"),
    (lambda: fastrnn.cell("h = tanh(W x + U h)" + "#" * 20_000), "at most 20000 in a file"),
    (lambda: fastrnn.cell("h = tanh(W x + U h)", name="a\nb"), "printable characters in a file"),
])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, make, match):
    model = SequenceModel(fastrnn.Layer(make(), I, H), 2)
    with pytest.raises(ValueError, match=match):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


class Mine(fastrnn.Layer):
    pass


def test_a_subclass_cannot_be_made_again(tmp_path):
    with pytest.raises(TypeError, match="a subclass of Layer cannot be made again from a file"):
        fastrnn.save(Mine(PLAIN, I, H), tmp_path / "m")
