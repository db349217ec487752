"""What tests of damaged files share: ways to take a file apart and put it together again."""

import json


def check(path, data, read, refused=False):
    """Read a file with every reader; an error must be one sentence that names it."""
    path.write_bytes(data)
    for name, call in read.items():
        said = None
        try:
            call()
        except (ValueError, MemoryError) as error:  # anything else fails the test
            said = str(error)
        assert said is None or (str(path) in said and "\n" not in said), (name, said)
        assert said is not None or not refused, name


HOSTILE = [  # what stands in a value's place
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 2**64, 2**200, 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "5", "x" * 1000, "\ud800", [], [[]], [0], {}, {"a": 1},
    ["GRU"], {"layer": "GRU"}, "GRU", "SequenceModel", "EncoderDecoder", "PCG64", "MT19937",
]


def places(tree, at=()):
    """Yield the way to every value in a tree of JSON."""
    yield at
    branches = tree.items() if isinstance(tree, dict) else (
        enumerate(tree) if isinstance(tree, list) else ())
    for key, branch in branches:
        yield from places(branch, (*at, key))


def value_at(tree, at):
    for key in at:
        tree = tree[key]
    return tree


def changed(tree, at, value):
    """Return a tree with another value in one place."""
    if not at:
        return value
    copy = list(tree) if isinstance(tree, list) else dict(tree)
    copy[at[0]] = changed(tree[at[0]], at[1:], value)
    return copy


def without(tree, at):
    copy = list(tree) if isinstance(tree, list) else dict(tree)
    if len(at) == 1:
        del copy[at[0]]
    else:
        copy[at[0]] = without(tree[at[0]], at[1:])
    return copy


def split(data):
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    about = json.loads(header.pop("__metadata__")["fastrnn"])
    return header, about, data[end:]


def join(header, about, arrays):
    text = about if isinstance(about, str) else json.dumps(about)
    if isinstance(header, dict):
        header = {"__metadata__": {"fastrnn": text}} | header
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + arrays


def config_with(data, **changes):
    header, about, arrays = split(data)
    return join(header, about | {"config": about["config"] | changes}, arrays)
