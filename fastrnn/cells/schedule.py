"""From the graph of a step and its gradients to a program: what is taped, and where values lie.

What backward reads of forward is taped if it is an activation, a quotient, a root or a sum, which
cost more than reading 4 bytes; sums and products of what is there are computed again. A taped value
takes the place of the sum of products that it was made of, if nothing else reads that, and later
the gradient of this sum takes the place of the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastrnn.cells.build import build
from fastrnn.cells.derive import Derived, derive
from fastrnn.cells.graph import CHEAP, ELEMENTWISE, FOUND, GRADIENTS, Node
from fastrnn.cells.phases import Emitter, Plan, Vectors
from fastrnn.cells.program import (
    CARRY,
    MASK,
    NEW,
    NUMBER,
    OLD,
    SCRATCH,
    SUMS,
    TAPE,
    Back,
    Code,
    Gradient,
    GroupPlan,
    Phase,
    Product,
    Program,
    Spot,
    Sum,
)

if TYPE_CHECKING:
    from fastrnn.cells.definition import Definition

__all__ = ["compile_program"]


class _Compiler:
    def __init__(self, definition: Definition, sizes: Mapping[str, int],
                 constants: Mapping[str, float], bias: bool, record: bool) -> None:
        self.definition = definition
        self.sizes = sizes
        self.bias = bias
        self.record = record
        self.graph = graph = build(definition, sizes, constants, bias)
        self.number = {s.name: i for i, s in enumerate(definition.states)}
        # weights' gradients read the sources of all products, of those too that no result needs
        sources = [source for group in graph.groups for _, source in group.terms]
        self.forward_nodes = self.reachable([*graph.new.values(), graph.output, *sources])
        used = {n.number for n in self.forward_nodes}
        self.x_groups = [g for g in graph.groups if g.blocks and g.terms[0][1].op == "x"]
        self.h_groups = [g for g in graph.groups if g.blocks and g.terms[0][1].op != "x"]
        self.derived: Derived = derive(graph)
        self.vectors = Vectors()
        self.new = {n.number: (NEW, self.number[name]) for name, n in graph.new.items()}
        self.x_used = any(n.op == "x" and self.elementwise_reader(n, used) for n in graph.nodes)
        self.tape: list[int] = []
        self.base: dict[int, int] = {}  # first slot of a group
        for group in self.x_groups:
            self.base[group.number] = self.block(group.blocks, group.width)
        self.projected = len(self.tape)
        self.x_slot = self.block(1, sizes["I"]) if self.x_used else -1
        for group in self.h_groups:
            self.base[group.number] = self.block(group.blocks, group.width)

    def elementwise_reader(self, x: Node, used: set[int]) -> bool:
        return any(x in n.args and n.op != "part" for n in self.graph.nodes if n.number in used)

    def block(self, blocks: int, width: int) -> int:
        self.tape += [width] * blocks
        return len(self.tape) - blocks

    def reachable(self, roots: list[Node], stop: int = 0) -> list[Node]:
        """Return the nodes from number `stop` on that the roots need, in order."""
        found: dict[int, Node] = {}
        stack = [n for n in roots if n.number >= stop]
        while stack:
            n = stack.pop()
            if n.number in found:
                continue
            found[n.number] = n
            stack += [a for a in n.args if a.number >= stop and a.number not in found]
        return [found[i] for i in sorted(found)]

    # ---- backward's roots -------------------------------------------------------------------

    def roots(self) -> dict[int, Spot | None]:
        """Return the nodes whose values backward stores, each once; the tape's are still open."""
        graph, derived = self.graph, self.derived
        roots: dict[int, Spot | None] = {}
        self.open: list[tuple[Node, tuple[str, int, int]]] = []
        self.recorded: dict[int, Node] = {}
        self.vectors_of: list[tuple[str, int, int]] = []
        stored: dict[tuple[int, int], Node] = {}

        def own(node: Node, of: object) -> Node:
            if node.number in roots or node.op not in ELEMENTWISE or node.number < derived.first:
                node = graph.node("copy", (node,), node.width, of)
            return node

        for name, node in derived.states.items():
            if node.op == "new" and node.data == name:
                continue  # it stays where it is
            if node.op != "back" or node.number in roots:
                node = own(node, ("state", name))
            roots[node.number] = (CARRY, self.number[name])
        for group in graph.groups:
            for block, node in enumerate(derived.groups[group.number]):
                node = own(node, ("group", group.number, block))
                roots[node.number] = None
                stored[group.number, block] = node
                self.open.append((node, ("group", group.number, block)))
        if derived.x is not None:
            node = own(derived.x, "dx")
            roots[node.number] = None
            self.open.append((node, ("x", 0, 0)))
        for at, ((name, block), node) in enumerate(derived.vectors.items()):
            so_far = graph.node("sum so far", (), node.width, at)
            roots[graph.add(so_far, node).number] = (SUMS, at)
            self.vectors_of.append((name, block, node.width))
        for node in graph.nodes:  # products with gradients read those that are stored
            if node.op == "back":
                node.args = (*node.args[:node.data[0]], *(
                    stored[g, block] for g, _ in node.data[1]
                    for block in range(graph.groups[g].blocks)))
        # what only a record reads, as a constant's gradient, is computed without one too: tapes are
        # the same
        found = {n.number for n in self.reachable([graph.nodes[i] for i in roots], derived.first)}
        for name, node in derived.new.items():
            if self.record or node.number not in found:
                node = graph.node("copy", (node,), node.width, ("record", name))
                roots[node.number] = None
            if self.record:
                self.recorded[self.number[name]] = node
        graph.fuse(derived.first, {*roots, *(n.number for n in derived.new.values())})
        return roots

    def own_bases(self, roots: dict[int, Spot | None]) -> None:
        """Let what a sum of products starts with be a node that nothing else reads."""
        graph = self.graph
        nodes = self.reachable([graph.nodes[i] for i in roots], self.derived.first)
        readers: dict[int, int] = {}
        for n in nodes:
            for a in n.args:
                readers[a.number] = readers.get(a.number, 0) + 1
        for n in nodes:
            if n.op == "back" and n.data[0]:
                base = n.args[0]
                if (base.op not in ELEMENTWISE or base.number < self.derived.first
                        or readers[base.number] > 1 or base.number in roots):
                    copy = graph.node("copy", (base,), base.width, ("base", n.number))
                    n.args = (copy, *n.args[1:])

    # ---- the tape ---------------------------------------------------------------------------

    def choose_taped(self, backward: list[Node]) -> tuple[set[int], list[Node]]:
        """Return what is taped, and what backward computes again."""
        first, new = self.derived.first, self.new
        given = FOUND | {"part"}
        needed = sorted({a.number for n in backward for a in n.args if a.number < first})
        nodes = self.graph.nodes
        taped: set[int] = {source.number for group in self.graph.groups
                           for _, source in group.terms
                           if source.op in ELEMENTWISE and source.number not in new}
        taped |= {i for i in needed if nodes[i].op not in given and i not in new
                  and nodes[i].op not in CHEAP}
        there: dict[int, bool] = {}

        def resolved(i: int) -> bool:
            stack = [i]
            while stack:
                n = nodes[stack[-1]]
                if n.number in there:
                    stack.pop()
                elif n.op in given or n.number in new or n.number in taped:
                    there[n.number] = True
                elif n.op not in CHEAP:
                    there[n.number] = False
                else:
                    missing = [a.number for a in n.args if a.number not in there]
                    if missing:
                        stack += missing
                    else:
                        there[n.number] = all(there[a.number] for a in n.args)
            return there[i]

        for i in needed:
            if not resolved(i):
                taped.add(i)
                there[i] = True
        again: dict[int, Node] = {}
        stack = [nodes[i] for i in needed]
        while stack:
            n = stack.pop()
            if (n.op in given or n.number in new or n.number in taped or n.number in again):
                continue
            again[n.number] = n
            stack += n.args
        return taped, [again[i] for i in sorted(again)]

    def compile(self) -> Program:
        graph, derived = self.graph, self.derived
        roots = self.roots()
        self.own_bases(roots)
        backward = self.reachable([graph.nodes[i] for i in roots], derived.first)
        backward = [n for n in backward
                    if n.op not in GRADIENTS | {"constant", "gone"}]
        taped, again = self.choose_taped(backward)
        leaves = {n.number for n in graph.nodes if n.op in FOUND | GRADIENTS}
        x_parts = {n.number for n in graph.nodes if n.op == "part" and len(n.args) == 1
                   and n.args[0].op == "x"}
        forward = [n for n in self.forward_nodes if n.number not in leaves | x_parts]
        ahead = Plan(graph, forward, leaves | x_parts)
        computed = sorted([*again, *backward], key=lambda n: n.number)
        now = {n.number for n in computed}
        given = leaves | {n.number for n in graph.nodes if n.number < derived.first
                          and n.number not in now}
        back = Plan(graph, computed, given)
        late = self.late_carries(roots, back)
        self.slots = slots = self.lay_out_tape(taped, ahead, back)

        # forward
        scratch: tuple[list[int], list[int], list[int]] = ([], [], [])
        taped_at: dict[int, Spot] = {i: (TAPE, slot) for i, slot in slots.items()}
        on_tape = {number: (TAPE, base) for number, base in self.base.items()}
        there = self.given_places() | taped_at | self.parts(on_tape) | self.new
        emitter = Emitter(ahead, there, {}, {}, self.vectors, scratch[0])
        output = emitter.place(graph.output) or self.output_slot(emitter)
        program = self.emit(emitter, on_tape)

        # the same without a tape
        bases = dict(on_tape)
        for group in self.h_groups:
            scratch[1].extend([group.width] * group.blocks)
            bases[group.number] = SCRATCH, len(scratch[1]) - group.blocks
        emitter = Emitter(ahead, self.given_places() | self.parts(bases) | self.new, {}, {},
                          self.vectors, scratch[1])
        output_lean = emitter.place(graph.output) or self.output_slot(emitter)
        inference = self.emit(emitter, bases)

        # backward
        places = dict(there)
        dy_slot = -1
        for n in graph.nodes:
            if n.op == "new":
                places[n.number] = CARRY, self.number[n.data]
            elif n.op == "sum so far":
                places[n.number] = SUMS, n.data
            elif n.op == "dy":
                dy_slot = len(scratch[2])
                scratch[2].append(n.width)
                places[n.number] = SCRATCH, dy_slot
        occupants = {spot: graph.nodes[i] for i, spot in places.items() if i not in now}
        for i, spot in taped_at.items():  # a value in the place of a sum
            occupants[spot] = graph.nodes[i]
        places = {i: spot for i, spot in places.items() if i not in now}
        stores = {i: spot for i, spot in roots.items() if spot is not None and i not in late}
        for node, what in self.open:
            stores[node.number] = TAPE, self.target(what)
        for n in computed:
            if n.op == "back":
                if n.number not in stores:
                    scratch[2].append(n.width)
                    stores[n.number] = SCRATCH, len(scratch[2]) - 1
                if n.data[0]:
                    stores[n.args[0].number] = stores[n.number]
        self.record_slots: dict[int, int] = {}
        for state, node in self.recorded.items():
            self.record_slots[state] = len(scratch[2])
            stores[node.number] = SCRATCH, len(scratch[2])
            scratch[2].append(node.width)
        for i in late:
            if i not in stores:
                scratch[2].append(graph.nodes[i].width)
                stores[i] = SCRATCH, len(scratch[2]) - 1
        emitter = Emitter(back, places, stores, occupants, self.vectors, scratch[2])
        backward_program = self.emit(emitter, on_tape) + tuple(
            Code(graph.nodes[i].width, (stores[i], spot), ((NUMBER["copy"], 1, 0, 0, 0, 0),), 0)
            for i, spot in late.items())
        return self.program(program, inference, backward_program, output, output_lean, scratch,
                            dy_slot)

    def output_slot(self, emitter: Emitter) -> Spot:
        spot = emitter.slot(self.graph.output.width)
        emitter.places[self.graph.output.number] = spot
        return spot

    def parts(self, bases: Mapping[int, Spot]) -> dict[int, Spot]:
        """Return where the blocks of groups lie whose first blocks lie at `bases`."""
        places: dict[int, Spot] = {}
        for n in self.graph.nodes:
            if n.op == "part":
                space, slot = bases[n.data[0]]
                places[n.number] = space, slot + n.data[1]
        return places

    def given_places(self) -> dict[int, Spot]:
        places: dict[int, Spot] = {}
        for n in self.graph.nodes:
            if n.op == "old":
                places[n.number] = OLD, self.number[n.data]
            elif n.op == "mask":
                places[n.number] = MASK, n.data
            elif n.op == "x" and self.x_slot >= 0:
                places[n.number] = TAPE, self.x_slot
        return places

    def late_carries(self, roots: Mapping[int, Spot | None], back: Plan) -> dict[int, Spot]:
        """Return the nodes that can go into a carry only at the end: it is read until then."""
        graph, late = self.graph, {}
        incoming = {self.number[n.data]: n for n in graph.nodes if n.op == "new"}
        for i, spot in roots.items():
            if spot is None or spot[0] != CARRY or spot[1] not in incoming:
                continue
            node, read = graph.nodes[i], back.last(incoming[spot[1]])
            begins = node.args[0] if node.op == "back" and node.data[0] else node
            made = back.made[begins.number][0]
            if read[0] > made or (begins.op == "back" and read[0] >= made):
                late[i] = spot
        return late

    def lay_out_tape(self, taped: set[int], ahead: Plan, back: Plan) -> dict[int, int]:
        """Return the slot of each taped node."""
        graph = self.graph
        sources = {s.number for g in graph.groups for _, s in g.terms}
        gradient = {what: node for node, what in self.open}
        taken: set[tuple[int, int]] = set()
        slots: dict[int, int] = {}
        for i in sorted(taped):
            node = graph.nodes[i]
            for a in node.args:
                if a.op != "part" or i in sources or a.width != node.width or a.data in taken:
                    continue
                written = back.made[gradient["group", a.data[0], a.data[1]].number]
                if (ahead.last(a) <= ahead.made[i] and not back.readers.get(a.number)
                        and back.last(node)[0] <= written[0]):
                    taken.add(a.data)
                    slots[i] = self.base[a.data[0]] + a.data[1]
                    break
            else:
                slots[i] = self.block(1, node.width)
        # gradients go where the sums were, if nothing reads those later
        self.gradient_base = dict(self.base)
        for n in graph.nodes:
            if n.op != "part" or not back.readers.get(n.number):
                continue
            group = graph.groups[n.data[0]]
            written = back.made[gradient["group", *n.data].number]
            if back.last(n)[0] > written[0] and self.gradient_base[group.number] == self.base[
                    group.number]:
                self.gradient_base[group.number] = self.block(group.blocks, group.width)
        self.dx_slot = -1
        for node, (what, _, _) in self.open:
            if what == "x":
                x = next(n for n in graph.nodes if n.op == "x")
                self.dx_slot = self.x_slot
                if back.last(x)[0] > back.made[node.number][0]:
                    self.dx_slot = self.block(1, node.width)
        return slots

    def target(self, what: tuple[str, int, int]) -> int:
        kind, group, block = what
        if kind == "group":
            return self.gradient_base[group] + block
        return self.dx_slot

    # ---- phases -----------------------------------------------------------------------------

    def emit(self, emitter: Emitter, bases: Mapping[int, Spot]) -> tuple[Phase, ...]:
        phases: list[Phase] = []
        for at, (kind, _, nodes) in enumerate(emitter.plan.phases):
            if kind == "elementwise":
                phases.append(emitter.code(at))
            elif kind == "sums":
                phases.append([Sum(emitter.places[n.number], emitter.spot(n.args[0]),
                                   n.args[0].width) for n in nodes])
            elif nodes[0].op == "part":
                groups = dict.fromkeys(n.data[0] for n in nodes if n.op == "part")
                phases.append([p for g in groups for p in self.products(g, emitter, bases)])
            else:
                phases.append([b for n in nodes for b in self.backs(n, emitter)])
        return tuple(phases)

    def products(self, number: int, emitter: Emitter, bases: Mapping[int, Spot]) -> list[Product]:
        group = self.graph.groups[number]
        return [Product(bases[number], group.blocks, group.width, emitter.places[source.number],
                        source.width, weight, at == 0, number)
                for at, (weight, source) in enumerate(group.terms) if source.op != "x"]

    def backs(self, node: Node, emitter: Emitter) -> list[Back]:
        has_base, uses = node.data
        target, found = emitter.places[node.number], []
        for i, (number, at) in enumerate(uses):
            group = self.graph.groups[number]
            found.append(Back(target, node.width, (TAPE, self.gradient_base[number]), group.blocks,
                              group.width, group.terms[at][0], i == 0 and not has_base))
        return found

    def program(self, forward: tuple[Phase, ...], inference: tuple[Phase, ...],
                backward: tuple[Phase, ...], output: Spot, output_lean: Spot,
                scratch: tuple[list[int], list[int], list[int]], dy_slot: int) -> Program:
        graph, definition = self.graph, self.definition
        groups, weights, gradients = [], {}, []
        vectors = {name: v for name, v in definition.vectors.items() if self.bias or not v.bias}
        for group in [*self.x_groups, *self.h_groups]:
            has_x = group.terms[0][1].op == "x"
            groups.append(GroupPlan(group.number, group.blocks, group.width, group.biases,
                                    group.terms[0][0] if has_x else None))
            slot = self.gradient_base[group.number]
            left = list(group.biases)
            for weight, source in group.terms:
                weights[weight] = (weight, group.blocks, group.width, source.width)
                gradients.append(Gradient(
                    weight, left.pop(0) if left else None, self.source_spot(source), slot,
                    group.blocks, group.width, source.width))
            gradients += [Gradient(None, bias, None, slot, group.blocks, group.width, 0)
                          for bias in left]
        rows = [(name, value, block, width) for (name, value, block), width in
                zip(self.vectors.rows, self.vectors.widths, strict=True)]
        states = tuple((s.name, self.sizes[s.width]) for s in definition.states)
        return Program(
            self.sizes["I"], states, graph.output.width,
            self.number.get(definition.output, -1), output, output_lean, tuple(self.tape),
            self.projected, self.x_slot, self.dx_slot, tuple(groups),
            (tuple(scratch[0]), tuple(scratch[1]), tuple(scratch[2])), tuple(rows),
            tuple(vectors), tuple(v.blocks * self.sizes[v.width] for v in vectors.values()),
            tuple(graph.masks), forward, inference, backward, dy_slot,
            tuple((i, self.record_slots[i]) for i in sorted(self.record_slots)),
            tuple(weights[name] for name in definition.weights if name in weights),
            tuple(gradients), tuple(self.vectors_of))

    def source_spot(self, source: Node) -> Spot | None:
        if source.op == "x":
            return None
        if source.op == "old":
            return OLD, self.number[source.data]
        if source.number in self.new:
            return self.new[source.number]
        return TAPE, self.slots[source.number]


def compile_program(definition: Definition, sizes: Mapping[str, int],
                    constants: Mapping[str, float], bias: bool = True, record: bool = False
                    ) -> Program:
    """Return the program of a definition for given sizes and constants.

    With `record` backward also keeps the gradient of every new state, whatever it reaches it
    through; forward and the tape are the same.
    """
    return _Compiler(definition, sizes, constants, bias, record).compile()
