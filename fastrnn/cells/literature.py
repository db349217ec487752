"""Cells from the literature, as equations: few gates, slow units, oscillators, fixed weights.

A text says in its first lines where it differs from the paper. The names are those of
frameworks.py: f forget, i input, g candidate, o output, z keep; a before a name is a sum that has
no activation yet. In the comments h' is h of the step before. Letters: I input, H hidden.
"""

# ruff: noqa: N816 - the names are the papers'

from __future__ import annotations

from fastrnn.cells.definition import Definition, cell

__all__ = [
    "BRC", "JANET", "LEM", "MGU", "QRNN", "SCRN", "SRU", "UGRNN", "AntisymmetricRNN", "CfC",
    "FastGRNN", "FastRNN", "GatedAntisymmetricRNN", "IndRNN", "LeakyESN", "LiGRU", "ProjectedSRU",
    "coRNN", "minGRU", "minLSTM", "nBRC", "sLSTM",
]

# ---- gates that see h ----------------------------------------------------------------------------

MGU: Definition = cell("""
# one gate both forgets and resets
wf, wg = W x + b
f = sigmoid(wf + U_f h)
g = tanh(wg + U_g (f * h))
h = (1 - f) * h + f * g
""", name="MGU", paper="G.-B. Zhou, J. Wu, C.-L. Zhang and Z.-H. Zhou, \"Minimal gated unit for "
                       "recurrent neural networks\", IJAC 13, 2016")

JANET: Definition = cell("""
# an LSTM with nothing but its forget gate; what comes in is shifted by beta
# the paper draws b_f as log(uniform(1, T)), T the longest dependency; here it is uniform(0, log T),
# T = 400
constant beta = 1
learned b_f = uniform(0, 6)
af = W_f x + U_f h + b_f
g = tanh(W_g x + U_g h + b_g)
h = sigmoid(af) * h + (1 - sigmoid(af - beta)) * g
""", name="JANET", paper="J. van der Westhuizen and J. Lasenby, \"The unreasonable effectiveness "
                         "of the forget gate\", arXiv:1804.04849, 2018")

LiGRU: Definition = cell("""
# no reset gate, and relu; z keeps
# layer normalisation of W x, where the paper normalises over the batch: the units of one gate have
# one mean and variance, with a learned gain; the bias is that of U h
learned p_z = 1
learned p_g = 1
wz, wg = W x
uz, ug = U h + b
z = sigmoid(p_z * norm(wz) + uz)
h = z * h + (1 - z) * relu(p_g * norm(wg) + ug)
""", name="LiGRU", paper="M. Ravanelli, P. Brakel, M. Omologo and Y. Bengio, \"Light gated "
                         "recurrent units for speech recognition\", IEEE TETCI 2, 2018")

UGRNN: Definition = cell("""
# z keeps; forget is the paper's b^fg, which z begins with
constant forget = 1
az, ag = W x + U h + b
z = sigmoid(az + forget)
h = z * h + (1 - z) * tanh(ag)
""", name="UGRNN", paper="J. Collins, J. Sohl-Dickstein and D. Sussillo, \"Capacity and "
                         "trainability in recurrent neural networks\", ICLR 2017")

FastRNN: Definition = cell("""
# alpha and beta are two learned numbers, given as numbers before their sigmoid; the sums over one
# unit let them meet all units
size one = 1
learned alpha[one] = -3
learned beta[one] = 3
g = tanh(W x + U h + b)
h = sigmoid(sum(alpha)) * g + sigmoid(sum(beta)) * h
""", name="FastRNN", paper="A. Kusupati, M. Singh, K. Bhatia, A. Kumar, P. Jain and M. Varma, "
                           "\"FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated "
                           "recurrent neural network\", NeurIPS 2018")

FastGRNN: Definition = cell("""
# one W and one U serve gate and candidate; zeta and nu are two learned numbers, given as numbers
# before their sigmoid. W and U have full rank; W2 (W1 x) is one of low rank
size one = 1
learned zeta[one] = 1
learned nu[one] = -4
learned b_z = 1
learned b_g = 1
a = W x + U h
z = sigmoid(a + b_z)
h = (sigmoid(sum(zeta)) * (1 - z) + sigmoid(sum(nu))) * tanh(a + b_g) + z * h
""", name="FastGRNN", paper=FastRNN.paper)

BRC: Definition = cell("""
# every unit sees of h' only itself; a > 1 makes a unit bistable. The paper has no biases
learned p_a = 1
learned p_z = 1
wa, wz, wg = W x + b
a = 1 + tanh(wa + p_a * h)
z = sigmoid(wz + p_z * h)
h = z * h + (1 - z) * tanh(wg + a * h)
""", name="BRC", paper="N. Vecoven, D. Ernst and G. Drion, \"A bio-inspired bistable recurrent "
                       "cell allows for long-lasting memory\", PLoS ONE 16, 2021")

nBRC: Definition = cell("""
# the bistable recurrent cell, neuromodulated: a and z see all units of h'
wa, wz, wg = W x + b
ua, uz = U h
z = sigmoid(wz + uz)
h = z * h + (1 - z) * tanh(wg + (1 + tanh(wa + ua)) * h)
""", name="nBRC", paper=BRC.paper)

sLSTM: Definition = cell("""
# exponential input gate, n normalises, m is the logarithm that keeps numbers small; U is one block
# for each head. At the start, where n is 0, m is ai, as in the authors' program: c / n is the same
# for any m
# the convolution before the gates and the norm of each head behind them are other layers
size heads = 4
learned b_f = uniform(0, 5)
weight U = blocks(heads)
weight U_f = blocks(heads)
ai, ag, ao = W x + U h + b
lf = -softplus(-(W_f x + U_f h + b_f))   # log(sigmoid)
k = where(n > 0, max(lf + m, ai), ai)
f = exp(min(lf + m - k, 0))              # greater than 1 at the start only, where c and n are 0
i = exp(ai - k)
c = f * c + i * tanh(ag)
n = f * n + i
m = k
h = sigmoid(ao) * c / n
""", name="sLSTM", paper="M. Beck, K. Poeppel, M. Spanring, A. Auer, O. Prudnikova, M. Kopp, "
                         "G. Klambauer, J. Brandstetter and S. Hochreiter, \"xLSTM: extended long "
                         "short-term memory\", NeurIPS 2024")

# ---- gates that see x only -----------------------------------------------------------------------

IndRNN: Definition = cell("""
# every unit sees of h' only itself. The paper keeps |u| <= r**(1/T), r = 2 say, after each update
learned u = uniform(0, 1)
h = relu(W x + u * h + b)
""", name="IndRNN", paper="S. Li, W. Li, C. Cook, C. Zhu and Y. Gao, \"Independently recurrent "
                          "neural network (IndRNN): building a longer and deeper RNN\", CVPR 2018")

minGRU: Definition = cell("""
# as in the paper's main part: no tanh, and h of any sign; the form for logarithms has
# where(ag >= 0, ag + 0.5, sigmoid(ag)) in the place of ag
az, ag = W x + b
z = sigmoid(az)
h = (1 - z) * h + z * ag
""", name="minGRU", paper="L. Feng, F. Tung, M. O. Ahmed, Y. Bengio and H. Hajimirsadeghi, \"Were "
                          "RNNs all we needed?\", arXiv:2410.01201, 2024")

minLSTM: Definition = cell("""
# f and i are made to sum to 1: h does not grow with time
af, ai, ag = W x + b
f = sigmoid(af)
i = sigmoid(ai)
h = f / (f + i) * h + i / (f + i) * ag
""", name="minLSTM", paper=minGRU.paper)

SRU: Definition = cell("""
# I = H, because x itself goes past the cell. alpha = sqrt(1 + 2 exp(b_r)), here for b_r = 0, keeps
# the variance of x. The paper draws W so that W x has the variance of x; p is drawn as in the
# authors' program
constant alpha = 1.7320508075688772
learned p_f = uniform(-1.2247, 1.2247)
learned p_r = uniform(-1.2247, 1.2247)
wf, wr = W_r x + b
r = sigmoid(wr + p_r * c)
f = sigmoid(wf + p_f * c)
c = f * c + (1 - f) * (W x)
h = r * c + (1 - r) * alpha * x
""", name="SRU", paper="T. Lei, Y. Zhang, S. I. Wang, H. Dai and Y. Artzi, \"Simple recurrent "
                       "units for highly parallelizable recurrence\", EMNLP 2018")

ProjectedSRU: Definition = cell("""
# SRU for I other than H: a learned matrix takes x past the cell, as in the authors' program
constant alpha = 1.7320508075688772
learned p_f = uniform(-1.2247, 1.2247)
learned p_r = uniform(-1.2247, 1.2247)
wf, wr = W_r x + b
wg, wx = W x
r = sigmoid(wr + p_r * c)
f = sigmoid(wf + p_f * c)
c = f * c + (1 - f) * wg
h = r * c + (1 - r) * alpha * wx
""", name="ProjectedSRU", paper=SRU.paper)

QRNN: Definition = cell("""
# a convolution over two steps with fo-pooling; last is x of the step before, so its width is I, and
# stacked layers need I = H. The paper has no biases
ag, af, ao = V last + W x + b
f = sigmoid(af)
c = f * c + (1 - f) * tanh(ag)
h = sigmoid(ao) * c
last = x
""", name="QRNN", paper="J. Bradbury, S. Merity, C. Xiong and R. Socher, \"Quasi-recurrent neural "
                        "networks\", ICLR 2017")

# ---- slow units and steps of differential equations ----------------------------------------------

SCRN: Definition = cell("""
# s changes slowly and has C units; the output is what the paper's softmax takes, H wide here
# the paper has no biases
constant alpha = 0.95
size C = 40
output y
state s[C]
s = (1 - alpha) * (B x) + alpha * s
h = sigmoid(P s + A x + R h + b)
y = U h + V s + b_y
""", name="SCRN", paper="T. Mikolov, A. Joulin, S. Chopra, M. Mathieu and M. Ranzato, \"Learning "
                        "longer memory in recurrent neural networks\", ICLR 2015 workshop")

LeakyESN: Definition = cell("""
# nothing in it is learned: W and U are drawn, U with a share of its numbers and a spectral radius
# a is the leak, gamma the gain of a step; a = 1 gives (1 - gamma) h' + gamma tanh(...)
constant a = 1
constant gamma = 0.3
constant density = 0.1
constant radius = 0.9
fixed W = uniform(-1, 1)
fixed U = sparse(density, radius)
h = (1 - a * gamma) * h + gamma * tanh(W x + U h)
""", name="LeakyESN", paper="H. Jaeger, M. Lukosevicius, D. Popovici and U. Siewert, "
                            "\"Optimization and applications of echo state networks with "
                            "leaky-integrator neurons\", Neural Networks 20, 2007")

AntisymmetricRNN: Definition = cell("""
# a step of Euler's method, epsilon long, of an equation that neither grows nor decays but for gamma
constant epsilon = 0.1
constant gamma = 0.01
weight U = antisymmetric(gamma)
h = h + epsilon * tanh(W x + U h + b)
""", name="AntisymmetricRNN", paper="B. Chang, M. Chen, E. Haber and E. H. Chi, \"AntisymmetricRNN:"
                                    " a dynamical system view on recurrent neural networks\", ICLR "
                                    "2019")

GatedAntisymmetricRNN: Definition = cell("""
# one U serves gate and candidate
constant epsilon = 0.1
constant gamma = 0.01
weight U = antisymmetric(gamma)
wz, wg = W x + b
u = U h
h = h + epsilon * sigmoid(wz + u) * tanh(wg + u)
""", name="GatedAntisymmetricRNN", paper=AntisymmetricRNN.paper)

coRNN: Definition = cell("""
# oscillators: y is where they are, z how fast. The damping is explicit, epsilon times the old z, as
# in the authors' program; the constants are those of its sequential MNIST
constant dt = 0.042
constant gamma = 2.7
constant epsilon = 4.7
output y
z = z + dt * (tanh(W y + U z + V x + b) - gamma * y - epsilon * z)
y = y + dt * z
""", name="coRNN", paper="T. K. Rusch and S. Mishra, \"Coupled oscillatory recurrent neural "
                         "network (coRNN): an accurate and (gradient) stable architecture for "
                         "learning long time dependencies\", ICLR 2021")

LEM: Definition = cell("""
# two learned lengths of a step, between 0 and dt, for each unit; y sees the new z
constant dt = 1
output y
a1, a2, az = W y + V x + b
s1 = dt * sigmoid(a1)
s2 = dt * sigmoid(a2)
z = (1 - s1) * z + s1 * tanh(az)
y = (1 - s2) * y + s2 * tanh(W_y z + V_y x + b_y)
""", name="LEM", paper="T. K. Rusch, S. Mishra, N. B. Erichson and M. W. Mahoney, \"Long "
                       "expressive memory for sequence modeling\", ICLR 2022")

CfC: Definition = cell("""
# the paper's sigmoid(-f t) g + (1 - sigmoid(-f t)) k with the authors' program's heads on one layer
# of N units: the time t becomes time_a dt + time_b. dt is one number, all steps are equally long
constant dt = 1
size N = 128
s[N] = scaled_tanh(W x + U h + b, 1.7159, 0.666)
ag, ak, time_a, time_b = V s + b_v
z = sigmoid(time_a * dt + time_b)
h = (1 - z) * tanh(ag) + z * tanh(ak)
""", name="CfC", paper="R. Hasani, M. Lechner, A. Amini, L. Liebenwein, A. Ray, M. Tschaikowski, "
                       "G. Teschl and D. Rus, \"Closed-form continuous-time neural networks\", "
                       "Nature Machine Intelligence 4, 2022")
