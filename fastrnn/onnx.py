"""The public names of fastrnn.formats.onnx."""

from fastrnn.formats.onnx import *  # noqa: F403
from fastrnn.formats.onnx import __all__ as __all__
