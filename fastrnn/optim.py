"""Optimisers over the flat parameters of a layer or a model: one fused, threaded pass a step."""

from __future__ import annotations

import math

import numpy as np

from fastrnn import _checks
from fastrnn._kernels import dense
from fastrnn.parameters import Parametrized

__all__ = ["Adam", "clip_grad_norm", "grad_norm"]


def grad_norm(target: Parametrized) -> float:
    """Return the 2-norm of all gradients together."""
    return math.sqrt(dense.sum_of_squares(target.flat_grads))


def _scale(norm: float, max_norm: float | None) -> float:
    return 1.0 if max_norm is None or norm <= max_norm else max_norm / norm


def clip_grad_norm(target: Parametrized, max_norm: float) -> float:
    """Scale all gradients so that their global norm is at most `max_norm`.

    Parameters
    ----------
    target : layer or model
    max_norm : float
        Above 0.

    Returns
    -------
    float
        The norm before.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013, algorithm 1.
    """
    _checks.above("clip_grad_norm", "max_norm", max_norm)
    norm = grad_norm(target)
    scale = _scale(norm, max_norm)
    if scale != 1:
        target.flat_grads *= target.dtype.type(scale)
    return norm


class Adam:
    """Adam with bias correction and decoupled weight decay, over `target.flat`.

    Parameters
    ----------
    target : layer or model
    lr : float
        Step size; may be set between steps.
    betas : pair of floats in (0, 1)
        Decay of the means of the gradient and of its square.
    eps : float
        Added to the root of the second mean.
    weight_decay : float
        Share of a parameter, times lr, that each step takes away; 0 is Adam, more is AdamW.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam", ICLR 2015, algorithm 1; I. Loshchilov and F. Hutter, "Decoupled
    weight decay regularization", ICLR 2019.
    """

    def __init__(
        self, target: Parametrized, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:
        self.target = target
        self.lr = _checks.above("Adam", "lr", lr)
        self.betas = (_checks.above("Adam", "betas[0]", betas[0], 0, 1),
                      _checks.above("Adam", "betas[1]", betas[1], 0, 1))
        self.eps = _checks.above("Adam", "eps", eps)
        self.weight_decay = 0.0 if weight_decay == 0 else _checks.above(
            "Adam", "weight_decay", weight_decay)
        self.steps = 0
        self.m = np.zeros_like(target.flat)
        self.v = np.zeros_like(target.flat)

    def step(self, clip: float | None = None) -> float:
        """Take one step along `target.flat_grads`.

        Parameters
        ----------
        clip : float, optional
            Scale the gradients to at most this global norm first; costs no pass of its own and
            leaves `flat_grads` as it is.

        Returns
        -------
        float
            The gradients' global norm before clipping.

        Raises
        ------
        FloatingPointError
            If the norm is not finite; nothing has changed.
        ValueError
            If the target is in evaluation mode: its parameters are read-only.
        """
        norm = grad_norm(self.target)
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"Adam.step: the gradients' norm is {norm} at step {self.steps + 1}, expected a "
                "finite number; no parameter has changed"
            )
        if not self.target.training:
            raise ValueError("Adam.step: the parameters are read-only in evaluation mode, "
                             "expected training mode: call train() first")
        dense.adam_step(
            self.target.flat, self.target.flat_grads, self.m, self.v, lr=float(self.lr),
            beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
            weight_decay=self.weight_decay, step=self.steps + 1, grad_scale=_scale(norm, clip),
        )
        self.steps += 1
        return norm
