"""Typical uses, with the types that their results have: test_types checks this file and runs it."""

import tempfile
from pathlib import Path
from typing import Any, assert_type

import numpy as np

import fastrnn
from fastrnn import cells, functional, gradflow, init, losses, optim, reference, schedules, training
from fastrnn._kernels.stream import Stream
from fastrnn._kernels.tape import Tape
from fastrnn.layers import CellPass, Pass
from fastrnn.models import LossPass

Pair = tuple[np.ndarray, np.ndarray]
T, B, I, H = 5, 2, 3, 4
x = np.zeros((T, B, I), np.float32)

# ---- layers: a state is an array, of an LSTM a pair
rnn = fastrnn.RNN(I, H, nonlinearity="relu", seed=0)
gru = fastrnn.GRU(I, H, num_layers=2, dropout=0.1, seed=0)
lstm = fastrnn.LSTM(I, H, bidirectional=True, dtype=np.float32, seed=0)
assert_type(rnn(x), tuple[np.ndarray, np.ndarray])
assert_type(gru(x, lengths=[5, 2]), tuple[np.ndarray, np.ndarray])
assert_type(lstm(x), tuple[np.ndarray, Pair])
y, (hn, cn) = lstm(x)
assert_type(hn, np.ndarray)
assert_type(lstm.backward(y), tuple[np.ndarray, Pair])
gru(x)
assert_type(gru.backward(None, need_dx=False), tuple[np.ndarray | None, np.ndarray])
assert_type(lstm.forward(x), tuple[np.ndarray, Pair, Pass[Pair]])
assert_type(gru.forward(x, grad=False), tuple[np.ndarray, np.ndarray, Pass[np.ndarray] | None])
y, state, p = lstm.forward(x)
assert_type(p.backward(y, retain=True), tuple[np.ndarray, Pair])
assert_type(p.backward(y, record=("dh", "dc")),
            tuple[np.ndarray | None, Pair, list[dict[str, np.ndarray]]])
assert_type(gru.parameters()["weight_ih_l0"], np.ndarray)
assert_type(gru.weight_hh_l1, np.ndarray)
assert_type(gru.flat, np.ndarray)
assert_type(gru.eval("bfloat16"), fastrnn.GRU)
assert_type(gru.train(), fastrnn.GRU)
assert_type(gru.config, dict[str, Any])

# ---- single cells
assert_type(fastrnn.GRUCell(I, H)(x[0]), np.ndarray)
assert_type(fastrnn.RNNCell(I, H).forward(x[0]), tuple[np.ndarray, CellPass[np.ndarray]])
assert_type(fastrnn.LSTMCell(I, H)(x[0]), Pair)
state, step_pass = fastrnn.LSTMCell(I, H).forward(x[0], None)
assert_type(step_pass.backward(state), tuple[np.ndarray, Pair])

# ---- cells from equations: how many states there are is known when they are read
keep = fastrnn.cell("h = tanh(W x + U h + b)", name="Keep")
assert_type(keep, cells.Definition)
assert_type(cells.PeepholeLSTM, cells.Definition)
assert_type(fastrnn.Layer(keep, I, H)(x), tuple[np.ndarray, Any])

# ---- streams
step = gru.eval().stream(batch_size=2)
assert_type(step, Stream)
assert_type(step(x[0]), np.ndarray)
assert_type(step(x[0, :1], rows=[1]), np.ndarray)
assert_type(step.block(x), np.ndarray)
assert_type(step.copy(), Stream)
step.reset()
gru.train()

# ---- functions
W, U = np.zeros((4 * H, I), np.float32), np.zeros((4 * H, H), np.float32)
for module in (functional, reference):
    module.lstm_forward(x, None, W, U)
assert_type(functional.lstm_forward(x, None, W, U), tuple[np.ndarray, Pair, Tape | None])
assert_type(functional.gru_forward(x, None, W[: 3 * H], U[: 3 * H]),
            tuple[np.ndarray, np.ndarray, Tape | None])
y, state, tape = functional.lstm_forward(x, None, W, U)
dx, dstate, grads = functional.lstm_backward(y, None, tape)
assert_type(dx, np.ndarray | None)
assert_type(dstate, Pair)
assert_type(grads["weight_ih"], np.ndarray)
assert_type(reference.lstm_forward(x, None, W, U),
            tuple[np.ndarray, Pair, reference.Tape | None])

# ---- models, losses, training
model = fastrnn.SequenceModel(fastrnn.GRU(I, H, seed=0), 1, loss="mse", seed=0)
data, targets = np.zeros((3, T, I)), np.zeros((3, T, 1))
assert_type(model.predict(data), np.ndarray)
assert_type(model.evaluate(data, targets), float)
loss = model.loss(x, np.zeros((T, B, 1), np.float32))
assert_type(loss, LossPass)
assert_type(loss.value, float)
loss.backward()
assert_type(model.stream(), Stream)
history = fastrnn.fit(model, data, targets, epochs=1, progress=False, clip=1.0,
                      optimizer=optim.Adam(model, lr=1e-3, weight_decay=0.1, freeze="head"),
                      schedule=schedules.CosineDecay(0.1))
assert_type(history, training.History)
assert_type(history.losses, list[float])
assert_type(losses.mean_squared_error(np.zeros((2, 1)), np.zeros((2, 1))),
            tuple[float, np.ndarray | None])
assert_type(init.orthogonal(fastrnn.RNN(I, H)), fastrnn.RNN)

language = fastrnn.LanguageModel(embedding_size=4, hidden_size=4, cell="gru", seed=0)
assert_type(language.sample("a", 3), str)
assert_type(language.sample(b"a", 3), bytes)
assert_type(language.sample([97], 3), np.ndarray)
translator = fastrnn.EncoderDecoder(
    fastrnn.Stack(fastrnn.GRU(I, H)), fastrnn.SequenceModel(fastrnn.GRU(6, H), 6, vocab_size=6))
assert_type(translator.generate(x, [0, 0], 4), np.ndarray)

flow = gradflow.gradient_flow(gru, x)
assert_type(flow, gradflow.GradientFlow)
assert_type(gradflow.verdict(flow), str)

# ---- files: what a file has is known when it is read
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.safetensors"
    assert_type(model.save(path), None)
    assert_type(fastrnn.load(path), Any)
    fastrnn.save(gru, str(path), {"from": "here"})

# ---- the process
assert_type(fastrnn.__version__, str)
assert_type(fastrnn.get_num_threads(), int)
fastrnn.set_num_threads(fastrnn.get_num_threads())
