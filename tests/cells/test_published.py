"""Cells from the literature against packages that others have published; skipped where missing.

Parameters go into a package's module by torch.func.functional_call, so that gradients go through it
too. LEM of torchrecurrent is left out: its y sees the old z, and the paper's the new one.
Letters: T steps, B batch, I input, H hidden.
"""

import importlib
import warnings

import loops
import numpy as np
import pytest

from fastrnn.cells import cell, literature

torch = pytest.importorskip("torch")
call = torch.func.functional_call
I, H = 3, 8


def package(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name}: {error}")


def check(name, step, definition=None, sizes=(I, H), **options):
    layer = loops.make(definition or getattr(literature, name), *sizes, **options)
    given = loops.drawn(layer, 5, 4)
    if name == "minGRU":
        given[1][0][:] = np.abs(given[1][0])
    loops.assert_equal(layer, loops.run(layer, *given), loops.unrolled(layer, step, *given))


# ---------------------------------------------------------------------------- torchrecurrent


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


def renamed(p, *, W="W", U="U", b="b", hh=None):
    """Return the parameters that the cells of torchrecurrent have, with one bias in two."""
    b = p[b]
    return {"weight_ih": p[W], "weight_hh": p[U], "bias_ih": b,
            "bias_hh": zeros(len(b) if hh is None else hh)}


def swapped(p):
    """Return two blocks the other way round."""
    return {name: torch.cat(a.chunk(2)[::-1]) for name, a in p.items()}


@pytest.mark.parametrize(("ours", "theirs", "theirs_of", "options", "both"), [
    ("MGU", "MGUCell", lambda p: renamed(
        {**p, "U": torch.cat([p["U_f"], p["U_g"]])}), {}, {}),
    ("UGRNN", "UGRNNCell", lambda p: swapped(renamed(p)), {"forget": 0}, {}),
    ("IndRNN", "IndRNNCell", lambda p: {
        "weight_ih": p["W"], "vector_u": p["u"], "bias_ih": p["b"], "bias_hh": zeros(H)}, {}, {}),
    ("FastRNN", "FastRNNCell", lambda p: renamed(p) | {"alpha": p["alpha"], "beta": p["beta"]},
     {}, {}),
    ("FastGRNN", "FastGRNNCell", lambda p: renamed(
        {**p, "b": torch.cat([p["b_z"], p["b_g"]])}) | {"zeta": p["zeta"], "nu": p["nu"]}, {}, {}),
    ("AntisymmetricRNN", "AntisymmetricRNNCell", renamed, {}, {"epsilon": 0.4, "gamma": 0.3}),
    ("GatedAntisymmetricRNN", "GatedAntisymmetricRNNCell", lambda p: renamed(p, hh=H), {},
     {"epsilon": 0.4, "gamma": 0.3}),
])
def test_a_cell_with_one_state_is_torchrecurrents(ours, theirs, theirs_of, options, both):
    kind = getattr(package("torchrecurrent"), theirs)
    phi = {"IndRNN": {"nonlinearity": "relu"}, "FastGRNN": {"nonlinearity": "sigmoid"}}  # the gate
    module = kind(I, H, dtype=torch.float64, **both, **phi.get(ours, {}))

    def step(p, x, states):
        h = call(module, theirs_of(p), (x, states[0]))
        return h, (h,)

    check(ours, step, **options, **both)


def test_janet_is_torchrecurrents():
    module = package("torchrecurrent").JANETCell(I, H, dtype=torch.float64)

    def step(p, x, states):
        joined = {name: torch.cat([p[f"{name}_f"], p[f"{name}_g"]]) for name in "WUb"}
        beta = torch.tensor(0.8, dtype=torch.float64)
        h, _ = call(module, renamed(joined) | {"beta": beta}, (x, (states[0], states[0])))
        return h, (h,)

    check("JANET", step, beta=0.8)


def test_cornn_is_torchrecurrents():
    constants = {"dt": 0.2, "gamma": 1.1, "epsilon": 0.7}
    module = package("torchrecurrent").coRNNCell(I, H, dtype=torch.float64, **constants)

    def step(p, x, states):
        parameters = {"weight_ih": p["V"], "weight_hh": p["W"], "weight_ch": p["U"],
                      "bias_ih": p["b"], "bias_hh": zeros(H), "bias_ch": zeros(H)}
        y, z = call(module, parameters, (x, states))
        return y, (y, z)

    check("coRNN", step, **constants)


# ---------------------------------------------------------------------------- others


@pytest.mark.parametrize(("ours", "theirs"), [
    ("BRC", "BistableRecurrentCell"), ("nBRC", "NeuromodulatedBistableRecurrentCell")])
def test_bistable_cells_are_brc_pytorchs(ours, theirs):
    module = getattr(package("brc_pytorch.layers"), theirs)(I + 1, H).double()

    def step(p, x, states):
        # theirs has no bias in the candidate: an input that is 1 stands for the biases
        parameters = {"bz": zeros(H), "br": zeros(H)}
        for gate, w, bias in zip("rzh", p["W"].chunk(3), p["b"].chunk(3), strict=True):
            parameters[f"kernel{gate}"] = torch.cat([w.T, bias[None]])
        recurrent = (p["p_a"], p["p_z"]) if ours == "BRC" else (u.T for u in p["U"].chunk(2))
        parameters |= dict(zip(("memoryr", "memoryz"), recurrent, strict=True))
        one = torch.ones_like(x[:, :1])
        h = call(module, parameters, (torch.cat([x, one], -1), states[0]))
        return h, (h,)

    check(ours, step)


def test_cfc_is_ncpss():
    module = package("ncps.torch.cfc_cell").CfCCell(I, H, backbone_units=11).double()

    def step(p, x, states):
        parameters = {"backbone.0.weight": torch.cat([p["W"], p["U"]], -1),
                      "backbone.0.bias": p["b"]}
        for name, weight, bias in zip(("ff1", "ff2", "time_a", "time_b"), p["V"].chunk(4),
                                      p["b_v"].chunk(4), strict=True):
            parameters |= {f"{name}.weight": weight, f"{name}.bias": bias}
        h, _ = call(module, parameters, (x, states[0], 0.7))
        return h, (h,)

    check("CfC", step, N=11, dt=0.7)


def test_min_gru_is_mingru_pytorchs():
    """The package has the form for logarithms, whose candidate the text names, and no biases."""
    module = package("minGRU_pytorch").minGRU(I, expansion_factor=1, proj_out=False).double()
    text = literature.minGRU.text.replace(
        "z * ag", "z * where(ag >= 0, ag + 0.5, sigmoid(ag))")
    assert "where(ag >= 0, ag + 0.5, sigmoid(ag))" in literature.minGRU.text  # as it says

    def step(p, x, states):
        weight = torch.cat(p["W"].chunk(2)[::-1])
        parameters = {"to_hidden_and_gate.weight": weight}
        h = call(module, parameters, (x[:, None], states[0][:, None]))[:, 0]
        return h, (h,)

    check("minGRU", step, cell(text), bias=False)


def test_slstm_is_xlstms():
    """The step after the products; the start too, where n is 0 in every unit."""
    pointwise = package("xlstm.blocks.slstm.src.vanilla.slstm").slstm_forward_pointwise

    def product(x, W, W_f):  # in their order of gates: i f z o
        i, g, o = (x @ W.T).chunk(3, -1)
        return torch.cat([i, x @ W_f.T, g, o], -1)

    def step(p, x, states):
        U, U_f = (torch.stack([torch.block_diag(*gate.reshape(2, H // 2, H // 2))
                               for gate in a.chunk(n)]).flatten(0, 1)
                  for a, n in ((p["U"], 3), (p["U_f"], 1)))
        i, g, o = p["b"].chunk(3)
        b = torch.cat([i, p["b_f"], g, o])
        new, _ = pointwise(product(x, p["W"], p["W_f"]), product(states[0], U, U_f), b[None],
                           torch.stack(states), {})
        return new[0], tuple(new)

    layer = loops.make(literature.sLSTM, I, H, heads=2)
    for start in (0, 1):
        x, states, dy, final = loops.drawn(layer, 5, 4)
        states = [start * a for a in states]
        states[2] = np.abs(states[2]) + 0.5 * start
        loops.assert_equal(layer, loops.run(layer, x, states, dy, final),
                           loops.unrolled(layer, step, x, states, dy, final))


@pytest.mark.parametrize(("ours", "sizes"), [("SRU", (H, H)), ("ProjectedSRU", (I, H))])
def test_sru_is_its_authors(ours, sizes):
    module = package("sru").SRUCell(*sizes, rescale=True).double()
    scale = torch.tensor([3.0], dtype=torch.float64).sqrt()  # theirs is rounded to float32
    np.testing.assert_allclose(module.scale_x, scale, 1e-7)

    def step(p, x, states):
        blocks = [*p["W"].chunk(len(p["W"]) // H)]
        blocks[1:1] = p["W_r"].chunk(2)
        weight = torch.stack([a.T for a in blocks], -1).flatten(1)  # (I, H * blocks)
        parameters = {"weight": weight, "bias": p["b"], "scale_x": scale,
                      "weight_c": torch.cat([p["p_f"], p["p_r"]])}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a processor is slow
            h, c = call(module, parameters, (x[None], states[0]))
        return h[0], (c,)

    # with I other than H theirs has alpha in the first values of the weights
    check(ours, step, sizes=sizes, **({} if ours == "SRU" else {"alpha": 1.0}))


def test_leaky_units_are_reservoirpys():
    nodes = package("reservoirpy.nodes")
    layer = loops.make(literature.LeakyESN, I, H, gamma=0.35)
    W, U = (layer.parameters()[f"{name}_l0"] for name in "WU")
    node = nodes.Reservoir(W=np.array(U), Win=np.array(W), bias=np.zeros(H), lr=0.35)
    x = np.random.default_rng(0).normal(size=(9, I))
    np.testing.assert_allclose(layer(x)[0], node.run(x), 1e-12)
