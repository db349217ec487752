"""Files with PyTorch's names: models are found in them, compute as torch's, and are written."""

import functools
import io
import json
import sys
import warnings
import zipfile

import cases
import numpy as np
import pytest
from tensors import layer, linear, load, random, refused, rng, with_torch

import fastrnn
from fastrnn import GRU, LSTM, RNN, LanguageModel, SequenceModel, Stack
from fastrnn.formats import pytorch

T, B = 7, 3


def same(part, tensors, prefix=""):
    """Check that a part has just these values."""
    params = dict(part.parameters())
    assert params.keys() == {name.removeprefix(prefix) for name in tensors}
    for name, array in tensors.items():
        np.testing.assert_array_equal(params[name.removeprefix(prefix)], array)


# ---- what is found -------------------------------------------------------------------------------

KINDS = [("RNN", 4, 5, 1, 1, 0, True), ("RNN", 1, 6, 3, 2, 0, False), ("GRU", 5, 4, 2, 2, 0, True),
         ("GRU", 3, 1, 1, 1, 0, False), ("LSTM", 4, 7, 2, 1, 0, True),
         ("LSTM", 3, 5, 2, 2, 2, True), ("LSTM", 3, 5, 1, 1, 4, False)]


@pytest.mark.parametrize(("kind", "I", "H", "L", "D", "P", "bias"), KINDS)
@pytest.mark.parametrize("prefix", ["", "model.rnn."])
def test_a_recurrent_module_alone_is_a_layer(tmp_path, kind, I, H, L, D, P, bias, prefix):
    tensors = layer(prefix, kind, I, H, L, D=D, P=P, bias=bias)
    found = load(tmp_path, tensors)
    assert type(found).__name__ == kind
    assert (found.input_size, found.hidden_size, found.num_layers) == (I, H, L)
    assert (found.directions, found.bias) == (D, bias)
    assert getattr(found, "proj_size", 0) == P
    assert found.unused == ()
    assert not found.training
    same(found, tensors, prefix)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_single_cell(tmp_path, kind):
    tensors = {name.removesuffix("_l0"): a for name, a in layer("c.", kind, 3, 5).items()}
    found = load(tmp_path, tensors)
    assert type(found).__name__ == f"{kind}Cell"
    same(found, tensors, "c.")
    model = load(tmp_path, tensors | linear("out", 2, 5))  # a cell in a model is a layer
    assert type(model.layers[0]).__name__ == kind
    np.testing.assert_array_equal(model.layers[0].weight_hh_l0, tensors["c.weight_hh"])


def test_a_nonlinearity_is_an_argument(tmp_path):
    tensors = layer("", "RNN", 3, 5)
    assert load(tmp_path, tensors).nonlinearity == "tanh"
    assert load(tmp_path, tensors, nonlinearity="relu").nonlinearity == "relu"
    refused(tmp_path, tensors, "nonlinearity is 'step'", nonlinearity="step")


def test_a_model_with_embedding_and_head(tmp_path):
    tensors = {"emb.weight": random(11, 4)} | layer("rnn.", "GRU", 4, 6, 2, D=2) | linear(
        "fc", 3, 12)
    model = load(tmp_path, tensors, loss="bce", readout="last")
    assert type(model) is SequenceModel
    assert (model.vocab_size, model.output_size) == (11, 3)
    assert (model.loss_name, model.readout) == ("bce", "last")
    np.testing.assert_array_equal(model.embedding.weight, tensors["emb.weight"])
    np.testing.assert_array_equal(model.head.weight, tensors["fc.weight"])
    np.testing.assert_array_equal(model.head.bias, tensors["fc.bias"])
    assert model.train().training
    model.loss(rng.integers(0, 11, (T, B)), rng.integers(0, 2, (B, 3)).astype("f")).backward()


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_language_model(tmp_path, kind):
    tensors = {"encoder.weight": random(9, 5)} | layer("rnn.", kind, 5, 5, 2) | linear(
        "decoder", 9, 5)
    model = load(tmp_path, tensors)
    assert type(model) is LanguageModel
    assert model.cell == kind.lower()
    assert len(model.sample([1, 2], 5, seed=0)) == 5
    assert type(load(tmp_path, tensors, readout="last")) is SequenceModel
    if kind == "RNN":
        assert type(load(tmp_path, tensors, nonlinearity="relu")) is SequenceModel


@pytest.mark.parametrize("more", [{"bias": False}, {"D": 2}, {"P": 2}])
def test_no_language_model_of_what_it_cannot_have(tmp_path, more):
    width = more.get("P", 5) * more.get("D", 1)
    tensors = {"emb.weight": random(9, 5)} | layer("rnn.", "LSTM", 5, 5, **more) | linear(
        "out", 9, width)
    assert type(load(tmp_path, tensors)) is SequenceModel


def test_a_head_without_a_bias_has_one_of_zeros(tmp_path):
    tensors = {"emb.weight": random(9, 4), "out.weight": random(9, 5)} | layer(
        "rnn.", "GRU", 4, 5)
    model = load(tmp_path, tensors)
    np.testing.assert_array_equal(model.head.weight, tensors["out.weight"])
    assert not model.head.bias.any()
    back = pytorch.state_dict(model, {"embedding": "emb", "layers.0": "rnn", "head": "out",
                                      "head.bias": None})
    assert back.keys() == tensors.keys()


def test_modules_in_a_chain_are_in_the_order_of_their_widths(tmp_path):
    tensors = layer("a.", "LSTM", 6, 2) | layer("b.", "GRU", 3, 4) | layer("c.", "RNN", 4, 3, D=2)
    model = load(tmp_path, tensors)  # b: 3 to 4, c: 4 to 6, a: 6 to 2
    assert type(model) is Stack
    assert [type(one) for one in model.layers] == [GRU, RNN, LSTM]
    same(model.layers[0], {n: a for n, a in tensors.items() if n.startswith("b.")}, "b.")


def test_numbered_modules_are_in_the_order_of_their_numbers(tmp_path):
    tensors = {}
    for number in (10, 2, 9):
        tensors |= layer(f"encoder.lstm{number}.", "LSTM", 4, 4)
    model = load(tmp_path, tensors)
    for one, number in zip(model.layers, (2, 9, 10), strict=True):
        np.testing.assert_array_equal(one.weight_hh_l0,
                                      tensors[f"encoder.lstm{number}.weight_hh_l0"])


def test_numbers_that_the_widths_contradict_are_no_order(tmp_path):
    tensors = layer("rnn1.", "GRU", 4, 3) | layer("rnn2.", "GRU", 2, 4)
    model = load(tmp_path, tensors)
    assert [(one.input_size, one.hidden_size) for one in model.layers] == [(2, 4), (4, 3)]


def test_the_order_of_many_modules_is_not_searched(tmp_path):
    names = "abcdefgh"
    tensors = {}
    for width, name in enumerate(names, 1):
        tensors |= layer(f"{name}.", "GRU", width, width + 1)
    refused(tmp_path, tensors, "are not found to make a chain; choose with mapping")
    model = load(tmp_path, tensors, mapping={"layers": list(names)})
    assert [one.hidden_size for one in model.layers] == list(range(2, 10))
    seven = {name: a for name, a in tensors.items() if not name.startswith("h.")}
    assert len(load(tmp_path, seven).layers) == 7


def test_a_role_that_no_module_has(tmp_path):
    tensors = {"emb.weight": random(7, 4)} | layer("rnn.", "GRU", 4, 5) | linear("fc", 3, 5)
    for roles, kind, left in ((["head"], Stack, ["fc.bias", "fc.weight"]),
                              (["embedding"], SequenceModel, ["emb.weight"]),
                              (["embedding", "head"], GRU,
                               ["emb.weight", "fc.bias", "fc.weight"])):
        mapping = dict.fromkeys(roles)
        refused(tmp_path, tensors, f"no part of a .* needs .*'{left[0]}'", mapping=mapping)
        found = load(tmp_path, tensors, mapping=mapping, strict=False)
        assert type(found) is kind
        assert sorted(found.unused) == left


def test_what_is_ambiguous_is_refused_with_the_candidates(tmp_path):
    rnn = layer("rnn.", "GRU", 4, 5)
    heads = linear("fc", 3, 5) | linear("aux", 2, 5)
    refused(tmp_path, rnn | heads, r"head: \['aux.weight', 'fc.weight'\].*mapping=\{'head'")
    refused(tmp_path, rnn | heads, "no part of a SequenceModel needs .*'aux.weight'",
            mapping={"head": "fc"})
    model = load(tmp_path, rnn | heads, mapping={"head": "fc.weight"}, strict=False)
    np.testing.assert_array_equal(model.head.weight, heads["fc.weight"])
    assert sorted(model.unused) == ["aux.bias", "aux.weight"]
    model = load(tmp_path, rnn | heads, mapping={"aux": None})
    assert (model.output_size, sorted(model.unused)) == (3, ["aux.bias", "aux.weight"])
    tables = {"a.weight": random(7, 4), "b.weight": random(8, 4)}
    refused(tmp_path, rnn | tables, r"embedding: \['a.weight', 'b.weight'\]")
    square = layer("rnn.", "GRU", 4, 4)
    refused(tmp_path, square | {"a.weight": random(7, 4)}, "'?a.weight'? could be the embedding or")
    assert load(tmp_path, square | {"a.weight": random(7, 4)},
                mapping={"embedding": "a"}).vocab_size == 7
    assert load(tmp_path, square | {"a.weight": random(7, 4)},
                mapping={"head": "a"}).vocab_size is None
    equal = layer("encoder.", "GRU", 4, 4) | layer("decoder.", "GRU", 4, 4)
    refused(tmp_path, equal, "fit each other in several orders.*mapping")
    chosen = load(tmp_path, equal, mapping={"layers": ["encoder", "decoder"]})
    np.testing.assert_array_equal(chosen.layers[0].weight_ih_l0, equal["encoder.weight_ih_l0"])
    alike = layer("a.", "GRU", 4, 5) | layer("b.", "GRU", 4, 5)
    refused(tmp_path, alike, "not found to make a")
    refused(tmp_path, alike, r"'b' \(4 to 5\), 'a' \(4 to 5\) do not follow each other",
            mapping={"layers": ["b", "a"]})
    one = load(tmp_path, equal, mapping={"layers": "decoder"}, strict=False)
    assert type(one) is GRU
    assert len(one.unused) == 4


def test_a_mapping_renames(tmp_path):
    tensors = {"a": random(7, 4)} | layer("x.one.", "GRU", 4, 4) | layer(
        "x.two.", "LSTM", 4, 4) | linear("p.q", 7, 4)
    model = load(tmp_path, tensors, mapping={
        "a": "embedding.weight", "x.two": "layers.0", "x.one": "layers.1", "p.q": "head"})
    assert [type(one) for one in model.layers] == [LSTM, GRU]
    np.testing.assert_array_equal(model.embedding.weight, tensors["a"])


@pytest.mark.parametrize(("mapping", "match"), [
    ({"head": "nothing"}, r"mapping\['head'\] is 'nothing', expected one of \['fc'\]"),
    ({"layers": []}, "expected names of recurrent modules"), ({"layers": ["fc"]}, "'fc'"),
    ({"layers": ["rnn", "rnn"]}, "each name once"), ({"layers": 3}, "expected names"),
    ({"nothing": "head"}, "mapping has 'nothing'"), ({"fc": 3}, "expected a name"), (3, "mapping"),
    ({"fc": "layers.x"}, "layers.x"), ({"fc.weight": "x", "fc.bias": "x"}, "calls both"),
    ({3: "x"}, "expected a dictionary of names"), ({"embedding": "fc"}, "'fc'"),
    ({"fc": "embedding"}, "'embedding'"), ({"rnn": "head"}, "head"),
])
def test_a_mapping_that_does_not_fit(tmp_path, mapping, match):
    refused(tmp_path, layer("rnn.", "GRU", 4, 5) | linear("fc", 3, 5), match, mapping=mapping)


def test_a_prefix(tmp_path):
    tensors = layer("net.encoder.rnn.", "GRU", 4, 5) | linear("net.fc", 3, 5) | linear("net2", 2, 2)
    model = load(tmp_path, tensors, prefix="net")
    assert type(model) is SequenceModel
    assert sorted(model.unused) == ["net2.bias", "net2.weight"]
    assert type(load(tmp_path, tensors, prefix="net.encoder.rnn.")) is GRU
    refused(tmp_path, tensors, "no tensor is below the prefix 'other'", prefix="other")
    refused(tmp_path, tensors, "prefix is 3, expected the beginning of names", prefix=3)


def test_surplus_is_named_or_reported(tmp_path):
    tensors = layer("rnn.", "GRU", 4, 5) | {"norm.running_mean": random(3),
                                            "version": np.zeros((), np.int64)}
    refused(tmp_path, tensors, r"no part of a GRU needs \['norm.running_mean', 'version'\]|"
                               r"no part of a GRU needs \['version', 'norm.running_mean'\]")
    found = load(tmp_path, tensors, strict=False)
    assert type(found) is GRU
    assert sorted(found.unused) == ["norm.running_mean", "version"]


def test_a_checkpoint_says_what_the_model_does_not_have(tmp_path):
    model = SequenceModel(GRU(2, 3, seed=0), 1, loss="mse", seed=0)
    fastrnn.save(model, tmp_path / "m")
    assert fastrnn.load(tmp_path / "m").unused == ()
    with pytest.raises(ValueError, match=r"prefix is 'a', .* a file of fastrnn"):
        fastrnn.load(tmp_path / "m", prefix="a")


# ---- dtypes --------------------------------------------------------------------------------------


def by_hand(path, tensors, dtype):
    """Write a file of 16-bit tensors."""
    header, at, data = {}, 0, b""
    for name, bits in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(bits.shape),
                        "data_offsets": [at, at + bits.nbytes]}
        at, data = at + bits.nbytes, data + bits.tobytes()
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def test_dtypes(tmp_path):
    tensors = layer("", "GRU", 3, 5)
    half = {name: a.astype(np.float16) for name, a in tensors.items()}
    found = load(tmp_path, half)
    assert found.dtype == np.float32
    same(found, {name: a.astype(np.float32) for name, a in half.items()})
    mixed = load(tmp_path, tensors | {"bias_hh_l0": random(15, dtype=np.float64)})
    assert mixed.dtype == np.float64
    bits = {name: (a.view(np.uint32) >> 16).astype(np.uint16) for name, a in tensors.items()}
    bits["bias_hh_l0"][:3] = 0x0001, 0x7F7F, 0x8000  # the smallest, the largest, -0
    by_hand(tmp_path / "b", bits, "BF16")
    found = fastrnn.load(tmp_path / "b")
    assert found.dtype == np.float32
    same(found, {name: (b.astype(np.uint32) << 16).view(np.float32) for name, b in bits.items()})
    refused(tmp_path, tensors | {"bias_hh_l0": np.zeros(15, np.int8)}, "bias_hh_l0 has no floats")


# ---- against torch, and back ---------------------------------------------------------------------


def modules():
    """Return torch's modules with a name for each."""
    import torch
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self, kind, V=11, E=5, H=6, N=4, **options):
            super().__init__()
            self.emb = nn.Embedding(V, E) if V else None
            self.rnn = getattr(nn, kind)(E, H, **options)
            width = options.get("proj_size") or H
            self.out = nn.Linear(width * (1 + options.get("bidirectional", False)), N)

        def forward(self, x):
            return self.out(self.rnn(self.emb(x) if self.emb else x)[0])

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm1, self.gru2 = nn.LSTM(5, 4, 2), nn.GRU(4, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.gru2(self.lstm1(x)[0])[0])

    torch.manual_seed(1)
    return {
        "lstm": Tagger("LSTM", num_layers=2, bidirectional=True), "gru": Tagger("GRU", V=0),
        "rnn": Tagger("RNN", V=7, N=7), "no bias": Tagger("GRU", bias=False),
        "projected": Tagger("LSTM", proj_size=3, num_layers=2, bidirectional=True), "two": Two(),
        "float64": Tagger("GRU", num_layers=3).double()}


NAMES = {"embedding": "emb", "layers.0": "rnn", "head": "out"}


def close(ours, theirs, x):
    """Check outputs; with a symbol's embedding or real vectors."""
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # oneDNN has no projections
        expected = theirs(torch.from_numpy(x)).numpy()
    y, _ = ours(x)
    cases.assert_close("y", y, expected, cases.tolerance(y.dtype, 24, 3 * T, bidirectional=True))


@with_torch
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "no bias", "projected", "two", "float64"])
@pytest.mark.parametrize("wrapper", ["safetensors", "pt", "state_dict", "old"])
def test_models_of_torch_compute_the_same(tmp_path, kind, wrapper):
    import torch
    from safetensors import torch as safe

    theirs, path = modules()[kind].eval(), tmp_path / f"m.{wrapper}"
    state, mapping = theirs.state_dict(), None
    if wrapper == "safetensors":
        safe.save_file(state, path)
    elif wrapper == "pt":
        torch.save(state, path)
    elif wrapper == "state_dict":
        torch.save({"epoch": 3, "model_state_dict": state}, path)
    else:
        path = tmp_path / "m.pth"
        torch.save(state, path, _use_new_zipfile_serialization=False)
    if kind == "two":
        mapping = {"layers": ["lstm1", "gru2"]}
    ours = fastrnn.load(path, mapping=mapping)
    assert type(ours) is (LanguageModel if kind == "rnn" else SequenceModel)
    V = ours.vocab_size
    x = random(T, B, 5) if V is None else rng.integers(0, V, (T, B))
    close(ours, theirs, x.astype(ours.dtype) if V is None else x)
    if kind == "two":
        return
    other = modules()[kind]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    names = {key: to for key, to in NAMES.items() if V is not None or key != "embedding"}
    fastrnn.save(ours, tmp_path / "back.safetensors", names=names)
    other.load_state_dict(safe.load_file(tmp_path / "back.safetensors"))
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name]), name
    fastrnn.save(ours, tmp_path / "back.pt", names=names)
    other.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True))


@with_torch
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_cells_and_layers_go_back_to_torch(tmp_path, kind):
    import torch

    for ours, theirs in ((getattr(fastrnn, kind)(3, 5, 2, bidirectional=True, seed=1),
                          getattr(torch.nn, kind)(3, 5, 2, bidirectional=True)),
                         (getattr(fastrnn, kind + "Cell")(3, 5, seed=1),
                          getattr(torch.nn, kind + "Cell")(3, 5))):
        fastrnn.save(ours, tmp_path / "m.pt")
        theirs.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
        for name, value in theirs.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), ours.parameters()[name])
        again = fastrnn.load(tmp_path / "m.pt")
        assert type(again) is type(ours)


@with_torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_tensors_of_torch(tmp_path, dtype):
    import torch

    theirs = torch.nn.LSTM(3, 5).to(getattr(torch, dtype))
    torch.save(theirs.state_dict(), tmp_path / "m.pt")
    found = fastrnn.load(tmp_path / "m.pt")
    assert found.dtype == np.float32
    same(found, {name: a.float().numpy() for name, a in theirs.state_dict().items()})


@with_torch
def test_tied_weights_and_views(tmp_path):
    import torch

    emb = torch.nn.Embedding(300, 40)
    state = {"emb.weight": emb.weight, "out.weight": emb.weight, "out.bias": torch.ones(300)}
    state |= {f"rnn.{name}": a for name, a in torch.nn.GRU(40, 40).state_dict().items()}
    torch.save(state, tmp_path / "m.pt")
    model = fastrnn.load(tmp_path / "m.pt")
    np.testing.assert_array_equal(model.head.weight, emb.weight.detach().numpy())
    huge = torch.zeros(1).expand(4096, 4096, 4096)
    torch.save(state | {"huge": huge}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m.pt' gives no model: huge is \(4096, 4096, 4096\)"):
        fastrnn.load(tmp_path / "m.pt", strict=False)
    shared = torch.zeros(2**20)
    torch.save(state | {f"x{i}": shared for i in range(9)}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"its tensors have .* bytes, the file"):
        fastrnn.load(tmp_path / "m.pt", strict=False)


def quantised(tensor):
    import torch

    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@with_torch
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("make", "match"), [
    (lambda state: list(state.values()), "it is of type list, expected a state_dict"),
    (lambda state: {3: state["weight_hh_l0"]}, "a name in it is 3, expected a text"),
    (lambda state: state | {"weight_hh_l0": 3}, r"weight_hh_l0 is \(\), expected a matrix"),
    (lambda state: state | {"weight_hh_l0": state["weight_hh_l0"].to_sparse()},
     "weight_hh_l0 has the layout torch.sparse_coo, expected float16"),
    (lambda state: state | {"weight_hh_l0": state["weight_hh_l0"].to("meta")},
     "weight_hh_l0 has the device meta, expected float16"),
    (lambda state: state | {"weight_hh_l0": quantised(state["weight_hh_l0"])},
     "weight_hh_l0 has quantised numbers, expected float16"),
    (lambda state: state | {"weight_hh_l0": state["weight_hh_l0"].int()},
     "weight_hh_l0 has no floats"),
])
def test_what_is_no_dictionary_of_tensors_with_numbers(tmp_path, make, match):
    import torch

    torch.save(make(torch.nn.GRU(3, 5).state_dict()), tmp_path / "m.pt")
    with pytest.raises(ValueError, match=rf"m.pt' gives no model: {match}"):
        fastrnn.load(tmp_path / "m.pt")


@with_torch
def test_other_values_of_a_state_dict_are_not_needed(tmp_path):
    import torch

    module = torch.nn.GRU(3, 5)
    others = {"version": 3, "sparse": torch.eye(4).to_sparse(), "nothing": None}
    torch.save(module.state_dict() | others, tmp_path / "m.pt")
    found = fastrnn.load(tmp_path / "m.pt", strict=False)
    same(found, {name: a.numpy() for name, a in module.state_dict().items()})
    assert found.unused == tuple(others)
    with pytest.raises(ValueError, match=r"no part of a GRU needs \['version', 'sparse'"):
        fastrnn.load(tmp_path / "m.pt")


class Evil:
    """What unpickling would call."""

    def __reduce__(self):
        return print, ("unpickled",)


@with_torch
def test_pickles_are_not_run(tmp_path, capsys):
    import torch

    for old in (True, False):
        torch.save({"weight_ih_l0": Evil()}, tmp_path / "m.pt",
                   _use_new_zipfile_serialization=not old)
        with pytest.raises(ValueError, match=r"m.pt' is not a file that torch.load\(weights_only"):
            fastrnn.load(tmp_path / "m.pt")
    assert capsys.readouterr().out == ""


@with_torch
@pytest.mark.parametrize("old", [True, False])
def test_a_whole_module_is_told_to_give_its_state_dict(tmp_path, old):
    import torch

    torch.save(torch.nn.LSTM(3, 4), tmp_path / "m.pt", _use_new_zipfile_serialization=not old)
    said = (r"it has an object of torch\.nn\.modules\.rnn\.LSTM, expected tensors alone, as "
            r"torch\.save\(model\.state_dict\(\), path\) writes them$")
    with pytest.raises(ValueError, match=f"m.pt' .* {said}"):
        fastrnn.load(tmp_path / "m.pt")


@with_torch
def test_another_form_of_pickle_is_not_called_an_object(tmp_path):
    import torch

    torch.save(torch.nn.LSTM(3, 4).state_dict(), tmp_path / "m.pt", pickle_protocol=4)
    with pytest.raises(ValueError, match=r"m\.pt' is not a file that torch\.load") as error:
        fastrnn.load(tmp_path / "m.pt")  # torch itself cannot read it
    assert "it has an object" not in str(error.value)


@with_torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_of_torchscript_is_called_that(tmp_path):
    import torch

    torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 4))).save(str(tmp_path / "m.pt"))
    with pytest.raises(ValueError, match="it is of TorchScript, expected a state_dict"):
        fastrnn.load(tmp_path / "m.pt")


@with_torch
def test_an_archive_that_is_packed_is_refused(tmp_path):
    import torch

    buffer = io.BytesIO()
    torch.save({"weight_ih_l0": torch.zeros(2**20)}, buffer)
    with zipfile.ZipFile(buffer) as read, zipfile.ZipFile(
            tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as write:
        for info in read.infolist():
            write.writestr(info.filename, read.read(info))
    with pytest.raises(ValueError, match=r"m.pt' gives no model: it unpacks to \d+ bytes"):
        fastrnn.load(tmp_path / "m.pt")


def test_without_torch_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
    for call in (functools.partial(fastrnn.load, tmp_path / "m.pt"),
                 functools.partial(fastrnn.save, GRU(2, 3, seed=0), tmp_path / "n.pt")):
        with pytest.raises(ModuleNotFoundError, match=r"pip install torch, .*convert"):
            call()
    assert not (tmp_path / "n.pt").exists()


# ---- what torch has no module for ----------------------------------------------------------------


@pytest.mark.parametrize(("make", "names", "match"), [
    (lambda: GRU(2, 3, reset_after=False), "torch", "reset_after=False"),
    (lambda: RNN(2, 3, nonlinearity="sigmoid"), "torch", "sigmoid"),
    (lambda: fastrnn.RNNCell(2, 3, nonlinearity="sigmoid"), "torch", "sigmoid"),
    (lambda: fastrnn.Layer(fastrnn.cells.MGU, 2, 3), "torch", "from equations"),
    (lambda: SequenceModel(GRU(2, 3), 1), {"rnn": "layers.0"}, "names has 'rnn'"),
    (lambda: SequenceModel(GRU(2, 3), 1), {"head": None}, "head.weight is to be left out"),
    (lambda: SequenceModel(GRU(2, 3), 1), {"head": 3}, "is 3, expected a name"),
    (lambda: SequenceModel(GRU(2, 3), 1), "pytorch", "names is 'pytorch', expected 'torch'"),
    (lambda: SequenceModel(GRU(2, 3), 1).head, "torch", "it is no recurrent layer"),
    (dict, "torch", "model is of type dict"),
])
def test_what_torch_cannot_load_is_not_written(tmp_path, make, names, match):
    with pytest.raises((ValueError, TypeError), match=match):
        fastrnn.save(make(), tmp_path / "m", names=names)
    assert not (tmp_path / "m").exists()


def test_notes_have_no_place_in_a_plain_file(tmp_path):
    with pytest.raises(ValueError, match="notes is given"):
        fastrnn.save(GRU(2, 3), tmp_path / "m", {"a": 1}, names="torch")


@with_torch
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("where", ["in the file", "in memory", "old"])
def test_every_way_to_the_numbers_of_a_file_of_torch(tmp_path, monkeypatch, dtype, where):
    """They are read from the file where torch has mapped it, and else from torch's tensors."""
    import torch

    H = 150  # several blocks of a megabyte below
    module = torch.nn.LSTM(7, H).to(getattr(torch, dtype))
    saved = dict(module.state_dict())
    saved["weight_hh_l0"] = saved["weight_hh_l0"].T.contiguous().T  # strides of a transpose
    torch.save(saved, tmp_path / "m.pt", _use_new_zipfile_serialization=where != "old")
    monkeypatch.setattr("fastrnn.formats.pytorch._BLOCK", 1000)
    monkeypatch.setattr("fastrnn.formats.safetensors._BLOCK", 1000)
    calls, fill = [], pytorch._Places.fill

    def counted(self, *args):
        if where != "in the file":
            self._ranges.clear()
        calls.append(fill(self, *args))
        return calls[-1]

    monkeypatch.setattr(pytorch._Places, "fill", counted)
    model = fastrnn.load(tmp_path / "m.pt")
    for name, tensor in saved.items():
        expected = tensor.to(torch.float64).numpy()
        np.testing.assert_array_equal(model.parameters()[name], expected)
    if where == "in the file" and sys.platform == "linux":
        assert calls.count(True) == 3  # but the transposed one
    else:
        assert not any(calls)
