"""A pass is an object: what happens between a loss and its backward changes nothing."""

import copy
import gc
import sys
import threading
import weakref

import cases
import numpy as np
import pytest
from kinds import (
    F64,
    KINDS,
    B,
    N,
    T,
    V,
    arrays,
    data_of,
    grads_of,
    language_of,
    model_of,
    pair_data,
    pair_of,
    some_text,
)

from fastrnn import GRU, LSTM, RNN, LanguageModel, SequenceModel, Stack
from fastrnn.layers.passes import RECORD
from fastrnn.models.linear import Scratch


class Job:
    """A model, and losses of it with data drawn from a seed."""

    def __init__(self, model, loss, bad):
        self.model, self.loss, self.bad = model, loss, bad


def job_of(name):
    kind, _, every = name.partition(", every ")
    options = {"recompute_every": int(every)} if every else {}
    if kind == "pair":
        model = pair_of()

        def loss(seed, **more):
            source, inputs, targets, weights = pair_data(seed)
            return model.loss(source, inputs, targets, weights=weights, **more)

        def bad():
            source, inputs, targets, weights = pair_data(1)
            yield (source, inputs, targets + V), {}
            yield (source, inputs, targets), {"weights": -weights}
            yield (source, inputs[:, 1:], targets[:, 1:]), {}
            yield (source + V, inputs, targets), {}
    else:
        model = language_of(num_layers=3, dropout=0.4) if kind == "language" else model_of(kind)
        context = {}

        def loss(seed, **more):
            if kind == "language":
                return model.loss(*some_text(seed), **options, **more)
            x, targets, weights, own = data_of(model, seed)
            if own is not None:
                context["context"] = own
            return model.loss(x, targets, weights=weights, **context, **options, **more)

        def bad():
            x, targets, weights, own = (*some_text(1), np.ones((4, B)), None) \
                if kind == "language" else data_of(model, 1)
            more = options if own is None else options | {"context": own}
            yield (x, targets[1:]), more
            yield (x, targets, (3,)), more
            yield (x, targets), more | {"weights": -weights}
            yield (x, targets), more | {"weights": weights[1:]}
            yield (x[0], targets), more
            yield (x, targets), more | {"context": np.ones((B, 9))}
    return Job(model, loss, bad)


JOBS = [*KINDS, *(f"{kind}, every 2" for kind, o in KINDS.items() if not o.get("both")),
        "pair", "language", "language, every 3"]
per_job = pytest.mark.parametrize("name", JOBS)


def results(job, p, **options):
    """Go back; return every gradient as named arrays."""
    job.model.zero_grad()
    dx, dstate0 = p.backward(need_dx=True, **options)
    given = options.get("grads", job.model.grads)
    found = {name: np.array(g) for name, g in given.items()}
    found |= {f"dstate0[{i}]": a for i, a in enumerate(
        arrays(dstate0) if isinstance(dstate0, tuple) else [dstate0])}
    return found if dx is None else found | {"dx": dx}


def singly(name, seed, dropout):
    """Return value and gradients of one loss and its backward, alone on a new model."""
    job = job_of(name)
    job.model.dropout_state = dropout
    p = job.loss(seed)
    return p.value, results(job, p)


@per_job
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "reversed"])
def test_two_losses_in_flight(name, order):
    job = job_of(name)
    states, passes = [], []
    for seed in (0, 1):
        states.append(job.model.dropout_state)
        passes.append(job.loss(seed))
    assert passes[0].value != passes[1].value
    for i in order:
        value, expected = singly(name, i, states[i])
        assert passes[i].value == value
        cases.assert_same_bytes(results(job, passes[i]), expected)


def run_free(model):
    if hasattr(model, "encoder"):
        return model.generate(pair_data(3)[0], np.zeros(B, int), 4, temperature=1.0)
    if isinstance(model, LanguageModel):
        return model.sample([1, 2, 3], 5), model.generate([1, 2], 5)
    fits = model.output_size == (model.vocab_size or model.input_size)
    return model.generate(np.zeros(B, int), 3) if fits else None


def step(model):
    if not any(layer.bidirectional for layer in model.recurrent):
        decoder = getattr(model, "decoder", model)
        stream = decoder.stream(2)
        for _ in range(3):
            stream(np.zeros(2, int) if decoder.vocab_size else np.ones((2, decoder.input_size)))


def predict(model):
    if isinstance(model, SequenceModel):
        x, targets, _, context = (*some_text(5), None, None) \
            if isinstance(model, LanguageModel) else data_of(model, 5)
        every = model.readout == "every"
        model.predict(x.swapaxes(0, 1), context=context)
        model.evaluate(x.swapaxes(0, 1), targets.swapaxes(0, 1) if every else targets,
                       context=context)
        model(x, context=context)
        model.forward(x, context=context)


def fail(job):
    for args, options in job.bad():
        with pytest.raises((TypeError, ValueError, IndexError)):
            job.model.loss(*args, **options)


BETWEEN = {
    "evaluation loss": lambda job: job.loss(2, grad=False),
    "evaluation mode": lambda job: (job.model.eval(), job.loss(2), job.model.train()),
    "training loss": lambda job: job.loss(2),
    "training loss and backward": lambda job: job.loss(2).backward(),
    "failed losses": fail,
    "stream": lambda job: step(job.model),
    "generate": lambda job: run_free(job.model),
    "predict": lambda job: predict(job.model),
    "copy": lambda job: copy.deepcopy(job.model),
    "printing": lambda job: str(job.model),
}


@per_job
@pytest.mark.parametrize("between", BETWEEN)
def test_nothing_between_loss_and_backward_changes_it(name, between):
    job = job_of(name)
    state = job.model.dropout_state
    p = job.loss(0)
    BETWEEN[between](job)
    job.model.zero_grad()
    value, expected = singly(name, 0, state)
    assert p.value == value
    cases.assert_same_bytes(results(job, p), expected)


@per_job
def test_a_failed_loss_changes_nothing_at_all(name):
    job = job_of(name)
    before = job.model.state_dict(), job.model.dropout_state, job.model.training
    fail(job)
    cases.assert_same_bytes(job.model.state_dict(), before[0])
    assert (job.model.dropout_state, job.model.training) == before[1:]
    assert not any(grad.any() for grad in job.model.grads.values())


@per_job
def test_gradients_of_its_own_leave_the_models_alone(name):
    job = job_of(name)
    state = job.model.dropout_state
    p = job.loss(0)
    grads = job.model.new_grads()
    for grad in job.model.grads.values():
        grad[...] = 7
    p.backward(grads=grads)
    assert all((grad == 7).all() for grad in job.model.grads.values())
    _, expected = singly(name, 0, state)
    cases.assert_same_bytes(grads, {k: g for k, g in expected.items() if k in grads})
    job.model.dropout_state = state
    job.loss(0).backward(grads=grads)  # and they add up
    for key, grad in grads.items():
        np.testing.assert_allclose(grad, 2 * expected[key], rtol=1e-12, atol=1e-18)


@per_job
def test_a_second_backward_is_refused_unless_the_pass_was_retained(name):
    job = job_of(name)
    p = job.loss(0)
    assert not p.spent
    first = results(job, p, retain=True)
    assert not p.spent
    cases.assert_same_bytes(results(job, p, retain=True), first)
    cases.assert_same_bytes(results(job, p), first)
    assert p.spent
    before = grads_of(job.model)
    for options in ({}, {"retain": True}, {"grads": job.model.new_grads()}):
        with pytest.raises(RuntimeError, match="has had its one backward already"):
            p.backward(**options)
    cases.assert_same_bytes(grads_of(job.model), before)


@per_job
def test_bad_arguments_of_backward_change_nothing_and_can_be_mended(name):
    job = job_of(name)
    state = job.model.dropout_state
    p = job.loss(0)
    layers = len(p.state)
    wrong = [a[:, :, 1:] for a in arrays(p.state)]
    grads = job.model.new_grads()
    last = list(grads)[-1]
    missing = {key: g for key, g in grads.items() if key != last}
    first = next(iter(grads))
    other = job.loss(1).state
    bad = [
        ({"dstate": (None,) * (layers + 1)}, TypeError, "one entry for each of"),
        ({"dstate": 3}, TypeError, "dstate is 3, expected a tuple"),
        ({"dstate": tuple("x" for _ in other)}, TypeError, r"dstate\[0\]"),
        ({"dstate": (*[None] * (layers - 1), wrong[-1] if not isinstance(other[-1], tuple)
                     else (wrong[-1], None))}, ValueError, rf"dstate\[{layers - 1}\].* has shape"),
        ({"dstate": ((wrong[0], None) if isinstance(other[0], tuple) else wrong[0],
                     *[None] * (layers - 1))}, ValueError, r"dstate\[0\].* has shape"),
        ({"record": ("nothing",)}, ValueError, "record is .'nothing',., expected names out of"),
        ({"record": "dh"}, ValueError, "record is 'dh', expected names"),
        ({"record": np.array(["dh"])}, ValueError, "record is array.*, expected names"),
        *(({flag: value}, TypeError, f"{flag} is .*, expected True or False")
          for flag in ("need_dx", "retain") for value in ("no", None, np.array([True, False]))),
        ({"grads": missing}, ValueError, f"grads lacks '{last}'"),
        ({"grads": 5}, TypeError, "grads is of type int, expected a mapping"),
        ({"grads": grads | {first: grads[first].astype("f4")}}, TypeError, "is float32, expected"),
        ({"grads": grads | {last: grads[last][1:]}}, ValueError, "has shape"),
    ]
    for options, error, match in bad:
        with pytest.raises(error, match=match) as raised:
            p.backward(**options)
        assert str(raised.value).startswith("LossPass.backward: "), raised.value
        assert "\n" not in str(raised.value)
    assert not any(grad.any() for grad in [*job.model.grads.values(), *grads.values()])
    _, expected = singly(name, 0, state)
    cases.assert_same_bytes(results(job, p), expected)


@per_job
def test_an_evaluation_loss_has_the_value_and_no_backward(name):
    job = job_of(name)
    for p in (job.loss(0, grad=False), job.model.eval() and job.loss(0)):
        assert p.spent
        with pytest.raises(RuntimeError, match="in evaluation mode or with grad=False"):
            p.backward()
    job.model.train()
    if "language" not in name:  # no dropout: the same bits in both modes
        assert job.loss(0).value == p.value


@per_job
def test_evaluation_mode_has_gradients_if_asked(name):
    job = job_of(name)
    for layer in job.model.recurrent:
        layer.dropout = 0.0
    p = job.loss(0)
    expected = results(job, p)
    job.model.eval()
    cases.assert_same_bytes(results(job, job.loss(0, grad=True)), expected)


@per_job
def test_changed_parameters_are_refused_before_anything_is_added(name):
    changes = {
        "load_state_dict": lambda model: model.load_state_dict(model.state_dict()),
        **{f"{what} of {part}": change
           for part in job_of(name).model.parts()
           for what, change in {
               "flat": lambda model, part=part: setattr(model.parts()[part], "flat",
                                                        model.parts()[part].flat),
               "names": lambda model, part=part: model.parameters().update(
                   {key: p.copy() for key, p in model.parameters().items()
                    if key.startswith(part)}),
           }.items()},
    }
    for what, change in changes.items():
        job = job_of(name)
        p = job.loss(0)
        change(job.model)
        with pytest.raises(RuntimeError, match="parameters have changed since forward"):
            p.backward()
        assert not any(grad.any() for grad in job.model.grads.values()), what


def test_what_a_pass_records_is_what_the_layers_own_passes_record():
    layers = [LSTM(3, 4, 2, bidirectional=True, seed=1, **F64), LSTM(8, 3, seed=2, **F64)]
    model = SequenceModel(layers, N, seed=0)
    x, targets, _, _ = data_of(model)
    p = model.loss(x, targets)
    dx, _, recorded = p.backward(record=RECORD, need_dx=True)
    y, _, first = layers[0].forward(x)
    _, _, second = layers[1].forward(y)
    logits, _, outer = model.forward(x)
    model.zero_grad()
    doutputs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    doutputs[np.arange(T)[:, None], np.arange(B), targets] -= 1
    doutputs /= T * B
    dy = doutputs @ model.head.weight
    dy, _, above = second.backward(dy, record=RECORD)
    expected_dx, _, below = first.backward(dy, record=RECORD)
    assert [len(part) for part in recorded] == [2, 1]
    for got, expected in zip(recorded, (below, above), strict=True):
        for one, other in zip(got, expected, strict=True):
            assert set(one) == set(RECORD)
            for key, array in one.items():
                cases.assert_close(key, array, other[key], 1e-12)
    cases.assert_close("dx", dx, expected_dx, 1e-12)
    *_, from_outputs = outer.backward(doutputs, record=RECORD)
    for got, expected in zip(from_outputs, recorded, strict=True):
        for one, other in zip(got, expected, strict=True):
            for key, array in one.items():
                cases.assert_close(key, array, other[key], 1e-12)


@pytest.mark.parametrize("name", [kind for kind, o in KINDS.items() if not o.get("both")])
def test_recording_is_the_same_with_recomputing_and_changes_no_gradient(name):
    found, plain = [], job_of(name)
    expected = results(plain, plain.loss(0))
    for every in (None, 1, 2, 9):
        model = model_of(name)
        x, targets, weights, context = data_of(model)
        p = model.loss(x, targets, weights=weights, context=context, recompute_every=every)
        _, _, recorded = p.backward(record=RECORD)
        found.append(recorded)
        for key, grad in grads_of(model).items():
            np.testing.assert_allclose(grad, expected[key], rtol=1e-11, atol=1e-15)
    layers = model.recurrent
    for layer, one in zip(layers, found[0], strict=True):
        assert len(one) == layer.num_layers
        for number, names in enumerate(one):
            assert set(names) == set(RECORD) - (set() if layer.has_c else {"dc"})
            assert names["dh"].shape == (T, B, 1, layer.hidden_size)
            assert names["gates"].shape == (T, B, 1, layer.cell.G, layer.hidden_size)
            if number:
                assert names["x"].shape == (T, B, layer.hidden_size)
    for other in found[1:]:
        for layer, (one, two) in enumerate(zip(found[0], other, strict=True)):
            for names, again in zip(one, two, strict=True):
                for key, array in names.items():
                    np.testing.assert_allclose(again[key], array, rtol=1e-11, atol=1e-15,
                                               err_msg=f"layer {layer}, {key}")


def test_encoder_and_decoder_record_in_the_order_of_their_layers():
    model = pair_of()
    p = model.loss(*pair_data()[:3])
    _, _, recorded = p.backward(record=("dc", "h"))
    assert [len(part) for part in recorded] == [1, 1, 1, 1]
    assert [part[0]["h"].shape[0] for part in recorded] == [7, 7, T, T]
    assert ["dc" in part[0] for part in recorded] == [True, False, True, False]
    assert [part[0]["h"].shape[-1] for part in recorded] == [4, 2, 4, 2]
    only_gru = SequenceModel(GRU(3, 4, seed=0, **F64), N, seed=0)
    x, targets, _, _ = data_of(only_gru)
    with pytest.raises(ValueError, match=r"record is .'dc',., expected names out of \['dh', 'gat"):
        only_gru.loss(x, targets).backward(record=("dc",))


@per_job
def test_a_spent_pass_lets_go_of_its_arrays(name):
    job = job_of(name)
    p = job.loss(0)
    big = []
    read = getattr(p.inner, "_read", None)
    if "every" not in name and read is not None:
        big.append(weakref.ref(read))
    del read
    p.backward()
    gc.collect()
    assert all(ref() is None for ref in big)
    assert p.doutputs is None


def test_the_outputs_of_a_loss_lie_where_those_of_the_last_lay():
    """A training loop writes to the same memory again; passes in flight share none."""
    job = job_of("tags of symbols")
    first, second = job.loss(0), job.loss(1)
    places = [p.doutputs.ctypes.data for p in (first, second)]
    assert len(set(places)) == 2
    second.backward()
    third = job.loss(0)
    assert third.doutputs.ctypes.data == places[1]
    assert np.array_equal(third.doutputs, first.doutputs)


def test_no_two_threads_get_the_same_scratch():
    scratch, shape, wrong = Scratch(), (3, 4), []

    def work(number):
        for _ in range(3000):
            a = scratch.take(shape, np.dtype("f4"))
            a[...] = number
            if not (a == number).all():
                wrong.append(number)
            scratch.give(a)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


@pytest.mark.parametrize("left", [0, 1])
def test_scratch_that_another_thread_takes_meanwhile_is_done_without(left):
    scratch, shape = Scratch(), (3, 4)
    given, other = np.zeros(shape, "f4"), np.zeros((5, 6), "f4")

    class Asked(tuple):
        """A shape; when it is compared with that of `given`, another thread takes that array."""

        def __eq__(self, of):
            if any(spare is given for spare in scratch._spare):
                scratch._spare[:] = [other] * left
            return tuple(self) == of

        __hash__ = None

    scratch.give(given)
    taken = scratch.take(Asked(shape), np.dtype("f4"))
    assert taken.shape == shape
    assert taken is not given
    assert scratch._spare == []


def test_a_pass_wants_no_bfloat16_and_says_so():
    model = SequenceModel(LSTM(3, 4, seed=0), N, seed=0).eval("bfloat16")
    x, targets, _, _ = data_of(model)
    x = x.astype(np.float32)
    assert np.isfinite(model.loss(x, targets).value)
    for every in (None, 2):
        assert model.loss(x, targets, recompute_every=every).spent
        with pytest.raises(ValueError, match=r"SequenceModel\.loss: a pass is wanted in the mode"):
            model.loss(x, targets, grad=True, recompute_every=every)
    with pytest.raises(ValueError, match=r"SequenceModel\.forward: a pass is wanted"):
        model.forward(x)


def test_a_stacks_pass_refuses_before_it_adds():
    stack = Stack([LSTM(3, 4, seed=0, **F64), RNN(4, 2, seed=1, **F64)], seed=0)
    x = np.random.default_rng(0).standard_normal((T, B, 3))
    y, state, p = stack.forward(x)
    for args, options, match in (
            ((y[1:],), {}, r"StackPass.backward: dy has shape \(4, 3, 2\), expected \(5, 3, 2\)"),
            ((y.astype("f4"),), {}, "dy is float32"),
            ((y, (None, state[0][0])), {}, r"dstate\[1\] has shape"),
            ((y, (state[0][0], None)), {}, r"dstate\[0\] is ndarray of 1, expected a pair"),
            ((y,), {"grads": {}}, "grads lacks 'layers.0.weight_ih_l0'")):
        with pytest.raises((TypeError, ValueError), match=match):
            p.backward(*args, **options)
    assert not any(grad.any() for grad in stack.grads.values())
    dx, _ = p.backward(y, state)
    assert dx.shape == x.shape
    ones = [stack.forward(x)[2].backward(dy, state) for dy in (None, np.zeros_like(y))]
    cases.assert_same_bytes(*({"dx": dx, "dh": state0[1]} for dx, state0 in ones))
    with pytest.raises(RuntimeError, match="its one backward"):
        p.backward(y)
    outputs, _, p = (model := SequenceModel(RNN(3, 2, seed=0, **F64), 2, seed=0)).forward(x)
    for doutputs in (outputs[1:], None, outputs[..., :1]):
        with pytest.raises((TypeError, ValueError), match=r"OutputPass\.backward: doutputs"):
            p.backward(doutputs)
    assert not any(grad.any() for grad in model.grads.values())
    p.backward(outputs)
