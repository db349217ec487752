"""Attributes in HDF5 files of Keras: their texts are checked before HDF5 takes memory for them."""

import json
import struct
from pathlib import Path

import pytest

import fastrnn

h5py = pytest.importorskip("h5py")

WHOLE = Path(__file__).parents[1] / "fuzz" / "corpus" / "h5" / "whole"
BLOCK = 2**20  # bytes that are read at once


def attribute(name, lengths):
    """Return an attribute with texts of these lengths, as HDF5 has it in the first version."""
    kind = bytes([0x19, 1, 1, 0]) + struct.pack("<L", 16) + bytes(16)
    shape = bytes([1, 1, 0, 0, 0, 0, 0, 0]) + struct.pack("<Q", len(lengths))
    head = struct.pack("<BB3H", 1, 0, len(name) + 1, len(kind), len(shape)) + name.ljust(16, b"\0")
    return head + kind + shape + b"".join(struct.pack("<LQL", n, 0, 0) for n in lengths)


def test_attributes_that_lie_in_each_other_are_refused(tmp_path):
    """Each is read once: a file full of them would take a time that grows with its square."""
    one = attribute(b"model_config", [0] * 60_000)[:64]  # without its texts
    path = tmp_path / "m.h5"
    path.write_bytes(WHOLE.read_bytes() + one + bytes(1_200_000))
    fastrnn.load(path)  # what is behind the end is not read
    # at this distance the second one, read as texts of the first, has no long text
    path.write_bytes(WHOLE.read_bytes() + one + bytes(12) + one + bytes(1_200_000))
    with pytest.raises(ValueError, match="attributes that lie in each other"):
        fastrnn.load(path)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_text_that_is_longer_than_the_file_is_refused(tmp_path, libver):
    text = json.dumps({"class_name": "Sequential", "config": {"layers": [
        {"class_name": "Identity", "config": {"name": "a"}}]}})
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", libver=libver) as root:
        root.attrs["model_config"] = text
        root.create_group("model_weights").create_group("a")
    assert repr(fastrnn.load(path)) == "KerasModel: Identity"
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<L", len(text)), data.index(b"model_config"))
    data[at : at + 4] = struct.pack("<L", 2**31)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="it has an attribute with a text longer than the file"):
        fastrnn.load(path)


@pytest.mark.parametrize("kind", [0, 2, 3, 10, 15])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_text_of_a_kind_that_does_not_exist_is_refused(tmp_path, libver, kind):
    """HDF5 2.0 ends the process at most of these; 0 is a list of numbers."""
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", libver=libver) as root:
        root.attrs["keras_version"] = "3.12"
        root.create_group("model_weights").attrs["layer_names"] = ["a"]
    data = path.read_bytes()
    for name in (b"keras_version", b"layer_names"):
        damaged = bytearray(data)
        at = damaged.index(bytes([0x19, 1]), damaged.index(name)) + 1
        damaged[at] = kind | damaged[at] & 0xF0
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="an attribute of another type, expected a text"):
            fastrnn.load(path)


@pytest.mark.parametrize("name", [b"layer_names", b"model_config"])
def test_a_name_at_the_end_of_a_block_is_found_once(tmp_path, name):
    path, whole = tmp_path / "m.h5", WHOLE.read_bytes()
    for place in range(BLOCK - 16, BLOCK + 3):
        before = whole.ljust(place - 8, b"\0")
        path.write_bytes(before + attribute(name, [3]))
        fastrnn.load(path)  # found twice, it would lie in itself
        path.write_bytes(before + attribute(name, [2**30]))
        with pytest.raises(ValueError, match="a text longer than the file"):
            fastrnn.load(path)


def test_what_is_cut_off_behind_the_end_is_not_read(tmp_path):
    path, more = tmp_path / "m.h5", attribute(b"model_config", [3, 4])
    for count in range(len(more)):
        path.write_bytes(WHOLE.read_bytes() + more[:count])
        assert repr(fastrnn.load(path)) == "KerasModel: RNN(1, 2, batch_first=True)"


@pytest.mark.parametrize(("entries", "match"), [
    (b"", "a heap that ends too early"), (bytes(15), "a heap that ends too early"),
    (struct.pack("<HxxLQ", 1, 0, 4096), "a heap whose entries do not fit"),
    (struct.pack("<HxxLQ", 1, 0, 8) + bytes(8), "a heap that ends too early")])
def test_a_heap_that_the_file_does_not_have(tmp_path, entries, match):
    path = tmp_path / "m.h5"
    path.write_bytes(WHOLE.read_bytes() + b"GCOL\1\0\0\0" + struct.pack("<Q", 4096) + entries)
    with pytest.raises(ValueError, match=match):
        fastrnn.load(path)
