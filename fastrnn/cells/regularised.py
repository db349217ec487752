"""Cells that normalise or drop: layer normalisation and the forms of dropout inside a step.

All are an LSTM or a GRU. A text says in its first lines what its paper does, and where it differs.
The names are those of frameworks.py: i input, f forget, g candidate, o output; r reset, z keep, n
candidate; a before a name is a sum that has no activation yet. A layer takes the rates as keyword
arguments; in evaluation every mask has its mean. Letters: I input, H hidden.
"""

from __future__ import annotations

from fastrnn.cells.definition import Definition, cell

__all__ = [
    "LayerNormGRU", "LayerNormLSTM", "RecurrentDropoutGRU", "RecurrentDropoutLSTM",
    "VariationalGRU", "VariationalLSTM", "WeightDroppedGRU", "WeightDroppedLSTM", "ZoneoutGRU",
    "ZoneoutLSTM",
]

# ---- layer normalisation -------------------------------------------------------------------------

LayerNormLSTM: Definition = cell("""
# W x and U h are normalised apart, then added; c is normalised on its way to h
# each gate has its own mean, variance and gain; the paper takes one mean and variance over the sums
# of all four gates. p are gains of W x, q of U h; the three biases that the paper adds are one
learned p_i = 1
learned p_f = 1
learned p_g = 1
learned p_o = 1
learned q_i = 1
learned q_f = 1
learned q_g = 1
learned q_o = 1
learned b_i = 0
learned b_f = 1
learned b_g = 0
learned b_o = 0
learned p_c = 1
learned b_c = 0
wi, wf, wg, wo = W x
ui, uf, ug, uo = U h
i = sigmoid(p_i * norm(wi) + q_i * norm(ui) + b_i)
f = sigmoid(p_f * norm(wf) + q_f * norm(uf) + b_f)
g = tanh(p_g * norm(wg) + q_g * norm(ug) + b_g)
o = sigmoid(p_o * norm(wo) + q_o * norm(uo) + b_o)
c = f * c + i * g
h = o * tanh(p_c * norm(c) + b_c)
""", name="LayerNormLSTM", paper="J. L. Ba, J. R. Kiros and G. E. Hinton, \"Layer normalization\", "
                                 "arXiv:1607.06450, 2016")

LayerNormGRU: Definition = cell("""
# W x and U h are normalised apart; r resets the normalised U h. z keeps: it is 1 - z of the paper
# each gate has its own mean, variance and gain; the paper takes one mean and variance over the sums
# of r and z. p are gains of W x, q of U h; b_u is the bias that r resets
learned p_r = 1
learned p_z = 1
learned p_n = 1
learned q_r = 1
learned q_z = 1
learned q_n = 1
learned b_r = 0
learned b_z = 0
learned b_n = 0
learned b_u = 0
wr, wz, wn = W x
ur, uz, un = U h
r = sigmoid(p_r * norm(wr) + q_r * norm(ur) + b_r)
z = sigmoid(p_z * norm(wz) + q_z * norm(uz) + b_z)
n = tanh(p_n * norm(wn) + b_n + r * (q_n * norm(un) + b_u))
h = z * h + (1 - z) * n
""", name="LayerNormGRU", paper=LayerNormLSTM.paper)

# ---- masks of x and h, one for a sequence --------------------------------------------------------

VariationalLSTM: Definition = cell("""
# the paper's tied weights: all gates see the same mask of x and the same mask of h, which stay for
# a sequence
constant p_x = 0.25
constant p_h = 0.25
ai, af, ag, ao = W (x * sequence_dropout(p_x)) + U (h * sequence_dropout(p_h)) + b
c = sigmoid(af) * c + sigmoid(ai) * tanh(ag)
h = sigmoid(ao) * tanh(c)
""", name="VariationalLSTM", paper="Y. Gal and Z. Ghahramani, \"A theoretically grounded "
                                   "application of dropout in recurrent neural networks\", "
                                   "NeurIPS 2016")

VariationalGRU: Definition = cell("""
# as the LSTM; r resets the masked h before the product
constant p_x = 0.25
constant p_h = 0.25
m = h * sequence_dropout(p_h)
wr, wz, wn = W (x * sequence_dropout(p_x)) + b
ur, uz = U m
r = sigmoid(wr + ur)
z = sigmoid(wz + uz)
h = z * h + (1 - z) * tanh(wn + U_n (r * m))
""", name="VariationalGRU", paper=VariationalLSTM.paper)

# ---- masks of what enters the memory -------------------------------------------------------------

RecurrentDropoutLSTM: Definition = cell("""
# the candidate is dropped, anew in each step, and never the memory
constant p = 0.25
ai, af, ag, ao = W x + U h + b
c = sigmoid(af) * c + sigmoid(ai) * (tanh(ag) * dropout(p))
h = sigmoid(ao) * tanh(c)
""", name="RecurrentDropoutLSTM", paper="S. Semeniuta, A. Severyn and E. Barth, \"Recurrent "
                                        "dropout without memory loss\", COLING 2016")

RecurrentDropoutGRU: Definition = cell("""
# as the LSTM; r resets h before the product; z keeps: it is 1 - z of the paper
constant p = 0.25
wr, wz, wn = W x + b
ur, uz = U h
r = sigmoid(wr + ur)
z = sigmoid(wz + uz)
h = z * h + (1 - z) * (tanh(wn + U_n (r * h)) * dropout(p))
""", name="RecurrentDropoutGRU", paper=RecurrentDropoutLSTM.paper)

# ---- units that keep their value -----------------------------------------------------------------

ZoneoutLSTM: Definition = cell("""
# a unit of c keeps its value with probability p_c in a step, one of h with p_h; h reads the new c
# whether its unit keeps or not. In evaluation a unit keeps these shares of its value
constant p_c = 0.5
constant p_h = 0.05
keep_c = step_mask(p_c)
keep_h = step_mask(p_h)
ai, af, ag, ao = W x + U h + b
new = sigmoid(af) * c + sigmoid(ai) * tanh(ag)
h = keep_h * h + (1 - keep_h) * (sigmoid(ao) * tanh(new))
c = keep_c * c + (1 - keep_c) * new
""", name="ZoneoutLSTM", paper="D. Krueger, T. Maharaj, J. Kramar, M. Pezeshki, N. Ballas, "
                               "N. R. Ke, A. Goyal, Y. Bengio, A. Courville and C. Pal, \"Zoneout: "
                               "regularizing RNNs by randomly preserving hidden activations\", "
                               "ICLR 2017")

ZoneoutGRU: Definition = cell("""
# a unit of h keeps its value with probability p in a step
constant p = 0.1
keep = step_mask(p)
wr, wz, wn = W x + b
ur, uz, un = U h + b_u
r = sigmoid(wr + ur)
z = sigmoid(wz + uz)
h = keep * h + (1 - keep) * (z * h + (1 - z) * tanh(wn + r * un))
""", name="ZoneoutGRU", paper=ZoneoutLSTM.paper)

# ---- weights that are dropped --------------------------------------------------------------------

WeightDroppedLSTM: Definition = cell("""
# numbers of U are dropped, the same ones in all steps and sequences of a call
constant p = 0.5
weight U = dropconnect(p)
ai, af, ag, ao = W x + U h + b
c = sigmoid(af) * c + sigmoid(ai) * tanh(ag)
h = sigmoid(ao) * tanh(c)
""", name="WeightDroppedLSTM", paper="S. Merity, N. S. Keskar and R. Socher, \"Regularizing and "
                                     "optimizing LSTM language models\", ICLR 2018")

WeightDroppedGRU: Definition = cell("""
# as the LSTM, with torch's GRU
constant p = 0.5
weight U = dropconnect(p)
wr, wz, wn = W x + b
ur, uz, un = U h + b_u
r = sigmoid(wr + ur)
z = sigmoid(wz + uz)
h = z * h + (1 - z) * tanh(wn + r * un)
""", name="WeightDroppedGRU", paper=WeightDroppedLSTM.paper)
