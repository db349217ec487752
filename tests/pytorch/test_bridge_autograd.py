"""Gradients in every way that autograd and torch.func take them."""

import itertools

import pytest
import twins

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402


def loss_of(module, x, hx=None):
    y, state = module(x, hx)
    return y.square().sum() + sum(part.sin().sum() for part in twins.as_tuple(state))


def leaves_of(module, *given):
    return [*twins.flat(given), *module.parameters()]


@twins.per_cell
def test_frozen_subsets_of_parameters(cell):
    theirs, ours = twins.twins(cell, 3, 5, 2)
    names = list(dict(theirs.named_parameters()))
    subsets = [names[:k] for k in range(len(names) + 1)] + [[name] for name in names]
    for frozen, wanted in itertools.product(subsets, (True, False)):
        x = twins.normal(4, 2, 3).requires_grad_(wanted)
        gradients = []
        for module in (theirs, ours):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name not in frozen)
            leaves = [leaf for leaf in leaves_of(module, x) if leaf.requires_grad]
            gradients.append(torch.autograd.grad(loss_of(module, x), leaves) if leaves else ())
        torch.testing.assert_close(gradients[1], gradients[0])
    twins.assert_accelerated(ours)


@twins.per_cell
def test_frozen_parameters_of_a_cell(cell):
    theirs, ours = twins.twins(cell, 3, 5, single=True)
    for frozen in itertools.product((True, False), repeat=4):
        for module in (theirs, ours):
            for parameter, still in zip(module.parameters(), frozen, strict=True):
                parameter.requires_grad_(not still)
        twins.assert_twins(theirs, ours, twins.normal(2, 3), twins.state_of(theirs, 2))


@twins.per_cell
def test_outputs_want_gradients_where_torchs_do(cell):
    for frozen, grad, state_grad, enabled in itertools.product((True, False), repeat=4):
        theirs, ours = twins.twins(cell, 3, 5)
        flags = []
        for module in (theirs, ours):
            module.requires_grad_(not frozen)
            x = twins.normal(4, 2, 3).requires_grad_(grad)
            hx = twins.state_of(module, 2)
            for part in twins.as_tuple(hx):
                part.requires_grad_(state_grad)
            with torch.set_grad_enabled(enabled):
                outputs = twins.flat(module(x, hx))
            flags.append([(out.requires_grad, out.is_leaf) for out in outputs])
        assert flags[1] == flags[0]


@twins.per_cell
def test_gradients_of_some_leaves(cell):
    theirs, ours = twins.twins(cell, 3, 5, 2)
    for k in range(len(leaves_of(theirs, twins.normal(1), twins.state_of(theirs, 2)))):
        gradients = []
        for module in (theirs, ours):
            x, hx = twins.normal(4, 2, 3), twins.state_of(module, 2)
            gradients.append(torch.autograd.grad(loss_of(module, x, hx),
                                                 leaves_of(module, x, hx)[k]))
        torch.testing.assert_close(gradients[1], gradients[0])


@twins.per_cell
def test_backward_twice_gives_equal_gradients(cell):
    _, ours = twins.twins(cell, 3, 5, 2, bidirectional=True)
    x, hx = twins.normal(4, 2, 3), twins.state_of(ours, 2)
    loss, leaves = loss_of(ours, x, hx), leaves_of(ours, x, hx)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves, retain_graph=True)
    third = torch.autograd.grad(loss, leaves)
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    twins.assert_accelerated(ours)


@twins.per_cell
def test_backward_twice_without_retaining_is_torchs_error(cell):
    _, ours = twins.twins(cell, 3, 5)
    y, _ = ours(twins.normal(4, 2, 3))
    y.backward(torch.ones_like(y))
    with pytest.raises(RuntimeError, match=r"(?s)backward through the graph a second time"):
        y.backward(torch.ones_like(y))


@twins.per_cell
def test_gradients_accumulate(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    for module in (theirs, ours):
        for seed in (1, 2, 3):
            loss_of(module, twins.normal(4, 2, 3, seed=seed)).backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@twins.per_cell
def test_passes_in_flight(cell):
    """Two passes through one module, gone back in the other order, and a state passed on."""
    theirs, ours = twins.twins(cell, 3, 5)
    gradients = []
    for module in (theirs, ours):
        one, two = twins.normal(4, 2, 3, seed=1), twins.normal(6, 2, 3, seed=2)
        first, state = module(one)
        second, _ = module(two, state)
        parts = [torch.autograd.grad(first.sum(), [one], retain_graph=True),
                 torch.autograd.grad(second.sum(), [one, two])]
        gradients.append([*parts[0], *parts[1]])
    torch.testing.assert_close(gradients[1], gradients[0])


@twins.per_cell
def test_hooks_on_outputs_and_inputs(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    seen = []
    for module in (theirs, ours):
        x = twins.normal(4, 2, 3)
        y, _ = module(x)
        y.retain_grad()
        y.register_hook(lambda grad: grad * 2)
        x.register_hook(lambda grad: grad + 1)
        y.square().sum().backward()
        seen.append([x.grad, y.grad, module.weight_hh_l0.grad])
    torch.testing.assert_close(seen[1], seen[0])


@twins.per_cell
def test_full_backward_hooks_of_modules(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    seen = []
    for module in (theirs, ours):
        module.register_full_backward_pre_hook(lambda module, grads: (grads[0] * 3, *grads[1:]))
        module.register_full_backward_hook(lambda m, given, out: seen.append(given[0]))
        module(twins.normal(4, 2, 3))[0].sum().backward()
    torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


def packed_in(module):
    """Return a function of all leaves that calls a module, and the leaves."""
    x, hx = twins.normal(3, 2, 2), twins.state_of(module, 2)
    states = twins.as_tuple(hx)
    names = list(dict(module.named_parameters()))

    def function(x, *others):
        state = others[: len(states)]
        parameters = dict(zip(names, others[len(states):], strict=True))
        given = (x, state if isinstance(hx, tuple) else state[0])
        return tuple(twins.flat(torch.func.functional_call(module, parameters, given)))

    leaves = [p.detach().clone().requires_grad_() for p in module.parameters()]
    return function, (x, *states, *leaves)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@twins.per_cell
def test_gradcheck(cell, bidirectional):
    _, ours = twins.twins(cell, 2, 2, 2, bidirectional=bidirectional)
    function, leaves = packed_in(ours)
    assert torch.autograd.gradcheck(function, leaves, check_undefined_grad=False)


@twins.per_cell
def test_undefined_gradients(cell):
    """Gradcheck passes no gradient, and zeros, to each output in turn."""
    _, ours = twins.twins(cell, 2, 2)
    function, leaves = packed_in(ours)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@twins.per_cell
def test_gradgradcheck(cell):
    _, ours = twins.twins(cell, 2, 2)
    function, leaves = packed_in(ours)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@twins.per_cell
def test_double_backward(cell):
    theirs, ours = twins.twins(cell, 3, 5, 2)
    second = []
    for module in (theirs, ours):
        x = twins.normal(4, 2, 3)
        leaves = leaves_of(module, x)
        first = torch.autograd.grad(loss_of(module, x), leaves, create_graph=True)
        penalty = sum(grad.square().sum() for grad in first)
        second.append([*first, *torch.autograd.grad(penalty, leaves)])
    torch.testing.assert_close(second[1], second[0])


@twins.per_cell
def test_double_backward_of_a_cell(cell):
    theirs, ours = twins.twins(cell, 3, 5, single=True)
    second = []
    for module in (theirs, ours):
        x = twins.normal(2, 3)
        h = twins.as_tuple(module(x))[0]
        first, = torch.autograd.grad(h.square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), [x, *module.parameters()]))
    torch.testing.assert_close(second[1], second[0])


def looped(cell, x, h):
    """Return the final state of a cell that reads step after step."""
    for step in x:
        h = cell(step, h)
    return twins.as_tuple(h)[0]


def attended(cell, x, h):
    """Return the state of a cell whose input depends on its state, with the same twice."""
    first = twins.as_tuple(h)[0]
    state = (first, first) if isinstance(h, tuple) else first
    return twins.as_tuple(cell(first * 2, cell(first, state)))[0]


def chunked(layer, x, h):
    """Return what a layer makes of two pieces of time, the state of the first given on."""
    y1, h = layer(x[:2], h)
    y2, _ = layer(y1[:, :, :4] * x[2:], h)
    return torch.cat([y1, y2])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("use", [looped, attended, chunked])
@twins.per_cell
def test_double_backward_through_calls_that_depend_on_each_other(cell, use, tied):
    theirs, ours = twins.twins(cell, 4, 4, single=use is not chunked)
    found = []
    for module in (theirs, ours):
        if tied:
            hh, ih = (next(n for n in module._parameters if n.startswith(kind))
                      for kind in ("weight_hh", "weight_ih"))
            setattr(module, hh, getattr(module, ih))
        x, state = twins.normal(4, 2, 4), twins.state_of(module, 2)
        leaves = leaves_of(module, x, *twins.as_tuple(state))
        value = use(module, x, state).sin().sum()
        first = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
        penalty = sum(grad.square().sum() for grad in first if grad is not None)
        second = torch.autograd.grad(penalty, leaves, allow_unused=True)
        found.append([torch.zeros_like(leaf) if grad is None else grad
                      for grad, leaf in zip((*first, *second), leaves * 2, strict=True)])
    torch.testing.assert_close(found[1], found[0])


@twins.per_cell
def test_jacobians_of_a_state_that_stands_in_two_places(cell):
    theirs, ours = twins.twins(cell, 4, 4, single=True)
    h = twins.normal(2, 4).detach()
    for before in (torch.tanh, lambda h: h + 1):
        found = []
        for module in (theirs, ours):
            def final(h, module=module, before=before):
                state = (h, h) if isinstance(module, torch.nn.LSTMCell) else h
                return twins.as_tuple(module(before(h), state))[0]

            found.append([torch.autograd.functional.jacobian(final, h, vectorize=vectorize)
                          for vectorize in (True, False)])
        torch.testing.assert_close(found[1], found[0])


def test_a_gradient_penalty_trains():
    theirs, ours = twins.twins("lstm", 3, 5)
    for module in (theirs, ours):
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(3):
            x = twins.normal(4, 2, 3)
            slope, = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
            optimiser.zero_grad()
            (slope.norm() - 1).square().backward()
            optimiser.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@twins.per_cell
def test_anomaly_mode(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    with torch.autograd.detect_anomaly():
        twins.assert_twins(theirs, ours, twins.normal(4, 2, 3))


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
@twins.per_cell
def test_anomaly_mode_finds_nan(cell):
    _, ours = twins.twins(cell, 3, 5)
    x = twins.normal(4, 2, 3)
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="nan values"):
        (ours(x)[0] * float("nan")).sum().backward()


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not"])
@twins.per_cell
def test_checkpoint(cell, reentrant):
    theirs, ours = twins.twins(cell, 3, 5, 2)
    x = twins.normal(4, 2, 3)
    for module in (theirs, ours):
        module.zero_grad()
        y, _ = checkpoint(module, x, use_reentrant=reentrant)
        y.square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@twins.per_cell
def test_saved_tensors_hooks(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    gradients = []
    for module in (theirs, ours):
        x = twins.normal(4, 2, 3)
        with torch.autograd.graph.save_on_cpu():
            loss = loss_of(module, x)
        gradients.append(torch.autograd.grad(loss, leaves_of(module, x)))
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@twins.per_cell
def test_without_gradients(cell, context):
    theirs, ours = twins.twins(cell, 3, 5, 2)
    with context():
        twins.assert_twins(theirs, ours, twins.normal(4, 2, 3).detach(), backward=False)
        for out in twins.flat(ours(twins.normal(4, 2, 3).detach())):
            assert not out.requires_grad
            assert out.is_inference() == (context is torch.inference_mode)


def test_a_tensor_of_inference_mode_goes_in():
    theirs, ours = twins.twins("gru", 3, 5)
    with torch.inference_mode():
        x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert_outcome = twins.assert_same_outcome
    with torch.no_grad():
        assert_outcome(theirs, ours, x)
    assert_outcome(lambda: theirs(x)[0].sum().backward(), lambda: ours(x)[0].sum().backward())


@twins.per_cell
def test_batched_gradients(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    gradients = []
    for module in (theirs, ours):
        x = twins.normal(2, 2, 3)
        y, _ = module(x)
        rows = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
        gradients.append(torch.autograd.grad(y, [x], rows, is_grads_batched=True))
    torch.testing.assert_close(gradients[1], gradients[0])


@twins.per_cell
def test_jacobian_and_hessian(cell):
    theirs, ours = twins.twins(cell, 2, 3)
    x = twins.normal(2, 1, 2).detach()
    for function in (torch.autograd.functional.jacobian, torch.func.jacrev):
        pairs = []
        for module in (theirs, ours):
            call = lambda x, module=module: module(x)[0]  # noqa: E731
            pairs.append(function(call, x) if function.__module__.endswith("functional")
                         else function(call)(x))
        torch.testing.assert_close(pairs[1], pairs[0])
    hessians = [torch.autograd.functional.hessian(lambda x, m=m: loss_of(m, x), x)
                for m in (theirs, ours)]
    torch.testing.assert_close(hessians[1], hessians[0])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@twins.per_cell
def test_forward_mode(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    x, tangent = twins.normal(4, 2, 3).detach(), twins.normal(4, 2, 3, seed=5).detach()
    twins.assert_same_outcome(*(lambda m=m: torch.func.jvp(lambda x: m(x)[0], (x,), (tangent,))
                                for m in (theirs, ours)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        twins.assert_same_outcome(*(
            lambda m=m: tuple(torch.autograd.forward_ad.unpack_dual(m(dual)[0]))
            for m in (theirs, ours)))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@twins.per_cell
def test_forward_mode_through_weights(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    x, weights = twins.normal(4, 2, 3).detach(), twins.normal(*theirs.weight_hh_l0.shape).detach()

    def run(module):
        call = lambda w: torch.func.functional_call(  # noqa: E731
            module, {"weight_hh_l0": w}, (x,))[0]
        return torch.func.jvp(call, (weights,), (weights,))

    twins.assert_same_outcome(lambda: run(theirs), lambda: run(ours))


@twins.per_cell
def test_func_grad_over_functional_call(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    x = twins.normal(4, 2, 3).detach()
    gradients = []
    for module in (theirs, ours):
        parameters = {name: p.detach() * 1.1 for name, p in module.named_parameters()}

        def loss(parameters, module=module):
            return torch.func.functional_call(module, parameters, (x,))[0].square().sum()

        gradients.append(torch.func.grad(loss)(parameters))
    torch.testing.assert_close(gradients[1], gradients[0])


@twins.per_cell
def test_functional_call_leaves_the_module(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    x = twins.normal(4, 2, 3)
    zeros = {name: torch.zeros_like(p) for name, p in ours.named_parameters()}
    given = twins.flat(torch.func.functional_call(ours, zeros, (x,)))
    for got, expected in zip(given, twins.flat(torch.func.functional_call(theirs, zeros, (x,))),
                             strict=True):
        torch.testing.assert_close(got, expected)
    twins.assert_twins(theirs, ours, x)


@twins.per_cell
def test_vmap_over_sequences_and_gradients_of_each(cell):
    theirs, ours = twins.twins(cell, 3, 5)
    x = twins.normal(6, 4, 3).detach()
    twins.assert_same_outcome(*(lambda m=m: torch.func.vmap(lambda row: m(row)[0])(x)
                                for m in (theirs, ours)))

    def each(module):
        parameters = {name: p.detach() for name, p in module.named_parameters()}

        def loss(parameters, row):
            return torch.func.functional_call(module, parameters, (row,))[0].sum()

        return tuple(torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x).values())

    twins.assert_same_outcome(lambda: each(theirs), lambda: each(ours))


@twins.per_cell
def test_vmap_over_models(cell):
    models = [twins.twins(cell, 3, 5, seed=k) for k in range(3)]
    x = twins.normal(4, 2, 3).detach()

    def ensemble(which):
        modules = [pair[which] for pair in models]
        parameters, _ = torch.func.stack_module_state(modules)

        def call(parameters):
            return torch.func.functional_call(modules[0], parameters, (x,))[0]

        return torch.func.vmap(call)(parameters)

    twins.assert_same_outcome(lambda: ensemble(0), lambda: ensemble(1))


@twins.per_cell
def test_vmap_over_rows_of_a_cell(cell):
    theirs, ours = twins.twins(cell, 3, 5, single=True)
    x = twins.normal(6, 3).detach()
    twins.assert_same_outcome(*(lambda m=m: torch.func.vmap(m)(x) for m in (theirs, ours)))


def test_threads_go_back_through_one_module():
    """The engine's own threads and the caller's: a custom function inside the graph."""
    theirs, ours = twins.twins("gru", 3, 5)

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y * 2

        @staticmethod
        def backward(ctx, grad):
            x = twins.normal(4, 2, 3)
            with torch.enable_grad():
                inner, = torch.autograd.grad(ours(x)[0].sum(), x)
            assert inner.abs().sum() > 0
            return grad * 2

    gradients = []
    for module in (theirs, ours):
        x = twins.normal(4, 2, 3)
        Twice.apply(module(x)[0]).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("off", ["weights", "x", "one weight"])
@pytest.mark.parametrize("single", [False, True], ids=["layer", "cell"])
@twins.per_cell
def test_gradients_switched_off_after_forward(cell, single, off):
    """What forward wanted is differentiated, as penalties on a critic's gradient do."""
    found = []
    for module in twins.twins(cell, 3, 5, single=single):
        x = twins.normal(2, 3) if single else twins.normal(4, 2, 3)
        outputs = twins.outputs_of(module, x, None)
        score = sum(output.square().sum() for output in outputs.values())
        weight = next(module.parameters())
        switched = {"weights": list(module.parameters()), "x": [x], "one weight": [weight]}[off]
        for tensor in switched:
            tensor.requires_grad_(False)
        wanted = list(module.parameters()) if off == "x" else [x]
        first = torch.autograd.grad(score, wanted, create_graph=True)
        for tensor in switched:
            assert not tensor.requires_grad
            tensor.requires_grad_(True)
        sum(g.square().sum() for g in first).backward()
        found.append([*(g.detach() for g in first), *(p.grad for p in module.parameters())])
        if not single or off != "x":  # PyTorch's cells give less to an input that was off
            found[-1].append(x.grad)
    theirs, ours = found
    torch.testing.assert_close(ours, theirs)


class Stop(torch.autograd.Function):
    """A function of y through which no gradient goes."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        return None


@pytest.mark.parametrize("single", [False, True], ids=["layer", "cell"])
@twins.per_cell
def test_no_gradient_of_any_output(cell, single):
    """Then there is none at all, and an optimizer moves nothing."""
    for module in twins.twins(cell, 3, 5, single=single):
        x = twins.normal(2, 3) if single else twins.normal(4, 2, 3)
        y = next(iter(twins.outputs_of(module, x, None).values()))
        Stop.apply(y).sum().backward()
        assert x.grad is None
        assert all(p.grad is None for p in module.parameters())


@twins.per_layer
def test_an_input_larger_than_all_addresses(cell, options):
    theirs, ours = twins.twins(cell, 3, 5, **options)
    x = torch.zeros(1, 1, 3, dtype=torch.float64).expand(2**60, 1, 3)
    twins.assert_same_outcome(lambda: theirs(x), lambda: ours(x))
