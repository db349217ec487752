"""Optimisers over the flat parameters of a layer or a model: one fused, threaded pass a step."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._kernels.update import Ranges, norms
from fastrnn.parameters import Parametrized

__all__ = ["OPTIMIZERS", "SGD", "Adam", "AdamW", "Optimizer", "RMSProp", "clip_grad_norm",
           "clip_grad_value", "grad_norm"]


def grad_norm(target: Parametrized) -> float:
    """Return the 2-norm of all gradients together."""
    return norms([target.flat_grads])[0]


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


def clip_grad_value(target: Parametrized, value: float) -> None:
    """Limit each element of the gradients to between -value and value.

    Parameters
    ----------
    target : layer or model
    value : float
        Above 0.

    References
    ----------
    T. Mikolov, "Statistical language models based on neural networks", PhD thesis, Brno 2012.
    """
    _checks.above("clip_grad_value", "value", value)
    np.clip(target.flat_grads, -value, value, out=target.flat_grads)


class Optimizer(abc.ABC):
    """What the optimisers share: steps, clipping, and the state from which to go on.

    Attributes
    ----------
    target : layer or model
        Whose `flat` each step changes along `flat_grads`.
    lr : float
        Step size; may be set between steps, to 0 too, where a schedule ends.
    steps : int
        How many were taken.
    """

    _arguments: tuple[str, ...]  # of __init__, but for target; also the names of attributes

    def __init__(self, target: Parametrized, lr: float, buffers: tuple[str, ...]) -> None:
        owner = type(self).__name__
        if not isinstance(target, Parametrized):
            raise TypeError(f"{owner}: target is {_checks.kind(target)}, expected a layer or a "
                            "model")
        self.target = target
        self.steps = 0
        self._lr = _checks.above(owner, "lr", lr)
        self._buffers = {name: np.zeros_like(target.flat) for name in buffers}

    @property
    def lr(self) -> float:
        """Step size."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = _checks.at_least(type(self).__name__, "lr", value)

    @property
    def config(self) -> dict[str, Any]:
        """The class's name as "optimizer", and its arguments with the lr of now; fit for JSON.

        ``OPTIMIZERS[config.pop("optimizer")](target, **config)`` makes another one.
        """
        values = {name: getattr(self, name) for name in self._arguments}
        return {"optimizer": type(self).__name__,
                **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}

    def step(self, clip: float | None = None, clip_value: float | None = None) -> float:
        """Take one step along `target.flat_grads`, which stay as they are.

        Clipping costs no pass of its own. With both limits each element is limited first, and what
        `clip` bounds is the norm of that: as clip_grad_value and then clip_grad_norm would.

        Parameters
        ----------
        clip : float, optional
            Scale the gradients to at most this global norm.
        clip_value : float, optional
            Limit each element of the gradients to between -clip_value and clip_value.

        Returns
        -------
        float
            The gradients' global norm before any clipping.

        Raises
        ------
        FloatingPointError
            If the norm is not finite; nothing has changed.
        ValueError
            If a limit is not a number above 0, or the target is in evaluation mode: its parameters
            are read-only.
        """
        owner = f"{type(self).__name__}.step"
        if clip is not None:
            _checks.above(owner, "clip", clip)
        limit = math.inf if clip_value is None else _checks.above(owner, "clip_value", clip_value)
        norm, limited = norms([self.target.flat_grads], limit)
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"{owner}: the gradients' norm is {norm} at step {self.steps + 1}, expected a "
                "finite number; no parameter has changed"
            )
        _checks.writeable(owner, self.target.training)
        self._update(limit, _scale(limited, clip))
        self.steps += 1
        return norm

    def _ranges(self) -> Ranges:
        names = {"momentum": "m", "square": "v"}
        buffers = {names.get(name, name): a for name, a in self._buffers.items()}
        decay: float = self.weight_decay  # type: ignore[attr-defined]
        return Ranges([(self.target.flat, self.target.flat_grads, buffers, 1.0, decay)])

    @abc.abstractmethod
    def _update(self, limit: float, grad_scale: float) -> None:
        """Take a step along the gradients, limited to +-limit, then scaled."""

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return `steps`, int64 (), and a copy of every buffer (P,) by name."""
        return {"steps": np.array(self.steps, np.int64),
                **{name: buffer.copy() for name, buffer in self._buffers.items()}}

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Go on from a state_dict() of the same class and sizes, as if there had been no stop.

        The arguments, lr among them, are not part of it: see `config`.

        Parameters
        ----------
        mapping : mapping of names to arrays
            Exactly the names and shapes of state_dict(); other float dtypes are converted.

        Raises
        ------
        ValueError
            If names are missing or unexpected, shapes differ, or `steps` is negative; nothing has
            changed.
        TypeError
            If a value is not an array of numbers, or `steps` no whole number.
        """
        owner = f"{type(self).__name__}.load_state_dict"
        shapes = {name: buffer.shape for name, buffer in self._buffers.items()}
        arrays = _checks.named_arrays(owner, mapping, {"steps": (), **shapes})
        steps = arrays["steps"]
        if steps.dtype.kind not in "iu":
            raise TypeError(f"{owner}: steps is {steps.dtype}, expected a whole number")
        if steps < 0:
            raise ValueError(f"{owner}: steps is {steps}, expected at least 0")
        self.steps = int(steps)
        for name, buffer in self._buffers.items():
            buffer[...] = arrays[name]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's too, over `target.flat`.

    torch.optim.SGD's equations, for gradients g and parameters p::

        g += weight_decay p;  b = momentum b + g
        p -= lr b, with nesterov p -= lr (g + momentum b)

    Parameters
    ----------
    target : layer or model
    lr : float
        Step size; may be set between steps.
    momentum : float in [0, 1)
        Share of the last step's direction that is kept; 0 needs no memory for it.
    nesterov : bool
        Whether to look ahead along the momentum.
    weight_decay : float
        Share of the parameters that is added to their gradients (L2, not decoupled).

    Raises
    ------
    ValueError
        If an argument is out of its range, or there is nesterov without momentum.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and
    momentum in deep learning", ICML 2013.
    """

    _arguments = ("lr", "momentum", "nesterov", "weight_decay")

    def __init__(
        self, target: Parametrized, lr: float, momentum: float = 0.0, nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum = _checks.at_least("SGD", "momentum", momentum, 0, 1)
        self.nesterov = bool(nesterov)
        self.weight_decay = _checks.at_least("SGD", "weight_decay", weight_decay)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov is True and momentum is 0, expected momentum above 0")
        super().__init__(target, lr, ("momentum",) if self.momentum else ())

    def _update(self, limit: float, grad_scale: float) -> None:
        self._ranges().sgd(self.lr, self.momentum, self.nesterov, limit, grad_scale)


class RMSProp(Optimizer):
    """Steps divided by the root of the gradient's mean square, over `target.flat`.

    torch.optim.RMSprop's equations, not centred, for gradients g and parameters p::

        g += weight_decay p;  v = alpha v + (1 - alpha) g^2
        b = momentum b + g / (sqrt(v) + eps);  p -= lr b

    Parameters
    ----------
    target : layer or model
    lr : float
        Step size; may be set between steps.
    alpha : float in (0, 1)
        Decay of the mean square v.
    eps : float
        Added to the root.
    momentum : float in [0, 1)
        Share of the last step's direction that is kept; 0 needs no memory for it.
    weight_decay : float
        Share of the parameters that is added to their gradients (L2, not decoupled).

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", Coursera 2012.
    """

    _arguments = ("lr", "alpha", "eps", "momentum", "weight_decay")

    def __init__(
        self, target: Parametrized, lr: float, alpha: float = 0.99, eps: float = 1e-8,
        momentum: float = 0.0, weight_decay: float = 0.0,
    ) -> None:
        self.alpha = _checks.above("RMSProp", "alpha", alpha, 0, 1)
        self.eps = _checks.above("RMSProp", "eps", eps)
        self.momentum = _checks.at_least("RMSProp", "momentum", momentum, 0, 1)
        self.weight_decay = _checks.at_least("RMSProp", "weight_decay", weight_decay)
        super().__init__(target, lr, ("square", "momentum") if self.momentum else ("square",))

    def _update(self, limit: float, grad_scale: float) -> None:
        self._ranges().rmsprop(self.lr, self.alpha, self.eps, self.momentum, limit, grad_scale)


class Adam(Optimizer):
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

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam", ICLR 2015, algorithm 1; I. Loshchilov and F. Hutter, "Decoupled
    weight decay regularization", ICLR 2019.
    """

    _arguments = ("lr", "betas", "eps", "weight_decay")

    def __init__(
        self, target: Parametrized, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:
        owner = type(self).__name__
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"{owner}: betas is {_checks.show(betas)}, expected a pair of numbers")
        self.betas = (_checks.above(owner, "betas[0]", betas[0], 0, 1),
                      _checks.above(owner, "betas[1]", betas[1], 0, 1))
        self.eps = _checks.above(owner, "eps", eps)
        self.weight_decay = _checks.at_least(owner, "weight_decay", weight_decay)
        super().__init__(target, lr, ("m", "v"))

    def _update(self, limit: float, grad_scale: float) -> None:
        self._ranges().adam(self.lr, *self.betas, self.eps, self.steps + 1, limit, grad_scale)


class AdamW(Adam):
    """Adam with a weight decay of 0.01 where none is given; see Adam."""

    def __init__(
        self, target: Parametrized, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.01,
    ) -> None:
        super().__init__(target, lr, betas, eps, weight_decay)


OPTIMIZERS: dict[str, type[Any]] = {c.__name__: c for c in (SGD, RMSProp, Adam, AdamW)}
