"""How models learn: fit, what it reads, and what it reports."""

from fastrnn.training.data import Batch, Generated, Samples, SeriesWindows, Windows
from fastrnn.training.folder import CheckpointError
from fastrnn.training.history import History, Progress
from fastrnn.training.interrupt import Interrupt
from fastrnn.training.language import bits_per_character
from fastrnn.training.loop import fit
from fastrnn.training.progress import progress_bar
from fastrnn.training.step import NotFiniteError
from fastrnn.training.text import find_files
from fastrnn.training.validation import evaluate

__all__ = ["Batch", "CheckpointError", "Generated", "History", "Interrupt", "NotFiniteError",
           "Progress", "Samples", "SeriesWindows", "Windows", "bits_per_character", "evaluate",
           "find_files", "fit", "progress_bar"]
