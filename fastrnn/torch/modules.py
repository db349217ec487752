"""The modules of torch.nn with accelerated operators, and models whose modules are exchanged."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import Proxy
from torch.nn.modules import rnn
from torch.nn.utils import parametrize

from fastrnn.torch import traceable
from fastrnn.torch.door import Operator
from fastrnn.torch.operators import FUNCTIONS, OPERATORS, note_refused, run_module

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "accelerate", "restore"]

Module = TypeVar("Module", bound=nn.Module)


class _Operators(types.ModuleType):
    """What torch._VF is for PyTorch's own modules, with the accelerated functions."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch._VF, name)


_VF = _Operators("_VF")
_VF.__dict__.update(FUNCTIONS)

# The names of PyTorch's module with another _VF. It is a module of its own, because torch.compile
# looks names up in the module that a function's globals name.
_NAMES = types.ModuleType(f"{__package__}.exchanged", "The names that accelerated modules use.")
_NAMES.__dict__.update({name: value for name, value in vars(rnn).items() if name[:2] != "__"},
                       _VF=_VF, __builtins__=__builtins__)
sys.modules[_NAMES.__name__] = _NAMES


def _accelerated(
    base: type[nn.Module], operator_of: Callable[[Any], Operator | None],
) -> Callable[..., Any]:
    """Return the method `forward` of a class of PyTorch, calling the accelerated operators.

    Plain calls go to the operator at once. All others go through PyTorch's own code, so that
    checks, errors and the treatment of packed and unbatched input are those of the installed
    version. In that code only the name `_VF` means other functions.

    Parameters
    ----------
    base : type
    operator_of : function
        Returns the operator of a module.
    """
    own: Any = base.forward
    forward = types.FunctionType(own.__code__, vars(_NAMES), own.__name__,
                                 own.__defaults__, own.__closure__)
    forward.__doc__, forward.__qualname__ = own.__doc__, own.__qualname__
    forward.__kwdefaults__ = own.__kwdefaults__

    def called(self: Any, input: Any, hx: Any = None) -> Any:
        if base.forward is not own:  # replaced in PyTorch's class, as profilers do
            if (operator := operator_of(self)) is not None:
                note_refused(operator, next(self.parameters(), None), input,
                             f"{base.__name__}.forward of PyTorch was replaced")
            return base.forward(self, input, hx)
        # a caller may hold this method of a module that has been restored since
        if (type(input) is torch.Tensor and getattr(self, "_is_plain", False)
                and not torch.compiler.is_compiling()):
            operator = operator_of(self)
            outputs = operator and run_module(operator, self, input, hx)
            if outputs is not None:
                return outputs
        tracer = _tracer_of((input, hx))
        if tracer is not None:
            return _leaf(tracer, self, input, hx)
        return forward(self, input, hx)

    return functools.update_wrapper(called, own)


def _tracer_of(arguments: tuple[Any, ...]) -> Any:
    """Return the tracer of torch.fx that an argument, or a part of one, comes from, or None."""
    for argument in arguments:
        if isinstance(argument, Proxy):
            return argument.tracer
        if type(argument) is tuple and (found := _tracer_of(argument)) is not None:
            return found
    return None


def _leaf(tracer: Any, module: Any, input: Any, hx: Any) -> Any:
    """Enter a module into a graph of torch.fx as one node, as torch.fx does with PyTorch's own."""
    args = (input,) if hx is None else (input, hx)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, {})


class _Accelerated:
    """What all accelerated modules have in common."""

    # Whether the class has no methods of its own in the place of those that `forward` calls.
    _is_plain = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ != __name__ and "_is_plain" not in vars(cls):
            cls._is_plain = _is_plain(cls)  # type: ignore[arg-type]

    def __prepare_scriptable__(self: Any) -> Any:
        """Return the module of PyTorch with the same parameters: TorchScript compiles its code."""
        twin = object.__new__(plain_class(type(self)))  # it shares everything
        twin.__dict__.update(self.__dict__)
        return twin


traceable.permit(_Accelerated)


class RNN(_Accelerated, nn.RNN):
    """`torch.nn.RNN`, computed by fastrnn where that is possible and faster."""

    forward = _accelerated(nn.RNN, lambda module: OPERATORS.get(module.mode.lower()))


class LSTM(_Accelerated, nn.LSTM):
    """`torch.nn.LSTM`, computed by fastrnn where that is possible and faster."""

    forward = _accelerated(nn.LSTM, lambda module: OPERATORS["lstm"])


class GRU(_Accelerated, nn.GRU):
    """`torch.nn.GRU`, computed by fastrnn where that is possible and faster."""

    forward = _accelerated(nn.GRU, lambda module: OPERATORS["gru"])


class RNNCell(_Accelerated, nn.RNNCell):
    """`torch.nn.RNNCell`, computed by fastrnn where that is possible and faster."""

    forward = _accelerated(
        nn.RNNCell, lambda module: OPERATORS.get(f"rnn_{module.nonlinearity}_cell"))


class LSTMCell(_Accelerated, nn.LSTMCell):
    """`torch.nn.LSTMCell`, computed by fastrnn where that is possible and faster."""

    forward = _accelerated(nn.LSTMCell, lambda module: OPERATORS["lstm_cell"])


class GRUCell(_Accelerated, nn.GRUCell):
    """`torch.nn.GRUCell`, computed by fastrnn where that is possible and faster."""

    forward = _accelerated(nn.GRUCell, lambda module: OPERATORS["gru_cell"])


CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN, nn.LSTM: LSTM, nn.GRU: GRU, nn.RNNCell: RNNCell, nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell}


# ---- models --------------------------------------------------------------------------------------


class _Derived:
    """A user's subclass of a module of PyTorch, with the accelerated `forward` below it.

    The order of bases is: the user's class, the accelerated class, PyTorch's class. So
    ``super().forward()`` in the user's class is the accelerated one.
    """

    _fastrnn_from: type[nn.Module]

    def __init_subclass__(cls, **options: Any) -> None:
        """Call the user's hook for the user's own subclasses alone, which may be registered."""
        if "_fastrnn_from" not in vars(cls):
            super().__init_subclass__(**options)

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = super().__reduce_ex__(protocol)
        if isinstance(made, str):  # the name of something global
            return made
        if made[0].__module__ == "copyreg":
            return _revived, (self._fastrnn_from,), *made[2:]
        # the user's own __reduce__: no file can name this class, so its base stands for it
        own, base = type(self), self._fastrnn_from
        make, *args = (base if part is own else part for part in (made[0], *made[1]))
        if getattr(make, "__self__", None) is own:
            make = getattr(base, make.__name__)
        return _remade, (make, tuple(args)), *made[2:]


def _remade(make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Return the accelerated module of what a user's `__reduce__` makes."""
    return accelerate(make(*args))


def _revived(base: type[nn.Module]) -> Any:
    """Return an empty module of the class that is derived from a user's; for pickle and copy."""
    ours = accelerated_class(base)
    assert ours is not None
    return object.__new__(ours)


_deriving = threading.RLock()  # two threads get one class; a metaclass may accelerate, too


def accelerated_class(base: type[nn.Module]) -> type[nn.Module] | None:
    """Return the accelerated class for a class of modules; None if there is none."""
    if base in CLASSES:
        return CLASSES[base]
    if issubclass(base, _Accelerated):
        return base
    ours = next((CLASSES[known] for known in CLASSES if issubclass(base, known)), None)
    if ours is None or base.__module__.startswith("torch."):
        return None  # quantised modules and others of PyTorch's own compute something else
    with _deriving:
        made = [of for of in base.__subclasses__() if vars(of).get("_fastrnn_from") is base]
        if made:
            return made[0]
        content = {
            "__module__": base.__module__, "__qualname__": base.__qualname__,
            "__doc__": base.__doc__, "_fastrnn_from": base, "_is_plain": _is_plain(base)}
        try:
            return type(base.__name__, (_Derived, base, ours), content)
        except TypeError as error:  # of a metaclass
            raise TypeError(f"accelerate: from {base.__qualname__} no class can be derived: "
                            f"{error}") from error


def _is_plain(base: type[nn.Module]) -> bool:
    """Whether a user's class has PyTorch's own methods, but for its constructor and `forward`."""
    torchs = next(known for known in CLASSES if issubclass(base, known))
    return all(getattr(base, name) is method for name, method in inspect.getmembers(torchs)
               if inspect.isfunction(method) and name not in ("__init__", "forward"))


def plain_class(ours: type[nn.Module]) -> type[nn.Module]:
    """Return the class that an accelerated class came from."""
    if issubclass(ours, _Derived):
        return ours._fastrnn_from
    return next((plain for plain, known in CLASSES.items() if known is ours), ours)


def _on_base(own: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """Return a class that PyTorch has made for a module, derived from another base.

    If it came from a class that has the same properties still, it becomes that class again.
    """
    kept = {name: value for name, value in vars(own).items()
            if name not in ("__dict__", "__weakref__")}
    kept.pop("_is_plain", None)  # of its base
    before: type[nn.Module] | None = kept.pop("_fastrnn_from", None)
    if before is not None and before.__bases__ == (base,) and set(kept) <= set(vars(before)):
        return before
    if issubclass(base, _Accelerated):
        kept["_fastrnn_from"] = own
    return type(own.__name__, (base,), kept)


def _change(
    model: nn.Module, class_for: Callable[[type[nn.Module]], type[nn.Module] | None],
) -> None:
    """Give each recurrent module the class that a function returns for its own, if it returns one.

    All classes are found before the first one is given.
    """
    changes = [(module, _changed(module, class_for)) for _, module in recurrent_modules(model)]
    for module, new in changes:
        if new is not None:
            module.__class__ = new


def _changed(
    module: nn.Module, class_for: Callable[[type[nn.Module]], type[nn.Module] | None],
) -> type[nn.Module] | None:
    own = type(module)
    if not parametrize.is_parametrized(module):
        return class_for(own)
    # PyTorch has made a class for this module alone, whose properties compute its weights. When
    # the parametrization is removed, the module gets the first base: so that is to be changed.
    base = class_for(own.__bases__[0])
    return None if base is None else _on_base(own, base)


def recurrent_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and modules of a model that are recurrent, each module once."""
    found: Iterator[tuple[str, nn.Module]] = model.named_modules()
    for name, module in found:
        if isinstance(module, tuple(CLASSES)):
            yield name, module


def check_model(name: str, model: object) -> None:
    """Refuse what is no module; `name` is that of the function that was called."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: model is of type {type(model).__name__}, expected a "
                        "torch.nn.Module")


def accelerate(model: Module) -> Module:
    """Let fastrnn compute the recurrent modules of a model.

    The modules stay the same objects with the same parameters, hooks and names; only their class
    changes, to one that is derived from theirs. Modules of a user's own subclass are included.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    model : torch.nn.Module
        The same object.

    Raises
    ------
    TypeError
        If it is no module, or if no class can be derived from that of one of the modules. Then
        nothing has changed.

    See Also
    --------
    restore : Undo it.
    report : What ran accelerated, what did not, and why.
    """
    check_model("accelerate", model)
    _change(model, accelerated_class)
    return model


def restore(model: Module) -> Module:
    """Undo `accelerate`: every module has the class again that it had before.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    model : torch.nn.Module
        The same object.

    Raises
    ------
    TypeError
        If it is no module.
    """
    check_model("restore", model)
    _change(model, plain_class)
    return model
