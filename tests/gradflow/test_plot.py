"""Pictures: what the drawn lines, bars and nodes hold. Needs matplotlib."""


import numpy as np
import pytest
from children import start

import fastrnn
from fastrnn.gradflow import GradientFlow, gradient_flow, jacobians

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from fastrnn import plot  # noqa: E402 (after the backend is chosen)

X = np.random.default_rng(0).standard_normal((9, 3, 4)).astype(np.float32)
LAYER = fastrnn.LSTM(4, 7, 2, bidirectional=True, seed=0)
FLOW = gradient_flow(LAYER, X)


@pytest.fixture(autouse=True)
def _close():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def test_gradient_norms_has_a_line_for_each_layer_and_direction():
    ax = plot.gradient_norms(FLOW)
    assert ax.get_yscale() == "log"
    lines = [line.get_ydata() for line in ax.lines]
    np.testing.assert_array_equal(lines, FLOW.batch_norms.reshape(4, 9))


def test_the_heatmap_is_units_by_steps():
    ax = plot.gradient_heatmap(FLOW, 1, 1)
    np.testing.assert_array_equal(ax.images[0].get_array(), FLOW.units[1, 1].T)


@pytest.mark.parametrize(("value", "note"), [(0.0, "0 everywhere"),
                                             (np.nan, "no finite value above 0")])
def test_a_gradient_that_is_zero_or_not_finite_can_be_drawn(value, note):
    flow = gradient_flow(LAYER, X, np.full((9, 3, 14), value, np.float32))
    heatmap, norms = plot.gradient_heatmap(flow), plot.gradient_norms(flow)
    assert heatmap.images[0].get_array().count() == 0
    assert len(norms.lines) == 4
    for ax in (heatmap, norms):
        ax.figure.canvas.draw()
        assert [text.get_text() for text in ax.texts] == [note]
    assert not plot.gradient_norms(FLOW).texts


def test_what_a_logarithmic_axis_cannot_show_is_left_out():
    norms = np.array([[[[1.0], [0.0], [np.inf], [np.nan], [4.0]]]])
    flow = GradientFlow("gru", norms=norms, units=norms.swapaxes(2, 3).reshape(1, 1, 5, 1))
    ax = plot.gradient_norms(flow)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, np.nan, np.nan, np.nan, 4])
    assert plot.gradient_heatmap(flow).images[0].get_array().count() == 2
    ax.figure.canvas.draw()
    alone = GradientFlow("gru", norms=norms[:, :, :3])
    assert plot.gradient_norms(alone).lines[0].get_marker() == "."  # a line needs two


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_flows_of_one_value_can_be_drawn(value):
    a = np.full((1, 1, 1, 1), value)
    flow = GradientFlow("rnn_tanh", norms=a, units=a, shares_ih=a[0], shares_hh=a[0],
                        saturation=np.full((1, 1, 1, 1, 2), value))
    for draw in (plot.gradient_norms, plot.gradient_heatmap, plot.shares, plot.saturation):
        draw(flow).figure.canvas.draw()


def test_jacobians_that_are_zero_can_be_drawn():
    layer = fastrnn.RNN(4, 3, seed=0)
    layer.flat = np.zeros_like(layer.flat)
    found = jacobians(layer, X)
    plot.jacobian_norms(found).figure.canvas.draw()


@pytest.mark.parametrize("layer", [fastrnn.RNN(4, 7, seed=0), fastrnn.LSTM(4, 7, seed=0)])
def test_jacobian_norms_draws_the_bound_or_that_of_c(layer):
    found = jacobians(layer, X)
    ax = plot.jacobian_norms(found)
    second = found.bounds if found.c_norms is None else found.c_norms
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), found.norms)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), second)


def test_shares_are_bars():
    heights = [bar.get_height() for bar in plot.shares(FLOW, 1).patches]
    np.testing.assert_array_equal(heights, [*FLOW.shares_ih[1, 0], *FLOW.shares_hh[1, 0]])


def test_saturation_has_two_lines_for_each_gate():
    ax = plot.saturation(FLOW, 0, 1)
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), FLOW.saturation[0, 1, :, 1, 1])
    np.testing.assert_array_equal(ax.lines[3].get_ydata(), -FLOW.saturation[0, 1, :, 1, 0])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["i", "f", "g", "o"]


def test_unfolded_names_nodes_and_edges():
    texts = [text.get_text() for text in plot.unfolded((3, 5), steps=2).texts]
    for name, count in {"$x(1)$": 1, "$h(0)$": 1, "$h(2)$": 1, "$o(2)$": 1, "$U$": 2, "$W$": 2,
                        "$V$": 2, "I = 3": 1, "H = 5": 1}.items():
        assert texts.count(name) == count, name


def test_unfolded_walks_both_ways():
    texts = [text.get_text() for text in plot.unfolded(LAYER, steps=3).texts]
    for name in ("$h_{1}(0)$", "$h_{2}'(4)$", "$W_{2}'$", "$U_{1}'$", "$V'$"):
        assert name in texts
    assert "$h_{2}(4)$" not in texts


def test_pictures_go_into_the_axes_given():
    import matplotlib.pyplot as plt

    for draw, of in ((plot.gradient_norms, FLOW), (plot.gradient_heatmap, FLOW),
                     (plot.shares, FLOW), (plot.saturation, FLOW), (plot.unfolded, (2, 3)),
                     (plot.jacobian_norms, jacobians(LAYER, X))):
        ax = plt.figure().add_subplot()
        assert draw(of, ax=ax) is ax


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: plot.gradient_norms(3), TypeError, "flow is of type int, expected a Gradient"),
        (lambda: plot.shares(gradient_flow(LAYER, X, parts=())), ValueError, "has no shares_ih"),
        (lambda: plot.gradient_heatmap(FLOW, 2), ValueError, "layer is 2, .* from 0 to 1"),
        (lambda: plot.saturation(FLOW, direction=-1), ValueError, "direction is -1"),
        (lambda: plot.jacobian_norms(FLOW), TypeError, "jacobians is of type GradientFlow"),
        (lambda: plot.unfolded(5), TypeError, "network is 5, expected an RNN, LSTM or GRU"),
        (lambda: plot.unfolded((3, 0)), ValueError, "network is 0"),
        (lambda: plot.unfolded((3, 5), steps=0), ValueError, "steps is 0"),
    ],
)
def test_errors_name_the_argument(call, error, match):
    with pytest.raises(error, match=match) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_matplotlib_is_imported_when_something_is_drawn():
    done = start("import sys, fastrnn.plot, fastrnn.gradflow; print('matplotlib' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_without_matplotlib_there_is_a_sentence():
    done = start("import sys; sys.modules['matplotlib'] = None\n"
               "import fastrnn.plot as plot\n"
               "try: plot.unfolded((2, 3))\n"
               "except ModuleNotFoundError as error: print(error)")
    assert done.stdout == ("pictures need matplotlib, expected it to be installed: pip install "
                           "matplotlib\n"), done.stderr


@pytest.mark.parametrize("ax", ["a", 3, [1]])
def test_what_are_no_axes_is_refused(ax):
    with pytest.raises(TypeError, match=r"^unfolded: ax is of type .*, expected matplotlib's Axes"):
        plot.unfolded((1, 2), ax=ax)


def test_a_cell_without_recorded_gates_is_named():
    flow = gradient_flow(fastrnn.LSTM(4, 3, proj_size=2, seed=0), X)
    for draw in (plot.saturation, plot.shares):
        with pytest.raises(ValueError, match="expected the flow of a cell whose gates are rec"):
            draw(flow)
