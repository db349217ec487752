"""Text as bytes: finding files, joining them, and cutting the result into batches.

Letters: T steps of a window (truncated backpropagation through time), B rows that are read side by
side.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastrnn import _checks

__all__ = ["find_files", "read", "split"]


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(
        path for path in root.rglob("*.py") if "site-packages" not in path.parts
    )


def find_files(paths: Sequence[str | Path] = ()) -> list[Path]:
    """Return the text files that `paths` name, sorted.

    Parameters
    ----------
    paths : sequence of files and folders
        Of a folder all files below it count, but for hidden ones and those with a zero byte. None:
        the source of Python's standard library on this machine.

    Raises
    ------
    FileNotFoundError
        If a path does not exist, or no file is found.
    """
    found: list[Path] = []
    if not paths:
        found = _standard_library()
    for path in map(Path, paths):
        if path.is_dir():
            below = (p for p in path.rglob("*") if p.is_file())
            found += sorted(
                p for p in below
                if not any(part.startswith(".") for part in p.relative_to(path).parts)
                and b"\0" not in p.read_bytes()[:8192]
            )
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"no file or folder {str(path)!r}, expected text to train on")
    if not found:
        where = ", ".join(repr(str(p)) for p in paths) or "the standard library's folder"
        raise FileNotFoundError(f"no text files in {where}, expected at least one")
    return found


def read(files: Sequence[Path], seed: int = 0) -> np.ndarray:
    """Return the bytes of all files, in an order drawn from the seed, as uint8 (N,)."""
    order = np.random.default_rng(*_checks.seeds("read", seed, 1)).permutation(len(files))
    texts = []
    for i in order:
        text = files[i].read_bytes()
        texts.append(text if text.endswith(b"\n") else text + b"\n")
    return np.frombuffer(b"".join(texts), np.uint8)


def split(text: np.ndarray, share: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return (training text, held-out text): the last `share` of it is held out."""
    cut = len(text) - int(len(text) * share)
    return text[:cut], text[cut:]
