import numpy as np

def linear_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None,
                   out: np.ndarray | None = None) -> np.ndarray: ...
def linear_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, dweight: np.ndarray,
    dbias: np.ndarray | None = None, need_dx: bool = True, dx: np.ndarray | None = None,
) -> np.ndarray | None: ...
