"""What a call keeps of its tensors until backward: which may change, be freed, or come back."""

import contextlib
import gc
import weakref

import numpy as np
import pytest
import twins

torch = pytest.importorskip("torch")


UNREAD = {
    "states": ({"x", "weight_ih_l0", "weight_hh_l0", "bias_ih_l1", "bias_hh_l1"}, {"h0"}),
    "a frozen module": ({"x"}, {"x", "h0"}),
    "the input of frozen weights": ({"bias_hh_l0", "weight_hh_l0"}, {"x", "h0"}),
}


@pytest.mark.parametrize("which", UNREAD)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@twins.per_cell
def test_tensors_that_backward_does_not_read_may_change(cell, bidirectional, which):
    """As rollouts do, which write the next state over the last one. No gradient notices."""
    wanted, changed = UNREAD[which]
    _, module = twins.twins(cell, 3, 5, 2, bidirectional=bidirectional)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.removesuffix("_reverse") in wanted)

    def gradients(change, **options):
        x = twins.normal(4, 2, 3).requires_grad_("x" in wanted)
        state = [part.detach() for part in twins.as_tuple(twins.state_of(module, 2))]
        y, final = module(x, tuple(state) if len(state) > 1 else state[0])
        loss = sum((part * 1).square().sum() for part in (y, *twins.as_tuple(final)))
        with torch.no_grad():
            for part in [*(state if "h0" in change else ()), *([x] if "x" in change else ())]:
                part.mul_(-3)
        leaves = [x, *module.parameters()]
        return torch.autograd.grad(loss, [part for part in leaves if part.requires_grad], **options)

    for one, other in zip(gradients(changed), gradients(()), strict=True):
        assert torch.equal(one, other)
    twins.assert_accelerated(module)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(changed, create_graph=True)


@pytest.mark.parametrize("how", [{}, {"num_layers": 2, "dropout": 0.5}, "hooks"], ids=str)
@twins.per_layer
def test_an_input_with_batch_first_may_change(cell, options, how):
    """PyTorch has a copy: its memory may be an array that the next batch is written into."""
    gradients = []
    more = {} if how == "hooks" else how
    for module in twins.twins(cell, 3, 5, batch_first=True, **options, **more):
        array = np.arange(30.0).reshape(2, 5, 3) / 30
        torch.manual_seed(1)
        hooks = torch.autograd.graph.save_on_cpu if how == "hooks" else contextlib.nullcontext
        with hooks():
            y = module(torch.from_numpy(array))[0]
        array[:] = 0
        y.square().sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    twins.assert_all_near(*gradients[::-1])


@twins.per_cell
def test_a_cell_does_not_read_its_weights_for_their_own_gradients(cell):
    gradients = []
    for change in (False, True):
        theirs, ours = twins.twins(cell, 3, 5, single=True)
        for module in (theirs, ours):
            loss = sum(part.square().sum() for part in twins.as_tuple(
                module(twins.normal(2, 3).detach())))
            with torch.no_grad():
                for name, parameter in module.named_parameters() if change else ():
                    if module is ours or name.startswith("weight"):
                        parameter.mul_(-3)
            loss.backward()
            gradients.append([parameter.grad for parameter in module.parameters()])
    for one in gradients[1:]:
        for got, expected in zip(one, gradients[0], strict=True):
            twins.assert_near(got, expected)
    x = twins.normal(2, 3)
    loss = sum(part.sum() for part in twins.as_tuple(ours(x)))
    with torch.no_grad():
        ours.weight_hh.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ["x", "h0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])
@twins.per_cell
def test_a_second_backward_sees_what_changed(cell, name):
    """It computes forward again, so it needs tensors that the first backward does not read."""
    _, module = twins.twins(cell, 3, 5)
    x, state = twins.normal(4, 2, 3), twins.state_of(module, 2)
    tensor = {"x": x, "h0": twins.as_tuple(state)[0]}.get(name, getattr(module, name, None))
    loss = module(x, state)[0].sum()
    first = torch.autograd.grad(loss, [module.weight_hh_l0], retain_graph=True)[0]
    second = torch.autograd.grad(loss, [module.weight_hh_l0], retain_graph=True)[0]
    assert torch.equal(first, second)
    with torch.no_grad():
        tensor.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def free(tensor):
    """Free a tensor's memory, as FSDP does after forward; return what brings it back."""
    values, storage = tensor.detach().clone(), tensor.untyped_storage()
    size = storage.size()
    storage.resize_(0)

    def restore():
        storage.resize_(size)
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(tensor):
            tensor.copy_(values)

    return restore


@pytest.mark.parametrize("which", ["x", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
@twins.per_layer
def test_memory_that_was_freed_and_is_back_elsewhere(cell, options, which):
    theirs, ours = twins.twins(cell, 40, 50, **options)
    gradients = []
    for module in (theirs, ours):
        x = twins.normal(4, 30, 40)
        y = module(x)[0]
        tensor = x if which == "x" else getattr(module, which)
        restore = free(tensor)
        others = [torch.full(tensor.shape, 7.0, dtype=tensor.dtype) for _ in range(3)]
        restore()
        y.square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
        del others
    twins.assert_all_near(*gradients[::-1])
    twins.assert_accelerated(ours)


@twins.per_cell
def test_memory_that_is_not_back_is_an_error(cell):
    _, module = twins.twins(cell, 40, 50)
    y = module(twins.normal(4, 30, 40))[0].sum()
    restore = free(module.weight_hh_l0)
    with pytest.raises(RuntimeError, match=r"the memory of a tensor of .* was freed"):
        y.backward()
    restore()


@twins.per_layer
def test_the_input_is_freed_with_backward(cell, options):
    """As autograd frees what it has saved, though the loss is kept, such as in a sum of losses."""
    _, module = twins.twins(cell, 3, 5, **options)
    for retain in (False, True):
        x = torch.randn(4, 2, 3, dtype=torch.float64)
        known = weakref.ref(x)
        loss = module(x)[0].sum()
        loss.backward(retain_graph=retain)
        del x
        gc.collect()
        assert (known() is None) != retain
        if retain:
            loss.backward()
            gc.collect()
            assert known() is None


@twins.per_cell
def test_a_state_that_is_overwritten_with_its_graph_is_freed(cell):
    """The node of the call must not keep a tensor that comes from it: no collector sees that."""
    _, module = twins.twins(cell, 3, 5)

    def step():
        state = [part.detach().clone() for part in twins.as_tuple(twins.state_of(module, 2))]
        y, final = module(twins.normal(1, 2, 3), tuple(state) if len(state) > 1 else state[0])
        for part, last in zip(state, twins.as_tuple(final), strict=True):
            part.copy_(last)
        sum(part.sum() for part in state).backward()
        return [weakref.ref(part) for part in (*state, y)]

    known = step()
    gc.collect()
    assert all(reference() is None for reference in known)


@twins.per_cell
def test_an_input_of_a_frozen_module_that_is_overwritten_with_its_output_is_freed(cell):
    _, module = twins.twins(cell, 5, 5)
    module.requires_grad_(False)

    def step():
        x = twins.normal(4, 2, 5).detach()
        y = module(x, twins.state_of(module, 2))[0]
        x.copy_(y)
        return weakref.ref(x)

    known = step()
    gc.collect()
    assert known() is None


@twins.per_layer
@pytest.mark.parametrize("more", [{}, {"num_layers": 2, "dropout": 0.5}], ids=["plain", "dropout"])
def test_an_input_that_its_own_output_changes_is_freed(cell, options, more):
    """Its history leads to the node, which must not lead back to it."""
    for module in twins.twins(cell, 3, 4, batch_first=True, **options, **more):
        x = twins.normal(2, 4, 3) * 1
        known = weakref.ref(x)
        x += module(x)[0].sum()
        del x
        gc.collect()
        assert known() is None


@twins.per_layer
@pytest.mark.parametrize("more", [{}, {"num_layers": 2, "dropout": 0.5}], ids=["plain", "dropout"])
def test_a_computed_input_with_batch_first_may_change(cell, options, more):
    found = []
    for module in twins.twins(cell, 3, 5, batch_first=True, **options, **more):
        leaf = twins.normal(2, 4, 3)
        x = leaf * 1
        torch.manual_seed(0)
        y = module(x)[0]
        with torch.no_grad():
            x.mul_(-3)
        y.square().sum().backward()
        found.append([leaf.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(found[1], found[0])
