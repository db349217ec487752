"""Measure what backward recorded of one layer: norms, each step's share, saturated gates.

Letters: T steps, B batch, I input, H hidden, G gates, D directions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedValue
from fastrnn.cells.table import AnyCell

__all__ = ["PARTS", "check_parts", "measure", "norm", "to_record"]

PARTS = ("norms", "units", "shares", "saturation")

# At most the first and at least the second: saturated.
LIMITS = {"tanh": (-0.95, 0.95), "sigmoid": (0.05, 0.95), "relu": (0.0, math.inf)}

Sides = dict[str, list[np.ndarray]]  # the gradients of weight_ih and weight_hh, by direction


def check_parts(parts: Any) -> None:
    """Refuse anything but some of PARTS."""
    if not isinstance(parts, (tuple, list)) or any(part not in PARTS for part in parts):
        raise RefusedValue(f"parts is {_checks.show(parts)}, expected a tuple of names out of "
                           f"{PARTS}")


def to_record(parts: tuple[str, ...], cell: AnyCell) -> tuple[str, ...]:
    """Return the names that backward has to record of a cell's layer."""
    first = cell.states[0]
    recorded = {  # for each part; the state and x of "norms" show where NaN comes from
        "norms": (*(f"d{name}" for name in cell.states), first, "x"),
        "units": (f"d{first}",),
        "shares": ("dgates_x", "dgates_h", first, "x") if cell.gates else (),
        "saturation": ("gates",) if cell.gates else (),
    }
    return tuple({name: None for part in parts for name in recorded[part]})  # each once


def measure(
    cell: AnyCell, recorded: dict[str, np.ndarray], gradients: Sides, parts: tuple[str, ...],
    lengths: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the arrays of a GradientFlow for one stacked layer, without their axis L.

    The norms of states besides the first and the memory are named "norms" and their names.

    Parameters
    ----------
    cell : Cell
        Of a cell without gates there are no shares and no saturation.
    recorded : dict of arrays
        As Pass.backward records them.
    gradients : {"ih": ..., "hh": ...}, each a list of D arrays (G*H, I) and (G*H, H)
        The whole gradients of the weights, for "shares".
    parts : tuple of names out of PARTS
    lengths : integers (B,), optional
        Steps of each row; what was recorded behind them is zero.
    """
    found: dict[str, np.ndarray] = {}
    first = cell.states[0]
    if "norms" in parts:
        found["norms"] = norm(recorded[f"d{first}"], 3).transpose(2, 0, 1)
        if cell.memory != first:
            found["c_norms"] = norm(recorded[f"d{cell.memory}"], 3).transpose(2, 0, 1)
        for name in cell.states[1:]:
            if name != cell.memory:
                found[f"norms {name}"] = norm(recorded[f"d{name}"], 3).transpose(2, 0, 1)
    if "units" in parts:
        found["units"] = norm(recorded[f"d{first}"], 1).swapaxes(0, 1)
    if "shares" in parts and cell.gates:
        T, B, D, _ = recorded["h"].shape
        for side, dgates in (("ih", recorded["dgates_x"]), ("hh", recorded["dgates_h"])):
            terms, shares = zip(*(
                _terms(dgates[:, :, d].reshape(T, B, -1),
                       recorded["x"] if side == "ih" else recorded["h"][:, :, d],
                       gradients[side][d])
                for d in range(D)), strict=True)
            found |= {f"terms_{side}": np.stack(terms), f"shares_{side}": np.stack(shares)}
    if "saturation" in parts and cell.gates:
        gates = recorded["gates"]  # (T, B, D, G, H)
        low, high = np.array([LIMITS[gate.activation] for gate in cell.gates], gates.dtype).T
        ends = [_part(gates <= low[:, None], lengths), _part(gates >= high[:, None], lengths)]
        found["saturation"] = np.stack(ends, -1).swapaxes(0, 1)
        if [gate.activation for gate in cell.gates] == ["relu"]:
            found["dead"] = (gates <= 0).all((0, 1, 3)).mean(-1)
    return found


def _part(at_end: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """Return which part (T, D, G) of booleans (T, B, D, G, H) is true, over real rows and units."""
    if lengths is None:
        return np.asarray(at_end.mean((1, 4)))
    alive = np.arange(len(at_end))[:, None] < lengths  # (T, B)
    counted = np.maximum(1, alive.sum(1))[:, None, None] * at_end.shape[-1]
    return np.asarray((at_end & alive[:, :, None, None, None]).sum((1, 4)) / counted)


def norm(a: np.ndarray, axis: int) -> np.ndarray:
    """Return 2-norms in float64, also of numbers whose squares are too small or too large."""
    if a.dtype == np.float32:  # whose squares float64 holds
        return np.asarray(np.sqrt(np.square(a, dtype=np.float64).sum(axis)))
    largest = np.abs(a).max(axis, keepdims=True, initial=0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)
    norms: np.ndarray = np.linalg.norm(a / scale, axis=axis)
    return norms * scale.squeeze(axis).astype(np.float64)


def _terms(
    dgates: np.ndarray, source: np.ndarray, gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each step's Frobenius norm and share (T,) of a weight gradient (N, K).

    A step adds the product of dgates(t) (N, B) and source(t) (B, K). If there are few rows, the
    product is not formed: its norm follows from the smaller Gram matrices of the rows,
    ||sum_b g_b a_b^T||^2 = sum_bc (g_b . g_c) (a_b . a_c).

    Parameters
    ----------
    dgates : array (T, B, N)
    source : array (T, B, K), or whole numbers (T, B): where the 1 of one-hot rows is
    gradient : array (N, K)
    """
    T, B, N = dgates.shape
    if one_hot := source.ndim == 2:
        used, source = np.unique(source, return_inverse=True)
        source, gradient = source.reshape(T, B), gradient[:, used]
    K = gradient.shape[1]
    whole = gradient.astype(np.float64)
    size = float(norm(whole.reshape(-1), 0))
    norms, shares = np.zeros(T), np.zeros(T)
    steps = max(1, 2**20 // max(1, min(B * B, N * K), B * K))  # 8 MB of products at once
    for t in range(0, T, steps):
        now = slice(t, t + steps)
        g, a = dgates[now].astype(np.float64), source[now]
        a = a[..., None] == np.arange(K) if one_hot else a
        a = a.astype(np.float64)
        if B * B < N * K:
            squares = np.einsum("tbc,tbc->t", g @ g.swapaxes(1, 2), a @ a.swapaxes(1, 2))
            norms[now] = np.sqrt(np.maximum(squares, 0))  # rounding may leave less than nothing
        else:
            norms[now] = np.linalg.norm(g.swapaxes(1, 2) @ a, axis=(1, 2))
        if size > 0:
            shares[now] = np.einsum("tbk,tbk->t", g @ (whole / size), a) / size
    return norms, shares
