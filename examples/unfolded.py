"""Backpropagation through time by hand: T = 3 steps, one output at the end.

    h(t) = tanh(W h(t-1) + U x(t)),  o = V h(3),  L = (o - d)^2 / N

Unfolded, the network has a copy of W and of U in each step. The gradient of each copy is one term
of the sum over k

    dL/dW = sum_k (dL/dh(3)) (dh(3)/dh(k)) (d+h(k)/dW)

where d+ holds h(k-1) fixed (Werbos 1990; Pascanu, Mikolov and Bengio 2013, equation 5). V is used
once, so its gradient has one term. The program prints each number beside a central difference of
the unfolded network, and each sum beside the gradient that fastrnn's backward computes. Letters:
T steps, I inputs, H hidden units, N outputs, d the target.
"""

import argparse
from functools import partial

import numpy as np

from fastrnn import RNN, SequenceModel

T, I, H, N = 3, 2, 2, 1
STEP = 1e-5


def unfolded(Ws, Us, V, x, d):
    """Return the loss and h(0..3) of the network whose step k has weights of its own."""
    h = [np.zeros(H)]
    for W, U, xt in zip(Ws, Us, x, strict=True):
        h.append(np.tanh(W @ h[-1] + U @ xt))
    return ((V @ h[-1] - d) ** 2).mean(), h


def loss_from(W, U, V, x, d, h):
    """Return the loss of the network whose state is h, and which has x still to read."""
    for xt in x:
        h = np.tanh(W @ h + U @ xt)
    return ((V @ h - d) ** 2).mean()


def differences(loss, array):
    """Return d loss / d array by central differences."""
    d = np.empty_like(array)
    for i in np.ndindex(array.shape):
        before = array[i]
        array[i] = before + STEP
        up = loss()
        array[i] = before - STEP
        down = loss()
        array[i] = before
        d[i] = (up - down) / (2 * STEP)
    return d


def main(argv=None):
    """Print every derivative; return the largest relative error."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args(
        [a for a in argv or [] if a != "--quick"])
    rng = np.random.default_rng(0)
    layer = RNN(I, H, bias=False, dtype=np.float64, seed=0)
    model = SequenceModel(layer, N, loss="mse", readout="last", seed=0)
    model.head.bias = np.zeros(N)
    x, d = rng.standard_normal((T, I)), rng.standard_normal(N)
    W, U, V = layer.weight_hh_l0, layer.weight_ih_l0, model.head.weight

    Ws, Us = [W.copy() for _ in range(T)], [U.copy() for _ in range(T)]
    _, h = unfolded(Ws, Us, V, x, d)
    model.loss(x[:, None], d[None]).backward()

    worst = 0.0

    def show(name, analytic, numeric, beside="finite differences"):
        nonlocal worst
        analytic, numeric = np.ravel(analytic), np.ravel(numeric)
        error = np.abs(analytic - numeric).max() / max(np.abs(numeric).max(), 1e-12)
        worst = max(worst, error)
        print(f"{name:34}" + " ".join(f"{a:10.6f}" for a in analytic))
        print(f"{'  ' + beside:34}" + " ".join(f"{a:10.6f}" for a in numeric)
              + f"   relative error {error:.0e}")

    def loss():
        return unfolded(Ws, Us, V, x, d)[0]

    do = 2 * (V @ h[3] - d) / N
    print(f"h(1), h(2), h(3) = {', '.join(np.array2string(a, precision=4) for a in h[1:])};  "
          f"dL/do = {do[0]:.6f}\n")
    show("dL/dV = dL/do h(3)'", np.outer(do, h[3]), differences(loss, V))
    dh = V.T @ do
    terms = []
    for k in range(T, 0, -1):
        show(f"dL/dh({k})", dh, differences(partial(loss_from, W, U, V, x[k:], d, h[k]), h[k]))
        da = dh * (1 - h[k] ** 2)
        terms.append((np.outer(da, h[k - 1]), np.outer(da, x[k - 1])))
        show(f"  its term of dL/dW, step {k}", terms[-1][0], differences(loss, Ws[k - 1]))
        show(f"  its term of dL/dU, step {k}", terms[-1][1], differences(loss, Us[k - 1]))
        dh = W.T @ da
    print()
    for name, whole, given in (("dL/dW, all three terms", sum(t[0] for t in terms),
                                layer.grads["weight_hh_l0"]),
                               ("dL/dU, all three terms", sum(t[1] for t in terms),
                                layer.grads["weight_ih_l0"]),
                               ("dL/dV", np.outer(do, h[3]), model.grads["head.weight"])):
        show(name, whole, given, "fastrnn's backward")
    return worst


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
