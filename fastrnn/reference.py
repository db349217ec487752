"""The specification of fastrnn's cells in NumPy: what is computed, not how fast.

Design
------
Each cell is a pair: forward, and directly below it backward. The equations are the comment,
and the names mirror each other (``i f g o`` and ``di df dg do_``). A gate's gradient is the one of
its argument, before the activation. The tests hold every kernel against this file, and this file
against finite differences; no shipped module imports it.

Letters: T steps, B batch, I input, H hidden, G gates of a cell (rnn 1, gru 3, lstm 4), V rows of an
embedding. Layouts and gate orders are PyTorch's: weight_ih (G*H, I), weight_hh (G*H, H), LSTM
i f g o, GRU r z n. States are (T+1, B, H) with slot 0 the initial state.

Inside a cell time always runs upwards: ``reverse`` flips x and dy on the way in, y and dx on the
way out, and is nowhere else. All arrays of a call have one dtype, float32 or float64, in which
everything is computed.

Lengths and resets
------------------
lengths (B,), whole numbers from 0 to T: row b of the batch has the steps 0 to lengths[b] - 1, and
the padding behind them is neither read nor counted. There y and dx are zero; hn and cn are the
states at the row's own end, which for a row of no steps is its initial state; ``reverse`` starts
with the row's own last step.

reset (T, B), booleans: reset[t, b] begins an episode of row b at step t. Nothing flows over the
border between the steps t-1 and t, neither the state nor its gradient, so that each episode is
computed as a sequence of its own. It begins with a zero state (reset_to "zero"), or with the row's
initial one ("initial"), whose gradient is then the sum over the episodes. The borders are the same
in both directions: ahead, step t begins an episode; in reverse, step t-1 does.

All this is in Tape alone. A cell asks it for the state that each row begins a step with (_before),
and hands the gradient of this state back (_to_before). A step of the padding begins with zero, sees
a zero x, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "Tape",
    "gru_backward",
    "gru_forward",
    "lstm_backward",
    "lstm_forward",
    "rnn_backward",
    "rnn_forward",
    "sigmoid",
]

Array = np.ndarray
Pair = tuple[Array | None, Array | None]
Grads = dict[str, Array]


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) elementwise; exp sees no positive number and cannot overflow.

    Parameters
    ----------
    x : array of any shape
    """
    e = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1, e) / (1 + e)
    return y


_LAYOUTS = {"weight_ih": "G*H I", "weight_hh": "G*H H", "bias_ih": "G*H", "bias_hh": "G*H"}

# name: (h as a function of its argument a, dh/da as a function of h)
_NONLINEARITIES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (np.tanh, lambda h: 1 - h * h),
    "relu": (lambda a: np.maximum(a, 0), lambda h: h > 0),
    "sigmoid": (sigmoid, lambda h: h * (1 - h)),
}


class Tape:
    """What a forward leaves for its backward: opaque to callers, and good for one backward.

    x, the embedding and the weights are kept by reference: leave them as they are until backward.
    Inside this module it is also the part of a call that all cells share: checks, the walk over
    time, the input's side of the gates and the gradients of the parameters.
    """

    def __init__(
        self, cell: str, gates: int, x: Array, weight_ih: Array, weight_hh: Array,
        bias_ih: Array | None, bias_hh: Array | None, embedding: Array | None, **walk: Any,
    ) -> None:
        self.cell = cell
        self.spent = False
        self._kept: tuple[Any, ...] = ()
        self._sizes: dict[str, int] = {}
        self._dtype: Any = getattr(weight_hh, "dtype", None)
        if self._dtype not in (np.float32, np.float64):
            came = self._dtype or type(weight_hh).__name__
            raise TypeError(f"{cell}: weight_hh is {came}, expected an array of float32 or float64")

        self._check("weight_hh", weight_hh, _LAYOUTS["weight_hh"])
        if self._sizes["G*H"] != gates * self._sizes["H"]:
            raise ValueError(
                f"{cell}: weight_hh has shape {weight_hh.shape}, expected (G*H, H) with G = {gates}"
            )
        params = zip(_LAYOUTS, (weight_ih, weight_hh, bias_ih, bias_hh), strict=True)
        self._params: dict[str, Any] = {
            name: param for name, param in params if param is not None or "weight" in name
        }
        for name, param in self._params.items():
            self._check(name, param, _LAYOUTS[name])

        if embedding is None:
            self._check("x", x, "T B I")
        else:
            self._check("embedding", embedding, "V I")
            self._check("x", x, "T B", np.integer)
        self._plan(**walk)
        self._rows: Any = None
        self._embedding = embedding
        if embedding is None:
            self._x = self._real(x[self._walk])  # (T, B, I)
        else:
            rows = self._rows = x[self._walk][self._alive]  # (N,), of the real steps
            if rows.size and (rows.min() < 0 or rows.max() >= len(embedding)):
                raise IndexError(
                    f"{cell}: x has row numbers in [{rows.min()}, {rows.max()}], "
                    f"expected [0, {len(embedding)}) for this embedding"
                )
            self._x = self._zeros("T B I")
            self._x[self._alive] = embedding[rows]

    def _plan(
        self, reverse: bool, lengths: Array | None, reset: Array | None, reset_to: str
    ) -> None:
        """Lay out the walk: whose steps are real, and what each of them begins with."""
        T, B = (self._sizes[k] for k in "TB")
        ends, step = np.full(B, T), np.arange(T)[:, None]  # (B,), (T, 1)
        if lengths is not None:
            self._check("lengths", lengths, "B", np.integer)
            if B and (lengths.min() < 0 or lengths.max() > T):
                raise ValueError(
                    f"{self.cell}: lengths has numbers in [{lengths.min()}, {lengths.max()}], "
                    f"expected [0, {T}] for T = {T}"
                )
            ends = lengths.astype(int)
        if reset is not None:
            self._check("reset", reset, "T B", np.bool_)
        if reset_to not in ("zero", "initial"):
            raise ValueError(f"{self.cell}: reset_to is {reset_to!r}, expected 'zero' or 'initial'")

        # a[walk] puts time into the order of the walk, and the order of the walk into time
        self._walk: Any = slice(None, None, -1 if reverse else 1)
        if reverse and lengths is not None:  # flip each row's own steps; its padding stays behind
            self._walk = (ends - 1 - step) % T, np.arange(B)
        alive = step < ends  # (T, B), in the order of the walk as all below
        fresh = np.zeros((T + 1, B), bool)  # which steps begin an episode
        if reset is not None:
            late = int(bool(reverse))  # in reverse it is the step after the marked one
            fresh[late : T + late] = reset[self._walk]
            fresh[0] |= reset_to == "initial"  # the first step begins like those of the others
        fresh = fresh[:-1]
        self._ends = ends, np.arange(B)  # states[ends] are those at each row's own end
        self._alive = alive
        self._follows = (alive & ~fresh)[..., None]  # begins with the state before it
        self._anew = (alive & fresh & (reset_to == "initial"))[..., None]  # with the initial state

    def _check(self, name: str, array: Any, shape: str, kind: Any = None) -> None:
        """Hold an array against the sizes known so far; a letter not met before learns its size."""
        kind = kind or self._dtype.type
        if not isinstance(array, np.ndarray) or not issubclass(array.dtype.type, kind):
            came = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{self.cell}: {name} is {came}, expected an array of {kind.__name__}")
        letters = shape.split()
        known = ", ".join(f"{k} = {self._sizes[k]}" for k in letters if k in self._sizes)
        if array.ndim != len(letters) or any(
            self._sizes.setdefault(k, n) != n for k, n in zip(letters, array.shape, strict=True)
        ):
            raise ValueError(
                f"{self.cell}: {name} has shape {array.shape}, expected ({', '.join(letters)})"
                + (f" with {known}" if known else "")
            )

    def _real(self, array: Array) -> Array:
        """Return an array (T, B, n) in walking order with zeros in the padding."""
        return array if self._alive.all() else np.where(self._alive[..., None], array, 0)

    def _zeros(self, letters: str) -> Array:
        return np.zeros([self._sizes[k] for k in letters.split()], self._dtype)

    def _start(self, name: str, state: Array | None) -> Array:
        """Return the states (T+1, B, H) of a walk, slot 0 filled with the initial one."""
        T, B, H = (self._sizes[k] for k in "TBH")
        states = np.zeros((T + 1, B, H), self._dtype)
        if state is not None:
            self._check(name, state, "B H")
            states[0] = state
        return states

    def _before(self, states: Array, t: Any = ...) -> Array:
        """Return the states that step t begins with, (B, H), or all steps, (T, B, H)."""
        anew = np.where(self._anew[t], states[0], 0)
        return np.where(self._follows[t], states[:-1][t], anew)

    def _to_before(self, dstates: Array, t: int, dbefore: Array) -> None:
        """Hand the gradient of what _before gave to the states it came from."""
        dstates[0] += np.where(self._anew[t], dbefore, 0)
        dstates[t] = np.where(self._follows[t], dbefore, dstates[t])

    def _from_x(self) -> Any:
        """Return W_ih x + b_ih of all steps, (T, B, G*H)."""
        return self._x @ self._params["weight_ih"].T + self._params.get("bias_ih", 0)

    def _from_h(self, h: Array) -> Any:
        """Return W_hh h + b_hh of one step, (B, G*H)."""
        return h @ self._params["weight_hh"].T + self._params.get("bias_hh", 0)

    def _finish(self, training: bool, h: Array, *more: Any) -> tuple[Array, Array, Tape | None]:
        """Return (y, hn, self or None) and keep the cell's arrays, the states h first."""
        self._kept = (h, *more)
        # y and hn are copies: a caller who writes into them does not change the gradients
        y = self._real(h[1:])[self._walk].copy()
        return y, h[self._ends], self if training else None

    def _spend(
        self, dy: Array | None, grads: Grads | None, **dstates: Any
    ) -> tuple[Any, Array, Grads, Any]:
        """Check a backward's arguments, then hand out (kept, dy, grads, dstates), this once.

        dy (T, B, H) is in walking order. Each of dstates (T+1, B, H) mirrors the states, filled at
        each row's own end.
        """
        if self.spent:
            raise RuntimeError(
                f"{self.cell}_backward: this tape has already served its one backward; "
                f"run {self.cell}_forward again for a new one"
            )
        if dy is None:
            dy = self._zeros("T B H")
        self._check("dy", dy, "T B H")
        for name, dstate in dstates.items():
            dstates[name] = self._start(name, None)
            if dstate is not None:
                self._check(name, dstate, "B H")
                dstates[name][self._ends] = dstate
        if grads is None:
            grads = {name: np.zeros_like(param) for name, param in self._params.items()}
        if set(grads) != set(self._params):
            raise ValueError(
                f"{self.cell}_backward: grads has keys {sorted(grads)}, "
                f"expected {sorted(self._params)}"
            )
        for name, grad in grads.items():
            self._check(f"grads[{name!r}]", grad, _LAYOUTS[name])
        self.spent, kept, self._kept = True, self._kept, ()
        return kept, self._real(dy[self._walk]), grads, dstates.values()

    def _accumulate(self, grads: Grads, h: Array, da_x: Array, da_h: Array) -> None:
        """Add the gradients of the parameters; the padding has none.

        h (T+1, B, H); da_x and da_h (T, B, G*H) are the gradients of what _from_x and _from_h gave.
        """
        for side, da, source in (("ih", da_x, self._x), ("hh", da_h, self._before(h))):
            da = self._real(da)  # (T, B, G*H)
            grads[f"weight_{side}"] += np.tensordot(da, source, axes=((0, 1), (0, 1)))
            if f"bias_{side}" in grads:
                grads[f"bias_{side}"] += da.sum(axis=(0, 1))

    def _to_x(self, need_dx: bool, da_x: Array) -> Array | None:
        """Return the gradient of x (T, B, I), or of the embedding (V, I)."""
        if not need_dx:
            return None
        dx: Array = da_x @ self._params["weight_ih"]  # (T, B, I)
        if self._embedding is None:
            dx = self._real(dx)[self._walk]
            return dx.copy()
        dembedding = self._zeros("V I")
        np.add.at(dembedding, self._rows, dx[self._alive])
        return dembedding


def _tape_of(cell: str, tape: Tape | None) -> Tape:
    """Return the tape if it is one that this cell's forward made."""
    if tape is None:
        raise TypeError(f"{cell}_backward: tape is None; run {cell}_forward with training=True")
    if not isinstance(tape, Tape) or tape.cell != cell:
        came = f"one of {tape.cell}_forward" if isinstance(tape, Tape) else type(tape).__name__
        raise TypeError(f"{cell}_backward: tape is {came}, expected one of {cell}_forward")
    return tape


# ------------------------------------------------------------------------------------------ rnn


def rnn_forward(
    x: Array, h0: Array | None, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, nonlinearity: str = "tanh", reverse: bool = False,
    training: bool = True, embedding: Array | None = None, lengths: Array | None = None,
    reset: Array | None = None, reset_to: str = "zero",
) -> tuple[Array, Array, Tape | None]:
    """Run Elman's simple recurrent network over a sequence.

    h(t) = phi(weight_ih x(t) + bias_ih + weight_hh h(t-1) + bias_hh). Arguments, results and errors
    are those of fastrnn.functional.rnn_forward.

    References
    ----------
    J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990.
    """
    # h_t = phi(W_ih x_t + b_ih + W_hh h_t-1 + b_hh)
    if nonlinearity not in _NONLINEARITIES:
        raise ValueError(
            f"rnn: nonlinearity is {nonlinearity!r}, expected one of {sorted(_NONLINEARITIES)}"
        )
    phi, dphi = _NONLINEARITIES[nonlinearity]
    tape = Tape("rnn", 1, x, weight_ih, weight_hh, bias_ih, bias_hh, embedding,
                reverse=reverse, lengths=lengths, reset=reset, reset_to=reset_to)
    h = tape._start("h0", h0)  # (T+1, B, H)
    a = tape._from_x()  # (T, B, H)
    for t in range(len(a)):
        h[t + 1] = phi(a[t] + tape._from_h(tape._before(h, t)))
    return tape._finish(training, h, dphi)


def rnn_backward(
    dy: Array | None, dhn: Array | None, tape: Tape | None, *, need_dx: bool = True,
    grads: Grads | None = None,
) -> tuple[Array | None, Array, Grads]:
    """Backpropagate through the steps of one rnn_forward, as fastrnn.functional.rnn_backward."""
    # da_t = phi'(a_t) (dy_t + dh_t),  dh_t-1 = W_hh^T da_t
    tape = _tape_of("rnn", tape)
    (h, dphi), dy, grads, (dh,) = tape._spend(dy, grads, dhn=dhn)  # dy (T, B, H), dh (T+1, B, H)
    da = np.empty_like(dy)  # (T, B, H)
    for t in reversed(range(len(dy))):
        dh[t + 1] += dy[t]
        da[t] = dh[t + 1] * dphi(h[t + 1])
        tape._to_before(dh, t, da[t] @ tape._params["weight_hh"])
    tape._accumulate(grads, h, da, da)
    return tape._to_x(need_dx, da), dh[0].copy(), grads


# ----------------------------------------------------------------------------------------- lstm


def lstm_forward(
    x: Array, state: Pair | None, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, reverse: bool = False, training: bool = True,
    embedding: Array | None = None, lengths: Array | None = None, reset: Array | None = None,
    reset_to: str = "zero",
) -> tuple[Array, tuple[Array, Array], Tape | None]:
    """Run a long short-term memory with forget gates over a sequence, gates i f g o.

    Arguments, results and errors are those of fastrnn.functional.lstm_forward.

    References
    ----------
    S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9, 1997;
    the forget gate: F. A. Gers, J. Schmidhuber and F. Cummins, "Learning to forget", 2000.
    """
    # i f g o = sigma sigma tanh sigma (W_ih x_t + b_ih + W_hh h_t-1 + b_hh)
    # c_t = f c_t-1 + i g
    # h_t = o tanh(c_t)
    h0, c0 = (None, None) if state is None else state
    tape = Tape("lstm", 4, x, weight_ih, weight_hh, bias_ih, bias_hh, embedding,
                reverse=reverse, lengths=lengths, reset=reset, reset_to=reset_to)
    h = tape._start("h0", h0)  # (T+1, B, H)
    c = tape._start("c0", c0)  # (T+1, B, H)
    gates = tape._from_x()  # (T, B, 4*H)
    i, f, g, o = np.split(gates, 4, axis=-1)  # views, (T, B, H) each
    for t in range(len(gates)):
        gates[t] += tape._from_h(tape._before(h, t))
        i[t], f[t], g[t], o[t] = sigmoid(i[t]), sigmoid(f[t]), np.tanh(g[t]), sigmoid(o[t])
        c[t + 1] = f[t] * tape._before(c, t) + i[t] * g[t]
        h[t + 1] = o[t] * np.tanh(c[t + 1])
    cn = c[tape._ends]  # (B, H)
    y, hn, kept = tape._finish(training, h, c, gates)
    return y, (hn, cn), kept


def lstm_backward(
    dy: Array | None, dstate: Pair | None, tape: Tape | None, *, need_dx: bool = True,
    grads: Grads | None = None,
) -> tuple[Array | None, tuple[Array, Array], Grads]:
    """Backpropagate through the steps of one lstm_forward, as fastrnn.functional.lstm_backward."""
    # do_ = sigma'(o) dh tanh(c_t)
    # dc += dh o tanh'(c_t)
    # di df dg = sigma'(i) dc g,  sigma'(f) dc c_t-1,  tanh'(g) dc i
    # dc_t-1 = dc f,  dh_t-1 = W_hh^T (di df dg do_)
    tape = _tape_of("lstm", tape)
    dhn, dcn = (None, None) if dstate is None else dstate
    (h, c, gates), dy, grads, (dh, dc) = tape._spend(dy, grads, dhn=dhn, dcn=dcn)  # (T+1, B, H)
    dgates = np.empty_like(gates)  # (T, B, 4*H)
    i, f, g, o = np.split(gates, 4, axis=-1)  # views, (T, B, H) each
    di, df, dg, do_ = np.split(dgates, 4, axis=-1)  # views, (T, B, H) each
    for t in reversed(range(len(dy))):
        dh[t + 1] += dy[t]
        tanh_c = np.tanh(c[t + 1])  # (B, H)
        do_[t] = o[t] * (1 - o[t]) * dh[t + 1] * tanh_c
        dc[t + 1] += dh[t + 1] * o[t] * (1 - tanh_c * tanh_c)
        di[t] = i[t] * (1 - i[t]) * dc[t + 1] * g[t]
        df[t] = f[t] * (1 - f[t]) * dc[t + 1] * tape._before(c, t)
        dg[t] = (1 - g[t] * g[t]) * dc[t + 1] * i[t]
        tape._to_before(dc, t, dc[t + 1] * f[t])
        tape._to_before(dh, t, dgates[t] @ tape._params["weight_hh"])
    tape._accumulate(grads, h, dgates, dgates)
    return tape._to_x(need_dx, dgates), (dh[0].copy(), dc[0].copy()), grads


# ------------------------------------------------------------------------------------------ gru


def gru_forward(
    x: Array, h0: Array | None, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, reverse: bool = False, training: bool = True,
    embedding: Array | None = None, lengths: Array | None = None, reset: Array | None = None,
    reset_to: str = "zero",
) -> tuple[Array, Array, Tape | None]:
    """Run gated recurrent units over a sequence, reset after the recurrent product, gates r z n.

    Arguments, results and errors are those of fastrnn.functional.gru_forward.

    References
    ----------
    K. Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014, in the form
    of cuDNN and PyTorch: r multiplies W_hn h + b_hn instead of h, and z keeps the old state.
    """
    # r = sigma(W_ir x_t + b_ir + W_hr h_t-1 + b_hr),  z likewise
    # m = W_hn h_t-1 + b_hn
    # n = tanh(W_in x_t + b_in + r m)
    # h_t = (1 - z) n + z h_t-1
    tape = Tape("gru", 3, x, weight_ih, weight_hh, bias_ih, bias_hh, embedding,
                reverse=reverse, lengths=lengths, reset=reset, reset_to=reset_to)
    h = tape._start("h0", h0)  # (T+1, B, H)
    gates = tape._from_x()  # (T, B, 3*H)
    r, z, n = np.split(gates, 3, axis=-1)  # views, (T, B, H) each
    m = np.empty_like(n)  # (T, B, H)
    for t in range(len(gates)):
        before = tape._before(h, t)  # (B, H)
        r_h, z_h, m[t] = np.split(tape._from_h(before), 3, axis=-1)  # (B, H) each
        r[t], z[t] = sigmoid(r[t] + r_h), sigmoid(z[t] + z_h)
        n[t] = np.tanh(n[t] + r[t] * m[t])
        h[t + 1] = (1 - z[t]) * n[t] + z[t] * before
    return tape._finish(training, h, m, gates)


def gru_backward(
    dy: Array | None, dhn: Array | None, tape: Tape | None, *, need_dx: bool = True,
    grads: Grads | None = None,
) -> tuple[Array | None, Array, Grads]:
    """Backpropagate through the steps of one gru_forward, as fastrnn.functional.gru_backward."""
    # dz = sigma'(z) dh (h_t-1 - n)
    # dn = tanh'(n) dh (1 - z)
    # dm = dn r,  dr = sigma'(r) dn m
    # dh_t-1 = dh z + W_hh^T (dr dz dm)
    tape = _tape_of("gru", tape)
    (h, m, gates), dy, grads, (dh,) = tape._spend(dy, grads, dhn=dhn)  # dh (T+1, B, H)
    dgates_x = np.empty_like(gates)  # (T, B, 3*H) dr dz dn, of W_ih x + b_ih
    dgates_h = np.empty_like(gates)  # (T, B, 3*H) dr dz dm, of W_hh h + b_hh
    r, z, n = np.split(gates, 3, axis=-1)  # views, (T, B, H) each
    dr, dz, dn = np.split(dgates_x, 3, axis=-1)  # views, (T, B, H) each
    for t in reversed(range(len(dy))):
        dh[t + 1] += dy[t]
        dz[t] = z[t] * (1 - z[t]) * dh[t + 1] * (tape._before(h, t) - n[t])
        dn[t] = (1 - n[t] * n[t]) * dh[t + 1] * (1 - z[t])
        dm = dn[t] * r[t]  # (B, H)
        dr[t] = r[t] * (1 - r[t]) * dn[t] * m[t]
        dgates_h[t] = np.concatenate([dr[t], dz[t], dm], axis=-1)
        tape._to_before(dh, t, dh[t + 1] * z[t] + dgates_h[t] @ tape._params["weight_hh"])
    tape._accumulate(grads, h, dgates_x, dgates_h)
    return tape._to_x(need_dx, dgates_x), dh[0].copy(), grads
