"""Files in and out: fastrnn's own, and those of PyTorch, Keras, ONNX and RTNeural."""

from fastrnn.formats.models import describe, load, save

__all__ = ["describe", "load", "save"]
