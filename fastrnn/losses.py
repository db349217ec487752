"""The public names of fastrnn.models.losses."""

from fastrnn.models.losses import *  # noqa: F403
from fastrnn.models.losses import __all__ as __all__
