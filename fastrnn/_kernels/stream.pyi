from typing import Any

import numpy as np

class Stream:
    num_layers: int
    batch_size: int
    input_size: int
    hidden_size: int
    dtype: np.dtype
    state: Any
    def __init__(self, owner: str, packs: list[Any], batch_size: int, dtype: Any,
                 embedding: np.ndarray | None = None, one_hot: bool = False) -> None: ...
    def __call__(self, x: Any, out: np.ndarray | None = None) -> np.ndarray: ...
    def reset(self) -> None: ...
