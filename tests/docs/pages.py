"""What the tests of pages share: the code blocks of a Markdown page, and how they run."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(text):
    """Yield (line before, code) of each Python block."""
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        yield text.count("\n", 0, match.start(1)), match[1]


def run(path, text=None):
    """Run a page's blocks from top to bottom; one that imports torch only where torch is.

    Lines of a traceback are lines of the page.
    """
    text = path.read_text("utf-8") if text is None else text
    names = {"__name__": path.stem}
    for line, code in blocks(text):
        if "import torch" not in code or importlib.util.find_spec("torch"):
            exec(compile("\n" * line + code, str(path), "exec"), names)
    return names
