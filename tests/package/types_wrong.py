"""Wrong uses, each of which mypy refuses: see test_types. This file is never run.

A comment that ignores an error which is not there is an error itself (warn_unused_ignores).
"""

import numpy as np

import fastrnn
from fastrnn import cells, functional, optim, schedules

x = np.zeros((5, 2, 3), np.float32)
lstm, gru = fastrnn.LSTM(3, 4), fastrnn.GRU(3, 4)

# ---- names and arguments that do not exist
fastrnn.LTSM(3, 4)  # type: ignore[attr-defined]
cells.PeepHoleLSTM  # type: ignore[attr-defined] # noqa: B018
lstm.forget()  # type: ignore[operator]
fastrnn.LSTM(3, 4, layers=2)  # type: ignore[call-arg]
fastrnn.GRU(3)  # type: ignore[call-arg]
fastrnn.LSTM(3, 4, nonlinearity="relu")  # type: ignore[call-arg]
fastrnn.LSTM(3, 4, 1, True, False, 0.0, False, 0, 7)  # type: ignore[call-arg]
gru(x, None, [5, 2])  # type: ignore[call-arg]
functional.lstm_forward(x, None)  # type: ignore[call-arg]

# ---- arguments of a wrong type
fastrnn.LSTM("3", 4)  # type: ignore[arg-type]
fastrnn.RNN(3, 4, nonlinearity=np.tanh)  # type: ignore[arg-type]
fastrnn.Layer("LSTM", 3, 4)  # type: ignore[arg-type]
fastrnn.cell(3)  # type: ignore[arg-type]
functional.gru_backward(x, None, x)  # type: ignore[arg-type]
fastrnn.EncoderDecoder(gru, lstm)  # type: ignore[arg-type]
fastrnn.set_num_threads("all")  # type: ignore[arg-type]
optim.SGD(gru, momentum=None)  # type: ignore[arg-type]
schedules.CosineDecay("slow")  # type: ignore[arg-type]

# ---- results that are something else
lstm(x).shape  # type: ignore[attr-defined] # noqa: B018
lstm(x)[1].shape  # type: ignore[attr-defined] # noqa: B018
fastrnn.LSTMCell(3, 4)(x[0]).shape  # type: ignore[attr-defined] # noqa: B018
h: np.ndarray = lstm(x)[1]  # type: ignore[assignment]
hn, cn, more = lstm(x)[1]  # type: ignore[misc]
y, hn = gru.forward(x)  # type: ignore[misc]
gru.forward(x, grad=False)[2].backward()  # type: ignore[union-attr]
gru.backward(need_dx=False)[0].shape  # type: ignore[union-attr] # noqa: B018
text: str = fastrnn.LanguageModel().sample(b"a", 3)  # type: ignore[assignment]

# ---- models and training
model = fastrnn.SequenceModel(gru)  # type: ignore[call-arg]
model.predict(x).backward()  # type: ignore[attr-defined]
fastrnn.fit(model, x, epoch=3)  # type: ignore[call-arg]
fastrnn.fit(model, x, epochs=1, clip="norm")  # type: ignore[arg-type]
fastrnn.fit(model, x, epochs=1).loss  # type: ignore[attr-defined] # noqa: B018
fastrnn.save(model)  # type: ignore[call-arg]
fastrnn.load()  # type: ignore[call-arg]
gru.stream()(x[0], y=x)  # type: ignore[call-arg]
gru.stream().batch_size = 3  # type: ignore[misc]
