"""Processes that tests start import the package that is tested, wherever it is."""

import os
import pathlib

import fastrnn

os.environ["PYTHONPATH"] = str(pathlib.Path(fastrnn.__file__).parents[1])
