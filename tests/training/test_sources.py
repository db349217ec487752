"""Samples with a source: what an EncoderDecoder trains on."""

import numpy as np
import pytest

from fastrnn import GRU, EncoderDecoder, SequenceModel, Stack, training
from fastrnn.training import Batch, Samples

N, S, T = 7, 5, 4
rng = np.random.default_rng(3)


def arrays(steps, I):
    return rng.standard_normal((steps, N, I)).astype(np.float32)


def lists(I, seed):
    lengths = np.random.default_rng(seed).integers(1, 6, N)
    return [rng.standard_normal((n, I)).astype(np.float32) for n in lengths]


SOURCE, INPUTS = {"arrays": arrays(S, 3), "lists": lists(3, 0)}, {"arrays": arrays(T, 2),
                                                                  "lists": lists(2, 1)}


def pair():
    return EncoderDecoder(Stack(GRU(3, 4, seed=0)),
                          SequenceModel(GRU(2, 4, seed=1), 2, loss="mse", seed=0))


def some(of, rows):
    return [of[i] for i in rows] if isinstance(of, list) else of[:, rows]


def values(model):
    return {name: a.tobytes() for name, a in model.parameters().items()}


@pytest.mark.parametrize("of_source", ["arrays", "lists"])
@pytest.mark.parametrize("of_inputs", ["arrays", "lists"])
def test_a_source_is_cut_as_the_inputs_are(of_source, of_inputs):
    source, inputs = SOURCE[of_source], INPUTS[of_inputs]
    data = Samples(inputs, inputs, 3, source=source, seed=5)
    assert data.count == 3
    found = []

    def own(step):
        epoch, k = divmod(step, 3)
        rows = np.random.default_rng([5, epoch]).permutation(N)[3 * k : 3 * k + 3]
        return Batch((some(source, rows), some(inputs, rows)), some(inputs, rows))

    for given in (data, own):
        model = pair()
        history = training.fit(model, given, steps=7, lr=0.05)
        found.append((values(model), history.losses))
    assert found[0] == found[1]


def test_epochs_validation_and_evaluate():
    source, inputs = SOURCE["lists"], INPUTS["lists"]
    model = pair()
    held_out = Samples(inputs[5:], inputs[5:], 1, source=source[5:], shuffle=False)
    history = training.fit(model, Samples(inputs[:5], inputs[:5], 2, source=source[:5]), epochs=2,
                           validation=held_out)
    assert [step for step, _ in history.validations] == [3, 6]
    p = model.loss(source[5:], inputs[5:], inputs[5:], grad=False)
    assert history.validations[-1][1] == pytest.approx(p.value, rel=1e-5)
    assert training.evaluate(model, held_out, held_out.count) == pytest.approx(p.value, rel=1e-5)


def test_a_run_with_another_source_is_not_resumed(tmp_path):
    source, inputs = SOURCE["arrays"], INPUTS["arrays"]
    options = {"folder": tmp_path / "run", "epochs": 1}
    training.fit(pair(), Samples(inputs, inputs, 3, source=source), **options)
    for other in (-source, source[:-1]):
        with pytest.raises(ValueError, match="its data has"):
            training.fit(pair(), Samples(inputs, inputs, 3, source=other), resume=True, **options)
    training.fit(pair(), Samples(inputs, inputs, 3, source=source.copy()), resume=True, **options)


@pytest.mark.parametrize(("source", "match"), [
    (SOURCE["arrays"][:, 1:], r"source has shape \(5, 6, 3\), expected 7 along axis 1"),
    (SOURCE["lists"][1:], "source has 6 sequences, expected 7: as many as x"),
    ([], "source is an empty list"), (3, r"source has shape \(\)"),
    ("abc", "source is of type str"),
    ([*SOURCE["lists"][1:], np.zeros(3)], r"source\[6\] has shape \(3,\), expected"),
])
def test_sources_that_do_not_fit(source, match):
    for inputs in INPUTS.values():
        with pytest.raises((TypeError, ValueError), match=f"^Samples: {match}"):
            Samples(inputs, inputs, 3, source=source)


def test_a_source_is_for_an_encoder_decoder_alone():
    inputs = INPUTS["arrays"]
    with pytest.raises(ValueError, match="inputs of the batch are 2"):
        training.fit(SequenceModel(GRU(2, 4), 2, loss="mse"),
                     Samples(inputs, inputs, 3, source=SOURCE["arrays"]), steps=1)
    with pytest.raises(ValueError, match="inputs of the batch are 1"):
        training.fit(pair(), Samples(inputs, inputs, 3), steps=1)
    with pytest.raises(TypeError, match=r"Samples\(inputs, targets, batch_size, source=...\)"):
        training.fit(pair(), inputs, inputs, steps=1)


def test_models_without_a_loss_of_arrays_have_no_predict():
    for model in (pair(), Stack(GRU(3, 4))):
        assert not hasattr(model, "predict")
        assert not hasattr(model, "evaluate")
