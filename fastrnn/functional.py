"""One layer in one direction, stateless: the kernels behind fastrnn.RNN, LSTM, GRU and Layer.

The names, signatures and results are those of fastrnn.reference, which is the specification, but
for cell_forward and cell_backward, whose cells come from equations. The route from here is
fastrnn/_kernels/sequence.pyx, then walk.pyx, then src_c/tmpl/. Each forward returns the tape that
its backward needs, so any number of passes may be in flight.

Letters: T steps, B batch, I input, H hidden, G gates, V rows of an embedding. Arrays are float32 or
float64, all of one call alike. Rows that are contiguous are read where they lie, anything else that
NumPy can hold is copied first; inputs are never changed. A tape refers to x, the embedding and the
weights: leave them as they are until backward. NaN and infinities go through as arithmetic has it,
and stay within their row of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn._kernels import sequence
from fastrnn._kernels.runtime import Workspace
from fastrnn._kernels.tape import Tape
from fastrnn.cells import BY_NUMBER, CELLS, Cell, vanilla

if TYPE_CHECKING:
    from fastrnn.cells.definition import Definition
    from fastrnn.cells.stateless import CellTape

__all__ = [
    "Tape",
    "cell_backward",
    "cell_forward",
    "gru_backward",
    "gru_forward",
    "lstm_backward",
    "lstm_forward",
    "rnn_backward",
    "rnn_forward",
]

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

State = np.ndarray | tuple[np.ndarray | None, np.ndarray | None] | None
Grads = dict[str, np.ndarray]

_workspace = Workspace()


def _forward(
    cell: Cell, x: Any, state: Any, params: tuple[Any, ...], reverse: bool, training: bool,
    embedding: Any, lengths: Any, reset: Any, reset_to: Any,
) -> tuple[np.ndarray, Any, Tape | None]:
    dtype = getattr(params[1], "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype.newbyteorder("=") not in (np.float32, np.float64):
        came = dtype or type(params[1]).__name__
        raise RefusedType(f"weight_hh is {came}, expected an array of float32 or float64")
    dtype = dtype.newbyteorder("=")
    G = cell.G
    w_hh = _checks.array("weight_hh", params[1], dtype, ("G*H", "H"))
    H = w_hh.shape[1]
    w_ih = _checks.array("weight_ih", params[0], dtype, (G * H, "I"))
    I = w_ih.shape[1]
    if H == 0 or I == 0:
        raise RefusedValue(f"the weights have H = {H} and I = {I}, expected at least 1")
    weights = tuple(
        None if p is None and "bias" in name
        else np.ascontiguousarray(_checks.array(name, p, dtype, (G * H, *more)))
        for name, p, more in zip(_PARAMETERS, (w_ih, w_hh, *params[2:]), ((I,), (H,), (), ()),
                                 strict=True)
    )
    if embedding is None:
        source = rows = _checks.array("x", x, dtype, ("T", "B", I))
    else:
        source = _checks.array("embedding", embedding, dtype, ("V", I))
        rows = _checks.whole_numbers(x, ("T", "B"))
    T, B = rows.shape[:2]
    time = _checks.timeline(lengths, reset, reset_to, T, B)
    index = None
    if embedding is not None:
        if time is not None:
            rows = _checks.without_padding(rows, time.lengths)
        index = _checks.rows(rows, ("T", "B"), len(source))
    states = cell.states
    initial = _checks.states("state" if len(states) > 1 else "h0", state, states, dtype,
                             [(B, H)] * len(states))
    y = _checks.empty((T, B, H), dtype)
    final = tuple(_checks.empty((1, B, H), dtype) for _ in states)
    out = y
    if time is not None:
        out = y.reshape(T * B, H)
        if index is None:
            source = np.ascontiguousarray(source).reshape(T * B, I)
        else:
            index = index.reshape(-1)
    directions, keep = (_checks.flag("reverse", reverse),), _checks.flag("training", training)
    tape = sequence.forward(
        cell.number, source, index, (weights,), directions,  # type: ignore[arg-type]
        _checks.with_direction(initial), out, final, keep, _workspace, time,
    )
    return y, _checks.without_direction(final), tape


def _backward(
    forward: str, cells: tuple[Cell, ...], dy: Any, dstate: Any, tape: Any, need_dx: bool,
    grads: Any,
) -> tuple[np.ndarray | None, Any, Grads]:
    """Go back through a tape that the function named `forward` made, for one of these cells."""
    if tape is None:
        raise RefusedType(f"tape is None, expected one of {forward} with training=True")
    if not isinstance(tape, Tape) or BY_NUMBER[tape.kind] not in cells:
        known = isinstance(tape, Tape)
        came = f"one of {BY_NUMBER[tape.kind].name}" if known else _checks.kind(tape)
        raise RefusedType(f"tape is {came}, expected one of {forward}")
    if tape.used:
        raise RuntimeError(f"{forward.replace('forward', 'backward')}: this tape has already "
                           f"served its one backward; run {forward} again for a new one")
    T, B, I, H = tape.shape
    dtype, cell = tape.dtype, cells[0]
    need_dx = _checks.flag("need_dx", need_dx)
    if dy is not None:
        dy = _checks.array("dy", dy, dtype, (T, B, H))
        if len(tape.y_shape) == 2:  # with lengths or resets
            dy = np.ascontiguousarray(dy).reshape(tape.y_shape)
    states = cell.states
    dfinal = _checks.states("dstate" if len(states) > 1 else "dhn", dstate, states, dtype,
                            [(B, H)] * len(states))
    shapes = cell.parameters(I, H, bias=True)
    for name, present in zip(("bias_ih", "bias_hh"), tape.biases, strict=True):
        if not present:
            del shapes[name]
    if grads is None:
        grads = {name: np.zeros(shape, dtype) for name, shape in shapes.items()}
    _checks.names("grads", grads, shapes)
    for name, shape in shapes.items():
        _checks.output(f"grads[{name!r}]", grads[name], dtype, shape)
    dx = np.empty(tape.x_shape, dtype) if need_dx else None
    dinitial = tuple(_checks.empty((1, B, H), dtype) for _ in states)
    sequence.backward(tape, dy, _checks.with_direction(dfinal), dx, dinitial,
                      (tuple(grads.get(name) for name in _PARAMETERS),))
    if dx is not None and not tape.symbols:
        dx = dx.reshape(T, B, I)
    return dx, _checks.without_direction(dinitial), grads


# ------------------------------------------------------------------------------------------ rnn


@public
def rnn_forward(
    x: Any, h0: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None, *,
    nonlinearity: str = "tanh", reverse: bool = False, training: bool = True, embedding: Any = None,
    lengths: Any = None, reset: Any = None, reset_to: str = "zero",
) -> tuple[np.ndarray, np.ndarray, Tape | None]:
    """Run Elman's simple recurrent network over a sequence.

    h(t) = phi(weight_ih x(t) + bias_ih + weight_hh h(t-1) + bias_hh)

    Parameters
    ----------
    x : array (T, B, I), or integers (T, B) with `embedding`
        The input; T = 0 is allowed.
    h0 : array (B, H) or None
        The state before the first processed step; None means zeros.
    weight_ih : array (G*H, I)
        Weights of the input; here G = 1.
    weight_hh : array (G*H, H)
        Weights of the state.
    bias_ih, bias_hh : array (G*H,) or None
        Biases beside either product; each may be left out.
    nonlinearity : {"tanh", "relu", "sigmoid"}
        The activation phi.
    reverse : bool
        Walk from step T-1 down to 0; y[t] still belongs to x[t].
    training : bool
        Whether a tape for backward is returned.
    embedding : array (V, I) or None
        If given, the input is ``embedding[x]``, gathered behind the input product.
    lengths : whole numbers (B,), each 0 to T, or None: all T
        The steps of each row; what follows in x is padding and may be anything. `reverse` begins
        at a row's own end.
    reset : booleans (T, B) or None
        Where a new episode begins: nothing flows over the border to the step before, forward or
        backward. With `reverse` the border is the same.
    reset_to : {"zero", "initial"}
        What an episode begins with: zero, or the row's initial state.

    Returns
    -------
    y : array (T, B, H)
        The state after each step; zero past a row's end.
    hn : array (B, H)
        The state after each row's last processed step (step 0 with `reverse`); of an empty row h0.
    tape : Tape or None
        What rnn_backward needs, None without `training`.

    Raises
    ------
    TypeError
        If an argument is not numeric, or its dtype is not that of weight_hh (float32 or float64).
    ValueError
        If shapes do not fit each other, or the nonlinearity is unknown.
    IndexError
        If x names a row that `embedding` does not have.
    MemoryError
        If there is no memory for the tape.

    References
    ----------
    J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990.
    """
    cell = vanilla()[_checks.one_of("nonlinearity", nonlinearity, vanilla())]
    return _forward(cell, x, h0, (weight_ih, weight_hh, bias_ih, bias_hh), reverse, training,
                    embedding, lengths, reset, reset_to)


@public
def rnn_backward(
    dy: Any, dhn: Any, tape: Tape | None, *, need_dx: bool = True, grads: Grads | None = None
) -> tuple[np.ndarray | None, np.ndarray, Grads]:
    """Backpropagate through the steps of one rnn_forward.

    Parameters
    ----------
    dy : array (T, B, H) or None
        Gradient of a loss with respect to y; None means zeros.
    dhn : array (B, H) or None
        Gradient with respect to hn, added to what reaches that state through y.
    tape : Tape
        The tape that rnn_forward returned; this call consumes it.
    need_dx : bool
        Whether the gradient of the input is wanted.
    grads : dict of arrays or None
        If given, the parameters' gradients are added to its arrays; otherwise to fresh zeros.
        Keys weight_ih, weight_hh, and bias_ih and bias_hh as far as forward had them; shapes as
        the parameters'.

    Returns
    -------
    dx : array (T, B, I), or (V, I), or None
        Gradient with respect to x, or to `embedding` where forward had one; None without
        `need_dx`. It is zero past a row's end, whatever dy has there.
    dh0 : array (B, H)
        Gradient with respect to h0.
    grads : dict of arrays
        The parameters' gradients.

    Raises
    ------
    RuntimeError
        If the tape has already served a backward.
    TypeError
        If the tape is not one of rnn_forward, or an argument is no array of forward's dtype.
    ValueError
        If a shape or the keys of `grads` do not fit forward's; the tape stays unspent.
    """
    cells = tuple(vanilla().values())
    return _backward("rnn_forward", cells, dy, dhn, tape, need_dx, grads)


# ----------------------------------------------------------------------------------------- lstm


@public
def lstm_forward(
    x: Any, state: State, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None,
    *, reverse: bool = False, training: bool = True, embedding: Any = None, lengths: Any = None,
    reset: Any = None, reset_to: str = "zero",
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], Tape | None]:
    """Run a long short-term memory with forget gates over a sequence.

    i f g o = sigma sigma tanh sigma (weight_ih x(t) + bias_ih + weight_hh h(t-1) + bias_hh);
    c(t) = f c(t-1) + i g;  h(t) = o tanh(c(t))

    Parameters and errors are those of rnn_forward with G = 4 in the order i f g o, except:

    Parameters
    ----------
    state : tuple (h0, c0) or None
        The initial hidden and cell state, (B, H) each; None, as a whole or of one, means zeros.

    Returns
    -------
    y : array (T, B, H)
        The hidden state after each step.
    (hn, cn) : tuple of arrays (B, H)
        Hidden and cell state after the last processed step.
    tape : Tape or None
        What lstm_backward needs, None without `training`.

    References
    ----------
    S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9, 1997;
    the forget gate: F. A. Gers, J. Schmidhuber and F. Cummins, "Learning to forget", 2000.
    """
    return _forward(CELLS["lstm"], x, state, (weight_ih, weight_hh, bias_ih, bias_hh), reverse,
                    training, embedding, lengths, reset, reset_to)


@public
def lstm_backward(
    dy: Any, dstate: State, tape: Tape | None, *, need_dx: bool = True, grads: Grads | None = None
) -> tuple[np.ndarray | None, tuple[np.ndarray, np.ndarray], Grads]:
    """Backpropagate through the steps of one lstm_forward.

    Parameters and errors are those of rnn_backward, except:

    Parameters
    ----------
    dstate : tuple (dhn, dcn) or None
        Gradients with respect to hn and cn, (B, H) each; None, as a whole or of one, means zeros.

    Returns
    -------
    dx : array (T, B, I), or (V, I), or None
        As of rnn_backward.
    (dh0, dc0) : tuple of arrays (B, H)
        Gradients with respect to h0 and c0.
    grads : dict of arrays
        The parameters' gradients.
    """
    return _backward("lstm_forward", (CELLS["lstm"],), dy, dstate, tape, need_dx, grads)


# ------------------------------------------------------------------------------------------ gru


@public
def gru_forward(
    x: Any, h0: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None, *,
    reverse: bool = False, training: bool = True, embedding: Any = None, lengths: Any = None,
    reset: Any = None, reset_to: str = "zero",
) -> tuple[np.ndarray, np.ndarray, Tape | None]:
    """Run gated recurrent units over a sequence, reset after the recurrent product.

    r z = sigma(weight_i x(t) + bias_i + weight_h h(t-1) + bias_h);
    n = tanh(weight_in x(t) + bias_in + r (weight_hn h(t-1) + bias_hn));
    h(t) = (1 - z) n + z h(t-1)

    Parameters, returns and errors are those of rnn_forward with G = 3 in the order r z n, without
    nonlinearity.

    References
    ----------
    K. Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014, in the form
    of cuDNN and PyTorch: r multiplies W_hn h + b_hn instead of h, and z keeps the old state.
    """
    return _forward(CELLS["gru"], x, h0, (weight_ih, weight_hh, bias_ih, bias_hh), reverse,
                    training, embedding, lengths, reset, reset_to)


@public
def gru_backward(
    dy: Any, dhn: Any, tape: Tape | None, *, need_dx: bool = True, grads: Grads | None = None
) -> tuple[np.ndarray | None, np.ndarray, Grads]:
    """Backpropagate through the steps of one gru_forward.

    Parameters, returns and errors are those of rnn_backward.
    """
    return _backward("gru_forward", (CELLS["gru"],), dy, dhn, tape, need_dx, grads)


# ------------------------------------------------------------------------- cells from equations


@public
def cell_forward(
    definition: Definition, x: Any, state: Any, parameters: Any, *, reverse: bool = False,
    training: bool = True, embedding: Any = None, lengths: Any = None, reset: Any = None,
    reset_to: str = "zero", options: Any = None, masks: Any = None,
) -> tuple[np.ndarray, Any, CellTape | None]:
    """Run a cell from equations over a sequence.

    Parameters
    ----------
    definition : Definition
        What `fastrnn.cell` makes of equations.
    x : array (T, B, I), or integers (T, B) with `embedding`
    state : array (B, width), or a tuple of such if the cell has several states, or None
        None, as a whole or of one, means zeros.
    parameters : dict of arrays
        By the names of the definition, with the shapes that a Layer has. Of the biases all or
        none.
    reverse, training, embedding, lengths, reset, reset_to
        As of rnn_forward.
    options : dict, optional
        Sizes and constants that differ from their defaults; and "H", if no parameter shows it.
    masks : dict, optional
        Multipliers by the number of the mask's call in the text, from 0: (T, B, width) for
        dropout and step_mask, (B, width) for sequence_dropout and sequence_mask; and by the name of
        a dropconnect weight, in its shape. Nothing is drawn here: what is left out has its value in
        evaluation.

    Returns
    -------
    y : array (T, B, O)
        The output after each step; zero past a row's end.
    state : array (B, width), or a tuple of such
        The states after each row's last processed step.
    tape : CellTape or None
        What cell_backward needs, None without `training`.

    Raises
    ------
    TypeError
        If an argument is of a wrong type, or its dtype is not that of the parameters.
    ValueError
        If shapes do not fit each other, or a name is unknown or missing.
    IndexError
        If x names a row that `embedding` does not have.
    """
    from fastrnn.cells import stateless  # with the language of cells, which others do not need

    walk = stateless.Walk(reverse, training, embedding, lengths, reset, reset_to)
    return stateless.forward(definition, x, state, parameters, walk, options, masks)


@public
def cell_backward(
    dy: Any, dstate: Any, tape: CellTape | None, *, need_dx: bool = True, grads: Grads | None = None
) -> tuple[np.ndarray | None, Any, Grads]:
    """Backpropagate through the steps of one cell_forward.

    Parameters
    ----------
    dy : array (T, B, O) or None
        Gradient of a loss with respect to y; None means zeros.
    dstate : like the final state, or None
        Gradient with respect to it; None, as a whole or of one, means zeros.
    tape : CellTape
        The tape that cell_forward returned; this call consumes it.
    need_dx : bool
        Whether the gradient of the input is wanted.
    grads : dict of arrays or None
        As of rnn_backward; keys are the names of the parameters but for fixed weights.

    Returns
    -------
    dx : array (T, B, I), or (V, I), or None
        As of rnn_backward.
    dstate0 : like the state
        Gradient with respect to the initial state.
    grads : dict of arrays
        The parameters' gradients.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        As of rnn_backward.
    """
    from fastrnn.cells import stateless

    return stateless.backward(dy, dstate, tape, need_dx, grads)
