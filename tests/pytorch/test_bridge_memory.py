"""Packed sequences, tensors of any strides, and what a call must leave alone."""

import pytest
import twins

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import (  # noqa: E402
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

LENGTHS = {"sorted": (6, 4, 4, 1), "unsorted": (2, 6, 1, 4), "equal": (5, 5, 5), "one": (3,)}


def packed(lengths, I, dtype=torch.float64):
    x = twins.normal(max(lengths), len(lengths), I, dtype=dtype).detach()
    ordered = list(lengths) == sorted(lengths, reverse=True)
    sequence = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=ordered)
    return sequence._replace(data=sequence.data.clone().requires_grad_())


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@twins.per_dtype
@twins.per_cell
def test_packed_sequences(cell, dtype, bidirectional, lengths):
    for num_layers in (1, 2, 3):
        theirs, ours = twins.twins(cell, 3, 5, num_layers, bidirectional=bidirectional,
                                   dtype=dtype)
        for hx in (None, twins.state_of(theirs, len(lengths))):
            twins.assert_twins(theirs, ours, packed(lengths, 3, dtype), hx)


@pytest.mark.parametrize("into", [("hn",), ("cn",)], ids=str)
def test_gradients_come_back_to_the_last_states_of_packed_sequences(into):
    theirs, ours = twins.twins("lstm", 3, 5, 2, bidirectional=True)
    twins.assert_twins(theirs, ours, packed((2, 6, 1, 4), 3), twins.state_of(theirs, 4), into=into)


@twins.per_cell
def test_the_packed_output_has_the_inputs_order(cell):
    theirs, ours = twins.twins(cell, 3, 5, batch_first=True)
    x = packed((2, 6, 1, 4), 3)
    (got, _), (expected, _) = ours(x), theirs(x)
    assert isinstance(got, PackedSequence)
    for a, b in zip(got[1:], expected[1:], strict=True):
        assert torch.equal(a, b)
    lengths = pad_packed_sequence(got, batch_first=True)[1]
    assert lengths.tolist() == [2, 6, 1, 4]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_packed_without_bias_and_with_a_projection():
    theirs, ours = twins.twins("lstm", 3, 5, 2, bias=False, proj_size=2, bidirectional=True)
    x = packed((4, 2, 2), 3)
    twins.assert_same(twins.results(ours, x), twins.results(theirs, x), theirs, 4, 3)


def test_packed_sequences_that_share_an_input():
    theirs, ours = twins.twins("gru", 3, 5)
    parts = [twins.normal(n, 3, seed=n) for n in (4, 3, 1)]
    gradients = []
    for module in (theirs, ours):
        y, _ = module(pack_sequence(parts))
        gradients.append(torch.autograd.grad(y.data.square().sum(), parts))
    torch.testing.assert_close(gradients[1], gradients[0])


@twins.per_cell
def test_bad_packed_sequences_are_torchs_errors(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    for width, rows, dtype in ((4, None, torch.float64), (3, 3, torch.float64),
                               (3, None, torch.float32)):
        x = packed((4, 2), width, dtype)
        arguments = (x,) if rows is None else (x, twins.state_of(theirs, rows))
        twins.assert_same_outcome(theirs, ours, *arguments)


def strided():
    """Return inputs (T, B, I) = (4, 2, 3) of unusual strides, by name."""
    whole = twins.normal(8, 6, 9).detach()
    return {
        "transposed": whole[:2, :4, :3].transpose(0, 1),
        "features first": whole[:3, :2, :4].permute(2, 1, 0),
        "every other": whole[::2, ::3, ::3],
        "offset": whole.flatten()[1:25].view(4, 2, 3),
        "steps repeated": whole[:1, :2, :3].expand(4, 2, 3),
        "sequences repeated": whole[:4, :1, :3].expand(4, 2, 3),
        "features repeated": whole[:4, :2, :1].expand(4, 2, 3),
        "one number": whole[:1, :1, :1].expand(4, 2, 3),
        "overlapping": whole.flatten().as_strided((4, 2, 3), (2, 1, 1)),
    }


@pytest.mark.parametrize("name", strided())
@twins.per_cell
def test_inputs_of_any_strides(cell, name):
    base = strided()[name]
    theirs, ours = twins.twins(cell, 3, 5, 2)
    twins.assert_twins(theirs, ours, base)  # overlapping leaves have no gradient of their own
    gradients = []
    for module in (theirs, ours):
        room = base.untyped_storage().clone()
        leaf = torch.empty(0, dtype=base.dtype).set_(room).requires_grad_()
        x = leaf.as_strided(base.shape, base.stride(), base.storage_offset())
        module(x)[0].square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@twins.per_cell
def test_outputs_lie_in_memory_as_pytorchs_own(cell):
    for single, options in ((False, {}), (False, {"bidirectional": True, "num_layers": 2}),
                            (True, {})):
        theirs, ours = twins.twins(cell, 3, 5, single=single, **options)
        x = twins.normal(*(2, 3) if single else (4, 2, 3))
        for a, b in zip(twins.flat(ours(x)), twins.flat(theirs(x)), strict=True):
            assert (a.shape, a.stride()) == (b.shape, b.stride())
    options = [{}, {"bidirectional": True, "num_layers": 2}]
    options += [{"proj_size": 2, "num_layers": 2}] * (cell == "lstm")
    for option in options:
        theirs, ours = twins.twins(cell, 3, 5, batch_first=True, **option)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                found, expected = ours(twins.normal(2, 4, 3))[0], theirs(twins.normal(2, 4, 3))[0]
            assert found.stride() == expected.stride()
            assert not found._is_view()
            assert found.transpose(0, 1).view(8, -1).shape == (8, found.shape[2])
            if grad:
                found.mul_(2).sum().backward()  # in place, as of PyTorch's
                expected.mul_(2).sum().backward()
                for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                    torch.testing.assert_close(a.grad, b.grad)


@twins.per_cell
def test_states_of_any_strides(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    x = twins.normal(4, 2, 3)
    for make in (lambda h: h[:, :1].expand(1, 2, 5), lambda h: h.transpose(1, 2).contiguous()
                 .transpose(1, 2), lambda h: torch.cat([h, h], -1)[..., ::2]):
        parts = [make(part.detach()) for part in twins.as_tuple(twins.state_of(theirs, 2))]
        hx = parts[0] if len(parts) == 1 else tuple(parts)
        twins.assert_twins(theirs, ours, x, hx)


@twins.per_cell
def test_cells_take_tensors_of_any_strides(cell):
    theirs, ours = twins.twins(cell, 3, 5, single=True)
    whole = twins.normal(5, 9).detach()
    for x in (whole[:3, :2].t(), whole[::3, ::3], whole[:1, :3].expand(2, 3)):
        parts = [whole.flatten()[k: k + 10].view(5, 2).t() for k in (0, 20)]
        twins.assert_twins(theirs, ours, x, tuple(parts) if cell == "lstm" else parts[0])


@twins.per_cell
def test_weights_of_any_strides(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    for module in (theirs, ours):
        for name, parameter in list(module.named_parameters()):
            odd = torch.empty(2 * parameter.numel(), dtype=parameter.dtype)[::2]
            odd = odd.view(parameter.shape[::-1]).t() if parameter.ndim == 2 else odd
            odd.copy_(parameter.detach())
            setattr(module, name, torch.nn.Parameter(odd))
            assert not getattr(module, name).is_contiguous()
    twins.assert_same(twins.results(ours, twins.normal(4, 2, 3)),
                      twins.results(theirs, twins.normal(4, 2, 3)), theirs, 4, 2)


GRADIENTS = {
    "expanded": lambda y: y.sum(),
    "transposed": lambda y: (y.transpose(0, 2) * torch.arange(y.numel()).view(
        y.transpose(0, 2).shape)).sum(),
    "one step": lambda y: y[-1].square().sum(),
    "some features": lambda y: y[..., ::2].square().sum(),
    "steps repeated": lambda y: y.mean(0).square().sum(),
}


@pytest.mark.parametrize("loss", GRADIENTS.values(), ids=GRADIENTS)
@twins.per_dtype
@twins.per_cell
def test_gradients_of_any_strides_come_back(cell, dtype, loss):
    theirs, ours = twins.twins(cell, 3, 5, dtype=dtype)
    gradients = []
    for module in (theirs, ours):
        x = twins.normal(4, 2, 3, dtype=dtype)
        y, state = module(x)
        (loss(y) + sum(part.sum() for part in twins.as_tuple(state))).backward()
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
    twins.assert_all_near(*gradients[::-1])
    twins.assert_accelerated(ours)


@twins.per_cell
def test_tensors_with_the_negative_bit(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    x = torch.complex(*twins.normal(2, 4, 2, 3).detach()).conj().imag
    assert x.is_neg()
    twins.assert_same_outcome(lambda x: theirs(x)[0], lambda x: ours(x)[0], x)


@twins.per_layer
def test_gradients_with_the_negative_bit(cell, options):
    """A lazy sign: the memory has the other one. Complex numbers make such gradients."""
    theirs, ours = twins.twins(cell, 3, 5, **options)
    gradients = []
    for module in (theirs, ours):
        x = twins.normal(4, 2, 3)
        y, state = module(x)
        for part in (y, *twins.as_tuple(state)):
            part.register_hook(lambda dy: torch._neg_view(-2 * dy))
        (y.square().sum() + sum(part.sum() for part in twins.as_tuple(state))).backward()
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
    twins.assert_all_near(*gradients[::-1])
    twins.assert_accelerated(ours)


@twins.per_layer
def test_gradients_of_final_states_with_strides(cell, options):
    """A classifier that reads the states of both directions, batch first."""
    theirs, ours = twins.twins(cell, 3, 4, 2, bidirectional=True, batch_first=True, **options)
    gradients = []
    for module in (theirs, ours):
        x = twins.normal(6, 5, 3)
        _, state = module(x)
        sum(part.permute(1, 0, 2).flatten(1).tanh().square().sum()
            for part in twins.as_tuple(state)).backward()
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
    twins.assert_all_near(*gradients[::-1])
    twins.assert_accelerated(ours)


class _Marked(torch.Tensor):
    pass


@pytest.mark.parametrize("how", ["subclass", "unaligned", "expanded", "gaps"])
@twins.per_layer
def test_gradients_of_odd_memory(cell, options, how):
    theirs, ours = twins.twins(cell, 3, 4, **options)
    gradients = []
    for module in (theirs, ours):
        x = twins.normal(5, 2, 3)
        y = module(x)[0]
        dy = twins.normal(*y.shape, seed=9).detach()
        if how == "subclass":
            dy = dy.as_subclass(_Marked)
        elif how == "unaligned":
            memory = torch.zeros(8 * dy.numel() + 4, dtype=torch.uint8)
            memory[4:] = dy.flatten().view(torch.uint8)
            dy = torch.frombuffer(memory.numpy(), dtype=torch.float64, offset=4).view(y.shape)
            assert dy.data_ptr() % 8
        elif how == "expanded":
            dy = dy[:1].expand(y.shape)
        else:
            dy = torch.cat([dy, dy], 2)[:, :, :y.shape[2]]
        y.backward(dy)
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
    twins.assert_all_near(*gradients[::-1])


INPUTS = {
    "expanded": lambda leaf: leaf[:, :1].expand(-1, 6, -1),  # a decoder of one vector
    "windows": lambda leaf: leaf.flatten()[:9].unfold(0, 6, 1).unsqueeze(-1).expand(-1, -1, 3),
}


@pytest.mark.parametrize("how", ["checkpoint", "on cpu", "twice", "create_graph"])
@pytest.mark.parametrize("form", INPUTS)
@twins.per_cell
def test_inputs_that_overlap_in_memory_are_read_again(cell, form, how):
    theirs, ours = twins.twins(cell, 3, 5, batch_first=True)
    found = []
    for module in (theirs, ours):
        leaf = twins.normal(4, 2, 3)

        def loss(x, module=module):
            return module(INPUTS[form](x))[0].square().sum()

        if how == "checkpoint":
            torch.utils.checkpoint.checkpoint(loss, leaf, use_reentrant=False).backward()
        elif how == "on cpu":
            with torch.autograd.graph.save_on_cpu():
                value = loss(leaf)
            value.backward()
        elif how == "twice":
            value = loss(leaf)
            value.backward(retain_graph=True)
            value.backward()
        else:
            (first,) = torch.autograd.grad(loss(leaf), [leaf], create_graph=True)
            first.square().sum().backward()
        found.append([leaf.grad, *(p.grad for p in module.parameters())])
    for got, expected in zip(*found[::-1], strict=True):
        twins.assert_near(got, expected)


@pytest.mark.parametrize("cell", ["RNNCell", "GRUCell", "LSTMCell"])
def test_the_gradient_of_a_phase(cell):
    """One number: what is conjugate stays a view of it."""
    found = []
    for module in (getattr(torch.nn, cell), getattr(twins.bridge, cell)):
        torch.manual_seed(0)
        own = module(3, 1, dtype=torch.float64)
        h = twins.as_tuple(own(torch.randn(1, 3, dtype=torch.float64)))[0]
        (torch.complex(torch.ones_like(h), h).conj() * (2 + 3j)).abs().sum().backward()
        found.append(own.weight_ih.grad)
    twins.assert_accelerated(own)
    torch.testing.assert_close(*found)


@twins.per_cell
def test_a_call_changes_nothing_it_is_given(cell):
    _, ours = twins.twins(cell, 3, 5, 2)
    x, hx = twins.normal(4, 2, 3), twins.state_of(ours, 2)
    given = [x, *twins.as_tuple(hx), *ours.parameters()]
    before = [(tensor.detach().clone(), tensor._version, tensor.stride()) for tensor in given]
    y, _ = ours(x, hx)
    gradient = torch.ones_like(y)
    y.backward(gradient)
    for tensor, (values, version, stride) in zip(given, before, strict=True):
        assert torch.equal(tensor, values)
        assert (tensor._version, tensor.stride()) == (version, stride)
    assert torch.equal(gradient, torch.ones_like(y))


CHANGED = {
    "x": lambda x, hx, y, state: x,
    "h0": lambda x, hx, y, state: twins.as_tuple(hx)[0],
    "c0": lambda x, hx, y, state: twins.as_tuple(hx)[-1],
    "y": lambda x, hx, y, state: y,
    "hn": lambda x, hx, y, state: twins.as_tuple(state)[0],
    "cn": lambda x, hx, y, state: twins.as_tuple(state)[-1],
}


@pytest.mark.parametrize("which", CHANGED)
@twins.per_cell
def test_a_change_in_place_is_an_error_or_harmless(cell, which):
    """PyTorch may not save what we save: either the gradient is right, or it is an error."""
    theirs, ours = twins.twins(cell, 3, 5)

    def gradients(module, change):
        x, hx = twins.normal(4, 2, 3), twins.state_of(module, 2)
        moved = [part * 1 for part in twins.as_tuple(hx)]
        fed, state = x * 1, moved[0] if len(moved) == 1 else tuple(moved)
        y, final = module(fed, state)
        loss = sum((part * 1).square().sum() for part in (y, *twins.as_tuple(final)))
        if change:
            with torch.no_grad():
                CHANGED[which](fed, state, y, final).mul_(2)
        return torch.autograd.grad(loss, [x, *twins.as_tuple(hx), *module.parameters()])

    expected = gradients(theirs, False)
    try:
        got = gradients(ours, True)
    except RuntimeError as error:
        assert "inplace" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(got, expected)


@twins.per_cell
def test_weights_changed_before_backward_are_torchs_error(cell):
    theirs, ours = twins.twins(cell, 3, 5, 2)
    x = twins.normal(4, 2, 3)
    for name in dict(theirs.named_parameters()):
        messages = []
        for module in (theirs, ours):
            y = module(x)[0].sum()
            with torch.no_grad():
                getattr(module, name).mul_(1.5)
            messages.append(twins.outcome(y.backward))
        if messages[0] is None:  # PyTorch does not need this one
            continue
        for kind, message in messages:
            assert kind is RuntimeError
            assert "modified by an inplace operation" in message


@twins.per_cell
def test_an_optimiser_step_before_backward_is_torchs_error(cell):
    _, ours = twins.twins(cell, 3, 5)
    optimiser = torch.optim.SGD(ours.parameters(), 0.1)
    ours(twins.normal(4, 2, 3))[0].sum().backward()
    y = ours(twins.normal(4, 2, 3))[0].sum()
    optimiser.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "nograd"])
@twins.per_cell
def test_writes_through_data_are_seen(cell, grad):
    theirs, ours = twins.twins(cell, 3, 5)
    x = twins.normal(4, 2, 3)
    with torch.set_grad_enabled(grad):
        for k in range(3):
            for module in (theirs, ours):
                module.weight_hh_l0.data[k, k] += 1  # neither a version nor an address changes
                module.weight_ih_l0.data.mul_(1.1)
                module.bias_hh_l0.data[0] = k
            torch.testing.assert_close(ours(x)[0], theirs(x)[0])


@twins.per_cell
def test_writes_through_numpy_are_seen(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    x = twins.normal(4, 2, 3).detach()
    with torch.no_grad():
        for _ in range(2):
            for module in (theirs, ours):
                module.weight_hh_l0.detach().numpy()[3, 2] += 0.5
            torch.testing.assert_close(ours(x)[0], theirs(x)[0])


@twins.per_cell
def test_writes_through_data_in_cells_are_seen(cell):
    theirs, ours = twins.twins(cell, 3, 5, single=True)
    x = twins.normal(2, 3).detach()
    with torch.no_grad():
        for k in range(3):
            for module in (theirs, ours):
                module.weight_hh.data[k] += 1
                module.weight_ih.data[k] -= 1
            for got, expected in zip(twins.flat(ours(x, twins.state_of(ours, 2))),
                                     twins.flat(theirs(x, twins.state_of(ours, 2))), strict=True):
                torch.testing.assert_close(got, expected)


def new_data(parameter, values):
    parameter.data = values.clone()


WRITES = {
    "data": new_data,
    "set_": lambda parameter, values: parameter.set_(values.clone()),
    "copy_": lambda parameter, values: parameter.copy_(values),
    "data copy_": lambda parameter, values: parameter.data.copy_(values),
    "foreach": lambda parameter, values: torch._foreach_copy_([parameter], [values]),
    "version kept": lambda parameter, values: unseen(parameter, values),
}


def unseen(parameter, values):
    with torch.autograd._unsafe_preserve_version_counter(parameter):
        parameter.copy_(values)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@twins.per_cell
def test_every_write_to_weights_is_seen(cell, training, write):
    theirs, ours = twins.twins(cell, 3, 5, 2)
    x = twins.normal(4, 2, 3).detach()
    for k in range(3):
        with torch.no_grad():
            for module in (theirs.train(training), ours.train(training)):
                for seed, parameter in enumerate(module.parameters()):
                    write(parameter, twins.normal(*parameter.shape, seed=10 * k + seed).detach())
            torch.testing.assert_close(ours(x)[0], theirs(x)[0])
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("single", [False, True], ids=["layer", "cell"])
@twins.per_cell
def test_weights_where_others_lay(cell, single):
    """Memory of a freed module is used again: equal addresses, versions and sizes."""
    x = twins.normal(2, 3).detach() if single else twins.normal(4, 2, 3).detach()
    with torch.no_grad():
        for seed in range(30):
            theirs, ours = twins.twins(cell, 3, 5, single=single, seed=seed)
            for got, expected in zip(twins.flat(ours(x)), twins.flat(theirs(x)), strict=True):
                torch.testing.assert_close(got, expected)
            del ours


INPLACE = {
    "relu_": lambda tensor: tensor.relu_(),
    "mul_": lambda tensor: tensor.mul_(torch.full_like(tensor, 3)),
    "row": lambda tensor: tensor[-1].zero_(),
    "dropout": lambda tensor: torch.nn.functional.dropout(tensor, 0.5, True, inplace=True),
}


def changed(module, x, hx, which, change):
    """Return gradients after a recorded change of an output in place, and that output."""
    x, hx = twins.fresh(x), twins.fresh(hx)
    out = twins.outputs_of(module, x, hx)
    torch.manual_seed(5)
    change(out[which])
    loss = sum((part * part.detach().cos()).sum() for part in out.values())
    leaves = [x, *twins.as_tuple(hx), *module.parameters()]
    return out[which].detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("change", INPLACE.values(), ids=INPLACE)
@pytest.mark.parametrize("single", [False, True], ids=["layer", "cell"])
@twins.per_dtype
@twins.per_cell
def test_outputs_may_be_changed_where_torchs_may(cell, dtype, single, change):
    """As in ``h *= mask``: what PyTorch's outputs allow, ours allow, with right gradients."""
    theirs, ours = twins.twins(cell, 3, 5, dtype=dtype, single=single)
    x = twins.normal(2, 3, dtype=dtype) if single else twins.normal(4, 2, 3, dtype=dtype)
    hx = twins.state_of(theirs, 2)
    for which in twins.outputs_of(theirs, x, hx):
        expected = twins.outcome(changed, theirs, x, hx, which, change)
        got = twins.outcome(changed, ours, x, hx, which, change)
        if twins.refused(expected):  # an error of PyTorch: ours may be better
            continue
        assert not twins.refused(got), f"{which}: {got}"
        for a, b in zip(got, expected, strict=True):
            twins.assert_near(a, b)


@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@twins.per_dtype
@twins.per_cell
def test_outputs_are_contiguous_where_torchs_are(cell, dtype, bidirectional, layout):
    """Programs call view on them."""
    theirs, ours = twins.twins(cell, 3, 5, 2, dtype=dtype, bidirectional=bidirectional,
                               batch_first=layout == "batch_first")
    x = {"unbatched": twins.normal(4, 3, dtype=dtype), "packed": packed((2, 4), 3, dtype)}.get(
        layout, twins.normal(4, 2, 3, dtype=dtype))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for name, expected in twins.outputs_of(theirs, x, None).items():
                got = twins.outputs_of(ours, x, None)[name]
                assert got.shape == expected.shape
                assert got.is_contiguous() or not expected.is_contiguous(), name


@twins.per_cell
def test_gradients_are_tensors_of_their_own(cell):
    """Clipping and zeroing change them in place; a kept one must not change later."""
    _, ours = twins.twins(cell, 3, 5, 2)
    x = twins.normal(4, 2, 3)
    first = torch.autograd.grad(ours(x)[0].sum(), list(ours.parameters()))
    kept = [grad.clone() for grad in first]
    for grad, parameter in zip(first, ours.parameters(), strict=True):
        assert grad.shape == parameter.shape
        assert grad.is_contiguous()
    second = torch.autograd.grad(ours(2 * x)[0].sum(), list(ours.parameters()))
    for grad, copy, other in zip(first, kept, second, strict=True):
        assert torch.equal(grad, copy)
        other.zero_()
        assert torch.equal(grad, copy)


@twins.per_cell
def test_a_tensor_that_is_not_aligned_goes_to_pytorch(cell):
    theirs, ours = twins.twins(cell, 3, 5, dtype=torch.float32)
    x = torch.frombuffer(bytearray(4 * 2 * 3 * 4 + 1), dtype=torch.float32, offset=1).view(4, 2, 3)
    x += 0.5
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    assert "not aligned" in str(twins.bridge.report(ours))
