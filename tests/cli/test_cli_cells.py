"""`fastrnn cells`: the zoo, one of its cells, and files with equations."""

import re

import pytest

from fastrnn import Layer, cells, cli
from fastrnn.cli.cells import options

GOOD = """\
# a cell of everything
size P = H // 2
size Q = 3 * 2
constant alpha = 0.5
learned gain = 1
learned p[Q] = normal(0, alpha)
weight U = orthogonal
weight V = antisymmetric(alpha)
fixed R = sparse(0.1, 0.9)
a, z = W x + U h + b
q = K x + p
r = R r + V (gain * a) + M q
h[P] = T (dropout(alpha) * tanh(r) * sigmoid(z))
"""


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a file with equations, and returns its name."""
    def write(text, name="mine.cell"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_the_list_has_every_cell(capsys):
    assert cli.main(["cells"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines[1:lines.index("")]]
    zoo = cells.definitions()
    assert shown == list(zoo)
    for line, definition in zip(lines[1:], zoo.values(), strict=False):
        assert f"  {', '.join(state.name for state in definition.states)}  " in line
        if definition.paper:
            assert definition.paper[:20] in line
    name, number = next((line.split()[0], re.search(r" ([\d,]+)  ", line)[1]) for line in lines[1:])
    assert f"{Layer(zoo[name], 128, 128).num_parameters:,}" == number
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("name", cells.definitions())
def test_a_cell_of_the_zoo(name, capsys):
    assert cli.main(["cells", name]) == 0
    out = capsys.readouterr().out
    definition = cells.definitions()[name]
    assert out.splitlines()[0] == f"{name}: {definition.paper}" if definition.paper else name
    shown = re.search(r"\n\n((?:    .*\n|\n)+)\nstates", out)[1]
    assert shown.split() == definition.text.split()
    for known in (*definition.sizes, *definition.constants):
        assert re.search(rf"^(sizes|constants| ) +{known} = \S", out, re.M)
    for matrix in definition.weights:
        assert re.search(rf"^(weights| ) +{matrix} \(", out, re.M)
    assert re.search(r"^parameters +[\d,]+ for I = H = 128", out, re.M)


def test_capitals_do_not_matter_and_a_wrong_name_has_a_hint(capsys):
    name = next(iter(cells.ZOO))
    assert cli.main(["cells", name.lower()]) == 0
    capsys.readouterr()
    assert cli.main(["cells", name + "x"]) == 1
    assert capsys.readouterr().err == (
        f"fastrnn cells: the zoo has no cell {name + 'x'!r}; did you mean {name!r}?\n")
    assert cli.main(["cells", "nothing-like-it"]) == 1
    assert capsys.readouterr().err == ("fastrnn cells: the zoo has no cell 'nothing-like-it'; "
                                       "`fastrnn cells` lists those it has\n")
    assert cli.main(["cells", "gru"]) == 1
    assert capsys.readouterr().err == (
        "fastrnn cells: 'gru' is the layer fastrnn.GRU, whose kernels are written by hand, "
        "expected a cell that is made from equations\n")


def test_what_a_file_says(written, capsys):
    assert cli.main(["cells", "--file", written(GOOD)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    head, facts = out.split("\n\nstates")
    assert head == "mine\n\n" + "\n".join(f"    {line}" for line in GOOD.splitlines())
    facts = "states" + facts
    assert facts.split("parameters")[0] == """\
states      h (P)
            r (H)
output      h (P)
sizes       P = H // 2
            Q = 6
constants   alpha = 0.5
weights     W (2*H, I)
            U (2*H, P), initially orthogonal
            K (Q, I)
            R (H, H), initially sparse(0.1, 0.9), not learned
            V (H, H), antisymmetric(alpha)
            M (H, Q)
            T (P, H)
vectors     b (2*H), bias
            p (Q), initially normal(0, alpha)
            gain (H), initially 1
masks       dropout of H units, drawn each step
"""
    learned = 256 * 128 + 256 * 64 + 6 * 128 + 128 * 128 + 128 * 6 + 64 * 128 + 256 + 6 + 128
    assert f"{learned:,} for I = H = 128, and 16,384 that are not learned" in facts
    kept = re.search(r"([\d,]+) numbers kept for backward, of each step and sequence", facts)
    assert 2 * 128 <= int(kept[1].replace(",", "")) < 20 * 128


def test_the_options_that_a_layer_takes():
    definition = cells.cell(GOOD)
    assert options(definition) == ["P = H // 2", "Q = 6", "alpha = 0.5"]
    assert options(cells.definitions()["MGU"]) == []


def test_what_a_cell_needs_is_said(written, capsys):
    assert cli.main(["cells", "--file", written("weight U = blocks(3)\nh = tanh(x + U h)")]) == 0
    out = capsys.readouterr().out
    assert "sizes       I = H, as values of both widths meet\n" in out
    assert re.search("^parameters  not counted for I = H = 128: H is 128, expected a multiple of 3",
                     out, re.M)


def test_a_wrong_file_is_shown_with_its_caret(written, capsys, command):
    path = written("a, z = W x + U h + b\nh = z * h + (1 - z) * tanhh(a)\n")
    expected = (f"fastrnn cells: {path}: 'tanhh' is no function, and a matrix of this name needs: "
                "weight tanhh; did you mean 'tanh'? (line 2, column 23)\n"
                "    h = z * h + (1 - z) * tanhh(a)\n" + " " * 26 + "^\n")
    assert cli.main(["cells", "--file", path]) == 2
    assert capsys.readouterr() == ("", expected)
    done = command("cells", "--file", path)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", expected)


@pytest.mark.parametrize(("text", "status", "match"), [
    ("", 2, "the definition is empty"), ("\n# nothing\n", 2, "the definition has no equation"),
    (b"\xef\xbb\xbfh = tanh(W x + U h)\r\n", 0, ""), (b"h = \xff", 1, "is not UTF-8 text"),
    (b"h = W x + \0h", 2, "unexpected character"), ("h = \u2212x", 2, "unexpected character"),
    ("h = W x + h #" + " " * 100_000, 2, "has 100,?013 characters, expected at most"),
    (b"h" * 400_001, 1, "has more than 400,000 bytes, expected equations"),
], ids=str)
def test_any_file_is_read_or_refused(text, status, match, written, capsys):
    assert cli.main(["cells", "--file", written(text)]) == status
    out, err = capsys.readouterr()
    assert re.search(match, err)
    assert bool(out) == (status == 0)
    assert "Traceback" not in err


def test_files_that_cannot_be_read(tmp_path, capsys):
    for name, match in (("nowhere", "No such file"), ("", "Is a directory")):
        assert cli.main(["cells", "--file", str(tmp_path / name)]) == 1
        assert match in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["cells", "--file", ""])
    assert "it is empty, expected a file" in capsys.readouterr().err
    assert cli.main(["cells", "GRU", "--file", "f"]) == 1
    assert "'GRU' and --file are given, expected one of them" in capsys.readouterr().err
