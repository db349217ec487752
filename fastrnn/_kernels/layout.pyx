"""Lays a program (fastrnn/cells/schedule.py) out for one dtype and instruction set.

Rows of values are padded to whole vectors, so that no operation has a rest. Offsets count elements.
Letters: I input, K columns of a weight.
"""

cimport numpy as cnp
from libc.string cimport memset

from fastrnn._kernels.c cimport FR_REGISTER_BYTES, fr_instruction
from fastrnn._kernels.check cimport Carver
from fastrnn._kernels.machine cimport (
    BACK,
    CODE,
    PRODUCT,
    SCRATCH,
    SUM,
    SUMS,
    TAPE,
    VECTOR,
    Bias,
    Gradient,
    Machine,
    Packing,
    Phase,
    Phases,
    Row,
    Spot,
    State,
    VectorGradient,
    Weight,
)
from fastrnn._kernels.runtime cimport Buffer, pitch_of, table_for
from fastrnn._kernels.walk cimport ceil_div

cnp.import_array()

# The registers of a tile should stay in the first cache, beside what they are loaded from.
cdef ptrdiff_t TILE_BYTES = 16 * 1024


cdef class Layout:
    """Memory that grows while a machine is laid out: arrays of structs in one buffer."""
    cdef list blocks

    def __init__(self):
        self.blocks = []

    cdef char *add(self, object nbytes) except NULL:
        block = Buffer(max(nbytes, 1))
        memset((<Buffer> block).data, 0, (<Buffer> block).nbytes)
        self.blocks.append(block)
        return (<Buffer> block).data


def offsets(widths, ptrdiff_t lanes):
    """Return where rows of these widths begin, each padded to whole vectors, and where they end."""
    starts, at = [], 0
    for width in widths:
        starts.append(at)
        at += -(-width // lanes) * lanes
    return starts, at


cdef Spot spot_of(object spot, list tape, list scratch, list rows, list sums=None) except *:
    cdef Spot found
    space, number = spot
    found.space = space
    found.number = number
    found.offset = 0
    if space == TAPE:
        found.offset = tape[number]
    elif space == SCRATCH:
        found.offset = scratch[number]
    elif space == VECTOR:
        found.offset = rows[number]
    elif space == SUMS:
        found.offset = sums[number]
    return found


cdef Machine make_machine(object program, object dtype):
    """Return the machine of a program."""
    cdef Machine m = Machine.__new__(Machine)
    cdef Layout memory = Layout()
    cdef ptrdiff_t lanes, at, panel
    cdef int i
    m.program = program
    m.dtype = dtype
    m.table = table_for(dtype)
    m.alive = memory
    lanes = m.table.lanes
    panel = lanes * m.table.plain_vectors
    tape, end = offsets(program.tape, lanes)
    m.input_size = program.input_size
    m.row = pitch_of(max(end, 1), m.table.itemsize)
    m.x_columns = tape[program.projected] if program.projected < len(tape) else end
    m.x_offset = -1 if program.x_slot < 0 else tape[program.x_slot]
    m.dx_offset = -1 if program.dx_slot < 0 else tape[program.dx_slot]
    lean = program.projected + (program.x_slot >= 0)
    m.lean_row = pitch_of(max(tape[lean] if lean < len(tape) else end, 1), m.table.itemsize)

    m.state_count = len(program.states)
    m.states = <State *> memory.add(m.state_count * <object> sizeof(State))
    for i in range(m.state_count):
        m.states[i].width = program.states[i][1]
        m.states[i].pitch = pitch_of(m.states[i].width, m.table.itemsize)
    m.mask_count = len(program.masks)

    # rows that all rows share; constants are as long as the longest
    longest = max([width for _, width in program.states] + list(program.tape)
                  + [w for widths in program.scratch for w in widths] + [1])
    rows, end = offsets([width if name else longest for name, _, _, width in program.vectors],
                        lanes)
    m.vectors_size = end
    names = program.vector_names
    m.row_count = len(program.vectors)
    m.rows = <Row *> memory.add(m.row_count * <object> sizeof(Row))
    for i in range(m.row_count):
        name, value, block, width = program.vectors[i]
        m.rows[i] = Row(names.index(name) if name else -1, value, block,
                        width if name else longest, rows[i])

    # weights, and where they are packed
    weights = {name: i for i, (name, _, _, _) in enumerate(program.weights)}
    m.weight_count = len(weights)
    m.weights = <Weight *> memory.add(m.weight_count * <object> sizeof(Weight))
    m.shapes = tuple((blocks * width, K) for _, blocks, width, K in program.weights) + tuple(
        (size,) for size in program.vector_sizes)
    carver, back = Carver(m.table.itemsize), Carver(m.table.itemsize)
    packings, x_vectors = [], 0
    x_packed = carver.add(ceil_div(m.x_columns, panel) * panel * <object> m.input_size)
    m.x_packed = x_packed // m.table.itemsize
    for group in program.groups:
        if group.weight is not None:
            packings.append((weights[group.weight], m.x_packed, x_vectors))
            x_vectors += group.blocks * ceil_div(group.width, lanes)
    packed, m.operations, m.weight_bytes = {}, 0, 0
    x_weights = {g.weight for g in program.groups if g.weight is not None}
    steps = {p.weight for phase in program.forward if isinstance(phase, list)
             for p in phase if hasattr(p, "group")}
    backs = {b.weight for phase in program.backward if isinstance(phase, list)
             for b in phase if hasattr(b, "begins")}
    for name, blocks, width, K in program.weights:
        i = weights[name]
        columns = blocks * <object> ceil_div(width, lanes) * lanes
        m.weights[i] = Weight(blocks, width, K, -1, -1)
        m.operations += 2.0 * blocks * width * K
        depth = ceil_div(K, panel) * <object> panel * blocks * width
        if name in steps:
            offset = carver.add(ceil_div(columns, panel) * <object> panel * K)
            packed[name] = offset // m.table.itemsize
            packings.append((i, packed[name], 0))
            m.weight_bytes += <double> (columns * K * m.table.itemsize)
        if name in backs:
            m.weights[i].back = back.add(depth) // m.table.itemsize
        if name in x_weights:
            m.weights[i].back_x = back.add(depth) // m.table.itemsize
    m.packs_size = carver.bytes // m.table.itemsize
    m.back_size = back.bytes // m.table.itemsize
    m.packing_count = len(packings)
    m.packings = <Packing *> memory.add(m.packing_count * <object> sizeof(Packing))
    for i in range(m.packing_count):
        m.packings[i] = Packing(packings[i][0], packings[i][1], packings[i][2])

    # where chains begin: a row for all groups; a margin, because panels are read whole
    starts = []
    at = 0
    for group in program.groups:
        starts.append(at)
        at += group.blocks * ceil_div(group.width, lanes) * lanes
    m.biases_size = at + panel
    biases = [(names.index(bias), group.blocks, group.width, start)
              for group, start in zip(program.groups, starts) for bias in group.biases]
    m.bias_count = len(biases)
    m.biases = <Bias *> memory.add(m.bias_count * <object> sizeof(Bias))
    for i in range(m.bias_count):
        m.biases[i] = Bias(biases[i][0], biases[i][1], biases[i][2], biases[i][3])

    # gradients
    m.gradient_count = len(program.gradients)
    m.gradients = <Gradient *> memory.add(m.gradient_count * <object> sizeof(Gradient))
    for i in range(m.gradient_count):
        g = program.gradients[i]
        m.gradients[i].weight = -1 if g.weight is None else weights[g.weight]
        m.gradients[i].bias = -1 if g.bias is None else names.index(g.bias)
        m.gradients[i].of_x = g.weight is not None and g.source is None
        if g.source is not None:
            m.gradients[i].source = spot_of(g.source, tape, [], rows)
        m.gradients[i].offset = tape[g.slot]
        m.gradients[i].blocks = g.blocks
        m.gradients[i].width = g.width
        m.gradients[i].K = g.K
    m.vector_gradient_count = len(program.vector_gradients)
    m.vector_gradients = <VectorGradient *> memory.add(
        m.vector_gradient_count * <object> sizeof(VectorGradient))
    sums, m.sums_size = offsets([width for _, _, width in program.vector_gradients], lanes)
    for i in range(m.vector_gradient_count):
        name, block, width = program.vector_gradients[i]
        m.vector_gradients[i] = VectorGradient(names.index(name), block, sums[i], width)

    # phases
    group_starts = {g.number: start for g, start in zip(program.groups, starts)}
    biased = {g.number for g in program.groups if g.biases}
    for i, (phases, widths) in enumerate(zip(
            (program.forward, program.inference, program.backward), program.scratch)):
        scratch, end = offsets(widths, lanes)
        places = tape, scratch, rows, sums
        found = lay_out_phases(phases, m, memory, places, weights, packed, group_starts, biased)
        found.scratch = pitch_of(max(end, 1), m.table.itemsize)
        if i == 0:
            m.forward = found
        elif i == 1:
            m.lean = found
        else:
            m.backward = found
            m.dy.space = -1
            if program.dy_slot >= 0:
                m.dy = spot_of((SCRATCH, program.dy_slot), tape, scratch, rows)
            m.record_count = len(program.records)
            m.records = <Spot *> memory.add(m.state_count * <object> sizeof(Spot))
            for s, slot in program.records:
                m.records[<int> s] = spot_of((SCRATCH, slot), tape, scratch, rows)
        if i == 0:
            m.output = spot_of(program.output, tape, scratch, rows)
        elif i == 1:
            m.output_lean = spot_of(program.output_inference, tape, scratch, rows)
    m.output_state = program.output_state
    m.output_width = program.output_width
    return m


cdef Phases lay_out_phases(object phases, Machine m, Layout memory, tuple places, dict weights,
                           dict packed, dict starts, set biased) except *:
    cdef Phases found
    cdef Phase *phase
    cdef ptrdiff_t lanes = m.table.lanes, registers
    cdef int i, j
    cdef Spot *spots
    cdef fr_instruction *code
    tape, scratch, rows, sums = places
    flat = []
    for each in phases:
        if isinstance(each, list):
            flat += [(one, k == len(each) - 1) for k, one in enumerate(each)]
        else:
            flat.append((each, True))
    memset(&found, 0, sizeof(found))
    found.count = len(flat)
    phase = <Phase *> memory.add(found.count * <object> sizeof(Phase))
    found.phase = phase
    for i in range(found.count):
        one, waits = flat[i]
        phase[i].waits = waits
        if hasattr(one, "instructions"):
            phase[i].kind = CODE
            phase[i].units = ceil_div(one.width, lanes) * lanes
            phase[i].places = len(one.spots)
            phase[i].registers = one.registers
            registers = one.registers
            phase[i].tile = min(FR_REGISTER_BYTES, max(
                TILE_BYTES // (registers + 2), 512)) // m.table.itemsize
            spots = <Spot *> memory.add(phase[i].places * <object> sizeof(Spot))
            for j in range(phase[i].places):
                spots[j] = spot_of(one.spots[j], tape, scratch, rows, sums)
            phase[i].spots = spots
            phase[i].count = len(one.instructions)
            code = <fr_instruction *> memory.add(phase[i].count * <object> sizeof(fr_instruction))
            for j in range(phase[i].count):
                op, d, a, b, c, e = one.instructions[j]
                code[j] = fr_instruction(op, d, a, b, c, e)
            phase[i].code = code
            found.registers = max(found.registers, one.registers)
            found.places = max(found.places, phase[i].places)
            continue
        phase[i].target = spot_of(one.target, tape, scratch, rows)
        phase[i].source = spot_of(one.source, tape, scratch, rows)
        if hasattr(one, "group"):
            phase[i].kind = PRODUCT
            phase[i].K = one.K
            phase[i].columns = one.blocks * ceil_div(one.width, lanes) * lanes
            phase[i].begins = one.begins
            phase[i].weight = packed[one.weight]
            phase[i].bias = starts[one.group] if one.group in biased else -1
        elif hasattr(one, "begins"):
            phase[i].kind = BACK
            phase[i].n = one.K
            phase[i].K = one.width
            phase[i].slot = ceil_div(one.width, lanes) * lanes
            phase[i].blocks = one.blocks
            phase[i].begins = one.begins
            phase[i].weight = m.weights[<int> weights[one.weight]].back
        else:
            phase[i].kind = SUM
            phase[i].n = one.width
    return found
