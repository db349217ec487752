"""Small faults to put into a text: the rules of tools/mutate.py, for C and for Python.

A mutant is one change at one place. What decides on speed alone (prefetches, unrolling) is not
changed: no test of results can see it.
"""

import ast
import random
import re
from functools import partial
from typing import NamedTuple


class Mutant(NamedTuple):
    """One change: the text of the file with it, and what a reader sees of it."""

    file: str
    line: int
    rule: str
    before: str
    after: str
    text: str

    @property
    def name(self):
        """What tells this mutant from all others."""
        return f"{self.file}:{self.line} {self.rule}: {self.before} -> {self.after}"


# Hidden from the rules: comments, strings, and what is for speed alone.
HIDDEN = re.compile(
    r"/\*.*?\*/|//[^\n]*|\"[^\"\n]*\"|FR_UNROLL\(\d+\)|\bassert\([^;]*;|#include[^\n]*"
    r"|FR_INLINE ahead ahead_of.*?\n\}|typedef struct \{[^}]*\} ahead;|#define FR_STRING[^\n]*"
    r"|[^\n]*(?:prefetch|FETCHES_AHEAD|next\.line|ahead next|FR_PRAGMA)[^\n]*"
    r"|for \(int v = 0; v < VPLAIN \* VW; v \+= 64[^\n]*|#(?:if|ifdef|ifndef|elif|undef)[^\n]*",
    re.S)

NUMBER = r"(?<![\w.#])(?:0x[0-9a-fA-F.]+(?:p[-+]?\d+)?|\d+\.\d*|\d+)[fuU]*\b"
TERM = r" [+-] [\w.>-]+(?:\[[^]]*\])?(?: [*/%] [\w.>-]+)*(?=[;,)\]]| [<>=?:+-])"
STATEMENT = (r"(?<=[\n;{)])( *)((?!return|const |vec |real |tile|if |for |else|break|case|"
             r"typedef|static|enum|double |char |#)[a-z*(][^;{}#\n]*;)")
NAME = r"(?<![\w.])"
SWAPS = {  # names that take each other's place
    "vadd": "vsub", "vsub": "vadd", "vmul": "vadd", "vdiv": "vmul", "vfma": "vfnma",
    "vfnma": "vfma", "vmin": "vmax", "vmax": "vmin", "vifless": "vifle", "vifle": "vifless",
    "v_sigmoid": "v_tanh", "v_tanh": "v_sigmoid", "v_dsigmoid": "v_dtanh",
    "v_dtanh": "v_dsigmoid", "vzip_low": "vzip_high", "vzip_high": "vzip_low", "vshl": "vshr",
    "vshr": "vshl", "vadd_bits": "vsub_bits", "vsub_bits": "vadd_bits", "vabs": "(vec)",
    "vsqrt": "(vec)", "TANH": "SIGMOID", "RELU": "TANH", "LN2_LOW": "0", "EXP_LOW": "EXP_TINY",
    "_CMP_LT_OQ": "_CMP_LE_OQ", "_CMP_LE_OQ": "_CMP_LT_OQ", "_CMP_NLT_UQ": "_CMP_GE_OQ",
    "_CMP_NGT_UQ": "_CMP_LE_OQ", "h_prev": "h", "c_prev": "c", "dy": "dh", "panel0": "panel1",
    "u0": "u1", "pitch": "hidden", "hidden": "pitch", "order_x": "slot_h", "beta1": "beta2",
    "beta2": "beta1",
}
INTRINSICS = {"add": "sub", "sub": "add", "mul": "add", "div": "mul", "fmadd": "fnmadd",
              "fnmadd": "fmadd", "min": "max", "max": "min", "slli": "srli", "srli": "slli",
              "unpacklo": "unpackhi", "unpackhi": "unpacklo", "or": "and", "and": "or",
              "andnot": "and", "cmpgt": "cmpeq", "maskload": "loadu", "sqrt": "abs"}
OPERATORS = [(" + ", " - "), (" - ", " + "), (" * ", " + "), (" / ", " * "), (" % ", " / "),
             (" < ", " <= "), (" <= ", " < "), (" > ", " >= "), (" >= ", " > "), (" == ", " != "),
             (" != ", " == "), (" && ", " || "), (" || ", " && "), (" += ", " -= "),
             (" += ", " = "), (" -= ", " += "), (" *= ", " = "), (" << ", " >> "), ("++", "--"),
             (" & ", " | "), (" %= ", " /= "), (" >> ", " << ")]
GATES = {"gru": "r z n mm", "lstm": "i f g o c tc"}


def next_gate(file, name):
    """Return the gate whose place a gate takes, or None."""
    gates = GATES.get(file.rpartition("/")[2].partition(".")[0], "").split()
    return gates[(gates.index(name) + 1) % len(gates)] if name in gates else None


def number(text):
    """Yield numbers to put in place of a number."""
    if "x" in text:  # another hexadecimal digit in the middle, or the second of a fraction
        digits = re.match(r"0x[0-9a-fA-F.]+", text)[0]
        at = digits.find(".") + 2 if "." in digits[:-2] else (len(digits) + 2) // 2
        at = min(at, len(digits) - 1)
        yield text[:at] + f"{int(text[at], 16) ^ 4:x}" + text[at + 1:]
    elif "." in text:
        yield str(float(text.rstrip("f")) * 1.01 + 0.001)
    else:
        yield str(int(text.rstrip("uU")) + 1)
        if int(text.rstrip("uU")) > 0:
            yield str(int(text.rstrip("uU")) - 1)


def arguments(code, start):
    """Return where the arguments of a call begin and end, whose bracket opens before `start`."""
    depth, begin, found = 0, start, []
    for at in range(start, min(len(code), start + 400)):
        if code[at] in "([{":
            depth += 1
        elif code[at] in ")]}":
            depth -= 1
            if depth < 0:
                return [*found, (begin, at)]
        elif code[at] == "," and depth == 0:
            found.append((begin, at))
            begin = at + 1
    return []


def c_changes(file, code):
    """Yield (start, end, rule, new text) of each change of a text whose comments are blank."""
    for old, new in OPERATORS:
        for at in re.finditer(re.escape(old), code):
            if old == "++" or code[at.start() - 1] not in "(,=?:":
                yield at.start(), at.end(), "operator", new
    for at in re.finditer(NUMBER, code):
        for new in number(at[0]):
            yield at.start(), at.end(), "constant", new
    for at in re.finditer(NAME + r"[A-Za-z_]\w*\b|(?<=->)\w+\b", code):
        if at[0] in SWAPS:
            yield at.start(), at.end(), "name", SWAPS[at[0]]
        elif next_gate(file, at[0]) and code[at.end():at.end() + 1] in ",)":
            yield at.start(), at.end(), "gate", next_gate(file, at[0])
    for at in re.finditer(r"(?<=_mm)(\d+)_([a-z]+)(?=_[ep])", code):
        if at[2] in INTRINSICS:
            yield at.start(), at.end(), "name", f"{at[1]}_{INTRINSICS[at[2]]}"
    for at in re.finditer(r"\bif \(", code):
        inner = arguments(code, at.end())
        if inner:
            begin, end = inner[0][0], inner[-1][1]
            yield begin, end, "condition", f"!({code[begin:end]})"
    for at in re.finditer(r"(?<=[ (])([\w.>-]+) \? ", code):
        yield at.start(1), at.end(1), "condition", f"!{at[1]}"
    for at in re.finditer(TERM, code):
        yield at.start(), at.end(), "term", ""
    for at in re.finditer(r"(?<=\()[\w.>-]+(?:\[[^]]*\])? [+*] (?=[\w(])", code):
        yield at.start(), at.end(), "term", ""
    for at in re.finditer(r"\b(?!if|for|while|switch|sizeof|return|define)\w+\(", code):
        inner = arguments(code, at.end())
        if len(inner) > 1 and "\n" not in code[at.start():inner[1][1]]:
            one, two = (code[slice(*inner[i])].strip() for i in (0, 1))
            if one != two and not re.match(r"(const |vec |int |real |ptrdiff_t |void )", one):
                yield inner[0][0], inner[1][1], "arguments", f"{two}, {one}"
    for at in re.finditer(STATEMENT, code):
        if code.rfind("for (", 0, at.start(2)) <= code.rfind(")", 0, at.start(2)):
            yield at.start(2), at.end(2), "statement", ";"
    for at in re.finditer(r"\b(?:break|return);", code):
        yield at.start(), at.end(), "statement", ";"


def c_mutants(file, text):
    """Return what makes each mutant of a file of C: functions without arguments."""
    code = HIDDEN.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    lines = text.splitlines()

    def make(start, end, rule, new):
        line = text.count("\n", 0, start)
        changed = text[:start] + new + text[end:]
        return Mutant(file, line + 1, rule, lines[line].strip(),
                      changed.splitlines()[line].strip(), changed)

    return [partial(make, *change) for change in dict.fromkeys(c_changes(file, code))]


def commutes(mutant):
    """Return whether a mutant has two factors or two terms in each other's place."""
    for at in re.finditer(r"\b(?:vfma|vfnma|vadd|vmul|vadd_bits)\(", mutant.before):
        inner = arguments(mutant.before, at.end())
        if mutant.rule == "arguments" and len(inner) > 1:
            one, two = (mutant.before[slice(*inner[i])].strip() for i in (0, 1))
            start, end = inner[0][0], inner[1][1]
            if f"{mutant.before[:start]}{two}, {one}{mutant.before[end:]}" == mutant.after:
                return True
    return False


BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
          ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.MatMult: ast.Mult,
          ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr}
COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
            ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn,
            ast.NotIn: ast.In}


def negated(test):
    """Return the opposite of a condition."""
    return ast.UnaryOp(ast.Not(), test)


def python_changes(node):
    """Yield (rule, function that changes such a node and returns what takes its place)."""
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in BINARY:
        def other(n):
            n.op = BINARY[type(n.op)]()
            return n
        yield "operator", other
    if isinstance(node, ast.BinOp):
        yield "term", lambda n: n.left
        if not isinstance(node.op, ast.Sub):
            yield "term", lambda n: n.right
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        def compared(n):
            n.ops[0] = COMPARED[type(n.ops[0])]()
            return n
        yield "operator", compared
    if isinstance(node, ast.BoolOp):
        def either(n):
            n.op = ast.Or() if isinstance(n.op, ast.And) else ast.And()
            return n
        yield "operator", either
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        def opposite(n):
            n.test = negated(n.test)
            return n
        yield "condition", opposite
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield "term", lambda n: n.operand
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        def changed(n):
            value = n.value
            n.value = (not value if isinstance(value, bool) else
                       value + 1 if isinstance(value, int) else value * 1.25 + 0.01)
            return n
        yield "constant", changed
    if isinstance(node, ast.Call) and len(node.args) > 1 and not isinstance(
            node.args[1], ast.Starred) and ast.dump(node.args[0]) != ast.dump(node.args[1]):
        def swapped(n):
            n.args[:2] = n.args[1], n.args[0]
            return n
        yield "arguments", swapped
    stored = isinstance(node, ast.Assign) and isinstance(node.targets[0],
                                                         (ast.Subscript, ast.Attribute))
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if isinstance(node, ast.AugAssign) or stored or called:
        yield "statement", lambda n: ast.copy_location(ast.Pass(), n)


class Places(ast.NodeVisitor):
    """Collects the nodes of functions that the rules may change, by their number in a walk."""

    def __init__(self):
        self.inside, self.found, self.count = 0, [], 0

    def visit(self, node):
        """Count the node; messages, annotations and docstrings are not changed."""
        number, self.count = self.count, self.count + 1
        function = isinstance(node, (ast.FunctionDef, ast.Lambda))
        self.inside += function
        if self.inside and not function:
            self.found.append((number, node))
        for name, value in ast.iter_fields(node):
            hidden = name in ("annotation", "returns", "decorator_list", "args", "defaults",
                              "type_params") and not isinstance(node, ast.Call)
            hidden |= isinstance(node, (ast.Raise, ast.JoinedStr, ast.Assert))
            if hidden:
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)
        self.inside -= function


class Replace(ast.NodeTransformer):
    """Puts another node in the place of one."""

    def __init__(self, target, change):
        self.target, self.change = target, change

    def visit(self, node):
        """Change the one node."""
        if node is self.target:
            return ast.copy_location(self.change(node), node)
        return self.generic_visit(node)


def python_mutants(file, text):
    """Return what makes each mutant of the functions of a file of Python."""
    plain = ast.unparse(ast.parse(text))
    places = Places()
    places.visit(ast.parse(text))

    def make(number, index, rule):
        again, tree = Places(), ast.parse(text)
        again.visit(tree)
        target = next(node for k, node in again.found if k == number)
        before = ast.unparse(target).splitlines()[0]
        change = list(python_changes(target))[index][1]
        tree = ast.fix_missing_locations(Replace(target, change).visit(tree))
        changed = ast.unparse(tree)
        after = next((b for a, b in zip(plain.splitlines(), changed.splitlines(), strict=False)
                      if a != b), "").strip()
        return Mutant(file, target.lineno, rule, before, after, changed)

    return [partial(make, number, index, rule) for number, node in places.found
            for index, (rule, _) in enumerate(python_changes(node))]


def sample(texts, count, seed):
    """Return `count` mutants: at least five of every file, more of the longer ones."""
    makers = {file: (python_mutants if file.endswith(".py") else c_mutants)(file, text)
              for file, text in texts.items()}
    total, chosen = sum(map(len, makers.values())), {}
    for file, found in makers.items():
        some = max(5, round(count * len(found) / max(total, 1)))
        rng = random.Random(f"{seed} {file}")  # a file's own: other files do not change its sample
        for make in rng.sample(found, min(some, len(found))):
            mutant = make()
            if mutant.text != texts[file]:
                chosen.setdefault(mutant.text, mutant)
    chosen = list(chosen.values())
    random.Random(seed).shuffle(chosen)  # so that a run which is stopped has some of every file
    return chosen
