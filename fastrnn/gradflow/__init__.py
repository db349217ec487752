"""Why a network does not learn: how its gradient flows back through time.

`gradient_flow` measures one backward of a layer, `model_flow` one of a model's loss, `jacobians`
how much one state still depends on an earlier one. `verdict` puts any of them into words, and the
history of a training. The pictures are in `fastrnn.plot`.
"""

from fastrnn.gradflow.flow import GradientFlow, gradient_flow, model_flow
from fastrnn.gradflow.jacobians import Jacobians, jacobians
from fastrnn.gradflow.verdict import growth, verdict

__all__ = ["GradientFlow", "Jacobians", "gradient_flow", "growth", "jacobians", "model_flow",
           "verdict"]
