"""Forecasting: learn the next value of a chaotic series, then run freely for 84 steps.

The series of Mackey and Glass (1977), dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x(t), one
value a unit of time, scaled to mean 0 and variance 1. A GRU learns each next value from those
before it; its state is carried from window to window. The test is harder: after 500 true values the
GRU reads its own forecasts, and the error of the 84th counts, over the standard deviation of the
series (NRMSE84: Jaeger and Haas 2004). A forecast of the mean has an NRMSE of about 1.
"""

import numpy as np
from common import chart, parser, record

from fastrnn import GRU, SequenceModel, fit
from fastrnn.schedules import CosineDecay

AHEAD, WARM = 84, 500


def mackey_glass(n, seed=0, tau=17, parts=10):
    """Return n values (n, 1), by Runge-Kutta with `parts` steps in a unit of time."""
    rng = np.random.default_rng(seed)
    past = 1.2 + 0.2 * (rng.random(tau * parts) - 0.5)  # of one delay; the oldest is replaced
    x, out, step = 1.2, np.empty(n), 1 / parts

    def slope(x, delayed):
        return 0.2 * delayed / (1 + delayed**10) - 0.1 * x

    for k in range(1000 * parts + n * parts):  # the first 1000 are on the way to the attractor
        now, after = past[k % past.size], past[(k + 1) % past.size]
        middle = (now + after) / 2
        past[k % past.size] = x
        a = slope(x, now)
        b = slope(x + step / 2 * a, middle)
        c = slope(x + step / 2 * b, middle)
        x += step / 6 * (a + 2 * b + 2 * c + slope(x + step * c, after))
        if k >= 1000 * parts and k % parts == 0:
            out[k // parts - 1000] = x
    return ((out - out.mean()) / out.std()).astype(np.float32)[:, None]


def forecast(model, series, starts):
    """Return forecasts of AHEAD values from each start on, and the true values, (AHEAD, N)."""
    x = np.stack([series[s - WARM : s] for s in starts], 1)  # (WARM, N, 1)
    _, state = model(x[:-1])
    forecasts = model.generate(x[-1], AHEAD, state)
    return forecasts[..., 0], np.stack([series[s : s + AHEAD, 0] for s in starts], 1)


def main(argv=None):
    """Return {name: NRMSE one step and 84 steps ahead}."""
    args = parser(__doc__, "seconds: fewer units and steps").parse_args(argv)
    H, n, steps = (32, 8000, 4000) if args.quick else (100, 20_000, 20_000)
    series = mackey_glass(n + 5000)
    model = SequenceModel(GRU(1, H, seed=0), 1, loss="mse", seed=0)
    fit(model, series[:n], window=50, batch_size=16, steps=steps, lr=5e-3,
        schedule=CosineDecay(final=0.01))
    starts = np.linspace(n + WARM, n + 5000 - AHEAD - 1, 20 if args.quick else 200).astype(int)
    forecasts, true = forecast(model.eval(), series, starts)
    last = np.stack([series[s - 1] for s in starts], 1)  # (1, N)
    methods = (("GRU", forecasts), ("the last value", last), ("the mean", 0.0))
    found = {name: [float(np.sqrt(np.square(a - true)[ahead].mean())) for ahead in (0, -1)]
             for name, a in methods}
    for name, (first, ahead) in found.items():
        print(f"{name:15} NRMSE of 1 step ahead: {first:.2g}, of {AHEAD}: {ahead:.2g}", flush=True)
    if not args.quick:
        record("forecasting", {"H": H, "train": n, "steps": steps, "window": 50, "batch": 16,
                               "starts": len(starts)}, found)
        with chart("forecasting", 1, 2, (10, 3.5)) as (series_axes, error_axes):
            time = np.arange(-60, AHEAD)
            series_axes.plot(time, series[starts[0] - 60 : starts[0] + AHEAD], label="series")
            series_axes.plot(time[60:], forecasts[:, 0], "--", label="forecast, running freely")
            series_axes.set(title="Mackey-Glass, tau = 17", xlabel="step")
            series_axes.legend(loc="lower left", bbox_to_anchor=(0.25, 0))
            for name, a in methods:
                error_axes.semilogy(np.sqrt(np.square(a - true).mean(1)), label=name)
            error_axes.set(title=f"over {len(starts)} starts", xlabel="steps ahead", ylabel="NRMSE")
            error_axes.legend()
    return found


if __name__ == "__main__":
    main()
