"""Pictures of how gradients flow, and of a network unfolded in time; needs matplotlib.

Install it with ``pip install matplotlib``. The functions are those of fastrnn.gradflow.plot
and fastrnn.gradflow.unfolded.
"""

from fastrnn.gradflow.plot import (
    gradient_heatmap,
    gradient_norms,
    jacobian_norms,
    saturation,
    shares,
)
from fastrnn.gradflow.unfolded import unfolded

__all__ = ["gradient_heatmap", "gradient_norms", "jacobian_norms", "saturation", "shares",
           "unfolded"]
