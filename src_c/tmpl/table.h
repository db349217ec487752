/* Last include of a file of isa/: all templates, and the table of what they made.
 *
 * Parameters: FR_BITS (32 | 64), FR_ISA (a name), and the names of one vec/ header. A new cell adds
 * its include and its row. */
#include "vmath.h"
#include "vlog.h"
#include "chain.h"
#include "tiles.h"
#include "product.h"
#include "gradient.h"
#include "pack.h"
#include "symbols.h"
#include "cell.h"
#include "row.h"
#include "gru.h"
#include "lstm.h"
#include "rnn.h"
#include "loss.h"
#include "update.h"
#include "machine.h"

#if FR_BITS == 32
#define KERNELS(cell) \
  .forward = cell##_forward, .forward_half = cell##_forward_half, .walk = cell##_walk, \
  .backward = cell##_backward
#else
#define KERNELS(cell) \
  .forward = cell##_forward, .walk = cell##_walk, .backward = cell##_backward
#endif
#define RNN_ROW(name) \
  {.gates = 1, .slots = 1, .vectors = VPLAIN, .plain = 1, .apart = -1, KERNELS(name)}

const fr_table FR_PASTE(fr_table, FR_ISA, FR_BITS) = {
    .name = FR_STRING(FR_ISA),
    .itemsize = sizeof(real),
    .lanes = VW,
    .plain_vectors = VPLAIN,
#if defined(FR_NO_WALK) /* a switch for tests: one row goes through the tiles, too */
    .row_panels = 0,
#else
    .row_panels = ROW_PANELS,
#endif
    .gradient_scratch = GRADIENT_SCRATCH,
    .cell = {[FR_RNN_TANH] = RNN_ROW(rnn_tanh),
             [FR_RNN_RELU] = RNN_ROW(rnn_relu),
             [FR_RNN_SIGMOID] = RNN_ROW(rnn_sigmoid),
             [FR_LSTM] = {.gates = 4, .slots = 4, .has_c = 1, .order_x = {0, 1, 2, 3},
                          .slot_h = {0, 1, 2, 3}, .vectors = 4, .apart = -1, KERNELS(lstm)},
             [FR_GRU] = {.gates = 3, .slots = 4, .order_x = {2, 0, 1}, .slot_h = {1, 2, 3},
                         .vectors = 3, .apart = 2, KERNELS(gru)}},
    .pack_plain = pack_plain,
    .pack_plain_t = pack_plain_t,
    .pack_gates = pack_gates,
    .pack_slots = pack_slots,
    .pack_bias = pack_bias,
    .product_plain = product_plain,
    .product_gates = product_gates,
    .gradient = gradient,
    .sum_rows = sum_rows,
    .scatter_add = scatter_add,
    .gather_columns = gather_columns,
    .scatter_columns = scatter_columns,
    .softmax_loss = softmax_loss,
    .sum_squares = sum_squares,
    .sgd = sgd,
    .rmsprop = rmsprop,
    .adam = adam,
    .elementwise = elementwise,
    .sum_units = sum_units,
    .add_rows = add_rows,
    .activate = activate,
};
