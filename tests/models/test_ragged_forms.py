"""Whatever a list of sequences is made of, or lies in, the results are those of plain arrays."""

import numpy as np
import pytest
from kinds import KINDS, grads_of, model_of
from lists import assert_same, lists_of

from fastrnn import training


def objects(a):
    """Return a list as an array of objects, of arrays of one length, too."""
    made = np.empty(len(a), object)
    made[:] = a
    return made


def series(a):
    pandas = pytest.importorskip("pandas")
    return pandas.Series(list(a), index=range(100, 100 + len(a)))


def swapped(a):
    return a.astype(a.dtype.newbyteorder()) if a.dtype.itemsize > 1 else a


FORMS = {
    "a tuple": tuple,
    "an array of objects": objects,
    "a series of pandas": series,
    "Fortran": lambda a: [np.asfortranarray(one) for one in a],
    "columns of a wider array": lambda a: [np.repeat(one, 2, -1)[..., ::2] for one in a],
    "from the end": lambda a: [one[::-1].copy()[::-1] for one in a],
    "the other byte order": lambda a: [swapped(one) for one in a],
    "one in the other byte order": lambda a: [*a[:-1], swapped(a[-1])],
}


def given(kind):
    """Return a model, its data, and which of the data are lists."""
    model = model_of(kind)
    lists = lists_of(model)
    data = {"targets": lists.targets, "weights": lists.weights,
            "episode_start": lists.start}
    if lists.context is not None:
        data["context"] = lists.context
    return model, lists.x, data, [name for name, a in data.items() if isinstance(a, list)]


def loss(model, x, options):
    model.zero_grad()
    p = model.loss(x, **options, grad=True)
    p.backward()
    return p.value, p.weight, grads_of(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_lists(kind, form):
    model, x, data, listed = given(kind)
    as_form = FORMS[form]
    others = data | {name: as_form(data[name]) for name in listed}
    value, weight, grads = loss(model, x, data)
    found = loss(model, as_form(x), others)
    assert found[:2] == (value, weight)
    for name, grad in grads.items():
        assert_same(found[2][name], grad, name)
    for options, plain in ((others, data), (data, others)):  # mixed forms, too
        here = {name: options[name] for name in data if name in ("context", "episode_start")}
        assert_same(model(as_form(x), **here)[0], model(x, **here)[0])
        assert_same(model.predict(as_form(x), **here), model.predict(x, **here))
        more = here | {"weights": plain["weights"]}
        assert model.evaluate(as_form(x), options["targets"], **more) == model.evaluate(
            x, data["targets"], **more)


@pytest.mark.parametrize("form", FORMS)
def test_sequences_of_one_length_in_any_form(form):
    model = model_of("numbers")
    x = list(np.random.default_rng(0).standard_normal((3, 4, model.input_size)))
    assert_same(model.predict(FORMS[form](x)), model.predict(np.stack(x)))


@pytest.mark.parametrize("form", ["an array of objects", "a series of pandas"])
def test_batches_and_samples_of_any_form(form):
    as_form = FORMS[form]
    losses = []
    for each in (list, as_form):
        model, x, data, _ = given("numbers")
        x, y, w, start = (each(a) for a in (x, data["targets"], data["weights"],
                                            data["episode_start"]))
        batch = training.Batch(x, y, w, episode_start=start)
        samples = training.Samples(x, y, 2, weights=w, episode_start=start)
        windows = training.SeriesWindows(x, 2, 3, y, weights=w, episode_start=start)
        for source in (lambda step, batch=batch: batch, samples, windows):
            history = training.fit(model, source, steps=4)
            losses.append((history.losses, history.progress.seen))
    assert losses[:3] == losses[3:]
