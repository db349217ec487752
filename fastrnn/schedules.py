"""The public names of fastrnn.training.schedules."""

from fastrnn.training.schedules import *  # noqa: F403
from fastrnn.training.schedules import __all__ as __all__
