"""Optimisers over the parameters of layers and models: one fused, threaded pass a step.

An optimiser walks over the distinct parts of what it is given, so a layer that belongs to several
models is moved once. Weights that equations declare `fixed` are never moved, whatever the groups
say. Letter: P number of parameters.
"""

from __future__ import annotations

import abc
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn._kernels.update import Ranges, norms
from fastrnn.layers.parameters import Part, distinct, full_name
from fastrnn.training.groups import Choice, choose

__all__ = ["OPTIMIZERS", "SGD", "Adam", "AdamW", "Optimizer", "RMSProp", "clip_grad_norm",
           "clip_grad_value", "grad_norm"]


@public
def grad_norm(target: Any) -> float:
    """Return the 2-norm of all gradients together, computed in float64.

    Parameters
    ----------
    target : layer, model, or list of them
        Parts that several models share count once.
    """
    return norms([part.flat_grads for part in distinct(target)])[0]


def _scale(norm: float, max_norm: float | None) -> float:
    return 1.0 if max_norm is None or norm <= max_norm else max_norm / norm


@public
def clip_grad_norm(target: Any, max_norm: float) -> float:
    """Scale all gradients so that their global norm is at most `max_norm`.

    Parameters
    ----------
    target : layer, model, or list of them
    max_norm : float
        Above 0.

    Returns
    -------
    float
        The norm before.

    Raises
    ------
    ValueError
        If `max_norm` is not a number above 0.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013, algorithm 1.
    """
    max_norm = _checks.above("max_norm", max_norm)
    parts = distinct(target)
    norm = norms([part.flat_grads for part in parts])[0]
    scale = _scale(norm, max_norm)
    if scale != 1:
        for part in parts:
            smallest = float(np.finfo(part.dtype).tiny)
            if 0 < scale < smallest:  # in two factors, which the dtype can hold
                part.flat_grads *= part.dtype.type(smallest)
                part.flat_grads *= part.dtype.type(scale / smallest)
            else:
                part.flat_grads *= part.dtype.type(scale)
    return norm


@public
def clip_grad_value(target: Any, value: float) -> None:
    """Limit each element of the gradients to between -value and value.

    Parameters
    ----------
    target : layer, model, or list of them
    value : float
        Above 0.

    Raises
    ------
    ValueError
        If `value` is not a number above 0.

    References
    ----------
    T. Mikolov, "Statistical language models based on neural networks", PhD thesis, Brno 2012.
    """
    value = _checks.above("value", value)
    for part in distinct(target):
        limit = min(value, float(np.finfo(part.dtype).max))
        np.clip(part.flat_grads, -limit, limit, out=part.flat_grads)


class Optimizer(abc.ABC):
    """What the optimisers share: steps, clipping, and the state from which to go on.

    The arguments are attributes, and all but `lr` are fixed: the state and the groups are of them.

    Attributes
    ----------
    target : layer, model, or list of them
        Whose parameters each step changes along their gradients.
    lr : float
        Step size; may be set between steps, to 0 too, where a schedule ends. The rates of `groups`
        keep their ratio to it.
    steps : int
        How many were taken.
    trained : dict
        The parts that it changes, by name.
    """

    _arguments: tuple[str, ...]  # of __init__, but for target, freeze and groups; also attributes
    _buffer_names: Mapping[str, str]  # of its state: the kernels' name for each
    weight_decay: float

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse another value of an argument, which the next steps would not have."""
        fixed = name in ("freeze", "groups") or (
            name in ("target", *self._arguments) and name != "lr" and name in self.__dict__)
        if fixed:
            raise AttributeError(f"{name} is fixed when the {type(self).__name__} is made; make "
                                 "another optimizer, and give it the state with load_state_dict")
        object.__setattr__(self, name, value)

    def _start(self, target: Any, lr: Any, freeze: Any, groups: Any) -> None:
        """Choose what moves, and make the state."""
        self._lr = _checks.above("lr", lr)
        self._choice: Choice = choose(target, freeze, groups, self._lr, self.weight_decay)
        self.target = target
        self.steps = 0
        self._buffers = [{name: np.zeros_like(part.flat) for name in self._buffer_names}
                         for part in self.trained.values()]
        self._make_ranges()

    def _make_ranges(self) -> None:
        """Hand the kernels every range of parameters that moves."""
        parts = list(self.trained.values())
        rows = []
        for number, start, stop, lr_scale, decay in self._choice.ranges:
            part, own = parts[number], slice(start, stop)
            buffers = {letter: self._buffers[number][name][own]
                       for name, letter in self._buffer_names.items()}
            rows.append((part.flat[own], part.flat_grads[own], buffers, lr_scale, decay))
        self._ranges = Ranges(rows)

    @property
    def trained(self) -> dict[str, Part]:
        """The parts that a step changes, by name; a part that is shared, under its first."""
        return self._choice.trained

    @property
    def lr(self) -> float:
        """Step size."""
        return self._lr

    @lr.setter
    @public
    def lr(self, value: float) -> None:
        self._lr = _checks.at_least("lr", value)

    @property
    def config(self) -> dict[str, Any]:
        """The class's name as "optimizer", and its arguments with the lr of now; fit for JSON.

        An optimizer is made with an lr above 0. If lr was set to 0 since, put another one into
        these arguments, and into each of the groups, before you make an optimizer of them.
        """
        values = {name: getattr(self, name) for name in self._arguments}
        return {"optimizer": type(self).__name__,
                **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
                "freeze": list(self._choice.freeze),
                "groups": {pattern: {name: value * self._lr if name == "lr" else value
                                     for name, value in settings.items()}
                           for pattern, settings in self._choice.groups.items()}}

    def zero_grad(self) -> None:
        """Set all gradients of the target to zero, those of frozen parts too."""
        for part in self._choice.parts:
            part.flat_grads.fill(0)

    @public
    def step(self, clip: float | None = None, clip_value: float | None = None) -> float:
        """Take one step along the gradients, which stay as they are.

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
            The gradients' global norm before any clipping, over all that is not frozen.

        Raises
        ------
        FloatingPointError
            If the norm is not finite; nothing has changed.
        ValueError
            If a limit is not a number above 0, or a part that is not frozen is in evaluation mode:
            its parameters are read-only.
        """
        return self._step(clip, clip_value)[0]

    def _step(self, clip: float | None, clip_value: float | None) -> tuple[float, float]:
        """Take a step; return the norm before any clipping, and that which `clip` is for."""
        if clip is not None:
            _checks.above("clip", clip)
        limit = math.inf if clip_value is None else _checks.above("clip_value", clip_value)
        for name, part in self.trained.items():
            if part.mode != "training":
                raise RefusedValue(f"{name or type(part).__name__} is in evaluation mode and its "
                                   "parameters are read-only, expected training mode: call "
                                   "train(), or freeze the part")
        norm, limited = self._ranges.norms(limit)
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"{type(self).__name__}.step: the gradients' norm is {norm} at step "
                f"{self.steps + 1}, expected a finite number; no parameter has changed")
        self._update(limit, _scale(limited, clip))
        self.__dict__["steps"] += 1  # at once: a step is short
        for part in self.trained.values():
            part.changed()
        return norm, limited

    @abc.abstractmethod
    def _update(self, limit: float, grad_scale: float) -> None:
        """Take a step along the gradients, limited to +-limit, then scaled."""

    def _state(self) -> dict[str, np.ndarray]:
        """Return every buffer (P,) by the name of its part and its own."""
        return {full_name(part, name): buffer
                for part, buffers in zip(self.trained, self._buffers, strict=True)
                for name, buffer in buffers.items()}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return `steps`, int64 (), and a copy of every buffer, such as "head.m", (P,)."""
        return {"steps": np.array(self.steps, np.int64),
                **{name: buffer.copy() for name, buffer in self._state().items()}}

    @public
    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Go on from a state_dict() of the same class and target, as if there had been no stop.

        The arguments, lr among them, are not part of it: see `config`.

        Parameters
        ----------
        mapping : mapping of names to arrays
            Exactly the names and shapes of state_dict(); other float dtypes are converted.

        Raises
        ------
        ValueError
            If names are missing or unexpected, shapes differ, a number is too large for the dtype,
            or is NaN, or `steps` or a mean of squares is negative; nothing has changed.
        TypeError
            If a value is not an array of numbers, or `steps` no whole number.
        """
        buffers = self._state()
        arrays = _checks.named_arrays(
            mapping, {"steps": (), **{name: buffer.shape for name, buffer in buffers.items()}})
        steps = arrays["steps"]
        if steps.dtype.kind not in "iu":
            raise RefusedType(f"steps is {steps.dtype}, expected a whole number")
        if not 0 <= steps <= sys.maxsize:
            raise RefusedValue(f"steps is {steps}, expected at least 0")
        fitting = {name: _checks.held(name, arrays[name], buffer.dtype)
                   for name, buffer in buffers.items()}
        for name, array in fitting.items():
            square = self._buffer_names[name.rpartition(".")[2]] == "v"
            if (wrong := np.isnan(array) | (square & (array < 0))).any():
                i = int(np.argmax(wrong))
                raise RefusedValue(f"{name} has {array[i]} at [{i}], expected a number"
                                   + " of at least 0" * square)
        self.steps = int(steps)
        for name, buffer in buffers.items():
            buffer[...] = fitting[name]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_ranges"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._make_ranges()  # over the copies


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's too.

    torch.optim.SGD's equations, for gradients g and parameters p::

        g += weight_decay p;  b = momentum b + g
        p -= lr b, with nesterov p -= lr (g + momentum b)

    Parameters
    ----------
    target : layer, model, or list of them
        Every part is moved once, however many models it belongs to.
    lr : float
        Step size; may be set between steps.
    momentum : float in [0, 1)
        Share of the last step's direction that is kept; 0 needs no memory for it.
    nesterov : bool
        Whether to look ahead along the momentum.
    weight_decay : float
        Share of the parameters that is added to their gradients (L2, not decoupled).
    freeze, groups
        As of Adam.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range, there is nesterov without momentum, or a pattern fits no
        parameter.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and
    momentum in deep learning", ICML 2013.
    """

    _arguments = ("lr", "momentum", "nesterov", "weight_decay")

    @public
    def __init__(
        self, target: Any, lr: float = 0.01, momentum: float = 0.0, nesterov: bool = False,
        weight_decay: float = 0.0, *, freeze: Any = (), groups: Any = None,
    ) -> None:
        self.momentum = _checks.at_least("momentum", momentum, 0, 1)
        self.nesterov = _checks.flag("nesterov", nesterov)
        self.weight_decay = _checks.at_least("weight_decay", weight_decay)
        if self.nesterov and not self.momentum:
            raise RefusedValue("nesterov is True and momentum is 0, expected momentum above 0")
        self._buffer_names = {"momentum": "m"} if self.momentum else {}
        self._start(target, lr, freeze, groups)

    def _update(self, limit: float, grad_scale: float) -> None:
        self._ranges.sgd(self._lr, self.momentum, self.nesterov, limit, grad_scale)


class RMSProp(Optimizer):
    """Steps divided by the root of the gradient's mean square.

    torch.optim.RMSprop's equations, not centred, for gradients g and parameters p::

        g += weight_decay p;  v = alpha v + (1 - alpha) g^2
        b = momentum b + g / (sqrt(v) + eps);  p -= lr b

    Parameters
    ----------
    target : layer, model, or list of them
        Every part is moved once, however many models it belongs to.
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
    freeze, groups
        As of Adam.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range, or a pattern fits no parameter.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", Coursera 2012.
    """

    _arguments = ("lr", "alpha", "eps", "momentum", "weight_decay")

    @public
    def __init__(
        self, target: Any, lr: float = 1e-3, alpha: float = 0.99, eps: float = 1e-8,
        momentum: float = 0.0, weight_decay: float = 0.0, *, freeze: Any = (), groups: Any = None,
    ) -> None:
        self.alpha = _checks.above("alpha", alpha, 0, 1)
        self.eps = _checks.above("eps", eps)
        self.momentum = _checks.at_least("momentum", momentum, 0, 1)
        self.weight_decay = _checks.at_least("weight_decay", weight_decay)
        self._buffer_names = {"square": "v"} | ({"momentum": "m"} if self.momentum else {})
        self._start(target, lr, freeze, groups)

    def _update(self, limit: float, grad_scale: float) -> None:
        self._ranges.rmsprop(self._lr, self.alpha, self.eps, self.momentum, limit, grad_scale)


class Adam(Optimizer):
    """Adam with bias correction and decoupled weight decay.

    Parameters
    ----------
    target : layer, model, or list of them
        Every part is moved once, however many models it belongs to.
    lr : float
        Step size; may be set between steps.
    betas : pair of floats in (0, 1)
        Decay of the means of the gradient and of its square.
    eps : float
        Added to the root of the second mean.
    weight_decay : float
        Share of a parameter, times lr, that each step takes away; 0 is Adam, more is AdamW.
    freeze : name, part, or several of them
        What stays as it is: a parameter ("head.bias"), a part or several ("embedding", "layers",
        or the object), or a pattern of names as of fnmatch ("*.weight_hh_*"). A part that is frozen
        whole may be in evaluation mode. Its gradients are computed, and belong to no norm.
    groups : dict, optional
        Other settings for some parameters, by such names or patterns; the first that fits counts:
        ``{"*bias*": {"weight_decay": 0}, "head": {"lr": 1e-2}}``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range, or a pattern fits no parameter.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam", ICLR 2015, algorithm 1; I. Loshchilov and F. Hutter, "Decoupled
    weight decay regularization", ICLR 2019.
    """

    _arguments = ("lr", "betas", "eps", "weight_decay")
    _buffer_names = {"m": "m", "v": "v"}

    @public
    def __init__(
        self, target: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0, *, freeze: Any = (), groups: Any = None,
    ) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise RefusedValue(f"betas is {_checks.show(betas)}, expected a pair of numbers")
        self.betas = (_checks.above("betas[0]", betas[0], 0, 1),
                      _checks.above("betas[1]", betas[1], 0, 1))
        self.eps = _checks.above("eps", eps)
        self.weight_decay = _checks.at_least("weight_decay", weight_decay)
        self._start(target, lr, freeze, groups)

    def _update(self, limit: float, grad_scale: float) -> None:
        self._ranges.adam(self._lr, *self.betas, self.eps, self.steps + 1, limit, grad_scale)


class AdamW(Adam):
    """Adam with a weight decay of 0.01 where none is given; see Adam."""

    def __init__(
        self, target: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.01, *, freeze: Any = (), groups: Any = None,
    ) -> None:
        super().__init__(target, lr, betas, eps, weight_decay, freeze=freeze, groups=groups)


OPTIMIZERS: dict[str, type[Any]] = {  # by the names that fit takes
    "sgd": SGD, "rmsprop": RMSProp, "adam": Adam, "adamw": AdamW}
