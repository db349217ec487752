"""Gradients of a case of random_cells.py against differences of the NumPy evaluation."""

from __future__ import annotations

import dataclasses

import numpy as np
from random_cells import Case, expected


def loss(case: Case) -> float:
    """Return what `backward` has the gradients of."""
    out = expected(case)
    total = (out["y"] * case.dy).sum()
    for s, d in zip(case.definition.states, case.dfinal, strict=True):
        total += (out[f"{s.name}n"] * d).sum()
    return float(total)


def moved(case: Case, name: str, by: np.ndarray) -> Case:
    """Return the case with `by` added to what has the gradient `name`."""
    if name == "dx":
        return dataclasses.replace(case, x=case.x + by)
    if name.startswith("grad "):
        at = case.names.index(name[5:])
        return dataclasses.replace(case, parameters=tuple(
            p + by if i == at else p for i, p in enumerate(case.parameters)))
    at = [f"d{s.name}0" for s in case.definition.states].index(name)
    return dataclasses.replace(case, state=tuple(
        s + by if i == at else s for i, s in enumerate(case.state)))


def check_gradients(case: Case, got: dict[str, np.ndarray], rng: np.random.Generator,
                    tolerance: float = 2e-6) -> None:
    """Compare each gradient, along a random direction, with differences of the reference.

    Two steps and both sides have to agree on the slope; where they do not, a kink or a jump is
    near and nothing is compared.
    """
    base = loss(case)
    names = ["dx", *(f"d{s.name}0" for s in case.definition.states),
             *(f"grad {name}" for name in case.names)]
    for name, gradient in got.items():
        if name not in names or not gradient.size:
            continue
        direction = rng.standard_normal(gradient.shape)
        direction /= np.linalg.norm(direction)
        along = float((gradient * direction).sum())
        scale = 1 + float(np.linalg.norm(gradient)) + abs(base)
        for step in (2e-5, 1e-6, 1e-7):
            ahead, behind = (loss(moved(case, name, sign * step * direction)) for sign in (1, -1))
            if abs((ahead - behind) / (2 * step) - along) <= max(
                    tolerance, 1e-15 / step) * 10 * scale:
                break
        else:
            sides = (ahead - base) / step, (base - behind) / step
            if abs(sides[0] - sides[1]) > 1e-4 * scale:
                continue  # a kink
            raise AssertionError(f"{name}: {along:.9g} along a direction, differences say "
                                 f"{(ahead - behind) / (2 * step):.9g}")
