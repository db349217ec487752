import numpy as np

def linear_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None,
                   out: np.ndarray | None = None) -> np.ndarray: ...
def linear_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, dweight: np.ndarray,
    dbias: np.ndarray | None = None, need_dx: bool = True, dx: np.ndarray | None = None,
) -> np.ndarray | None: ...
def softmax_cross_entropy(logits: np.ndarray, targets: np.ndarray, scale: float = 1.0,
                          grad: np.ndarray | None = None,
                          weights: np.ndarray | None = None) -> float: ...
def sum_of_squares(flat: np.ndarray) -> float: ...
def sums_of_squares(flat: np.ndarray, limit: float = ...) -> tuple[float, float]: ...
def sgd_step(
    param: np.ndarray, grad: np.ndarray, m: np.ndarray | None = None, *, lr: float,
    momentum: float, nesterov: bool, weight_decay: float, limit: float = ...,
    grad_scale: float = 1.0,
) -> None: ...
def rmsprop_step(
    param: np.ndarray, grad: np.ndarray, v: np.ndarray, m: np.ndarray | None = None, *, lr: float,
    alpha: float, eps: float, momentum: float, weight_decay: float, limit: float = ...,
    grad_scale: float = 1.0,
) -> None: ...
def adam_step(
    param: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray, *, lr: float, beta1: float,
    beta2: float, eps: float, weight_decay: float, step: int, limit: float = ...,
    grad_scale: float = 1.0,
) -> None: ...
