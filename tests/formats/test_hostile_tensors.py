"""Tensors with PyTorch's names that are cut off, damaged or do not fit: an error names the file."""

import numpy as np
import pytest
from damage import check
from safetensors.numpy import save_file
from tensors import layer, linear, random, refused, with_torch

import fastrnn


@pytest.mark.parametrize(("change", "match"), [
    (lambda t: t.pop("rnn.weight_hh_l0"), r"missing \['rnn.weight_hh_l0'\]"),
    (lambda t: t.pop("rnn.bias_hh_l1"), r"missing \['rnn.bias_hh_l1'\]"),
    (lambda t: t.update({"rnn.weight_ih_l1": random(15, 4)}),
     r"rnn.weight_ih_l1 is \(15, 4\), expected \(15, 5\)"),
    (lambda t: t.update({"rnn.weight_ih_l7": random(15, 5)}), r"missing \[.*l2.* and \d+ more"),
    (lambda t: t.update({"rnn.weight_ih_l99999": random(15, 5)}), "too few for 100000 layers"),
    (lambda t: t.update({"rnn.weight_hh_l0": random(16, 5)}), "expected G times H = 5 rows"),
    (lambda t: t.update({"rnn.weight_hh_l0": random(10, 5)}), "expected G times H = 5 rows"),
    (lambda t: t.update({"rnn.weight_hh_l0": random(15)}), "expected a matrix"),
    (lambda t: t.update({"rnn.weight_hh_l0": random(0, 0)}), "expected a matrix"),
    (lambda t: t.update({"rnn.weight_hh_l1": random(20, 5)}), r"\(20, 5\), expected \(15, 5\)"),
    (lambda t: t.update({"rnn.weight_hr_l0": random(2, 5)}), "G = 4 of a projected LSTM"),
    (lambda t: t.update({"rnn.weight_hr_l0": random(5, 5)}), r"expected \(P, H\)"),
    (lambda t: t.update({"rnn.weight_hh": random(15, 5)}), r"missing \['rnn.weight_ih'\]"),
    (lambda t: t.update({"fc.bias": random(4)}), r"fc.bias is \(4,\), expected \(3,\)"),
    (lambda t: t.update({"fc.bias": np.zeros(3, np.int32)}), "fc.bias has no floats"),
    (dict.clear, "has no recurrent layer"),
])
def test_tensors_that_do_not_fit(tmp_path, change, match):
    tensors = layer("rnn.", "GRU", 4, 5, 2) | linear("fc", 3, 5)
    change(tensors)
    refused(tmp_path, tensors, match)


def test_a_file_that_is_cut_off_or_changed_anywhere(tmp_path):
    path = tmp_path / "m"
    save_file(layer("r.", "GRU", 1, 2) | linear("f", 1, 2), path)
    data = path.read_bytes()
    read = {"load": lambda: fastrnn.load(path), "some": lambda: fastrnn.load(path, strict=False)}
    for n in range(len(data)):
        check(path, data[:n], read, refused=True)
    check(path, data + b"\0", read, refused=True)
    end = 8 + int.from_bytes(data[:8], "little")
    for n in range(8, end):
        for byte in (b"\0", b"9", b"x", b'"'):
            check(path, data[:n] + byte + data[n + 1:], read)


@with_torch
@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_torch_that_is_cut_off(tmp_path, old):
    import torch

    path = tmp_path / "m.pt"
    torch.save(torch.nn.GRU(1, 2).state_dict(), path, _use_new_zipfile_serialization=not old)
    data = path.read_bytes()
    for n in range(0, len(data), 7):
        check(path, data[:n], {"load": lambda: fastrnn.load(path)}, refused=True)


@with_torch
@pytest.mark.parametrize("transposed", [False, True])
def test_tensors_whose_sign_torch_keeps_apart(tmp_path, transposed):
    """PyTorch saves the numbers as they lie, and that they are to be negated."""
    import torch

    weights = torch.nn.GRU(3, 4).state_dict()
    saved = {name: -w.T.contiguous().T if transposed and w.ndim == 2 else -w
             for name, w in weights.items()}
    torch.save({name: torch._neg_view(w) for name, w in saved.items()}, tmp_path / "m.pt")
    loaded = fastrnn.load(tmp_path / "m.pt").parameters()
    for name, w in weights.items():
        np.testing.assert_array_equal(loaded[name], w.numpy())
