"""The public names of fastrnn.training.regularisers."""

from fastrnn.training.regularisers import *  # noqa: F403
from fastrnn.training.regularisers import __all__ as __all__
