"""The node tests that the package onnx has for every backend, of all operators that fastrnn has."""

import functools
import importlib
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx_models import load

onnx = pytest.importorskip("onnx")

RECURRENT = ("LSTM", "GRU", "RNN")
# what fastrnn refuses: training, indices of a pool, the form of Scan before opset 9
REFUSED = ("test_training_dropout", "test_batchnorm_example_training_mode",
           "test_batchnorm_epsilon_training_mode", "test_maxpool_with_argmax", "test_scan_sum")


def operators():
    names = ("onnx_operators", "OPERATORS"), ("onnx_recurrent", "RECURRENT")
    tables = (getattr(importlib.import_module(f"fastrnn.formats.{module}"), name)
              for module, name in names)
    return {"If", "Scan"}.union(*tables)


def of(info):
    """Return the number of the data type of an input or output, None if it is no tensor."""
    kind = info.type.WhichOneof("value")
    return info.type.tensor_type.elem_type if kind == "tensor_type" else None


@functools.cache
def cases():
    """Return the cases of operators and data types that fastrnn has, by name."""
    from onnx.backend.test.loader import load_model_tests

    dtypes = importlib.import_module("fastrnn.formats.onnx_nodes").DTYPES
    found, known = {}, operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package draws the data of all its tests with overflow
        every = load_model_tests(kind="node")
    for case in every:
        model = case.model or onnx.load(Path(case.model_dir, "model.onnx"))
        if ({node.op_type for node in model.graph.node} <= known
                and all(of(value) in dtypes for value in (*model.graph.input, *model.graph.output))
                and not case.name.startswith(REFUSED)):
            found[case.name] = case, model
    return found


def arrays(values):
    return [onnx.numpy_helper.to_array(a) if isinstance(a, onnx.TensorProto) else np.asarray(a)
            for a in values]


def data_of(case):
    """Return inputs and outputs of a case, which it has, or files of it."""
    if case.data_sets is not None:
        return case.data_sets
    sets = []
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        both = []
        for what in ("input", "output"):
            files = sorted(folder.glob(f"{what}_*.pb"), key=lambda p: int(p.stem.split("_")[-1]))
            both.append([onnx.load_tensor(path) for path in files])
        sets.append(both)
    return sets


def test_every_operator_has_one_and_18_are_recurrent():
    count = Counter(node.op_type for _, model in cases().values() for node in model.graph.node)
    assert sum(any(node.op_type in RECURRENT for node in model.graph.node)
               for _, model in cases().values()) == 18
    assert not operators() - count.keys()


@pytest.mark.parametrize("name", cases())
def test_a_node(name):
    case, model = cases()[name]
    made, sets = load(model.SerializeToString()), data_of(case)
    assert sets
    for inputs, outputs in sets:
        for got, expected in zip(made(*arrays(inputs)), arrays(outputs), strict=True):
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, case.rtol, case.atol)
