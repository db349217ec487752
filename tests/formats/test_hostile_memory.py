"""Files made to take many times their size of memory: a byte of them could become an object."""

import json
import re
import tracemalloc
import zipfile

import pytest

import fastrnn

SIZE = 20_000_000
MORE = 16e6


def safetensors(header):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw


def config_of(about):
    return safetensors({"__metadata__": {"fastrnn": about}})


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def many_members(path):
    """Write an archive with a long directory; what it names is all at the same place."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", b"")
    data = path.read_bytes()
    at = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    count = SIZE // (end - at)
    directory = data[at:end] * count
    path.write_bytes(data[:at] + directory + data[end : end + 8]
                     + min(count, 65535).to_bytes(2, "little") * 2
                     + len(directory).to_bytes(4, "little") + at.to_bytes(4, "little") + b"\0\0")


def text(data):
    return lambda path: path.write_bytes(data)


ROW = b"0.5," * (SIZE // 4)
FILES = {
    "tensors": ("m", lambda p: p.write_bytes(safetensors(
        {f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(300_000)}))),
    "lists in the header": ("m", text(safetensors(b'{"a":[' + b"[]," * (SIZE // 3) + b"0]}"))),
    "lists in the configuration": ("m", text(config_of("[" + "[]," * (SIZE // 3) + "0]"))),
    "escaped lists": ("m", text(config_of("[" + "{}," * 3_000_000 + "0]"))),
    "lists of JSON": ("m.json", text(b'{"layers":[' + b"[]," * (SIZE // 3) + b"[]]}")),
    "words of JSON": ("m.json", text(b'{"layers":[' + b"null," * (SIZE // 5) + b"0]}")),
    "numbers beside others": ("m.json", text(b'{"layers":[' + ROW + b"null]}")),
    "short numbers": ("m.json", text(b'{"in_shape":[1],"layers":[' + b"0," * (SIZE // 2) + b"0]}")),
    "a long row": ("m.json", text(b'{"in_shape":[1],"layers":[' + b"0.5123," * (SIZE // 7)
                                  + b"0]}")),
    "a name": ("m.json", text(b'{"' + b"a" * SIZE + b'":0}')),
    "lists in a pickle": ("m.pt", lambda p: zipped(p, {
        "a/data.pkl": b"\x80\x02" + b"]" * SIZE + b".", "a/version": b"3\n"})),
    "members": ("m.keras", many_members),
    "members for torch": ("m.pt", many_members),
    "lists of Keras": ("m.keras", lambda p: zipped(p, {
        "config.json": b"[" + b"[]," * 3_000_000 + b"0]", "model.weights.h5": b""})),
}


@pytest.mark.parametrize("kind", FILES)
def test_no_file_takes_much_more_memory_than_its_size(tmp_path, kind):
    name, write = FILES[kind]
    if name.endswith(".pt"):
        pytest.importorskip("torch")
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match=re.escape(repr(str(path)))):
        fastrnn.load(path)  # imports what is needed
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(repr(str(path)))):
            fastrnn.load(path)
        assert tracemalloc.get_traced_memory()[1] <= 2 * path.stat().st_size + MORE
    finally:
        tracemalloc.stop()


def test_a_long_archive_whose_last_record_is_not_there(tmp_path):
    """The record that has the directory's length would be past the end."""
    pytest.importorskip("torch")
    path = tmp_path / "m.zip"
    zipped(path, {"a": b""})
    data = path.read_bytes()
    at = data.index(b"PK\5\6")
    for place in (len(data), len(data) + 3, 2**64 - 1):
        locator = b"PK\6\7" + bytes(4) + place.to_bytes(8, "little") + b"\1\0\0\0"
        path.write_bytes(data[:at] + locator + data[at:])
        with pytest.raises(ValueError, match=r"m.zip' is not a model of fastrnn: (?!unpack)"):
            fastrnn.load(path)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    model = fastrnn.GRU(2, 3, seed=0)
    fastrnn.save(model, tmp_path / "m", {"list": [0] * 10_000})
    with pytest.raises(ValueError, match=r"kept beside the arrays has .* too many for"):
        fastrnn.save(model, tmp_path / "m", {"list": [0] * 200_000})
    assert fastrnn.load(tmp_path / "m").hidden_size == 3


def test_a_long_history_is_read_again(tmp_path):
    """A validation after each of many steps: the text beside the arrays is most of the file."""
    from fastrnn import optim
    from fastrnn.training import History, checkpoint

    model = fastrnn.SequenceModel(fastrnn.GRU(1, 2, seed=0), 1, seed=0)
    steps = 100_000
    numbers = [0.12345678901234567] * steps
    history = History(numbers, numbers, numbers, 1.0, [], [(n, numbers[n]) for n in range(steps)])
    history.progress.steps = steps
    optimizer = optim.Adam(model)
    checkpoint.save(tmp_path / "m", model, optimizer, 1e-3, None, history, {})
    past = checkpoint.load(tmp_path / "m", model, optimizer)[0]
    assert (past.losses, past.validations) == (history.losses, history.validations)
    fastrnn.load(tmp_path / "m")
