"""Pictures of how gradients flow, and of a network unfolded in time: see fastrnn.gradflow.plot."""

from fastrnn.gradflow.plot import (
    gradient_heatmap,
    gradient_norms,
    jacobian_norms,
    saturation,
    shares,
    unfolded,
)

__all__ = ["gradient_heatmap", "gradient_norms", "jacobian_norms", "saturation", "shares",
           "unfolded"]
