"""What tests of gradflow share: layers, what their backward records, a walk in NumPy."""

import cases
import numpy as np
import stacks

from fastrnn import reference

NAMES = ("dh", "gates", "dgates_x", "dgates_h", "x", "h")


def layer_of(cell, I=3, H=5, *, seed=2, **options):
    return cases.LAYERS[cell](I, H, dtype=options.pop("dtype", np.float64), seed=seed, **options)


def recorded(layer, data, names=NAMES):
    """Return what a backward records, for each stacked layer; the gradients are in layer.grads."""
    _, _, p = layer.forward(data["x"], stacks.state_of(data, "h0", "c0"))
    return p.backward(data["dy"], stacks.state_of(data, "dhn", "dcn"), record=names)[2]


def scaled(factor, cell="rnn_tanh", H=16):
    """Return a layer whose W_hh is `factor` times an orthogonal matrix."""
    layer = layer_of(cell, H=H)
    q, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((H, H)))
    layer.parameters()["weight_hh_l0"][:] = factor * q
    return layer


def step(cell, params, x, h, c, push_c):
    """Take one step of a cell in NumPy: return h, c (B, H) and gates (B, G, H)."""
    H = h.shape[-1]
    w_ih, w_hh, b_ih, b_hh = params
    a, m = x @ w_ih.T + b_ih, h @ w_hh.T + b_hh
    if cell == "gru":
        r, z = reference.sigmoid((a + m)[:, :H]), reference.sigmoid((a + m)[:, H : 2 * H])
        n = np.tanh(a[:, 2 * H :] + r * m[:, 2 * H :])
        return (1 - z) * n + z * h, c, np.stack([r, z, n], 1)
    if cell == "lstm":
        i, f, g, o = np.split(a + m, 4, -1)
        i, f, g, o = *map(reference.sigmoid, (i, f)), np.tanh(g), reference.sigmoid(o)
        c = f * c + i * g + push_c
        return o * np.tanh(c), c, np.stack([i, f, g, o], 1)
    phi = {"tanh": np.tanh, "relu": lambda v: np.maximum(v, 0), "sigmoid": reference.sigmoid}
    h = phi[cell[4:]](a + m)
    return h, c, h[:, None]


def walk(layer, data, push=None, push_c=None):
    """Run a stack in NumPy, adding push (L, T, B, D, H) to every h(t) and push_c to every c(t).

    Returns the loss that has data's dy, dhn, dcn as its gradients, and the gates of the layers.
    """
    params, D, H = layer.parameters(), 1 + layer.bidirectional, layer.hidden_size
    x, loss, all_gates = data["x"], 0.0, []
    for k in range(layer.num_layers):
        y = np.empty((*x.shape[:2], D, H))
        gates = np.empty((*x.shape[:2], D, layer.cell.G, H))
        for d in range(D):
            own = [params[f"{name}_l{k}{'_reverse' * d}"] for name in cases.PARAMETERS]
            h, c = (data[s][k * D + d] if s in data else 0 for s in ("h0", "c0"))
            for t in range(len(x))[:: 1 - 2 * d]:
                h, c, gates[t, :, d] = step(layer.cell.name, own, x[t], h, c,
                                            0 if push_c is None else push_c[k, t, :, d])
                h = y[t, :, d] = h + (0 if push is None else push[k, t, :, d])
            for name, final in (("dhn", h), ("dcn", c)):
                if name in data:
                    loss += (data[name][k * D + d] * final).sum()
        x = y.reshape(*y.shape[:2], D * H)
        all_gates.append(gates)
    return loss + (data["dy"] * x).sum(), all_gates
