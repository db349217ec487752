from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np
from typing_extensions import disjoint_base

def norms(flats: Iterable[np.ndarray], limit: float = ...) -> tuple[float, float]: ...

_Row = tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray], float, float]

@disjoint_base
class Ranges:
    def __new__(cls, rows: Iterable[_Row]) -> Self: ...
    def norms(self, limit: float = ...) -> tuple[float, float]: ...
    def sgd(self, lr: float, momentum: float = 0.0, nesterov: bool = False,
            limit: float = ..., grad_scale: float = 1.0) -> None: ...
    def rmsprop(self, lr: float, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0,
                limit: float = ..., grad_scale: float = 1.0) -> None: ...
    def adam(self, lr: float, beta1: float, beta2: float, eps: float, step: int,
             limit: float = ..., grad_scale: float = 1.0) -> None: ...
