"""A model of sequences of symbols: of bytes, of a text's characters, or of numbers.

Letters: B batch, T steps, H hidden, L layers, V symbols, E width of a symbol's vector.
"""

from __future__ import annotations

import codecs
import functools
from typing import Any, overload

import numpy as np

from fastrnn import _checks, cells
from fastrnn._checks import RefusedType, RefusedValue, public
from fastrnn.cells import ZOO
from fastrnn.layers.parameters import spawn
from fastrnn.layers.standard import GRU, LSTM, RNN
from fastrnn.models import generate
from fastrnn.models.sequence import SequenceModel

__all__ = ["CELLS", "LanguageModel"]

CELLS: dict[str, type[Any]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class LanguageModel(SequenceModel):
    """Predict the next of a sequence of symbols: an embedding, equal layers, a softmax.

    Parameters
    ----------
    vocab_size : int
        Number of symbols V. 256, the default, is a model of bytes: it takes and gives text.
    embedding_size : int
        Width E of a symbol's vector.
    hidden_size : int
        Units H of each layer.
    num_layers : int
        Recurrent layers L.
    cell : {"lstm", "gru", "rnn"}, a name of the zoo such as "PeepholeLSTM", or a Definition
        A Definition is what `fastrnn.cell` makes of equations.
    dropout : float in [0, 1]
        Between layers, in training mode.
    characters : str, optional
        A text whose distinct characters, sorted, are the symbols: ``characters=text``. vocab_size
        is then their number.
    dtype : float32 or float64
    seed : int or None
        Seed of dropout and of the initial parameters: embedding normal, others uniform in
        +-1/sqrt(H).

    Raises
    ------
    ValueError
        If a size is not a whole number of at least 1, or the cell is unknown.

    Examples
    --------
    >>> model = fastrnn.LanguageModel(hidden_size=32, seed=0)
    >>> history = model.train_on("to be or not to be " * 200, steps=10, progress=False)
    >>> len(model.sample("to ", 40, seed=0))
    40
    """

    _fixed = SequenceModel._fixed | {"cell", "characters"}

    @public
    def __init__(
        self, vocab_size: int = 256, embedding_size: int = 64, hidden_size: int = 256,
        num_layers: int = 1, cell: Any = "lstm", dropout: float = 0.0, *,
        characters: str | None = None, dtype: Any = np.float32, seed: Any = None,
    ) -> None:
        self.cell, make = _cell_and_layer(cell)
        if characters is not None:
            if not isinstance(characters, str) or not characters:
                raise RefusedValue(f"characters is {_checks.show(characters)}, expected a text")
            _as_bytes("characters", characters)  # refuses what no file could keep
            characters = "".join(sorted(set(characters)))
            if vocab_size not in (256, len(characters)):
                raise RefusedValue(f"vocab_size is {_checks.show(vocab_size)} with characters, "
                                   f"expected their number, {len(characters)}, or none")
            vocab_size = len(characters)
        self.characters = characters
        V = _checks.positive("vocab_size", vocab_size)
        E = _checks.positive("embedding_size", embedding_size)
        H = _checks.positive("hidden_size", hidden_size)
        L = _checks.positive("num_layers", num_layers)
        _checks.probability("dropout", dropout)
        own, inner = spawn(seed, 2)
        layer = make(E, H, L, dropout=dropout, dtype=_checks.float_dtype(dtype), seed=inner)
        super().__init__([layer], V, vocab_size=V, seed=own)

    @property
    def config(self) -> dict[str, Any]:
        """These arguments but the seed: ``LanguageModel(**config)`` has the same shapes."""
        layer = self.layers[0]
        cell = self.cell if isinstance(self.cell, str) else layer.config["cell"]
        return {"vocab_size": self.vocab_size, "embedding_size": layer.input_size,
                "hidden_size": layer.hidden_size, "num_layers": layer.num_layers,
                "cell": cell, "dropout": layer.dropout, "characters": self.characters,
                "dtype": self.dtype.name}

    # ---- text ---------------------------------------------------------------------------------

    @public
    def encode(self, text: Any) -> np.ndarray:
        """Return the symbols (N,) of a text: its bytes (UTF-8), or the model's characters.

        Parameters
        ----------
        text : str, bytes, or whole numbers (N,)

        Raises
        ------
        TypeError
            If the text is of a kind that the model has no symbols for.
        ValueError
            If it has a character that the model does not have.
        """
        return self._encode("text", text)

    def _encode(self, name: str, text: Any) -> np.ndarray:
        if isinstance(text, (str, bytes, bytearray)):
            if self.characters is not None:
                return self._encode_characters(name, text, self.characters)
            if self.vocab_size != 256:
                raise RefusedType(f"{name} is {_checks.kind(text)}, expected whole numbers below "
                                  f"{self.vocab_size}: only models of bytes and of characters take "
                                  "text")
            if isinstance(text, str):
                text = _as_bytes(name, text)
            return np.frombuffer(text, np.uint8).astype(np.int32)
        return _checks.rows(text, ("N",), int(self.vocab_size or 0), name=name, of="the vocabulary")

    def _encode_characters(self, name: str, text: Any, characters: str) -> np.ndarray:
        if not isinstance(text, str):
            raise RefusedType(f"{name} is {_checks.kind(text)}, expected str: the model's symbols "
                              "are characters")
        place = {character: i for i, character in enumerate(characters)}
        unknown = sorted(set(text) - set(place))
        if unknown:
            raise RefusedValue(f"{name} has the character {unknown[0]!r}, expected those that the "
                               f"model has: {_checks.show(characters)}")
        return np.array([place[character] for character in text], np.int32)

    @public
    def decode(self, symbols: Any, errors: str = "replace") -> str:
        """Return the text of symbols (N,).

        Parameters
        ----------
        symbols : whole numbers (N,)
        errors : str
            What becomes of bytes that are not UTF-8, as of bytes.decode: by default replacement
            characters.

        Raises
        ------
        TypeError
            If the model is neither of bytes nor of characters, or an argument does not fit.
        ValueError
            If a symbol is not one of the model's, `errors` is the name of no error handler, or it
            is "strict" and the bytes are not UTF-8.
        """
        return self._decode(symbols, errors)

    def _decode(self, symbols: Any, errors: str) -> str:
        numbers = _checks.rows(symbols, ("N",), int(self.vocab_size or 0), name="symbols",
                               of="the vocabulary")
        if self.characters is not None:
            return "".join(self.characters[i] for i in numbers)
        if self.vocab_size != 256:
            raise RefusedType(f"the model has {self.vocab_size} symbols without characters, "
                              "expected a model of bytes or of characters")
        if not isinstance(errors, str):
            raise RefusedType(f"errors is {_checks.show(errors)}, expected the name of an error "
                              "handler")
        try:
            codecs.lookup_error(errors)
        except LookupError:
            raise RefusedValue(f"errors is {errors!r}, expected the name of an error handler, like "
                               "'strict', 'replace' or 'ignore'") from None
        return bytes(numbers.astype(np.uint8)).decode("utf-8", errors)

    @overload
    def sample(
        self, prompt: str, length: int, temperature: float = 1.0, seed: Any = None, *,
        top_k: int | None = None, top_p: float = 1.0,
    ) -> str: ...
    @overload
    def sample(
        self, prompt: bytes, length: int, temperature: float = 1.0, seed: Any = None, *,
        top_k: int | None = None, top_p: float = 1.0,
    ) -> bytes: ...
    @overload
    def sample(
        self, prompt: Any, length: int, temperature: float = 1.0, seed: Any = None, *,
        top_k: int | None = None, top_p: float = 1.0,
    ) -> np.ndarray: ...
    @public
    def sample(
        self, prompt: Any, length: int, temperature: float = 1.0, seed: Any = None, *,
        top_k: int | None = None, top_p: float = 1.0,
    ) -> Any:
        """Continue a text, or a sequence of symbols.

        Parameters
        ----------
        prompt : str, bytes, or whole numbers (N,)
            At least one symbol.
        length : int
            How many symbols to draw.
        temperature : float
            Divides the logits; 0 always takes the likeliest symbol.
        seed : int or None
            The same seed gives the same symbols, on any number of threads.
        top_k, top_p : as of SequenceModel.generate

        Returns
        -------
        str, bytes or integers (length,), as the prompt
            The continuation, without the prompt. Bytes that are not UTF-8 become replacement
            characters in a str, or surrogates if the prompt has such ("surrogateescape").

        Raises
        ------
        ValueError
            If the prompt is empty, or length, temperature, top_k or top_p are out of range.
        """
        sampling = generate.Sampling.checked(temperature, top_k, top_p, seed)
        length = _checks.positive("length", length)
        symbols = self._encode("prompt", prompt)
        if not len(symbols):
            raise RefusedValue("prompt is empty, expected at least one symbol")
        state = None
        if len(symbols) > 1:
            _, state, _ = self.checked_run(symbols[:-1, None], None, grad=False, dropout=False)
        drawn = generate.run_freely(self, symbols[-1:], length, state, sampling)[:, 0]
        if isinstance(prompt, str):
            escaped = any("\udc80" <= character <= "\udcff" for character in prompt)
            return self._decode(drawn, "surrogateescape" if escaped else "replace")
        if isinstance(prompt, (bytes, bytearray)):
            return bytes(drawn.astype(np.uint8))
        return drawn

    def train_on(self, text: Any, **options: Any) -> Any:
        """Train on a text, or on files and folders; see fastrnn.training.language.train."""
        from fastrnn.training.language import train_on  # a package above

        return train_on(self, text, **options)


def _cell_and_layer(cell: Any) -> tuple[Any, Any]:
    """Return a cell by its name or as a definition, and what makes its layer."""
    if isinstance(cell, str) and cell in ZOO:
        cell = getattr(cells, cell)
    if isinstance(cell, str):
        return cell, CELLS[_checks.one_of("cell", cell, dict.fromkeys([*CELLS, *ZOO]))]
    from fastrnn.cells.definition import Definition  # the language of cells, if it is used
    from fastrnn.layers.layer import Layer, definition_of

    if not isinstance(cell, (Definition, dict)):
        raise RefusedValue(f"cell is {_checks.show(cell)}, expected one of {[*CELLS, *ZOO]}, "
                           "or what fastrnn.cell makes of equations")
    definition = definition_of(cell)
    return definition, functools.partial(Layer, definition)


def _as_bytes(name: str, text: str) -> bytes:
    """Return a text as UTF-8; bytes that Python read as surrogates come back as they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise RefusedValue(f"{name} has the character {text[error.start]!r}, which is half of a "
                           "pair, expected characters of Unicode") from error
