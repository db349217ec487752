"""Find the parts of a model in the names and shapes of tensors, as torch.nn's modules name them.

A recurrent module is the tensors weight_ih_l0, weight_hh_l0, ... under one name; a linear map is a
matrix `weight` with a `bias`, an embedding a matrix `weight` without one. Sizes are those of
tensors that exist, so what is found is never larger than the file. Letters: I input, H hidden, G
gates, L layers, D directions, P width of a projected h, V symbols, N outputs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fastrnn import _checks
from fastrnn._checks import RefusedType, RefusedValue
from fastrnn.cells import vanilla
from fastrnn.layers.standard import cell_of

__all__ = ["ROLES", "Choices", "Found", "find"]

Shape = tuple[int, ...]
ROLES = ("embedding", "layers", "head")
_PARAMETER = re.compile(r"(?:(.+)\.)?((?:weight|bias)_(?:ih|hh|hr)(?:_l(\d{1,5})(_reverse)?)?)")
_CLASSES = {1: "RNN", 3: "GRU", 4: "LSTM"}  # by the number of gates
_MOST_MODULES = 7  # whose orders are tried one after the other
_SHOWN = 8  # names in an error
# First words in a part of the name of a linear map before the layers, and words of a head's name.
_BEFORE = frozenset(("in", "inp", "input", "inputs", "pre", "prenet", "stem", "enc", "encoder",
                     "emb", "embed", "embedding"))
_BEHIND = frozenset(("out", "output", "outputs", "head", "logits", "dec", "decoder", "readout",
                     "classifier", "to"))


class Choices(NamedTuple):
    """What a file with PyTorch's names does not say.

    Attributes
    ----------
    roles : dict
        The module that is the embedding or the head, and the list of those that are the layers;
        None: there is none. What is missing is found.
    strict : bool
        Whether a tensor that no part needs is an error.
    nonlinearity, loss, readout : str
        Of an RNN, and of a SequenceModel.
    in_order : bool
        Whether the tensors come in the order in which the module's class made its parts.
    """

    roles: Mapping[str, Any] = {}
    strict: bool = True
    nonlinearity: str = "tanh"
    loss: str = "softmax"
    readout: str = "every"
    in_order: bool = False


class Found(NamedTuple):
    """A model that was found.

    Attributes
    ----------
    kind : str
        The name of its class.
    config : dict
        The arguments that make it, without the dtype.
    names : dict
        The file's name of each parameter, by fastrnn's. A head without a bias has none for it.
    unused : tuple of str
        The tensors that no part needs.
    """

    kind: str
    config: dict[str, Any]
    names: dict[str, str]
    unused: tuple[str, ...]


class _Module(NamedTuple):
    """A recurrent module: its class in fastrnn, its arguments, and its tensors by own names."""

    name: str
    kind: str
    config: dict[str, Any]
    single: bool
    tensors: dict[str, str]

    @property
    def input_size(self) -> int:
        return int(self.config["input_size"])

    @property
    def width(self) -> int:
        """Features D*H, or D*P, of the output."""
        D = 2 if self.config.get("bidirectional") else 1
        return D * int(self.config.get("proj_size") or self.config["hidden_size"])

    def as_layer(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the configuration of a layer in a model, and its tensors: a cell becomes one."""
        config = self.config | {"layer": self.kind, "num_layers": self.config.get("num_layers", 1)}
        if not self.single:
            return config, self.tensors
        return config, {f"{own}_l0": name for own, name in self.tensors.items()}


def find(shapes: Mapping[str, Shape], choices: Choices) -> Found:
    """Return the model that tensors of these names and shapes are.

    Raises
    ------
    RefusedValue
        If there is no recurrent module, tensors are missing, misshapen or surplus, or several
        modules could have one role; it names them.
    """
    _checks.one_of("nonlinearity", choices.nonlinearity, vanilla())
    grouped = _grouped(shapes)
    layers = _layers(grouped, shapes, choices)
    used = {name for own in grouped.values() for name in own.values()}
    tables, maps = _matrices(shapes, used)
    head = _head(tables, maps, layers, shapes, choices)
    embedding = _embedding(tables, head, layers, shapes, choices)
    found = _model(layers, embedding, head, shapes, choices)
    needed = set(found.names.values())
    unused = tuple(name for name in shapes if name not in needed)
    if unused and choices.strict:
        raise RefusedValue(f"no part of a {found.kind} needs {_listed(unused)}; prefix= or "
                           "mapping= chooses other tensors, and strict=False leaves these out")
    _check_choices(layers, head, choices)
    return found._replace(unused=unused)


def _check_choices(layers: list[_Module], head: str | None, choices: Choices) -> None:
    """Refuse an option for a part that the model does not have."""
    for lacking, part, names in (
            (all(layer.kind != "RNN" for layer in layers), "RNN", ("nonlinearity",)),
            (head is None, "head", ("loss", "readout"))):
        for name in names:
            value, default = getattr(choices, name), Choices._field_defaults[name]
            if lacking and value != default:
                raise RefusedValue(f"{name} is {value!r}, expected {default!r}: it has no {part}")


def _listed(names: Iterable[str]) -> str:
    """Return names as a list, not all of a long one."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"[{', '.join(map(_checks.show, names[:_SHOWN]))}]{more}"


# ---- recurrent modules ---------------------------------------------------------------------------


def _grouped(shapes: Mapping[str, Shape]) -> dict[str, dict[str, str]]:
    """Return the tensors of each recurrent module by their own names."""
    grouped: dict[str, dict[str, str]] = {}
    for name in shapes:
        if match := _PARAMETER.fullmatch(name):
            grouped.setdefault(match[1] or "", {})[match[2]] = name
    return grouped


def _layers(
    grouped: dict[str, dict[str, str]], shapes: Mapping[str, Shape], choices: Choices
) -> list[_Module]:
    """Return the recurrent modules, the first one first."""
    if not grouped:
        raise RefusedValue("it has no recurrent layer: no tensor is named weight_ih_l0, or "
                           f"weight_ih, it has {_listed(shapes) if shapes else 'none at all'}")
    chosen = choices.roles.get("layers")
    if isinstance(chosen, str):
        chosen = [chosen]
    if chosen is not None:
        if not isinstance(chosen, (list, tuple)) or not chosen:
            raise RefusedType(f"mapping['layers'] is {_checks.show(chosen)}, expected names of "
                              "recurrent modules")
        for name in chosen:
            _known("layers", name, grouped)
        if len(set(chosen)) < len(chosen):
            raise RefusedValue(f"mapping['layers'] is {_checks.show(chosen)}, expected each name "
                               "once")
        modules = [_module(name, grouped[name], shapes, choices.nonlinearity) for name in chosen]
        if not _is_chain(modules):
            raise RefusedValue(f"{_described(modules)} do not follow each other: the output of "
                               "one is not as wide as the input of the next")
        return modules
    return _in_order([_module(name, own, shapes, choices.nonlinearity)
                      for name, own in grouped.items()])


def _known(role: str, name: Any, known: Iterable[str]) -> str:
    known = list(known)
    if not isinstance(name, str) or name not in known:
        raise RefusedValue(f"mapping[{role!r}] is {_checks.show(name)}, expected one of "
                           f"{_listed(known)}")
    return name


def _module(
    name: str, own: dict[str, str], shapes: Mapping[str, Shape], nonlinearity: str
) -> _Module:
    """Return a recurrent module whose tensors are all there, and fit each other."""
    single = "weight_hh" in own or "weight_ih" in own
    end = "" if single else "_l0"
    dotted = f"{name}." if name else ""
    for first in (f"weight_ih{end}", f"weight_hh{end}"):
        if first not in own:
            raise RefusedValue(f"missing {_listed([dotted + first])}")
        if len(shapes[own[first]]) != 2 or not all(shapes[own[first]]):
            raise RefusedValue(f"{own[first]} is {shapes[own[first]]}, expected a matrix")
    rows, width = shapes[own[f"weight_hh{end}"]]
    I, H, P = shapes[own[f"weight_ih{end}"]][1], width, 0
    if not single and "weight_hr_l0" in own:
        projection = shapes[own["weight_hr_l0"]]
        if len(projection) != 2 or not 0 < projection[0] < projection[1]:
            raise RefusedValue(f"{own['weight_hr_l0']} is {projection}, expected (P, H) with P "
                               "below H")
        P, H = projection
    G, rest = divmod(rows, H)
    if rest or G not in _CLASSES or (P and G != 4):
        raise RefusedValue(f"{own[f'weight_hh{end}']} is {(rows, width)}, expected G times "
                           f"H = {H} rows: " + ("G = 4 of a projected LSTM" if P else
                                                "G = 1 of an RNN, 3 of a GRU, 4 of an LSTM"))
    kind = _CLASSES[G]
    config: dict[str, Any] = {"input_size": I, "hidden_size": H,
                              "bias": any(key.startswith("bias") for key in own)}
    if kind == "RNN":
        config["nonlinearity"] = nonlinearity
    D = L = 1
    if not single:
        numbers = [int(match[3]) for match in map(_PARAMETER.fullmatch, own) if match and match[3]]
        L = 1 + max(numbers)
        D = 2 if any(key.endswith("_reverse") for key in own) else 1
        config |= {"num_layers": L, "bidirectional": D == 2}
        if P:
            config["proj_size"] = P
    if len(own) < L * D:  # so no more names are made than there are tensors
        raise RefusedValue(f"{_checks.show(name)} has {len(own)} tensors, too few for {L} layers "
                           f"of {D} direction{'s' * (D == 2)}")
    cell = cell_of(kind, config)
    expected: dict[str, Shape] = {}
    for number in range(L):
        inputs = I if number == 0 else D * (P or H)
        for direction in ("", "_reverse")[:D]:
            suffix = "" if single else f"_l{number}{direction}"
            expected |= {f"{key}{suffix}": shape for key, shape in
                         cell.parameters(inputs, H, config["bias"]).items()}
    _check_shapes(dotted, {key: shapes[full] for key, full in own.items()}, expected)
    return _Module(name, kind, config, single, {key: own[key] for key in expected})


def _check_shapes(
    dotted: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]
) -> None:
    problems = [f"{what} {_listed(dotted + key for key in keys)}" for what, keys in (
        ("missing", [key for key in expected if key not in found]),
        ("unexpected", [key for key in found if key not in expected])) if keys]
    problems += [f"{dotted}{key} is {found[key]}, expected {shape}"
                 for key, shape in expected.items() if key in found and found[key] != shape]
    if problems:
        raise RefusedValue("; ".join(problems[:_SHOWN]))


def _described(modules: Iterable[_Module]) -> str:
    return ", ".join(f"{_checks.show(m.name)} ({m.input_size} to {m.width})" for m in modules)


def _is_chain(modules: Iterable[_Module]) -> bool:
    return all(a.width == b.input_size for a, b in itertools.pairwise(modules))


def _in_order(modules: list[_Module]) -> list[_Module]:
    """Return modules in the only order in which the widths fit.

    Modules whose names differ in a number alone, such as lstm1 and lstm2, have this number's order.
    """
    if len(modules) == 1:
        return modules
    pieces = [re.split(r"(\d+)", module.name) for module in modules]
    if len({tuple(piece[::2]) for piece in pieces}) == 1:
        numbered = sorted(zip(pieces, modules, strict=True),
                          key=lambda pair: [int(number) for number in pair[0][1::2]])
        if _is_chain(ordered := [module for _, module in numbered]):
            return ordered
    orders: list[tuple[_Module, ...]] = []
    if len(modules) <= _MOST_MODULES:
        orders = [order for order in itertools.permutations(modules) if _is_chain(order)]
    if len(orders) != 1:
        why = "fit each other in several orders" if orders else "are not found to make a chain"
        raise RefusedValue(f"the recurrent modules {_described(modules[:_SHOWN])} {why}; choose "
                           f"with mapping={{'layers': [{modules[0].name!r}, ...]}}, and with "
                           "strict=False for fewer than all")
    return list(orders[0])


# ---- embedding and head --------------------------------------------------------------------------


def _matrices(shapes: Mapping[str, Shape], used: set[str]) -> tuple[list[str], list[str]]:
    """Return the modules that are a matrix: those without a bias, and those with one."""
    tables: list[str] = []
    maps: list[str] = []
    for name, shape in shapes.items():
        if len(shape) == 2 and all(shape) and name not in used and (
                name == "weight" or name.endswith(".weight")):
            module = name.removesuffix("weight").removesuffix(".")
            (maps if _member(module, "bias") in shapes else tables).append(module)
    return tables, maps


def _member(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _given(role: str, matrices: list[str], choices: Choices) -> str:
    """Return the module that was chosen for a role; its name may end in .weight."""
    name = choices.roles[role]
    if isinstance(name, str) and name not in matrices:
        name = name.removesuffix("weight").removesuffix(".")
    return _known(role, name, matrices)


def _one(role: str, candidates: list[str]) -> str | None:
    if len(candidates) > 1:
        raise RefusedValue(f"several tensors could be the {role}: "
                           f"{_listed(_member(m, 'weight') for m in candidates)}; choose with "
                           f"mapping={{{role!r}: {candidates[0]!r}}}")
    return candidates[0] if candidates else None


def _may_embed(table: str, layers: list[_Module], shapes: Mapping[str, Shape]) -> bool:
    """Whether a matrix without a bias is an embedding, if its shape fits the head, too."""
    width = shapes[_member(table, "weight")][1]
    if width != layers[0].input_size:
        return False
    return width != layers[-1].width or any(
        "embed" in word or word.startswith("emb") or word.endswith("emb")
        for words in _own_words(table, layers) for word in words)


def _own_words(name: str, layers: list[_Module]) -> list[list[str]]:
    """Return the words of a module's name behind the beginning that it shares with a layer."""
    parts, theirs = name.lower().split("."), layers[0].name.lower().split(".")
    while parts and theirs and parts[0] == theirs[0]:
        parts, theirs = parts[1:], theirs[1:]
    return [re.split(r"[\W\d_]+", part) for part in parts]


def _may_be_before(
    head: str, layers: list[_Module], shapes: Mapping[str, Shape], choices: Choices
) -> bool:
    """Whether a map that fits behind the layers fits before them, and its name or place says so.

    Of the names only what is left after the beginning that the map has in common with a layer.
    """
    if shapes[_member(head, "weight")][0] != layers[0].input_size:
        return False
    own = _own_words(head, layers)
    if any(not _BEHIND.isdisjoint(words) for words in own):
        return False
    if any(words[0] in _BEFORE or words[-1] == "in" for words in own):
        return True
    places = {name: place for place, name in enumerate(shapes)}
    return choices.in_order and places[_member(head, "weight")] < min(
        places[name] for name in layers[0].tensors.values())


def _head(
    tables: list[str], maps: list[str], layers: list[_Module], shapes: Mapping[str, Shape],
    choices: Choices,
) -> str | None:
    """Return the module that maps the last layer's output to the model's."""
    if "head" in choices.roles:
        if choices.roles["head"] is None:
            return None
        head: str | None = _given("head", tables + maps, choices)
    else:
        embedding = choices.roles.get("embedding")
        width = layers[-1].width
        fit = [m for m in maps if shapes[_member(m, "weight")][1] == width]
        if not fit:
            fit = [m for m in tables if shapes[_member(m, "weight")][1] == width
                   and not _may_embed(m, layers, shapes)
                   and embedding not in (m, _member(m, "weight"))]
            if (len(fit) == 1 and width == layers[0].input_size
                    and "embedding" not in choices.roles
                    and not any(_may_embed(m, layers, shapes) for m in tables)):
                raise RefusedValue(f"{_member(fit[0], 'weight')} could be the embedding or the "
                                   f"head; choose with mapping={{'embedding': {fit[0]!r}}} or "
                                   f"mapping={{'head': {fit[0]!r}}}")
        head = _one("head", fit)
        if head is not None and _may_be_before(head, layers, shapes, choices):
            raise RefusedValue(f"{_member(head, 'weight')} could be the head, or a linear map "
                               "before the first layer, which no model here has; choose with "
                               f"mapping={{'head': {head!r}}}, or leave it out with "
                               "mapping={'head': None} and strict=False")
    if head is not None:
        N, width = shapes[_member(head, "weight")]
        expected: dict[str, Shape] = {"weight": (N, layers[-1].width)}
        found: dict[str, Shape] = {"weight": (N, width)}
        if head in maps:
            expected["bias"], found["bias"] = (N,), shapes[_member(head, "bias")]
        _check_shapes(f"{head}." if head else "", found, expected)
    return head


def _embedding(
    tables: list[str], head: str | None, layers: list[_Module], shapes: Mapping[str, Shape],
    choices: Choices,
) -> str | None:
    """Return the module whose rows are what the first layer reads."""
    if "embedding" in choices.roles:
        if choices.roles["embedding"] is None:
            return None
        embedding = _given("embedding", tables, choices)
        V, width = shapes[_member(embedding, "weight")]
        _check_shapes(f"{embedding}." if embedding else "", {"weight": (V, width)},
                      {"weight": (V, layers[0].input_size)})
        return embedding
    return _one("embedding", [m for m in tables if m != head and
                              shapes[_member(m, "weight")][1] == layers[0].input_size])


# ---- the model -----------------------------------------------------------------------------------


def _model(
    layers: list[_Module], embedding: str | None, head: str | None, shapes: Mapping[str, Shape],
    choices: Choices,
) -> Found:
    if embedding is None and head is None and len(layers) == 1:
        only = layers[0]
        return Found(only.kind + ("Cell" if only.single else ""), only.config, only.tensors, ())
    configs: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for number, module in enumerate(layers):
        config, tensors = module.as_layer()
        configs.append(config)
        names |= {f"layers.{number}.{own}": name for own, name in tensors.items()}
    V = None
    if embedding is not None:
        names["embedding.weight"] = _member(embedding, "weight")
        V = shapes[names["embedding.weight"]][0]
    if head is None:
        return Found("Stack", {"layers": configs, "vocab_size": V}, names, ())
    names["head.weight"] = _member(head, "weight")
    if (bias := _member(head, "bias")) in shapes:
        names["head.bias"] = bias
    N, first = shapes[names["head.weight"]][0], configs[0]
    plain = (len(configs) == 1 and first["bias"] and not first.get("bidirectional")
             and not first.get("proj_size") and first.get("nonlinearity", "tanh") == "tanh")
    if plain and V == N and (choices.loss, choices.readout) == ("softmax", "every"):
        config = {"vocab_size": V, "embedding_size": first["input_size"],
                  "hidden_size": first["hidden_size"], "num_layers": first["num_layers"],
                  "cell": first["layer"].lower()}
        return Found("LanguageModel", config, names, ())
    # A softmax of one output is 1 whatever it is: what such a head gives is a number.
    loss = "mse" if N == 1 and choices.loss == "softmax" else choices.loss
    return Found("SequenceModel", {"layers": configs, "output_size": N, "vocab_size": V,
                                   "loss": loss, "readout": choices.readout}, names, ())
