"""The cases of each grid."""

from __future__ import annotations

from bench.cases import Case

CELLS = {"rnn": "rnn_tanh", "gru": "gru", "lstm": "lstm"}

# kind, B, T, I, H, and the least ratio to the best peer for RNN, GRU, LSTM that we aim at
FULL = [
    ("stream", 1, 1, 40, 40, (9, 11, 11)),
    ("stream", 1, 1, 128, 128, (4, 3.8, 3.3)),
    ("stream", 1, 1, 512, 512, (1, 1.12, 1.12)),
    ("infer", 1, 100, 128, 128, (1.4, 1.4, 1.25)),
    ("infer", 1, 100, 512, 512, (1.12, 1.03, 1)),
    ("infer", 8, 50, 128, 128, (1.8, 1.3, 1.15)),
    ("infer", 32, 100, 128, 256, (1.4, 1.2, 1.1)),
    ("infer", 64, 100, 512, 512, (1.25, 1.15, 1.1)),
    ("infer", 128, 30, 1024, 1024, (1.12, 1.1, 1.1)),
    ("train", 1, 100, 64, 64, (2.5, 2.5, 2.5)),
    ("train", 16, 50, 64, 128, (1.6, 1.7, 1.4)),
    ("train", 32, 100, 128, 256, (1.5, 1.6, 1.25)),
    ("train", 64, 100, 512, 512, (1.25, 1.3, 1.25)),
]
QUICK = (0, 1, 3, 5, 9, 10)  # the small ones of FULL

# Sizes of models in use. Where a paper leaves a size open, the usual one of its code.
REAL = [
    ("RNNoise vad", Case("stream", "gru", 1, 1, 24, 24)),
    ("RNNoise noise", Case("stream", "gru", 1, 1, 90, 48)),
    ("RNNoise denoise", Case("stream", "gru", 1, 1, 114, 96)),
    ("RNNoise 3x256", Case("stream", "gru", 1, 1, 256, 256, L=3)),
    ("Silero VAD", Case("stream", "lstm", 1, 1, 128, 128)),
    ("Opus PLC", Case("stream", "gru", 1, 1, 128, 128, L=2)),
    ("Opus DRED 5x32", Case("stream", "gru", 1, 1, 32, 32, L=5)),
    ("Opus DRED 5x64", Case("stream", "gru", 1, 1, 64, 64, L=5)),
    ("FARGAN 160", Case("stream", "gru", 1, 1, 160, 160, bias=False)),
    ("FARGAN 128", Case("stream", "gru", 1, 1, 160, 128, bias=False)),
    ("amp 1x16, sample", Case("stream", "lstm", 1, 1, 1, 16)),
    ("amp 1x24, sample", Case("stream", "lstm", 1, 1, 1, 24)),
    ("amp 2x8, sample", Case("stream", "lstm", 1, 1, 1, 8, L=2)),
    ("amp 3x18, sample", Case("stream", "lstm", 1, 1, 1, 18, L=3)),
    ("amp 1x16, TBPTT", Case("train", "lstm", 512, 16, 1, 16)),
    ("amp 1x24, TBPTT", Case("train", "lstm", 512, 16, 1, 24)),
    ("amp 3x18, TBPTT", Case("train", "lstm", 512, 16, 1, 18, L=3)),
    ("GuitarAmp", Case("train", "lstm", 1000, 40, 1, 32)),
    ("GuitarAmp", Case("train", "gru", 1000, 40, 1, 8)),
    ("DeepAR, GluonTS", Case("train", "lstm", 48, 32, 32, 40, L=2)),
    ("DeepAR, NeuralForecast", Case("train", "lstm", 48, 1024, 8, 128, L=2)),
    ("NeuralHydrology 20", Case("train", "lstm", 365, 256, 5, 20)),
    ("NeuralHydrology 128", Case("train", "lstm", 365, 256, 32, 128)),
    ("PPO, acting", Case("stream", "lstm", 1, 8, 256, 256)),
    ("PPO, update", Case("train", "lstm", 128, 8, 256, 256)),
    ("DeepLOB", Case("train", "lstm", 82, 64, 192, 64)),
    ("Open-Unmix", Case("infer", "lstm", 255, 1, 512, 256, L=3, D=2)),
    ("EasyOCR", Case("infer", "lstm", 64, 8, 512, 256, L=2, D=2)),
    ("medaka", Case("infer", "gru", 1000, 8, 10, 128, L=2, D=2)),
    ("WaveRNN", Case("stream", "gru", 1, 1, 512, 512)),
    ("Tacotron 2 cell", Case("stream", "lstm", 1, 1, 1024, 1024)),
    ("GNMT 512", Case("infer", "lstm", 25, 32, 512, 512)),
    ("GNMT 1024", Case("train", "lstm", 25, 64, 1024, 1024)),
    ("DeepSpeech 2", Case("infer", "rnn_relu", 50, 32, 1760, 1760)),
    ("DeepSpeech 2", Case("train", "rnn_relu", 50, 32, 1760, 1760)),
    ("RNN-T", Case("infer", "lstm", 10, 896, 1024, 1024)),
]

# The main job, and its least ratio to PyTorch on two threads.
TRAIN = [
    Case("lm", "lstm", 64, 32, 64, 256, need=1.5),
    Case("lm", "gru", 64, 32, 64, 256, need=2.3),
    Case("lm", "lstm", 32, 16, 64, 128, need=2.2),
    Case("lm", "rnn_tanh", 32, 16, 64, 128, need=3.5),
]


# Rows of different lengths, drawn from 1..100: B, H (I is the same).
RAGGED = [(32, 128), (32, 512), (8, 128)]

# Modules of PyTorch in training: B, H (I is the same), lengths, and the least ratio for RNN, GRU,
# and LSTM; T is 100. Each with and without the gradient of x.
MODULES = [
    (64, 512, "", (2.0, 2.0, 1.3)),
    (8, 128, "", (3.5, 3.5, 1.15)),
    (16, 128, "", (3.5, 3.5, 1.15)),
    (32, 128, "random", (5.0, 5.0, 5.0)),
]

# Callers that make a step at once, of a thousand: Silero VAD's cell, a step each 32 ms.
CALLERS = (1, 8, 64, 1000)

# Sample by sample: I, H; and the samples of a block.
AUDIO = [(1, 8), (1, 16), (1, 32), (1, 40), (40, 40), (64, 64), (128, 128)]
BLOCKS = (64, 1024)


def _rows(indices: tuple[int, ...], dtype: str) -> list[Case]:
    return [
        Case(kind, CELLS[cell], T, B, I, H, need=need if dtype == "float32" else None, dtype=dtype)
        for kind, B, T, I, H, needs in (FULL[k] for k in indices)
        for cell, need in zip(CELLS, needs, strict=True)
    ]


def cases(grid: str, dtype: str = "float32") -> list[Case]:
    """Return the cases of a grid that is a race between peers.

    Parameters
    ----------
    grid : {"quick", "full", "real", "train", "ragged", "callers", "audio"}
    dtype : {"float32", "float64"}
        There are no least ratios for float64.
    """
    from dataclasses import replace

    if grid == "quick":
        return _rows(QUICK, dtype)
    if grid == "full":
        return _rows(tuple(range(len(FULL))), dtype)
    if grid == "real":
        return [replace(case, name=name, dtype=dtype) for name, case in REAL]
    if grid == "train":
        return [replace(case, dtype=dtype, need=case.need if dtype == "float32" else None)
                for case in TRAIN]
    if grid == "ragged":
        return [Case(kind, cell, 100, B, H, H, lengths="random", dtype=dtype,
                     need_torch=5 if kind == "train" and B == 32 and cell != "rnn_tanh" else None)
                for B, H in RAGGED for kind in ("infer", "train") for cell in CELLS.values()]
    if grid == "callers":
        return [Case("callers", "lstm", 1, 1000, 128, 128, step=n, dtype=dtype) for n in CALLERS]
    if grid == "audio":
        return [Case("block", cell, T, 1, I, H, need=1.2 if H >= 40 else 1, dtype=dtype)
                for I, H in AUDIO for T in BLOCKS for cell in ("gru", "lstm")]
    raise ValueError(f"bench: no cases of grid {grid!r}")
