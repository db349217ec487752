"""The public names of fastrnn.training.optim."""

from fastrnn.training.optim import *  # noqa: F403
from fastrnn.training.optim import __all__ as __all__
