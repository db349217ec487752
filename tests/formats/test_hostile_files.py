"""Files that are cut off, damaged or made to do harm: one error that names the file."""

import errno
import itertools
import json
import os
import random
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from damage import HOSTILE, changed, check, config_with, join, places, split, value_at, without

import fastrnn
from fastrnn import GRU, LanguageModel, SequenceModel, optim
from fastrnn.training import History, checkpoint

MUTATIONS = 2000


def bytes_of(tmp_path, what):
    """Return a small file: a model's, or a checkpoint."""
    path = tmp_path / "whole"
    if what == "model":
        fastrnn.save(LanguageModel(5, 2, 3, seed=0), path, {"why": "a test"})
    else:
        model, optimizer = run_of()
        state = (np.ones((2, 1, 3), np.float32),)
        history = History([1.0, 2.0], [3.0, 4.0], [0.1, 0.1], 1.0, [1, 2], [(2, 0.5)])
        history.progress.steps = 2
        checkpoint.save(path, model, optimizer, 0.1, state, history, {"seed": 0, "lr": 0.1})
    return path.read_bytes()


def run_of():
    model = SequenceModel(GRU(2, 3, 2, dropout=0.5, seed=0), 1, loss="mse", seed=0)
    return model, optim.Adam(model, 0.1)


def values_of(model, optimizer):
    return ([part.flat.tobytes() for part in model.parts().values()], model.dropout_state,
            [a.tobytes() for a in optimizer.state_dict().values()], optimizer.lr)


def readers(path):
    """Return what reads files, each a function of nothing."""
    model, optimizer = run_of()
    before = values_of(model, optimizer)

    def resume():
        nonlocal model, optimizer
        try:
            checkpoint.load(path, model, optimizer)
        except BaseException:
            assert values_of(model, optimizer) == before  # nothing is half loaded
            raise
        model, optimizer = run_of()

    return {"load": lambda: fastrnn.load(path), "resume": resume,
            "history": lambda: checkpoint.history(path)}


@pytest.mark.parametrize("what", ["model", "checkpoint"])
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, what):
    data = bytes_of(tmp_path, what)
    path = tmp_path / "cut"
    read = readers(path)
    for n in range(0, len(data), {"model": 1, "checkpoint": 5}[what]):
        check(path, data[:n], read, refused=True)
    check(path, data + b"\0", read, refused=True)


@pytest.mark.parametrize("what", ["model", "checkpoint"])
@pytest.mark.filterwarnings("ignore:.*dropout works between layers")
def test_random_bytes_in_a_file_raise_nothing_else(tmp_path, what):
    rng = random.Random(1)
    data = bytes_of(tmp_path, what)
    end = 8 + int.from_bytes(data[:8], "little")  # of the header
    path = tmp_path / "mutated"
    read = readers(path)
    for _ in range(MUTATIONS):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(min(end + 20 if rng.random() < 0.95 else len(data), len(changed)))
            kind = rng.randrange(4)
            if kind == 0:
                changed[at] = rng.randrange(256)
            elif kind == 1:
                changed[at] = rng.choice(b'0123456789-eE.{}[]",:ntf\\')
            elif kind == 2:
                del changed[at : at + rng.choice((1, 2, 8))]
            else:
                changed[at:at] = rng.choice((b"0", b"9" * 30, b"[" * 5000, b"\xff", b"null", b"-"))
        if rng.random() < 0.5:  # let the header's length fit again
            size = len(changed) - len(data) + end - 8
            changed[:8] = size.to_bytes(8, "little")
        check(path, bytes(changed), read)


@pytest.mark.parametrize("what", ["model", "checkpoint"])
@pytest.mark.filterwarnings("ignore:.*dropout works between layers")
def test_every_value_of_the_json_replaced_by_others(tmp_path, what):
    header, about, arrays = split(bytes_of(tmp_path, what))
    path = tmp_path / "mutated"
    read = readers(path)
    rng, count = random.Random(2), {"model": len(HOSTILE), "checkpoint": 8}[what]
    for tree, put in ((header, lambda h: join(h, about, arrays)),
                      (about, lambda a: join(header, a, arrays))):
        for at in places(tree):
            if at:
                check(path, put(without(tree, at)), read)
            for value in rng.sample(HOSTILE, count):
                check(path, put(changed(tree, at, value)), read)


@pytest.mark.filterwarnings("ignore:.*dropout works between layers")
def test_a_small_file_that_claims_any_size_takes_no_memory(tmp_path):
    header, about, arrays = split(bytes_of(tmp_path, "checkpoint"))
    path = tmp_path / "mutated"
    read = readers(path)
    config = about["config"]
    numbers = [at for at in places(config) if isinstance(value_at(config, at), int)]
    tracemalloc.start()
    try:
        for at in numbers:
            for value in (10**4, 10**7, 10**9, 2**63, 10**400):
                claimed = changed(config, at, value)
                check(path, join(header, about | {"config": claimed}, arrays), read)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_json_that_breaks_parsers(tmp_path):
    header, about, arrays = split(bytes_of(tmp_path, "checkpoint"))
    path = tmp_path / "mutated"
    read = readers(path)
    depth = 100_000
    text = json.dumps(about)
    deep = "[" * depth + "]" * depth
    twice = json.dumps({"__metadata__": {"fastrnn": text}} | header)
    for data in (
        join(header, deep, arrays),
        join(header, '{"a":' * depth + "0" + "}" * depth, arrays),
        join(deep.encode(), "", arrays),
        join(header, text.replace('"state": [', f'"state": {deep}, "other": ['), arrays),
        join(header, text.replace('"format": 3', '"format": ' + "3" * 10_000), arrays),
        join(json.dumps(header).encode("utf-16"), "", arrays),
        join(twice[:-1].encode() + b',"head.bias":{}}', "", arrays),
        join(b"\xff\xfe", "", arrays), join(b"", "", arrays), join(b"null", "", arrays),
        (2**62).to_bytes(8, "little"), (2**63).to_bytes(8, "little") + arrays, b"\xff" * 16,
    ):
        check(path, data, read, refused=True)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_size": 10**9}, "its arrays have 114 numbers"),
        ({"hidden_size": 10**300}, "its arrays have 114 numbers"),
        ({"num_layers": 10**9}, "parameters in 1000000000 layers"),
        ({"vocab_size": 10**7}, "its arrays have 114 numbers"),
        ({"embedding_size": 14, "hidden_size": 14}, "its arrays have 114 numbers"),
        ({"cell": "elman"}, "elman"), ({"more": 1}, "unexpected keyword argument 'more'"),
        ({"seed": 1}, "multiple values for keyword argument 'seed'"),
        ({"vocab_size": "5"}, "vocab_size is '5'"), ({"hidden_size": 3.0}, "hidden_size is 3.0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"dtype": "float64"}, "is float32 .*, expected float64"),
        ({"dtype": "int8"}, "expected float32 or float64"),
        ({"characters": "abc"}, "vocab_size is 5 with characters"),
        ({"characters": "abc", "vocab_size": 3},
         r"embedding.weight is float32 \(5, 2\), expected .*\(3, 2\)"),
        ({"cell": "gru"}, r"\(12, 2\), expected float32 \(9, 2\)"),
    ],
)
def test_a_configuration_that_does_not_fit_its_file(tmp_path, changes, match):
    data = bytes_of(tmp_path, "model")
    path = tmp_path / "m"
    path.write_bytes(config_with(data, **changes))
    with pytest.raises(ValueError, match=match) as raised:
        fastrnn.load(path)
    assert str(raised.value).startswith(f"load: {str(path)!r} is not a model of fastrnn: ")


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([{"layer": "GRU", "input_size": 2, "hidden_size": 5000}], "numbers"),
        ([{"layer": "GRU", "input_size": 10**5, "hidden_size": 3}], "numbers"),
        ([{"layer": "GRU", "input_size": 2, "hidden_size": 3, "num_layers": 50}], "50 layers"),
        ([{"layer": "GRU", "input_size": 2, "hidden_size": 3}] * 50, "50 layers"),
        ([{"layer": "RNN", "nonlinearity": "step", "input_size": 2, "hidden_size": 3}], "rnn_step"),
        ([{"layer": "Linear", "input_size": 2, "hidden_size": 3}], "linear"),
        ([{"input_size": 2, "hidden_size": 3}], "lacks 'layer'"), ([], "not enough values"),
    ],
)
def test_layers_that_do_not_fit_their_file(tmp_path, layers, match):
    path = tmp_path / "m"
    fastrnn.save(SequenceModel(GRU(2, 3, seed=0), 1, seed=0), path)
    filled = [{"num_layers": 1} | layer for layer in layers]
    for changes in ({"layers": filled}, {"output_size": 10**9}, {"context_size": 10**9},
                    {"vocab_size": 10**9}):
        path.write_bytes(config_with(path.read_bytes(), **changes))
        with pytest.raises(ValueError, match=match if "layers" in changes else "numbers"):
            fastrnn.load(path)
        fastrnn.save(SequenceModel(GRU(2, 3, seed=0), 1, seed=0), path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h, a: a.pop("format"), "it lacks 'format'"),
        (lambda h, a: a.update(format=2), "its format is 2, expected 3"),
        (lambda h, a: a.update(model="Elman"), "model is 'Elman', expected one of"),
        (lambda h, a: a.pop("config"), "it lacks 'config'"),
        (lambda h, a: h.update({"head.bios": h.pop("head.bias")}),
         r"missing \['head.bias'\]; unexpected \['head.bios'\]"),
        (lambda h, a: h["head.bias"].update(dtype="I32"), "is int32 .*, expected float32"),
        (lambda h, a: h["head.bias"].update(dtype="BF16"), "'head.bias' are not where"),
        (lambda h, a: h["head.bias"].update(dtype="F9"), "'head.bias' is 'F9', expected"),
        (lambda h, a: h["head.bias"].update(dtype="F8_E4M3"), "'head.bias' are not where"),
        (lambda h, a: h["head.bias"].update(dtype="F4", shape=[40]), r"\(40,\), expected float32"),
        (lambda h, a: h["head.bias"].update(shape=[1, 5]), r"\(1, 5\), expected float32 \(5,\)"),
        (lambda h, a: h["head.bias"].update(data_offsets=[0, 20]), "not where they should be"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path, change, match):
    header, about, arrays = split(bytes_of(tmp_path, "model"))
    header = {"__metadata__": {"fastrnn": None}} | header
    change(header, about)
    if "__metadata__" in header:
        header["__metadata__"] = {"fastrnn": json.dumps(about)}
    raw = json.dumps(header).encode()
    path = tmp_path / "m"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + arrays)
    with pytest.raises(ValueError, match=match):
        fastrnn.load(path)


@pytest.mark.parametrize("metadata", [None, 3, [], {"fastrnn": 3}, {"more": {}}], ids=str)
def test_metadata_that_are_not_strings(tmp_path, metadata):
    header, about, arrays = split(bytes_of(tmp_path, "model"))
    known = {"fastrnn": json.dumps(about)}
    header["__metadata__"] = known | metadata if isinstance(metadata, dict) else metadata
    (tmp_path / "m").write_bytes(join(json.dumps(header).encode(), "", arrays))
    with pytest.raises(ValueError, match="is not a safetensors file: its metadata are not strings"):
        fastrnn.load(tmp_path / "m")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "m"
    fastrnn.save(GRU(20, 30, seed=0), path)
    program = (
        "import os, sys, fastrnn\n"
        "from fastrnn.formats import safetensors\n"
        "read = safetensors.File.read_into\n"
        "def shrink(self, name, array):\n"
        "    os.truncate(self.path, 3000)\n"
        "    read(self, name, array)\n"
        "safetensors.File.read_into = shrink\n"
        "try: fastrnn.load(sys.argv[1])\n"
        "except ValueError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", program, str(path)], text=True,
                          capture_output=True, timeout=60)
    assert done.stdout.endswith("is not a model of fastrnn: it ends too early\n"), done.stderr


def test_a_file_that_shrinks_before_its_header_is_read(tmp_path, monkeypatch):
    path, stat = tmp_path / "m", os.fstat
    fastrnn.save(GRU(2, 3, seed=0), path)

    def shrink(handle):
        found = stat(handle)
        os.truncate(path, 20)
        return found

    monkeypatch.setattr(os, "fstat", shrink)
    with pytest.raises(ValueError, match="m' is not a safetensors file: it ends too early"):
        fastrnn.load(path)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no /proc/self/mem")
def test_a_disk_that_fails_is_no_damage_of_the_file():
    """The first page of a process is never there: reading it is an error of the system."""
    with pytest.raises(OSError, match=r"'/proc/self/mem'$") as raised:
        fastrnn.load("/proc/self/mem")
    assert (raised.value.errno, raised.value.filename) == (errno.EIO, "/proc/self/mem")


def test_arrays_that_overlap_or_leave_gaps_are_refused(tmp_path):
    header, about, arrays = split(bytes_of(tmp_path, "model"))
    path = tmp_path / "m"
    for name, (begin, end) in itertools.product(header, [(0, 4), (-4, 0), (4, 0), (8, 2**70)]):
        path.write_bytes(join(changed(header, (name, "data_offsets"), [begin, end]), about, arrays))
        with pytest.raises(ValueError, match="is not a safetensors file"):
            fastrnn.load(path)
