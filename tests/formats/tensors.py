"""Tensors with PyTorch's names, and files of them, which tests of files share."""

import importlib.util

import numpy as np
import pytest
from safetensors.numpy import save_file

import fastrnn

rng = np.random.default_rng(5)

with_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


def random(*shape, dtype=np.float32):
    return (rng.standard_normal(shape) / 2).astype(dtype)


def layer(name, kind, I, H, L=1, *, D=1, P=0, bias=True):
    """Return the tensors of a recurrent module, of asymmetric values."""
    G, tensors = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind], {}
    for number in range(L):
        for direction in ("", "_reverse")[:D]:
            end = f"_l{number}{direction}"
            tensors[f"{name}weight_ih{end}"] = random(G * H, I if number == 0 else D * (P or H))
            tensors[f"{name}weight_hh{end}"] = random(G * H, P or H)
            if bias:
                tensors[f"{name}bias_ih{end}"] = random(G * H)
                tensors[f"{name}bias_hh{end}"] = random(G * H)
            if P:
                tensors[f"{name}weight_hr{end}"] = random(P, H)
    return tensors


def linear(name, N, K):
    return {f"{name}.weight": random(N, K), f"{name}.bias": random(N)}


def load(tmp_path, tensors, **options):
    path = tmp_path / "m.safetensors"
    save_file(tensors, path)
    return fastrnn.load(path, **options)


def refused(tmp_path, tensors, match, **options):
    with pytest.raises((ValueError, TypeError), match=match) as raised:
        load(tmp_path, tensors, **options)
    assert repr(str(tmp_path / "m.safetensors")) in str(raised.value)
