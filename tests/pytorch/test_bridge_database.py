"""PyTorch's module database: every sample and every error input of the recurrent modules."""

import copy
import warnings

import pytest
import twins

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    common = pytest.importorskip("torch.testing._internal.common_modules")

TABLE = {info.module_cls: info for info in common.module_db
         if info.module_cls in [getattr(torch.nn, kind) for kind in twins.KINDS]}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def inputs(kind, dtype, **options):
    info = TABLE[getattr(torch.nn, kind)]
    torch.manual_seed(0)
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True,
                                      training=True, **options)
    assert samples
    return samples


def gradients(module, arguments):
    """Return outputs and gradients of what wants them, after a sum as PyTorch's own tests take."""
    arguments = copy.deepcopy(arguments)
    data = [value.data if isinstance(value, torch.nn.utils.rnn.PackedSequence) else value
            for value in arguments.args]
    leaves = [leaf for leaf in [*twins.flat(data), *module.parameters()] if leaf.requires_grad]
    outputs = [out for out in twins.flat(module(*arguments.args, **arguments.kwargs))
               if out.is_floating_point()]
    loss = sum(out.square().sum() for out in outputs)
    return [*outputs, *torch.autograd.grad(loss, leaves, allow_unused=True)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@twins.per_dtype
@twins.per_kind
def test_samples(kind, dtype, training):
    samples = list(inputs(kind, dtype))
    if kind in ("GRU", "RNN"):
        samples += inputs(kind, dtype, with_packed_sequence=True)[len(samples) // 2:]
    for sample in samples:
        made = sample.constructor_input
        theirs = getattr(torch.nn, kind)(*made.args, **made.kwargs, dtype=dtype).train(training)
        ours = getattr(twins.bridge, kind)(*made.args, **made.kwargs, dtype=dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        expected = gradients(theirs, sample.forward_input)
        for got, right in zip(gradients(ours, sample.forward_input), expected, strict=True):
            twins.assert_near(got, right)
        if not made.kwargs.get("proj_size"):
            twins.assert_accelerated(ours)


@pytest.mark.parametrize("requires_grad", [True, False], ids=["grad", "nograd"])
@pytest.mark.parametrize("how", ["class", "accelerate", "patch"])
@twins.per_dtype
@twins.per_kind
def test_error_inputs(kind, dtype, how, requires_grad):
    info = TABLE[getattr(torch.nn, kind)]
    samples = info.module_error_inputs_func(info, device="cpu", dtype=dtype, training=True,
                                            requires_grad=requires_grad)
    assert samples
    make = getattr(twins.bridge if how == "class" else torch.nn, kind)
    if how == "patch":
        twins.bridge.patch()
    for sample in samples:
        made, given = (sample.module_error_input.constructor_input,
                       sample.module_error_input.forward_input)
        options = {"dtype": dtype} | made.kwargs
        if sample.error_on == common.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                make(*made.args, **options)
            continue
        module = make(*made.args, **options)
        if how == "accelerate":
            twins.bridge.accelerate(module)
        with pytest.raises(sample.error_type, match=sample.error_regex):
            module(*given.args, **given.kwargs)


@twins.per_kind
def test_the_reference_functions_without_a_batch(kind):
    """PyTorch's own check of calls without a batch axis: a batch of one."""
    for sample in inputs(kind, torch.float64):
        made = sample.constructor_input
        module = getattr(twins.bridge, kind)(*made.args, **made.kwargs, dtype=torch.float64)
        if sample.reference_fn is None or made.kwargs.get("proj_size"):
            continue
        given = sample.forward_input
        got = module(*given.args, **given.kwargs)
        expected = sample.reference_fn(module, *given.args, **given.kwargs)
        for a, b in zip(twins.flat(got), twins.flat(expected), strict=True):
            torch.testing.assert_close(a, b)
