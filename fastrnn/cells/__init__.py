"""What each cell computes in one step: the table of hand-written cells, and cells from equations.

Letters: I input, H hidden, G gates.
"""

from fastrnn.cells.definition import Definition, cell
from fastrnn.cells.table import BY_NUMBER, CELLS, Cell, Gate, vanilla
from fastrnn.cells.tree import DefinitionError

__all__ = ["BY_NUMBER", "CELLS", "Cell", "Definition", "DefinitionError", "Gate", "cell", "vanilla"]
