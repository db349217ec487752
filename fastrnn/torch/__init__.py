"""fastrnn inside programs of PyTorch: the same modules, computed on the CPU by fastrnn's kernels.

Four ways in: `accelerate(model)` changes the recurrent modules of a model, `patch()` those of a
whole program, ``python -m fastrnn.torch script.py`` those of a script, and `LSTM`, `GRU`, `RNN`,
`LSTMCell`, `GRUCell` and `RNNCell` can be used in place of torch.nn's. `restore` and `unpatch` undo
the first two. A call that fastrnn cannot compute, or not faster, goes to PyTorch's own code;
`report` says which and why.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError("fastrnn.torch needs PyTorch, expected it to be installed: "
                              "pip install torch", name="torch") from _error

from fastrnn.torch import team as _team
from fastrnn.torch.choice import get_mode, mode, set_mode
from fastrnn.torch.modules import (
    GRU,
    LSTM,
    RNN,
    GRUCell,
    LSTMCell,
    RNNCell,
    accelerate,
    restore,
)
from fastrnn.torch.program import is_patched, patch, unpatch
from fastrnn.torch.report import Report, report

_team.join()

__all__ = [
    "GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Report", "accelerate", "get_mode",
    "is_patched", "mode", "patch", "report", "restore", "set_mode", "unpatch",
]
