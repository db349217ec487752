"""Values and gradients of fastrnn.torch's modules are torch.nn's, for every option."""

import itertools

import cases
import pytest
import twins

torch = pytest.importorskip("torch")

SIZES = [(3, 2, 7, 5), (5, 4, 5, 17), (2, 3, 33, 8)]  # T, B, I, H: wide, square and narrow


def lead_of(layout, T, B):
    """Return the axes before the features, and B or None."""
    if layout == "unbatched":
        return (T,), None
    return ((B, T) if layout == "batch_first" else (T, B)), B


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@twins.per_dtype
@twins.per_cell
def test_every_combination_of_options(cell, dtype, num_layers, bidirectional):
    choices = itertools.product(("time_first", "batch_first", "unbatched"), (True, False),
                                (True, False))
    for k, (layout, bias, given) in enumerate(choices):
        T, B, I, H = SIZES[k % len(SIZES)]
        theirs, ours = twins.twins(cell, I, H, num_layers, bias=bias, dtype=dtype, seed=k,
                                   batch_first=layout == "batch_first",
                                   bidirectional=bidirectional)
        lead, rows = lead_of(layout, T, B)
        twins.assert_twins(theirs, ours, twins.normal(*lead, I, dtype=dtype),
                           twins.state_of(theirs, rows) if given else None)


@pytest.mark.parametrize("sizes", cases.SHAPES, ids=str)
@twins.per_dtype
@twins.per_cell
def test_every_shape_of_the_table(cell, dtype, sizes):
    T, B, I, H = sizes
    theirs, ours = twins.twins(cell, I, H, dtype=dtype)
    twins.assert_twins(theirs, ours, twins.normal(T, B, I, dtype=dtype),
                       twins.state_of(theirs, B))


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@twins.per_dtype
@twins.per_cell
def test_single_cells(cell, dtype, bias, batched):
    for (_, B, I, H), given in itertools.product(SIZES, (True, False)):
        theirs, ours = twins.twins(cell, I, H, bias=bias, dtype=dtype, single=True)
        lead, rows = ((B,), B) if batched else ((), None)
        twins.assert_twins(theirs, ours, twins.normal(*lead, I, dtype=dtype),
                           twins.state_of(theirs, rows) if given else None)


@twins.per_cell
def test_a_loop_over_a_cell(cell):
    theirs, ours = twins.twins(cell, 3, 5, single=True)
    gradients = []
    for module in (theirs, ours):
        x, state = twins.normal(6, 2, 3), None
        for row in x:
            state = module(row) if state is None else module(row, state)
        twins.as_tuple(state)[0].square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0])
    twins.assert_accelerated(ours)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@twins.per_cell
def test_no_dropout_without_training(cell, dropout, training):
    if dropout and training:
        pytest.skip("random: the tests below")
    theirs, ours = twins.twins(cell, 3, 5, 2, dropout=dropout)
    twins.assert_twins(theirs.train(training), ours.train(training), twins.normal(4, 2, 3))


@twins.per_cell
def test_dropout_of_all(cell):
    theirs, ours = twins.twins(cell, 3, 5, 3, dropout=1.0)
    x = twins.normal(4, 2, 3)
    twins.assert_same(twins.results(ours, x), twins.results(theirs, x), theirs, 4, 2)


@twins.per_cell
def test_dropout_of_what_the_kernels_refuse(cell):
    theirs, ours = twins.twins(cell, 3, 5, 2, dropout=0.5)
    x = torch.randn(4, 2, 3, dtype=torch.bfloat16)
    drawn = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        drawn.append(module.to(torch.bfloat16).train()(x)[0])
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=0)
    assert [row.fallback for row in twins.bridge.report(ours).rows] == [1]


def passed_on(p):
    """Return a layer whose second layer returns what dropout leaves of ones."""
    _, layer = twins.twins("rnn_relu", 1, 50, 2, dropout=p, bias=False)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.weight_ih_l0.fill_(1)
        layer.weight_ih_l1.copy_(torch.eye(50))
    return layer


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_dropout_leaves_the_right_share_scaled(p):
    layer, x = passed_on(p), torch.ones(20, 10, 1, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x)
    kept = y > 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    deviation = (p * (1 - p) / y.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - p)) < 5 * deviation
    y.sum().backward()
    torch.testing.assert_close(x.grad[..., 0], kept.double().sum(-1) / (1 - p))  # the same mask


def test_dropout_follows_the_seed_of_torch():
    layer, x = passed_on(0.5), torch.ones(5, 4, 1, dtype=torch.float64)
    drawn = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        drawn.append(layer(x)[0].detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("num_layers", [1, 2])
@twins.per_dtype
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projection(dtype, num_layers, bidirectional):
    theirs, ours = twins.twins("lstm", 3, 7, num_layers, bidirectional=bidirectional,
                               proj_size=4, dtype=dtype)
    x, hx = twins.normal(5, 2, 3, dtype=dtype), twins.state_of(theirs, 2)
    for state in (None, hx):
        twins.assert_same(twins.results(ours, x, state), twins.results(theirs, x, state),
                          theirs, 5, 2)


@pytest.mark.parametrize("into", [("y",), ("hn",), ("cn",), ("y", "cn"), ("hn", "cn")], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@twins.per_cell
def test_gradients_come_back_to_some_outputs(cell, bidirectional, into):
    if cell != "lstm" and "cn" in into:
        pytest.skip("no c")
    theirs, ours = twins.twins(cell, 3, 5, 2, bidirectional=bidirectional)
    twins.assert_twins(theirs, ours, twins.normal(4, 2, 3), twins.state_of(theirs, 2), into=into)


@pytest.mark.parametrize("into", ["hn", "cn"])
def test_gradients_come_back_to_one_output_of_a_cell(into):
    theirs, ours = twins.twins("lstm", 3, 5, single=True)
    twins.assert_twins(theirs, ours, twins.normal(2, 3), twins.state_of(theirs, 2), into=(into,))


@pytest.mark.parametrize("sizes", [(0, 2, 3), (4, 0, 3), (0, 3)], ids=str)
@twins.per_cell
def test_no_steps_and_no_sequences(cell, sizes):
    theirs, ours = twins.twins(cell, 3, 5)
    twins.assert_same_outcome(theirs, ours, torch.zeros(sizes, dtype=torch.float64))
    twins.assert_same_outcome(theirs, ours, torch.zeros(sizes, dtype=torch.float64),
                              twins.state_of(theirs, sizes[1] if len(sizes) == 3 else None))


@twins.per_cell
def test_no_rows_of_a_cell(cell):
    theirs, ours = twins.twins(cell, 3, 5, single=True)
    twins.assert_same_outcome(theirs, ours, torch.zeros(0, 3, dtype=torch.float64))


@twins.per_cell
def test_a_cell_without_units(cell):
    theirs, ours = twins.twins(cell, 3, 0, single=True)
    x = torch.zeros(2, 3, dtype=torch.float64)
    twins.assert_same_outcome(theirs, ours, x)


@twins.per_kind
def test_classes_and_constructors_are_torchs(kind):
    ours, theirs = getattr(twins.bridge, kind), getattr(torch.nn, kind)
    assert issubclass(ours, theirs)
    torch.manual_seed(0)
    expected = theirs(3, 5)
    torch.manual_seed(0)
    got = ours(input_size=3, hidden_size=5, device="cpu", dtype=torch.float32)
    assert repr(got) == repr(expected)
    torch.testing.assert_close(got.state_dict(), expected.state_dict(), rtol=0, atol=0)


@twins.per_kind
def test_outputs_are_new_plain_tensors(kind):
    module = getattr(twins.bridge, kind)(3, 5)
    x = torch.randn(2, 3) if "Cell" in kind else torch.randn(4, 2, 3)
    first, second = (twins.flat(module(x)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert type(a) is torch.Tensor
        assert a.data_ptr() != b.data_ptr()
        assert a.is_contiguous()
        assert torch.equal(a, b)


def errors_to_try(cell):
    double = {"dtype": torch.float64}
    yield (torch.zeros(4, 2, 4, **double),)
    yield (torch.zeros(3, **double),)
    yield (torch.zeros(1, 4, 2, 3, **double),)
    yield (torch.zeros(4, 2, 3),)
    yield (torch.zeros(4, 2, 3, dtype=torch.int64),)
    yield (torch.zeros(4, 2, 3, dtype=torch.complex128),)
    yield (None,)
    yield ([[1.0]],)
    state = torch.zeros(1, 2, 5, **double)
    states = [state[0], state[:, :1], state[..., :4], state.float(), torch.zeros(2, 2, 5, **double),
              (state,), (state, state), (state, state, state), (state, state[..., :4]), "state",
              torch.stack((state, state)), [state], [state, state]]
    for hx in states:
        yield torch.zeros(4, 2, 3, **double), hx
    yield torch.zeros(4, 3, **double), state
    yield (torch.zeros(4, 2, 3, **double).to("meta"),)
    yield (torch.zeros(4, 2, 3, **double).to_sparse(),)


@twins.per_cell
def test_bad_calls_are_torchs_errors(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    for arguments in errors_to_try(cell):
        twins.assert_same_outcome(theirs, ours, *arguments)


@twins.per_cell
def test_bad_calls_of_cells_are_torchs_errors(cell):
    theirs, ours = twins.twins(cell, 3, 5, single=True)
    double = {"dtype": torch.float64}
    h = torch.zeros(2, 5, **double)
    for arguments in [(torch.zeros(2, 4, **double),), (torch.zeros(4, 2, 3, **double),),
                      (torch.zeros(2, 3),), (torch.zeros(2, 3, dtype=torch.int32),),
                      (torch.zeros(2, 3, **double), h[:, :4]), (torch.zeros(2, 3, **double), h[:1]),
                      (torch.zeros(2, 3, **double), h.float()), (torch.zeros(3, **double), h),
                      (torch.zeros(2, 3, **double), (h, h[:, :4])),
                      (torch.zeros(2, 3, **double), (h,)), (torch.zeros(2, 3, **double), [h, h]),
                      (torch.zeros(2, 3, **double), torch.stack((h, h))),
                      (torch.zeros(2, 3, **double), None),
                      ("x",)]:
        twins.assert_same_outcome(theirs, ours, *arguments)


@twins.per_cell
def test_weights_of_a_wrong_shape_are_torchs_error(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    for module in (theirs, ours):
        module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0[:, :4].detach().clone())
    twins.assert_same_outcome(theirs, ours, torch.zeros(4, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@twins.per_cell
def test_values_that_are_not_finite(cell, value):
    theirs, ours = twins.twins(cell, 3, 5)
    x = torch.zeros(4, 2, 3, dtype=torch.float64)
    x[1, 1, 2] = value
    for got, expected in zip(twins.flat(ours(x)), twins.flat(theirs(x)), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)
