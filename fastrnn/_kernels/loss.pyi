import numpy as np

def softmax_cross_entropy(logits: np.ndarray, targets: np.ndarray, scale: float = 1.0,
                          grad: np.ndarray | None = None,
                          weights: np.ndarray | None = None) -> float: ...
