"""How far gradients reach: |dL/dh(t)| against the distance from the loss, for five cells.

The loss is at the last step of the adding problem (adding.py), of 100 steps. Each cell is measured
before and after training on that problem. A curve that falls is a gradient that vanishes, one that
rises a gradient that explodes, a level one is memory (Bengio, Simard and Frasconi 1994; Pascanu,
Mikolov and Bengio 2013). Letters: T steps, B sequences of a batch, H hidden units.
"""

import numpy as np
from adding import problem
from common import chart, parser, record

from fastrnn import GRU, LSTM, RNN, SequenceModel, fit, gradflow, init
from fastrnn.training import Generated, evaluate

CELLS = {
    "RNN tanh": lambda H: RNN(2, H, seed=0),
    "RNN sigmoid": lambda H: RNN(2, H, nonlinearity="sigmoid", seed=0),
    "RNN relu, identity": lambda H: init.identity(RNN(2, H, nonlinearity="relu", seed=0), seed=0),
    "GRU": lambda H: GRU(2, H, seed=0),
    "LSTM": lambda H: LSTM(2, H, seed=0),
}


def reach(model, batch):
    """Return |dL/dh(t)| over |dL/dh(T)| by distance T - t."""
    (flow,) = gradflow.model_flow(model, model.loss(*batch.inputs, batch.targets),
                                  parts=("norms",))
    norms = flow.batch_norms[0, 0, ::-1]
    return norms / norms[0]


def main(argv=None):
    """Return {cell: (before, after)}: curves over the distance."""
    args = parser(__doc__, "seconds: few units, little training").parse_args(argv)
    T, H, steps = (60, 16, 30) if args.quick else (100, 64, 2000)
    batch = Generated(problem(T, 64), 12345)(0)
    found = {}
    for name, make in CELLS.items():
        model = SequenceModel(make(H), 1, loss="mse", readout="last", seed=0)
        before = reach(model, batch)
        fit(model, Generated(problem(T, 32)), steps=steps, lr=1e-3)
        after = reach(model, batch)
        found[name] = (before, after)
        error = evaluate(model, Generated(problem(T, 500), 12345), 1)
        print(f"{name:19} norm {T - 1} steps back, over that at the end: {before[-1]:.1e} before "
              f"and {after[-1]:.1e} after training (test error {error:.4f}; always 1: 0.1667)",
              flush=True)
    if not args.quick:
        record("distance", {"T": T, "H": H, "steps": steps, "batch": 32, "lr": 1e-3},
               {name: [curve.tolist() for curve in curves] for name, curves in found.items()})
        with chart("distance", 1, 2, (10, 4)) as axes:
            for i, title in enumerate(("before training", f"after {steps} steps of training")):
                for name, curves in found.items():
                    axes[i].semilogy(np.maximum(curves[i], 1e-30), label=name)
                axes[i].set(title=title, xlabel="distance from the loss, steps", ylim=(1e-16, 1e4),
                            ylabel="norm of dL/dh(t), over that at the end")
            axes[0].legend(fontsize="small")
    return found


if __name__ == "__main__":
    main()
