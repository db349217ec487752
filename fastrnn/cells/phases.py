"""The order of nodes: which phase makes each, when it is read, and the code of a phase."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush

from fastrnn.cells.graph import ELEMENTWISE, Graph, Node
from fastrnn.cells.program import NUMBER, SCRATCH, VECTOR, Code, Spot

__all__ = ["Emitter", "Plan", "Vectors"]


class Plan:
    """Some nodes in phases, and when each is made and read."""

    def __init__(self, graph: Graph, computed: list[Node], given: set[int]) -> None:
        self.graph = graph
        self.phases: list[tuple[str, int, list[Node]]] = []
        self.made: dict[int, tuple[int, int]] = {}  # (phase, order)
        self.readers: dict[int, list[Node]] = {}
        self.order(computed, given)
        for node in computed:
            for a in node.args:
                self.readers.setdefault(a.number, []).append(node)

    def order(self, computed: list[Node], given: set[int]) -> None:
        """Make phases: products as soon as they can be, sums over units as late as they can be."""
        nodes = {n.number: n for n in computed}
        missing = {n.number: {a.number for a in n.args} - given for n in computed}
        readers: dict[int, list[Node]] = {}
        for n in computed:
            for number in missing[n.number]:
                readers.setdefault(number, []).append(n)
        products: list[int] = []
        sums: list[int] = []
        ready: dict[int, list[int]] = {}  # element-wise nodes by their width, as heaps
        left: dict[int, list[int]] = {}   # the same with those that are not ready, last ones first
        done: set[int] = set()

        def enter(n: Node) -> None:
            heap = (ready.setdefault(n.width, []) if n.op in ELEMENTWISE
                    else sums if n.op == "sum" else products)
            heappush(heap, n.number)

        def finish(number: int) -> None:
            done.add(number)
            for reader in readers.get(number, ()):
                missing[reader.number].remove(number)
                if not missing[reader.number]:
                    enter(reader)

        def first(width: int) -> int:
            while left[width][-1] in done:
                left[width].pop()
            return left[width][-1]

        for n in reversed(computed):
            if n.op in ELEMENTWISE:
                left.setdefault(n.width, []).append(n.number)
        for n in computed:
            if not missing[n.number]:
                enter(n)
        while len(done) < len(computed):
            here: list[int] = []
            width = 1
            widths = [w for w, heap in ready.items() if heap]
            if products or not widths:
                assert products or sums, [n for n in computed if n.number not in done]
                kind, heap = ("products", products) if products else ("sums", sums)
                here, heap[:] = sorted(heap), []
                for number in here:
                    finish(number)
            else:
                kind, width = "elementwise", min(widths, key=first)
                heap = ready[width]
                while heap:
                    here.append(heappop(heap))
                    finish(here[-1])
            self.add(kind, width, [nodes[number] for number in here])

    def add(self, kind: str, width: int, nodes: list[Node]) -> None:
        """Append a phase."""
        for i, n in enumerate(nodes):
            self.made[n.number] = len(self.phases), i
        self.phases.append((kind, width, nodes))

    def last(self, node: Node) -> tuple[int, int]:
        """Return when a node is read for the last time."""
        return max((self.made[r.number] for r in self.readers.get(node.number, ())),
                   default=(-1, -1))

    def crosses(self, node: Node) -> bool:
        """Whether a phase that did not make the node reads it, or one that reads memory."""
        phase = self.made[node.number][0]
        return self.phases[phase][0] != "elementwise" or any(
            self.made[r.number][0] != phase or r.op in ("part", "back", "sum")
            for r in self.readers.get(node.number, ()))


class Emitter:
    """Turns a plan into phases with places."""

    def __init__(self, plan: Plan, places: dict[int, Spot], stores: dict[int, Spot],
                 occupants: Mapping[Spot, Node], vectors: Vectors, scratch: list[int]) -> None:
        self.plan = plan
        self.places = dict(places)
        self.vectors = vectors
        self.scratch = scratch
        self.late: dict[int, list[tuple[Node, Spot]]] = {}  # copies at the end of a phase
        for number, made in plan.made.items():
            node = plan.graph.nodes[number]
            if number in self.places:
                continue
            spot = stores.get(number)
            if spot is not None:
                occupant = occupants.get(spot)
                read = plan.last(occupant) if occupant is not None and occupant is not node else (
                    -1, -1)
                if read <= made or node.op == "back":
                    self.places[number] = spot
                    continue
                assert read[0] == made[0], (node, spot, read, made)
                self.late.setdefault(made[0], []).append((node, spot))
            if plan.crosses(node):
                self.places[number] = self.slot(node.width)

    def slot(self, width: int) -> Spot:
        """Return a new row of scratch."""
        self.scratch.append(width)
        return SCRATCH, len(self.scratch) - 1

    def place(self, node: Node) -> Spot | None:
        """Return where a node lies; None: in a register."""
        if node.op == "constant":
            return VECTOR, self.vectors.constant(node.data)
        if node.op == "vector":
            name, block = node.data
            return VECTOR, self.vectors.learned(name, block, node.width)
        return self.places.get(node.number)

    def spot(self, node: Node) -> Spot:
        """Return the place of a node that has one."""
        found = self.place(node)
        assert found is not None, node
        return found

    def code(self, phase: int) -> Code:
        """Return an element-wise phase as instructions."""
        _, width, nodes = self.plan.phases[phase]
        copies = self.late.get(phase, [])
        last: dict[int, int] = {}
        for i, node in enumerate(nodes):
            for a in node.args:
                last[a.number] = i
        for node, _ in copies:
            last[node.number] = len(nodes)
        spots: dict[Spot, int] = {}
        registers: dict[int, int] = {}
        free: list[int] = []
        count = 0
        lines: list[tuple[int, list[tuple[bool, int]]]] = []

        def operand(node: Node) -> tuple[bool, int]:
            spot = self.place(node)
            if spot is None:
                return True, registers[node.number]
            return False, spots.setdefault(spot, len(spots))

        for i, node in enumerate(nodes):
            args = [operand(a) for a in node.args]
            for a in {a.number: a for a in node.args}.values():
                if a.number in registers and last[a.number] == i:
                    free.append(registers[a.number])
            spot = self.place(node)
            if spot is not None:
                target = False, spots.setdefault(spot, len(spots))
            else:
                if not free:
                    free.append(count)
                    count += 1
                registers[node.number] = free.pop()
                target = True, registers[node.number]
                if node.number not in last:
                    free.append(registers[node.number])
            lines.append((NUMBER[node.op], [target, *args]))
        for node, spot in copies:
            lines.append((NUMBER["copy"], [(False, spots.setdefault(spot, len(spots))),
                                           operand(node)]))
        base = len(spots)
        code = []
        for op, operands in lines:
            numbers = [at + base if is_register else at for is_register, at in operands]
            numbers += [0] * (5 - len(numbers))
            code.append((op, *numbers))
        return Code(width, tuple(spots), tuple(code), count)  # type: ignore[arg-type]


class Vectors:
    """The rows that all rows of a batch share."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, float, int], int] = {}
        self.widths: list[int] = []

    def constant(self, value: float) -> int:
        """Return the number of the row of a constant."""
        return self.add(("", value, 0), 0)

    def learned(self, name: str, block: int, width: int) -> int:
        """Return the number of the row of a block of a learned vector."""
        return self.add((name, 0.0, block), width)

    def add(self, key: tuple[str, float, int], width: int) -> int:
        """Return the number of a row, a new one or one that is there."""
        if key not in self.rows:
            self.rows[key] = len(self.rows)
            self.widths.append(width)
        return self.rows[key]
