"""Checkpoints: everything that a training needs to go on bit for bit, or nothing changes."""

import os

import numpy as np
import pytest

import fastrnn
from fastrnn import GRU, LSTM, EncoderDecoder, LanguageModel, SequenceModel, Stack, optim
from fastrnn.training import History, checkpoint

RNG = np.random.default_rng(0)
SYMBOLS = RNG.integers(0, 5, (12, 6, 3))
X = RNG.standard_normal((12, 6, 3, 2)).astype(np.float32)

LANGUAGE = (lambda: LanguageModel(5, 3, 4, 2, dropout=0.5, seed=0),
            lambda m, k, state: m.loss(SYMBOLS[k], SYMBOLS[k - 1], state))
MIXED = (lambda: SequenceModel([LSTM(2, 4, 2, dropout=0.3, seed=0), GRU(4, 3, seed=1)], 1,
                               loss="mse", seed=0),
         lambda m, k, state: m.loss(X[k], X[k - 1][:, :, :1], state))
PAIR = (lambda: EncoderDecoder(Stack(GRU(2, 4, 2, dropout=0.5, seed=0)),
                               SequenceModel(GRU(3, 4, 2, seed=1), 5, vocab_size=5, seed=2)),
        lambda m, k, state: m.loss(X[k], SYMBOLS[k], SYMBOLS[k - 1]))
MODELS = {"language": LANGUAGE, "mixed": MIXED, "pair": PAIR}
OPTIMIZERS = {
    "Adam": lambda m: optim.Adam(m, 0.01),
    "AdamW in groups": lambda m: optim.AdamW(
        m, 0.01, groups={"*bias*": {"weight_decay": 0.0}, "*head*": {"lr": 0.1}}),
    "SGD": lambda m: optim.SGD(m, 0.01), "momentum": lambda m: optim.SGD(m, 0.01, momentum=0.9),
    "RMSProp": lambda m: optim.RMSProp(m, 0.01),
}
ABOUT = {"seed": 3, "data": [{"shape": [3, 4]}], "lr": 0.01}


def advance(kind, model, optimizer, history, state, steps):
    """Take steps as training does; return the state that is carried."""
    for _ in range(steps):
        k = history.progress.steps
        model.zero_grad()
        p = MODELS[kind][1](model, k, state)
        p.backward()
        optimizer.lr = 0.01 * 0.9**k
        history.norms.append(optimizer.step(1.0))
        history.losses.append(p.value)
        history.rates.append(optimizer.lr)
        history.progress.steps += 1
        history.progress.loss = p.value
        if k % 2:
            history.clipped.append(k + 1)
            history.validations.append((k + 1, p.value))
        state = p.state if kind != "pair" else None
    return state


def values(model, optimizer, history=None):
    return ({name: a.tobytes() for name, a in model.parameters().items()}, model.dropout_state,
            {name: a.tobytes() for name, a in optimizer.state_dict().items()}, history)


@pytest.mark.parametrize("optimizer_kind", OPTIMIZERS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_resumed_run_is_bitwise_one_that_never_stopped(tmp_path, kind, optimizer_kind):
    def start():
        model = MODELS[kind][0]()
        return model, OPTIMIZERS[optimizer_kind](model), History()

    model, optimizer, history = start()
    state = advance(kind, model, optimizer, history, None, 4)
    checkpoint.save(tmp_path / "latest", model, optimizer, 0.01, state, history, ABOUT)
    advance(kind, model, optimizer, history, state, 4)

    other, its, _ = start()
    past, state, about = checkpoint.load(tmp_path / "latest", other, its)
    assert about == ABOUT == checkpoint.about(tmp_path / "latest")
    assert past == checkpoint.history(tmp_path / "latest")
    assert (past.progress.steps, len(past.losses), past.clipped) == (4, 4, [2, 4])
    assert past.validations == history.validations[:2]
    advance(kind, other, its, past, state, 4)
    assert values(other, its, past) == values(model, optimizer, history)


def test_a_checkpoint_is_a_model_too(tmp_path):
    model = LANGUAGE[0]()
    optimizer = optim.Adam(model)
    state = advance("language", model, optimizer, History(), None, 2)
    checkpoint.save(tmp_path / "latest", model, optimizer, 1e-3, state, History(), {})
    model.save(tmp_path / "model")
    for name, param in fastrnn.load(tmp_path / "latest").parameters().items():
        np.testing.assert_array_equal(param, fastrnn.load(tmp_path / "model").parameters()[name])
    assert checkpoint.history(tmp_path / "model") is None
    assert checkpoint.about(tmp_path / "model") is None
    with pytest.raises(ValueError, match="is not a checkpoint of fastrnn: it lacks"):
        checkpoint.load(tmp_path / "model", model, optimizer)


def test_a_layer_alone_and_states_of_every_shape(tmp_path):
    layer = GRU(3, 4, 2, dropout=0.5, seed=0)
    for state in (None, (), X[0], (X[0], (X[1], None), ()), ((X[2],),)):
        checkpoint.save(tmp_path / "a", layer, optim.SGD(layer), 0.1, state, History(), {})
        _, back, _ = checkpoint.load(tmp_path / "a", layer, optim.SGD(layer))
        same(state, back)


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            same(*pair)
    else:
        np.testing.assert_array_equal(a, b)


def test_another_learning_rate_may_go_on(tmp_path):
    model, optimizer = LANGUAGE[0](), None
    groups = {"head": {"lr": 0.1}}
    optimizer = optim.Adam(model, 0.01, groups=groups)
    optimizer.lr = 0  # where a schedule ended
    checkpoint.save(tmp_path / "a", model, optimizer, 0.01, None, History(), {})
    for other in (optim.Adam(model, 0.5, groups=groups), optim.Adam(model, 0.01, groups=groups)):
        lr = other.lr
        checkpoint.load(tmp_path / "a", model, other)
        assert other.lr == lr


@pytest.mark.parametrize(
    ("make", "optimizer", "match"),
    [
        (lambda: LanguageModel(5, 3, 7, 2, dropout=0.5), optim.Adam,
         r"checkpoint of another model: its config.hidden_size is 4, expected 7$"),
        (lambda: LanguageModel(5, 3, 4, 2, cell="gru", dropout=0.1), optim.Adam,
         r"its config.cell is 'lstm', expected 'gru'; its config.dropout is 0.5, expected 0.1"),
        (MIXED[0], optim.Adam, "another model: its model is 'LanguageModel', expected 'Sequ"),
        (LANGUAGE[0], optim.SGD, "another optimizer: its optimizer is 'Adam', expected 'SGD'"),
        (LANGUAGE[0], lambda m: optim.Adam(m, betas=(0.5, 0.999)),
         r"another optimizer: its betas\[0\] is 0.9, expected 0.5$"),
        (LANGUAGE[0], lambda m: optim.Adam(m, freeze="head"), "another optimizer: its freeze is"),
        (LANGUAGE[0], lambda m: optim.Adam(m, groups={"head": {"weight_decay": 0.1}}),
         "another optimizer: its groups.head is None"),
    ],
)
def test_a_checkpoint_of_something_else_changes_nothing(tmp_path, make, optimizer, match):
    model = LANGUAGE[0]()
    first = optim.Adam(model)
    advance("language", model, first, History(), None, 2)
    checkpoint.save(tmp_path / "a", model, first, 1e-3, None, History(), {})
    other = make()
    its = optimizer(other)
    before = values(other, its)
    with pytest.raises(ValueError, match=match) as raised:
        checkpoint.load(tmp_path / "a", other, its)
    assert "\n" not in str(raised.value)
    assert values(other, its) == before


class Mine(LanguageModel):
    pass


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    model = Mine(5, 3, 4)
    optimizer = optim.Adam(model)
    for call in (lambda: checkpoint.save(tmp_path / "a", model, optimizer, 1, None, History(), {}),
                 lambda: checkpoint.try_save(tmp_path / "a", model, optimizer, {}),
                 lambda: checkpoint.load(tmp_path / "a", model, optimizer)):
        with pytest.raises(TypeError, match="a subclass of LanguageModel cannot be made again"):
            call()
    assert os.listdir(tmp_path) == []


def test_a_trial_writes_nothing_and_finds_what_is_closed(tmp_path):
    model = LANGUAGE[0]()
    optimizer = optim.Adam(model)
    checkpoint.try_save(tmp_path / "a", model, optimizer, {})
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"none/a'$"):
        checkpoint.try_save(tmp_path / "none" / "a", model, optimizer, {})
