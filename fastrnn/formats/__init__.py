"""Files in and out."""

from fastrnn.formats.models import describe, load, save

__all__ = ["describe", "load", "save"]
