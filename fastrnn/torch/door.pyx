"""Calls of PyTorch's recurrent operators: read, checked and computed on the kernels.

This module knows no autograd. A `Call` is made from the arguments of an operator, and computes
forward and backward on the tensors' own memory. `read_sequence` and `read_cell` return a reason
instead where PyTorch must compute the call itself. A call that needs no copy and no gradient stays
in this module until its result is there.

Letters: T steps, B batch, N rows of a packed sequence, I input, H hidden, G gates, L layers,
D directions.
"""

import numpy as np
import torch

cimport numpy as cnp

from fastrnn._kernels import sequence
from fastrnn._kernels.exchange cimport Exchange
from fastrnn._kernels.runtime import Workspace, borrow_threads
from fastrnn.torch import reading
from fastrnn.torch.reading import converted, created, kind_of, read_lengths, sizes_of

cnp.import_array()

cdef object Tensor = torch.Tensor
cdef object Parameter = torch.nn.Parameter
cdef object grad_is_enabled = torch.is_grad_enabled
cdef object get_num_threads = torch.get_num_threads
cdef tuple REVERSE = reading.DIRECTIONS

# Spare memory for tapes and packed weights; no other memory of a call outlives it.
cdef object WORKSPACE = Workspace()


cdef Exchange EXCHANGE = Exchange(getattr(Tensor, "__dlpack_c_exchange_api__", None), converted,
                                  created)


cdef class Operator:
    """One of PyTorch's recurrent operators.

    Attributes
    ----------
    name : str
        As reports have it: "LSTM", "GRU", "RNN", "LSTMCell", ...
    function : str
        Its name in torch._VF.
    kind, gates : int
        The cell's place in the table of the kernels, and its gates G.
    has_c : bool
        Whether a state is a pair (h, c).
    is_cell : bool
        Whether it is one step of a single cell.
    """

    cdef readonly str name, function
    cdef readonly int kind, gates
    cdef readonly bint has_c, is_cell

    def __init__(self, name, function, kind, gates, has_c, is_cell):
        self.name, self.function, self.kind, self.gates = name, function, kind, gates
        self.has_c, self.is_cell = has_c, is_cell


cdef class Call:
    """One call of an operator: its tensors, what it computes, and how.

    Attributes
    ----------
    op : Operator
    num_layers, directions : int
    bias : bool
    batch_first : bool
        Whether the input is (B, T, I), not (T, B, I).
    batch_sizes : Tensor or None
        Of a packed sequence; the input is then (N, I).
    T, B : int
    x : Tensor
    h0, c0 : Tensor or None
        None: zero; c0 also for cells without it.
    weights : list of Tensor
        In the order of PyTorch's `_flat_weights`.
    keep : bool
        Whether backward will follow.
    key : tuple
        What the time of the call depends on.
    """

    cdef readonly Operator op
    cdef readonly ptrdiff_t num_layers, directions, T, B, input_size, hidden_size
    cdef readonly bint bias, batch_first, keep
    cdef readonly object batch_sizes, x, h0, c0
    cdef readonly list weights
    cdef readonly tuple key
    cdef readonly int threads
    cdef object time          # Timeline of rows of different lengths, or None
    cdef object x_array, h_array, c_array
    cdef list arrays          # of the weights
    cdef int itemsize
    cdef str reason           # why the kernels cannot read a tensor, or None

    def tensors(self):
        """Return x, h0, c0 and the weights."""
        return [self.x, self.h0, self.c0, *self.weights]

    def __str__(self):
        return sizes_of(self)

    cpdef own_x(self, bint with_grad=False):
        """Copy a batch-first input (without or with gradient), as PyTorch does: it may change."""
        if self.batch_first and self.x.requires_grad == with_grad:
            self.x = self.x.clone()
            self.x_array = EXCHANGE.view(self.x)

    cpdef tuple split(self, tuple needs):
        """Return the tensors that autograd must save, the others, and the versions of these.

        Backward does not read the states, of which the tape has a copy, nor the input of a frozen
        module, nor the weights of a cell if no other gradient is wanted. What comes from another
        node is saved nevertheless: changed in place it could come from the node of this call, which
        would keep it, a cycle. `needs` says which gradients are wanted, in the order of `tensors`;
        None stands for a tensor that is in the other list. () twice: all are saved. To be called
        before `forward`, for a tape keeps x.
        """
        cdef ptrdiff_t i, n = len(needs), second = 3 + (4 if self.bias else 2)
        cdef bint reads_x = needs[3] or self.directions == 2 and needs[second]
        if reads_x:
            self.own_x()
        cdef list saved = self.tensors(), rest, versions
        cdef bint through = not self.op.is_cell or needs[0] or needs[1] or needs[2]
        if reads_x and through and self.h0 is None:
            return saved, (), ()
        rest, versions = [None] * n, [None] * n
        for i in range(reads_x, 3 if through else n):
            tensor = saved[i]
            if tensor is not None and tensor.is_leaf:
                saved[i] = None
                versions[i] = None if tensor.is_inference() else tensor._version
                rest[i] = tensor if tensor.requires_grad else tensor.detach()
        # the caller's own would be in such a cycle here, too
        if rest[0] is not None:
            self.x, self.x_array = rest[0], EXCHANGE.view(rest[0])
        if rest[1] is not None:
            self.h0, self.h_array = rest[1], EXCHANGE.view(rest[1])
        if rest[2] is not None:
            self.c0, self.c_array = rest[2], EXCHANGE.view(rest[2])
        return saved, rest, versions

    cpdef bint is_in_place(self, bint with_x) except -1:
        """Whether the matrices, and perhaps x, lie where they lay: FSDP frees and restores them."""
        cdef ptrdiff_t i, count = 4 if self.bias else 2
        for i in range(len(self.arrays)):
            if i % count < 2 and not EXCHANGE.lies_at(self.weights[i], self.arrays[i]):
                return False
        return not with_x or EXCHANGE.lies_at(self.x, self.x_array)

    cdef str read_tensors(self):
        """Borrow all tensors; return why the kernels cannot compute the call, or None."""
        cdef ptrdiff_t layer, g = self.op.gates, count = 4 if self.bias else 2, i, width
        cdef ptrdiff_t at = 0, D = self.directions, H
        self.itemsize = 0
        self.x_array = self.borrow(self.x)
        self.h_array = None if self.h0 is None else self.borrow(self.h0)
        self.c_array = None if self.c0 is None else self.borrow(self.c0)
        self.arrays = [self.borrow(weight) for weight in self.weights]
        reason = self.reason if self.reason is not None else self.read_input()
        if reason is not None:
            return reason
        if self.T < 1 or self.B < 1 or self.input_size < 1 or self.hidden_size < 1:
            return "a size is 0"
        H = self.hidden_size
        if len(self.arrays) != self.num_layers * D * count:
            return "projection" if self.op.has_c else "the number of weights"
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else D * H
            for _ in range(D):
                if not (is_shape(self.arrays[at], 2, g * H, width)
                        and is_shape(self.arrays[at + 1], 2, g * H, H)):
                    return "the shape of a weight"
                for i in range(2, count):
                    if not is_shape(self.arrays[at + i], 1, g * H, 0):
                        return "the shape of a bias"
                at += count
        return None

    cdef object borrow(self, object tensor):
        """Return the array of a tensor; None, with `reason` set, if the kernels cannot read it."""
        if self.reason is not None:
            return None
        array = read_tensor(tensor, self.itemsize)
        if type(array) is str:
            self.reason = array
            return None
        self.itemsize = cnp.PyArray_ITEMSIZE(array)
        return array

    cdef str read_input(self):
        """Find the sizes; return why the kernels cannot compute the call, or None."""
        cdef int axes = 3 if self.batch_sizes is None and not self.op.is_cell else 2
        x = self.x_array
        if cnp.PyArray_NDIM(x) != axes:
            return "the shape of the input"
        self.input_size = cnp.PyArray_DIM(x, axes - 1)
        if len(self.arrays) < 2 or cnp.PyArray_NDIM(self.arrays[1]) != 2:
            return "the shape of a weight"
        self.hidden_size = cnp.PyArray_DIM(self.arrays[1], 1)
        if self.op.is_cell:
            self.T, self.B = 1, cnp.PyArray_DIM(x, 0)
        elif self.batch_sizes is not None:
            lengths = read_lengths(self.batch_sizes, len(x))
            if lengths is None:
                return "the batch sizes"
            self.T, self.B, self.time = lengths
        else:
            self.T = cnp.PyArray_DIM(x, self.batch_first)
            self.B = cnp.PyArray_DIM(x, not self.batch_first)
        if self.is_state(self.h_array) and self.is_state(self.c_array):
            return None
        return "the shape of hx"

    cdef bint is_state(self, object array) noexcept:
        """Whether the array is None, or has the shape (L*D, B, H), of a single cell (B, H)."""
        cdef int i = 0 if self.op.is_cell else 1
        return array is None or (
            cnp.PyArray_NDIM(array) == 2 + i
            and (i == 0 or cnp.PyArray_DIM(array, 0) == self.num_layers * self.directions)
            and cnp.PyArray_DIM(array, i) == self.B
            and cnp.PyArray_DIM(array, i + 1) == self.hidden_size)

    cdef bint is_compact(self) except -1:
        """Whether the kernels can read all tensors as they lie."""
        cdef int last = cnp.PyArray_NDIM(self.x_array) - 1
        if (cnp.PyArray_DIM(self.x_array, last) > 1
                and cnp.PyArray_STRIDE(self.x_array, last) != cnp.PyArray_ITEMSIZE(self.x_array)):
            return False
        for array in (self.h_array, self.c_array, *self.arrays):
            if array is not None and not cnp.PyArray_IS_C_CONTIGUOUS(array):
                return False
        return True

    cdef bint needs_grad(self):
        for weight in self.weights:
            if weight.requires_grad:
                return True
        return (self.x.requires_grad or self.h0 is not None and self.h0.requires_grad
                or self.c0 is not None and self.c0.requires_grad)

    cdef finish(self):
        """Find what depends on the mode of the interpreter."""
        self.threads = get_num_threads()
        self.keep = grad_is_enabled() and self.needs_grad()
        self.key = (self.op.function, bucket(self.T), bucket(self.B), self.input_size,
                    self.hidden_size, self.num_layers, self.directions, self.bias, self.batch_first,
                    self.time is None, self.itemsize,
                    self.keep + (self.keep and self.x.requires_grad), self.threads)

    cdef object outer(self, object array):
        """Return the array (T, B, ...) of an input or output, or (N, ...) of ragged rows."""
        cdef ptrdiff_t width
        if self.op.is_cell or (self.batch_sizes is not None and self.time is None):
            width = cnp.PyArray_DIM(array, 1)
            return array.reshape(self.T, self.B, width)
        return array.transpose(1, 0, 2) if self.batch_first else array

    cdef object state(self, object array):
        """Return the array (L*D, B, H) of a state."""
        if array is None or not self.op.is_cell:
            return array
        return array.reshape(1, self.B, self.hidden_size)

    cdef tuple states(self, object h, object c, ptrdiff_t layer):
        """Return the rows (D, B, H) of a layer of states (L*D, B, H)."""
        if self.num_layers > 1:
            rows = slice(layer * self.directions, (layer + 1) * self.directions)
            h = None if h is None else h[rows]
            c = None if c is None else c[rows]
        return (h, c) if self.op.has_c else (h,)

    cpdef tuple state_shape(self):
        """Return the shape (L*D, B, H) of a state, of a single cell (B, H)."""
        if self.op.is_cell:
            return self.B, self.hidden_size
        return self.num_layers * self.directions, self.B, self.hidden_size

    cdef tuple layer(self, list arrays, ptrdiff_t layer):
        """Return (weight_ih, weight_hh, bias_ih, bias_hh) of each direction of a layer."""
        cdef ptrdiff_t count = 4 if self.bias else 2, first = layer * self.directions * count, i
        groups = []
        for i in range(first, first + self.directions * count, count):
            groups.append(tuple(arrays[i:i + 4]) if self.bias
                          else (arrays[i], arrays[i + 1], None, None))
        return tuple(groups)

    cpdef tuple forward(self, bint keep):
        """Compute the outputs.

        Returns
        -------
        tuple of Tensor, (y, hn) or (y, hn, cn), of a single cell (h,) or (h, c); and the tapes, one
        for each layer, if `keep`, else None
        """
        cdef ptrdiff_t layer, L = self.num_layers, D = self.directions
        cdef Operator op = self.op
        source = self.outer(self.x_array)
        h, c = self.state(self.h_array), self.state(self.c_array)
        shape = self.state_shape()
        hn, h_final = self.new_like(shape, True)
        cn, c_final = self.new_like(shape, op.has_c)
        h_final, c_final = self.state(h_final), self.state(c_final)
        y = last = None
        if not op.is_cell:
            shape = self.T, self.B, D * self.hidden_size
            if self.batch_sizes is not None:
                shape = len(self.x_array), D * self.hidden_size
            y, last = self.new_like(shape, True)
            if self.batch_first:  # it lies in memory as PyTorch's own; in place, so it is no view
                y.transpose_(0, 1)
        layout = "time" if self.time is None else "packed"
        tapes = [] if keep else None
        borrow_threads(self.threads)
        try:
            for layer in range(L):
                if last is not None and layer == L - 1:
                    target = last if self.batch_first else self.outer(last)
                else:
                    target = np.empty((*source.shape[:source.ndim - 1], D * self.hidden_size),
                                      source.dtype)
                tape = sequence.forward(
                    op.kind, source, None, self.layer(self.arrays, layer), REVERSE[D],
                    self.states(h, c, layer), target, self.states(h_final, c_final, layer),
                    keep, WORKSPACE, self.time, layout, layout)
                if keep:
                    tapes.append(tape)
                source = target
        finally:
            borrow_threads(0)
        outputs = (hn,) if y is None else (y, hn)
        return (outputs if cn is None else (*outputs, cn)), tapes

    cdef object gradient(self, object tensor, bint rows):
        """Return the array of an output's gradient, or None: zero; `rows`: it may have strides."""
        if tensor is None:
            return None
        array = None if tensor.is_neg() else EXCHANGE.view(tensor)  # its memory has the other sign
        if (array is not None and cnp.PyArray_ITEMSIZE(array) == self.itemsize and (
                cnp.PyArray_IS_C_CONTIGUOUS(array)
                or rows and cnp.PyArray_STRIDE(array, tensor.dim() - 1) == self.itemsize)):
            return array
        tensor = tensor.to(self.x.dtype).resolve_neg()
        if not rows or tensor.stride(tensor.dim() - 1) != 1:
            tensor = tensor.contiguous()
        array = EXCHANGE.view(tensor)
        if array is None and not tensor._is_zerotensor():  # it is not aligned
            array = EXCHANGE.view(tensor.clone())
        return array

    cdef tuple new_like(self, object like, bint wanted):
        """Return a tensor of a shape, or of an array's, and its array; None twice: not wanted."""
        if not wanted:
            return None, None
        tensor = (EXCHANGE.empty(like, self.itemsize) if type(like) is tuple
                  else EXCHANGE.empty_like(like))
        return tensor, EXCHANGE.view(tensor, True)

    cpdef tuple backward(self, list tapes, object dy, object dhn, object dcn, tuple needs):
        """Compute the gradients from those of the outputs; uses the tapes up.

        Parameters
        ----------
        tapes : what forward returned
        dy, dhn, dcn : Tensor or None
        needs : tuple of bool
            Which gradients are wanted, in the order of `tensors`.

        Returns
        -------
        tuple of Tensor or None, in the order of `tensors`
        """
        cdef ptrdiff_t layer, i
        above = self.gradient(dy, True)
        if above is not None:
            above = self.outer(above)
        dh_final = self.state(self.gradient(dhn, False))
        dc_final = self.state(self.gradient(dcn, False))
        dx, first = self.new_like(self.x_array, needs[0])
        dh0, dh = self.new_like(self.state_shape(), needs[1])
        dc0, dc = self.new_like(self.state_shape(), needs[2])
        dh, dc = self.state(dh), self.state(dc)
        dweights, arrays = [], []
        for i in range(len(self.arrays)):
            dweight, array = self.new_like(self.arrays[i], needs[3 + i])
            dweights.append(dweight)
            arrays.append(array)
        borrow_threads(self.threads)
        try:
            for layer in range(self.num_layers - 1, -1, -1):
                below = None
                if layer:
                    T, B, I, _ = tapes[layer].shape
                    rows = (T, B) if self.time is None else (self.time.N,)
                    below = np.empty((*rows, I), tapes[layer].dtype)
                elif first is not None:
                    below = self.outer(first)
                sequence.backward(
                    tapes[layer], above, self.states(dh_final, dc_final, layer), below,
                    self.states(dh, dc, layer), self.layer(arrays, layer), fresh=True)
                above = below
        finally:
            borrow_threads(0)
        return dx, dh0, dc0, *dweights


cpdef object read_tensor(object tensor, int size):
    """Return the array of a tensor (elements of `size` bytes, 0: any), or a str: why not."""
    cdef type of = type(tensor)
    if of is not Tensor and of is not Parameter:
        return f"a tensor is of type {of.__name__}"
    if tensor.is_neg():
        return "a tensor is a negated view"
    array = EXCHANGE.view(tensor)
    if array is None or size not in (0, cnp.PyArray_ITEMSIZE(array)):
        return kind_of(tensor)
    return array


cdef inline bint is_shape(object array, int axes, ptrdiff_t rows, ptrdiff_t columns) noexcept:
    return (cnp.PyArray_NDIM(array) == axes and cnp.PyArray_DIM(array, 0) == rows
            and (axes == 1 or cnp.PyArray_DIM(array, 1) == columns))


cpdef ptrdiff_t bucket(ptrdiff_t count) noexcept:
    """Return the same number for counts of similar size, whose times are alike."""
    cdef ptrdiff_t bits = 0, rest = count
    while rest:
        bits += 1
        rest >>= 1
    return count if count <= 4 else 4 + bits


cdef object finished(Call call):
    """Return the call, or the reason why PyTorch must compute it."""
    cdef str reason = call.read_tensors()
    if reason is None and not call.is_compact():
        # copies that autograd knows
        call.x = call.x if call.x.stride(-1) == 1 else call.x.contiguous()
        call.h0 = None if call.h0 is None else call.h0.contiguous()
        call.c0 = None if call.c0 is None else call.c0.contiguous()
        call.weights = [weight.contiguous() for weight in call.weights]
        reason = call.read_tensors()
    if reason is not None:
        return reason
    call.finish()
    return call


def read_sequence(Operator op, x, batch_sizes, h0, c0, weights, bint bias,
                  ptrdiff_t num_layers, ptrdiff_t directions, bint batch_first):
    """Return the Call of several steps, or a str: why PyTorch must compute it.

    Parameters
    ----------
    op : Operator
    x : Tensor (T, B, I), (B, T, I), or with batch_sizes (N, I)
    batch_sizes : Tensor int64 (T,), or None
    h0, c0 : Tensor (L*D, B, H), or None: zero
    weights : list of Tensor
    bias : bool
    num_layers, directions : int
    batch_first : bool
    """
    cdef Call call = Call.__new__(Call)
    call.op, call.x, call.batch_sizes, call.h0, call.c0 = op, x, batch_sizes, h0, c0
    call.weights, call.bias, call.num_layers = list(weights), bias, num_layers
    call.directions, call.batch_first = directions, batch_first
    return finished(call)


def read_cell(Operator op, x, h0, c0, list weights):
    """Return the Call of one step of a single cell, or a str: why PyTorch must compute it.

    Parameters
    ----------
    op : Operator
    x : Tensor (B, I)
    h0, c0 : Tensor (B, H), or None: zero
    weights : list of Tensor
        Two, or four with biases.
    """
    cdef Call call = Call.__new__(Call)
    call.op, call.x, call.h0, call.c0, call.weights = op, x, h0, c0, weights
    call.bias, call.num_layers, call.directions = len(weights) == 4, 1, 1
    return finished(call)


def read_module(Operator op, module, x, hx):
    """Return the Call of a module's `forward`, or None: PyTorch's own code must read the arguments.

    That code looks at each argument in Python, and makes states of zeros; for a small module it
    takes longer than the computation. Here are the plain cases: an input (T, B, I) or (B, T, I), of
    a cell (B, I), parameters that are the module's own, no dropout.

    Parameters
    ----------
    op : Operator
    module : torch.nn.RNNBase or RNNCellBase
    x : Tensor
    hx : Tensor, pair of Tensor, or None
    """
    cdef Call call = Call.__new__(Call)
    cdef dict own = module.__dict__
    cdef dict parameters
    cdef ptrdiff_t i
    call.op, call.x, call.num_layers, call.directions = op, x, 1, 1
    if hx is not None:
        if not op.has_c:
            call.h0 = hx
        elif type(hx) is tuple and len(<tuple> hx) == 2:
            call.h0, call.c0 = <tuple> hx
        else:
            return None
        if call.h0 is None or op.has_c and call.c0 is None:
            return None
    try:
        parameters = own["_parameters"]
        call.bias = own["bias"]
        if op.is_cell:
            call.weights = [parameters["weight_ih"], parameters["weight_hh"]]
            if call.bias:
                call.weights += [parameters["bias_ih"], parameters["bias_hh"]]
        else:
            call.num_layers, call.batch_first = own["num_layers"], own["batch_first"]
            call.directions = 2 if own["bidirectional"] else 1
            if own["proj_size"] or own["training"] and own["dropout"] and call.num_layers > 1:
                return None
            call.weights = list(own["_flat_weights"])
            names = own["_flat_weights_names"]
            if len(names) != len(call.weights):
                return None
            for i in range(len(call.weights)):
                if parameters[names[i]] is not call.weights[i]:
                    return None
        sizes = own["input_size"], own["hidden_size"]
    except KeyError:  # another version's module, or a changed one
        return None
    if finished(call) is not call or (call.input_size, call.hidden_size) != sizes:
        return None
    return call
