/* Every type and function of the C side that Cython may call.
 *
 * Letters: T steps, B batch, I input, H hidden, G gates of a cell, S slots of its tape row.
 *
 * Conventions:
 *  - Kernels cannot fail: they allocate nothing, check nothing, return nothing. fastrnn/_kernels
 *    checks the arguments.
 *  - void * means float * or double *, according to the table's `itemsize`; every stride, pitch and
 *    offset counts elements of that type.
 *  - `pitch` is the padded width of H that internal buffers use (fr_pitch): a multiple of 64 bytes
 *    and not of 1024, so that rows do not alias each other in the cache. Whole vectors may be
 *    written into the padding; what lies there is zero or finite and is never used.
 *  - A tape row has S slots of `pitch` elements: LSTM i f g o; GRU n r z m (m = W_hn h + b_hn, kept
 *    for backward); RNN one. Going forward they hold activated gates, and backward overwrites them
 *    with the gradients of the gates' arguments, in place.
 *  - Parameter gradients accumulate; every other output is overwritten.
 *  - Numbers: each element of a product is one chain of fused multiply-adds over k ascending. The
 *    chain of a gate starts at its bias, runs over x, then over h. Only weight gradients, whose k
 *    runs over all rows of all steps, are cut into blocks of FR_KC rows whose sums are added in
 *    order. No chain is ever split between threads or tiles, so results are the same bits for any
 *    number of threads, any split of a batch and any FMA instruction set. */
#ifndef FASTRNN_H
#define FASTRNN_H
#include <stddef.h>
#include <stdint.h>

enum { FR_KC = 256 };       /* rows per block of a weight gradient's sum */
enum { FR_MAX_THREADS = 64 };

typedef enum { FR_RNN_TANH, FR_RNN_RELU, FR_RNN_SIGMOID, FR_LSTM, FR_GRU, FR_CELLS } fr_cell;

/* Rows of a matrix that lie in a (T, B) grid: row r is at
 *   base + (r / count) * outer + (r % count) * inner,  count = B.
 * A direction that walks back in time has a negative `outer`. With `at`, row r is at
 *   base + at[r] * inner
 * instead, so that rows of different lengths stay where the caller has them. */
typedef struct {
  void *base;
  ptrdiff_t count, outer, inner;
  const int32_t *at;
} fr_rows;

/* C = start + A B, or rather the rows and panels named of it.
 * A row of A consists of `runs` runs of `run` elements, `run_stride` apart; B is packed by one of the
 * pack functions. The chain of C[r][n] starts at bias[n], at C itself with `accumulate`, or at 0. */
typedef struct {
  fr_rows c;              /* rows of N elements (gate products: of S slots of `pitch`) */
  fr_rows a;              /* rows of runs * run elements */
  ptrdiff_t runs, run, run_stride;
  const void *b;          /* packed (panels, runs * run, vectors * lanes) */
  const void *bias;       /* laid out as a row of C and padded to whole panels, or NULL */
  int accumulate;
  ptrdiff_t row0, row1;   /* rows to compute */
  ptrdiff_t panel0, panel1;
  ptrdiff_t n;            /* columns: N of a plain product, H of a gate product */
  ptrdiff_t pitch;        /* gate product: distance between the slots of a row of C */
} fr_product;

/* C[g * H + u][n] += sum over k of A[k][slot[g] + u] * B[k][n], for u in [u0, u1): the weight
 * gradient of G gates; N may be 0. bias[g * H + u] += sum over k of A[k][slot[g] + u], unless NULL. */
typedef struct {
  void *c;                /* (G * H, N) contiguous */
  void *bias;             /* (G * H) or NULL */
  fr_rows a;              /* K rows of tape */
  fr_rows b;              /* K rows of N elements */
  ptrdiff_t k, n, gates, h;
  ptrdiff_t slot[4];
  ptrdiff_t u0, u1;
  void *scratch;          /* table->gradient_scratch bytes, 64-byte aligned, one per thread */
  int fresh;              /* c and bias have no values yet: write them, do not add to them */
} fr_gradient;

/* One step forward of `rows` rows of a batch, hidden units of panels [panel0, panel1). */
typedef struct {
  ptrdiff_t rows, panel0, panel1, hidden, pitch;
  int down;               /* walk the panels from the last to the first */
  /* outputs */
  void *h, *c;            /* (rows, pitch); c may be c_prev; h must not be h_prev */
  void *y;                /* rows of H elements, or NULL: row m is y_at[m] (NULL: m) times y_row */
  ptrdiff_t y_row;
  const int32_t *y_at;
  void *gates;            /* (rows, gates_row), or NULL: no tape */
  ptrdiff_t gates_row;
  /* inputs */
  const void *start;      /* rows of S slots, start_row apart: where the chains start */
  ptrdiff_t start_row;
  const int32_t *index;   /* row of `start` for each row, or NULL: its own */
  const void *x, *wx;     /* x (rows, x_row) and packed W_ih; input 0: x is already in `start` */
  ptrdiff_t input, x_row;
  const void *h_prev, *wh, *c_prev; /* (rows, pitch); packed W_hh */
  const void *bias_n;     /* GRU: b_hn (pitch) */
} fr_forward;

/* One step of backpropagation through time of `rows` rows, units of plain panels
 * [panel0, panel1): dh = carry + dG(t+1) W_hh + dy, then the gates' gradients. */
typedef struct {
  ptrdiff_t rows, panel0, panel1, hidden, pitch;
  int down;               /* walk the panels from the last to the first */
  void *gates;            /* (rows, gates_row) in: activated gates; out: their gradients */
  ptrdiff_t gates_row;
  void *dh;               /* (rows, pitch) in: what reaches h(t) past the gates; out: h(t-1)'s */
  void *dc;               /* LSTM: (rows, pitch) in and out likewise */
  void *dh_out, *dc_out;  /* dL/dh(t), dL/dc(t), or NULL: rows of H elements as fr_forward's y */
  ptrdiff_t out_row;
  const int32_t *out_at;
  const void *next;       /* gates of step t+1, already gradients; NULL at the last step */
  const void *wb;         /* packed W_hh, (panels, G * H, vectors * lanes) */
  const void *dy;         /* rows of H elements as fr_forward's y, or NULL: zero */
  ptrdiff_t dy_row;
  const int32_t *dy_at;
  const void *h, *h_prev; /* (rows, pitch); LSTM: unused */
  void *c;                /* LSTM: (rows, pitch) in: c(t); out: h(t) */
  const void *c_prev;     /* LSTM: (rows, pitch) */
} fr_backward;

/* A step of an optimiser on p = param, with g = grad limited to +-limit, times first_scale, times
 * grad_scale. (first_scale is 1 unless the product of the two is no normal number.)
 *
 *   sgd       g += decay p;  m = beta1 m + g;  p -= step_size (nesterov ? g + beta1 m : m)
 *   rmsprop   g += decay p;  v = beta2 v + (1 - beta2) g^2;  m = beta1 m + g / (sqrt v + eps);
 *             p -= step_size m
 *   adam      m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
 *             p = (1 - decay) p - step_size m / (sqrt v + eps)
 *
 * With m = NULL, sgd and rmsprop compute as with beta1 = 0. Adam's step_size and eps contain the
 * bias corrections; see update.pyx. */
typedef struct {
  void *param, *m, *v;
  const void *grad;
  double limit, first_scale, grad_scale, step_size, beta1, beta2, eps, decay;
  int nesterov;
} fr_update;
typedef void (*fr_optimizer)(const fr_update *, ptrdiff_t begin, ptrdiff_t end);

/* What a cell needs; one row per fr_cell. */
typedef struct {
  int gates, slots;       /* G, S */
  int has_c;
  int order_x[4];         /* slot s of the input product holds torch's gate order_x[s] */
  int slot_h[4];          /* torch's gate g of W_hh has its gradient in slot slot_h[g] */
  int vectors;            /* vectors per panel of the forward products */
  int plain;              /* those vectors are neighbours (one gate), not one per gate */
  int apart;              /* torch's gate whose b_hh stays out of the start row (GRU n), or -1 */
  void (*forward)(const fr_forward *);
  /* the same with wx and wh packed from weights of k odd alone, whose low halves are the bfloat16
   * weights of k even; float32 only */
  void (*forward_half)(const fr_forward *);
  /* `rows` steps of one row, for at most row_panels panels, panel0 = 0, no `gates`, no y_at: what
   * has a row for each row above has one for each step; h_prev and c_prev (pitch) are before the
   * first, c (pitch) is after the last; wh is packed k-major, (H, panels, vectors * lanes) */
  void (*walk)(const fr_forward *);
  void (*backward)(const fr_backward *);
} fr_cell_row;

/* One operation of an element-wise program: d = op(a, b, c, e), for each row and unit. Operands are
 * numbers of places. */
typedef enum {
  FR_COPY,       /* a */
  FR_ADD,        /* a + b */
  FR_SUB,        /* a - b */
  FR_MUL,        /* a b */
  FR_DIV,        /* a / b */
  FR_FMA,        /* a b + c */
  FR_FNMA,       /* c - a b */
  FR_MIN,        /* the smaller of a and b; NaN if one of them is */
  FR_MAX,
  FR_ABS,
  FR_RELU,       /* a > 0 ? a : 0; NaN stays */
  FR_LESS,       /* a < b ? c : e */
  FR_LESS_EQUAL, /* a <= b ? c : e */
  FR_SIGMOID,
  FR_TANH,
  FR_EXP,
  FR_LOG,
  FR_SQRT,
  FR_SOFTPLUS,   /* log(1 + e^a) */
  FR_DSIGMOID,   /* a b (1 - b): the gradient a of b = sigmoid(.) */
  FR_DTANH,      /* a (1 - b^2) */
  FR_SPLAT,      /* the first number of a's row, for every unit */
  FR_OPERATIONS
} fr_operation;

typedef struct {
  int32_t op, d, a, b, c, e;
} fr_instruction;

/* Where an operand lies: row m begins at base + m * row. A vector that all rows share has row 0. */
typedef struct {
  void *base;
  ptrdiff_t row;
} fr_place;

/* A program for `rows` rows and units [u0, u1), both multiples of `lanes`. The places from
 * `registers` on are registers: they hold a tile of rows and units in `scratch` (FR_REGISTER_BYTES
 * each), and their base and row are ignored. Tiles are taken one after the other, each through the
 * whole program. Whole vectors are read and written. */
enum { FR_REGISTER_BYTES = 4096 };
typedef struct {
  const fr_instruction *code;
  ptrdiff_t count;
  const fr_place *places;
  ptrdiff_t registers;
  void *scratch;          /* 64-byte aligned */
  ptrdiff_t rows, u0, u1;
  ptrdiff_t tile;         /* units times rows of a tile, at most FR_REGISTER_BYTES of numbers */
} fr_elementwise;

/* The kernels of one instruction set and one dtype. */
typedef struct {
  const char *name;
  ptrdiff_t itemsize, lanes, plain_vectors, row_panels, gradient_scratch;
  fr_cell_row cell[FR_CELLS];
  /* Packing, of panels [panel0, panel1) of dst, from contiguous src:
   * plain:   dst (ceil(N / (plain_vectors * lanes)), K, plain_vectors * lanes) from src[k][n],
   *          where gate g's `k / gates` rows come from gate order[g] of src
   * plain_t: the same from src[n][k]
   * gates:   dst (ceil(H / lanes), K, gates * lanes) from src[order[v] * H + u][k] */
  void (*pack_plain)(void *dst, const void *src, ptrdiff_t k, ptrdiff_t n, int gates,
                     const int *order, ptrdiff_t panel0, ptrdiff_t panel1);
  void (*pack_plain_t)(void *dst, const void *src, ptrdiff_t k, ptrdiff_t n, ptrdiff_t panel0,
                       ptrdiff_t panel1);
  void (*pack_gates)(void *dst, const void *src, ptrdiff_t k, ptrdiff_t h, int gates,
                     const int *order, ptrdiff_t panel0, ptrdiff_t panel1);
  /* plain panels of (gates * H, K) src for products whose result has each gate in a slot of whole
   * vectors: vectors [v0, v1) of them, which are the vectors from `at` on of the panels */
  void (*pack_slots)(void *dst, const void *src, ptrdiff_t k, ptrdiff_t h, ptrdiff_t at,
                     ptrdiff_t v0, ptrdiff_t v1);
  /* start (S, pitch) = b_ih + b_hh in the order of the slots, bias_n (pitch) = what stays apart */
  void (*pack_bias)(void *start, void *bias_n, const void *b_ih, const void *b_hh, ptrdiff_t h,
                    ptrdiff_t pitch, const fr_cell_row *);
  void (*product_plain)(const fr_product *);
  void (*product_gates)(const fr_product *, int gates);
  void (*gradient)(const fr_gradient *);
  /* dst[n] += the sum of K rows of n elements, n a multiple of `lanes` */
  void (*sum_rows)(void *dst, const void *src, ptrdiff_t row, ptrdiff_t k, ptrdiff_t n);
  /* dst[index[r]][columns] += src[r][columns] for the rows in ascending order, columns [c0, c1) */
  void (*scatter_add)(void *dst, const void *src, ptrdiff_t row, const int32_t *index,
                      ptrdiff_t rows, ptrdiff_t c0, ptrdiff_t c1);
  /* The input product and its gradient for one-hot x, which has a 1 in column[r]; rows of dst and src
   * are tape rows. Row r of dst, rows [r0, r1) = start + that column of W_ih (G * H, k). */
  void (*gather_columns)(void *dst, const void *start, const void *w_ih, const int32_t *column,
                         ptrdiff_t r0, ptrdiff_t r1, ptrdiff_t k, ptrdiff_t h, ptrdiff_t pitch,
                         ptrdiff_t row, const fr_cell_row *);
  /* dw_ih's columns (no two rows name the same) and db_ih (or NULL) += src, units [u0, u1) */
  void (*scatter_columns)(void *dw_ih, void *db_ih, const void *src, const int32_t *column,
                          ptrdiff_t rows, ptrdiff_t k, ptrdiff_t h, ptrdiff_t pitch, ptrdiff_t row,
                          ptrdiff_t u0, ptrdiff_t u1, const fr_cell_row *);
  /* rows of N logits: weight * (softmax - onehot(target)) * scale into grad (may be logits; NULL:
   * none); returns the sum of weight * -log softmax[target], accumulated in double. weights (rows)
   * or NULL: 1. A row of weight 0 is not read. */
  double (*softmax_loss)(void *grad, const void *logits, const int32_t *target,
                         const double *weights, ptrdiff_t rows, ptrdiff_t n, double scale);
  /* sum of squares of scale * x, x limited to +-limit, in double; scale is a power of two, for
   * float64 whose squares overflow or underflow; the same bits for all instruction sets */
  double (*sum_squares)(const void *x, ptrdiff_t n, double limit, double scale);
  fr_optimizer sgd, rmsprop, adam;
  void (*elementwise)(const fr_elementwise *);
  /* dst[m] = the sum of src[m] over n units, in an order that is the same for all instruction sets */
  void (*sum_units)(void *dst, ptrdiff_t dst_row, const void *src, ptrdiff_t src_row, ptrdiff_t rows,
                    ptrdiff_t n);
  /* dst[m] += src[at[m]] (at NULL: src[m]), n elements of each row */
  void (*add_rows)(void *dst, ptrdiff_t dst_row, const void *src, ptrdiff_t src_row,
                   const int32_t *at, ptrdiff_t rows, ptrdiff_t n);
  /* elementwise, for tests: op 0 sigmoid, 1 tanh, 2 exp of x <= 0 */
  void (*activate)(void *y, const void *x, ptrdiff_t n, int op);
} fr_table;

/* cpu.c */
int fr_isa_count(void);                   /* names known to this build, in ascending order */
const char *fr_isa_name(int isa);
int fr_isa_supported(int isa);            /* CPU and operating system have it */
const fr_table *fr_isa_table(int isa, int bits);
unsigned fr_flush_denormals(int on);      /* returns the state to give to fr_restore */
void fr_restore(unsigned state);
ptrdiff_t fr_pitch(ptrdiff_t h, ptrdiff_t itemsize);

/* pool.c: one job at a time is spread over the threads; whoever comes while it runs works alone. */
typedef void (*fr_work)(void *arg, int rank, int size);
void fr_run(fr_work work, void *arg, int threads, int on_team);
/* What runs a function on several threads of another library, and says there which of them this is; of
 * the form of GNU OpenMP's GOMP_parallel, omp_get_thread_num and omp_get_num_threads. NULL: nothing. */
typedef void (*fr_team)(void (*share)(void *), void *arg, unsigned threads, unsigned flags);
typedef int (*fr_number)(void);
void fr_set_team(fr_team parallel, fr_number rank, fr_number size);
int fr_workers(void);                     /* threads that exist beside the caller */
int fr_refused(void);                     /* how many threads the system has refused to make */
void fr_any_number(int on);               /* whether a job may have more threads than CPUs: for tests */

typedef struct {
  int count, phase, sleepers, slow, apart;
} fr_barrier;                             /* zero before use */
void fr_wait(fr_barrier *barrier, int size);
/* The same where a job waits often. It returns, to all alike, 1, or 0 once rank 0 has had to wait too
 * long: then the others should leave, and rank 0 goes on by itself. */
int fr_wait_step(fr_barrier *barrier, int size);
#endif
