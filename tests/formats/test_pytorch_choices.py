"""Files with PyTorch's names: options for parts that are not there, checkpoints, suffixes."""

import numpy as np
import pytest
from tensors import layer, linear, load, random, refused, with_torch

import fastrnn
from fastrnn import GRU, LSTM, SequenceModel, cli

LAYER = layer("rnn.", "LSTM", 4, 5)
MODEL = LAYER | linear("fc", 3, 5)


@pytest.mark.parametrize(("tensors", "options", "match"), [
    (MODEL, {"nonlinearity": "relu"}, "nonlinearity is 'relu', expected 'tanh': it has no RNN"),
    (LAYER, {"loss": "mse"}, "loss is 'mse', expected 'softmax': it has no head"),
    (LAYER, {"readout": "last"}, "readout is 'last', expected 'every': it has no head"),
    (MODEL, {"loss": "mse", "mapping": {"head": None}, "strict": False}, "it has no head"),
])
def test_an_option_for_a_part_that_is_not_there(tmp_path, tensors, options, match):
    refused(tmp_path, tensors, match, **options)


def test_the_same_options_where_the_parts_are(tmp_path):
    model = load(tmp_path, layer("rnn.", "RNN", 4, 5) | linear("fc", 3, 5), nonlinearity="relu",
                 loss="mse", readout="last")
    assert (model.layers[0].nonlinearity, model.loss_name, model.readout) == ("relu", "mse", "last")


@pytest.mark.parametrize(("mapping", "match"), [
    ({"a": "layers.1"}, "mapping has layers.1 and no layers.0, expected layers.0, layers.1, ... "),
    ({"a": "layers.0", "b": "layers.2"}, "mapping has layers.2 and no layers.1"),
    ({"a": "layers.00"}, "mapping has the layer 'layers.00'"),
])
def test_a_mapping_to_layers_with_a_gap(tmp_path, mapping, match):
    tensors = layer("a.", "GRU", 4, 4) | layer("b.", "LSTM", 4, 4)
    refused(tmp_path, tensors, match, mapping=mapping, strict=False)


def test_a_mapping_goes_on_from_the_layers_that_the_file_has(tmp_path):
    tensors = layer("x.", "GRU", 4, 4) | layer("layers.0.", "LSTM", 4, 4)
    assert [type(one) for one in load(tmp_path, tensors, mapping={"x": "layers.1"}).layers] == [
        LSTM, GRU]


@pytest.mark.parametrize("name", ["fc_in", "input_proj", "embed.0", "net.encoder"])
def test_a_map_before_the_layers_is_no_head(tmp_path, name):
    """Its widths fit behind the layers, too: only the name tells."""
    tensors = linear(name, 4, 5) | LAYER
    refused(tmp_path, tensors, f"{name}.weight could be the head, or a linear map before the first")
    assert type(load(tmp_path, tensors, mapping={"head": name})) is SequenceModel
    assert type(load(tmp_path, tensors, mapping={"head": None}, strict=False)) is LSTM
    assert type(load(tmp_path, linear(name, 3, 5) | LAYER)) is SequenceModel  # fits only behind


@pytest.mark.parametrize("name", [
    "fc", "out", "encoder_out", "enc_to_logits", "reconstruct_input", "hidden_to_in", "pre_logits",
    "decoder.in"])
def test_a_head_as_wide_as_the_input_stays_a_head(tmp_path, name):
    """That of an autoencoder, or of a forecast of the next numbers."""
    model = load(tmp_path, LAYER | linear(name, 4, 5))
    assert type(model) is SequenceModel
    encoder = {f"encoder.{key}": value for key, value in (LAYER | linear(name, 4, 5)).items()}
    assert type(load(tmp_path, encoder)) is SequenceModel


@pytest.mark.parametrize("name", ["emb", "word_embeddings", "wordEmbedding", "token-emb",
                                  "net.embed_tokens"])
def test_a_table_whose_widths_fit_behind_the_layers_too(tmp_path, name):
    tensors = layer("rnn.", "GRU", 4, 4) | {f"{name}.weight": random(7, 4)}
    assert load(tmp_path, tensors).embedding is not None


@pytest.mark.parametrize("name", ["ensemble.out", "remember", "member.1"])
def test_a_table_that_no_word_names(tmp_path, name):
    tensors = layer("rnn.", "GRU", 4, 4) | {f"{name}.weight": random(7, 4)}
    refused(tmp_path, tensors, f"{name}.weight could be the embedding or the head; choose")
    within = {f"embedder.{key}": value for key, value in tensors.items()}  # the layer, too
    refused(tmp_path, within, "could be the embedding or the head; choose")


@with_torch
def test_several_state_dicts_have_no_order(tmp_path):
    import torch

    parts = {"fc": linear("", 4, 5), "rnn": layer("", "LSTM", 4, 5)}
    torch.save({part: {name.strip("."): torch.from_numpy(a) for name, a in of.items()}
                for part, of in parts.items()}, tmp_path / "m.pt")
    assert type(fastrnn.load(tmp_path / "m.pt")) is SequenceModel


@with_torch
def test_the_order_of_a_torch_file_tells_a_map_before_the_layers(tmp_path):
    import torch

    before, behind = linear("lin", 4, 5) | LAYER, LAYER | linear("lin", 4, 5)
    for tensors in (before, behind):
        torch.save({name: torch.from_numpy(a) for name, a in tensors.items()}, tmp_path / "m.pt")
        if tensors is before:
            with pytest.raises(ValueError, match="weight could be the head, or a linear map"):
                fastrnn.load(tmp_path / "m.pt")
        model = fastrnn.load(tmp_path / "m.pt", mapping={"head": "lin"})
        np.testing.assert_array_equal(model.head.weight, tensors["lin.weight"])
    assert type(fastrnn.load(tmp_path / "m.pt")) is SequenceModel


@with_torch
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "complex64"])
def test_numbers_that_are_not_read_may_lie_beside_the_model(tmp_path, dtype):
    import torch
    from safetensors.torch import save_file

    tensors = {name: torch.from_numpy(a) for name, a in MODEL.items()}
    save_file(tensors | {"more": torch.ones(3, 5).to(getattr(torch, dtype))}, tmp_path / "m")
    with pytest.raises(ValueError, match="needs \\['more'\\]"):
        fastrnn.load(tmp_path / "m")
    model = fastrnn.load(tmp_path / "m", strict=False)
    assert model.unused == ("more",)
    np.testing.assert_array_equal(model.head.weight, MODEL["fc.weight"])
    save_file(tensors | {"fc.weight": torch.ones(3, 5).to(getattr(torch, dtype))}, tmp_path / "m")
    with pytest.raises(ValueError, match="weight has no floats"):
        fastrnn.load(tmp_path / "m")


# ---- checkpoints ---------------------------------------------------------------------------------


@with_torch
@pytest.mark.parametrize(("beside", "prefix"), [
    ({"epoch": 3}, ""), ({"epoch": 3}, "model"), ({"epoch": 3, "optimizer": ...}, ""),
    ({"scaler": {"scale": 1.0}}, ""), ({"ema": ...}, "model"), ({"ema": ...}, "model.rnn"),
])
def test_a_state_dict_in_a_checkpoint(tmp_path, beside, prefix):
    import torch

    net = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(4, 5), "fc": torch.nn.Linear(5, 3)})
    net["rnn"](torch.ones(2, 1, 4))[0].sum().backward()
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.step()
    others = {"optimizer": optimizer.state_dict(),
              "ema": {name: 0 * a for name, a in net.state_dict().items()}}
    path = tmp_path / "m.pt"
    torch.save({key: others.get(key, value) for key, value in beside.items()} | {
        "model": net.state_dict()}, path)
    found = fastrnn.load(path, prefix=prefix)
    assert type(found) is (LSTM if prefix == "model.rnn" else SequenceModel)
    np.testing.assert_array_equal(
        next(a for name, a in found.parameters().items() if name.endswith("weight_hh_l0")),
        net["rnn"].weight_hh_l0.detach())


@with_torch
def test_two_models_in_a_checkpoint_are_told_apart_by_a_prefix(tmp_path):
    import torch

    states = [torch.nn.GRU(4, 5).state_dict() for _ in range(2)]
    torch.save(dict(zip(("student", "teacher"), states, strict=True)), tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"'student' \(4 to 5\), 'teacher' \(4 to 5\)"):
        fastrnn.load(tmp_path / "m.pt")
    found = fastrnn.load(tmp_path / "m.pt", prefix="teacher")
    np.testing.assert_array_equal(found.weight_hh_l0, states[1]["weight_hh_l0"])


@with_torch
@pytest.mark.parametrize("form", ["modules", "loose head", "loose embedding", "second"])
def test_nothing_with_weights_in_a_checkpoint_is_left_out_without_a_word(tmp_path, form):
    import torch

    torch.manual_seed(0)
    rnn, head, embed = torch.nn.LSTM(3, 4), torch.nn.Linear(4, 2), torch.nn.Embedding(9, 3)
    numbers = {"epoch": 3, "loss": torch.tensor(0.1), "rng_state": torch.get_rng_state(),
               "optimizer": torch.optim.Adam(rnn.parameters()).state_dict(),
               "mean": torch.ones(3), "losses": torch.ones(9),
               "hyper": {"pos_weight": torch.ones(4)}}
    path = tmp_path / "m.pt"
    of = rnn.state_dict()
    torch.save(numbers | {
        "modules": {"embed": embed.state_dict(), "rnn": of, "head": head.state_dict()},
        "loose head": {"state_dict": of, "head.weight": head.weight.detach(),
                       "head.bias": head.bias.detach()},
        "loose embedding": {"embed.weight": embed.weight, "rnn": of},
        "second": {"state_dict": of, "ema_state_dict": torch.nn.LSTM(3, 4).state_dict()},
    }[form], path)
    if form == "second":
        with pytest.raises(ValueError, match=r"'ema_state_dict' .*'state_dict'|'state_dict' .*ema"):
            fastrnn.load(path)
        found = fastrnn.load(path, prefix="state_dict")
        np.testing.assert_array_equal(found.weight_hh_l0, rnn.weight_hh_l0.detach())
        return
    found = fastrnn.load(path)
    given = found.parameters()
    np.testing.assert_array_equal(given["layers.0.weight_hh_l0"], rnn.weight_hh_l0.detach())
    if form != "loose embedding":
        np.testing.assert_array_equal(given["head.weight"], head.weight.detach())
        np.testing.assert_array_equal(given["head.bias"], head.bias.detach())
    if form != "loose head":
        np.testing.assert_array_equal(given["embedding.weight"], embed.weight.detach())
    assert found.unused == ()


@with_torch
def test_what_has_no_weights_beside_a_state_dict_changes_no_name(tmp_path):
    import torch

    net = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(4, 5), "fc": torch.nn.Linear(5, 3)})
    torch.save({"state_dict": net.state_dict(), "mean": torch.ones(3), "losses": torch.ones(9),
                "hyper_parameters": {"pos_weight": torch.ones(4)}}, tmp_path / "m.pt")
    assert type(fastrnn.load(tmp_path / "m.pt")) is SequenceModel
    assert type(fastrnn.load(tmp_path / "m.pt", prefix="rnn")) is LSTM


@with_torch
@pytest.mark.parametrize("name", ["m.safetensors", "m.keras", "m.onnx", "m.dat"])
def test_the_content_says_that_a_file_is_pytorchs(tmp_path, name):
    fastrnn.save(LSTM(3, 4, seed=0), tmp_path / "m.pt")
    (tmp_path / "m.pt").rename(tmp_path / name)
    assert type(fastrnn.load(tmp_path / name)) is LSTM


# ---- suffixes ------------------------------------------------------------------------------------


@with_torch
@pytest.mark.parametrize("name", ["m.pt", "M.PT", "m.Pth", "m.BIN"])
def test_capitals_of_a_suffix_do_not_matter(tmp_path, name):
    import torch

    path = tmp_path / name
    layer = GRU(2, 3, seed=0)
    fastrnn.save(layer, path)
    state = torch.load(path, weights_only=True)
    np.testing.assert_array_equal(state["weight_hh_l0"], layer.weight_hh_l0)
    assert type(fastrnn.load(path)) is GRU
    with pytest.raises(ValueError, match=f"notes is given for '{name}'"):
        fastrnn.save(layer, path, {"a": 1})


def test_capitals_of_other_suffixes(tmp_path):
    model = SequenceModel(GRU(1, 3, seed=0), 1, loss="mse", seed=0)
    with pytest.raises(ValueError, match=r"'M.H5', expected another suffix"):
        fastrnn.save(model, tmp_path / "M.H5")
    fastrnn.save(model, tmp_path / "M.JSON")
    assert (tmp_path / "M.JSON").read_bytes().lstrip().startswith(b"{")


def test_convert_refuses_a_suffix_that_it_does_not_know(tmp_path, capsys):
    fastrnn.save(GRU(2, 3, seed=0), tmp_path / "m")
    for name in ("m.onx", "m.pkl", "m.H5"):
        assert cli.main(["convert", str(tmp_path / "m"), str(tmp_path / name)]) == 1
        assert f"{name}', expected a name that ends with one of .safetensors, .pt, .pth, .bin, " \
            ".onnx, .json\n" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "m"), str(tmp_path / "M.SafeTensors")]) == 0
    assert type(fastrnn.load(tmp_path / "M.SafeTensors")) is GRU


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", b"\x80\x04]q\x00.", b"\x7fELF"])
def test_a_file_that_is_no_model(tmp_path, content):
    (tmp_path / "m.dat").write_bytes(content)
    with pytest.raises(ValueError, match=r"m.dat' is not a model of fastrnn: its content is none "
                                         r"of what can be loaded: safetensors, a file of PyTorch"):
        fastrnn.load(tmp_path / "m.dat")
