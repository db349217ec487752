"""Weights as parameters and as the matrix of a step: shapes, gradients, first values."""

import numpy as np
import pytest

from fastrnn.cells import cell
from fastrnn.cells.weights import effective, initial, pull_back, shape

KINDS = ["uniform", "antisymmetric(0.3)", "antisymmetric(g)", "dropconnect(0.5)", "blocks(2)",
         "blocks(n)", "blocks(1)"]


def weight_of(declaration, targets="h", kind="weight", product="U h"):
    """Return a weight, sizes (I = 4, H = 6) and constants of a definition that declares it."""
    constant = "constant g = 0.7\n" if "(g" in declaration else ""
    size = "size n = 3\n" if "(n" in declaration else ""
    more = "" if targets == "h" else "\nh = a * z"
    other = "W x" if product == "U h" else "W h"
    definition = cell(
        f"{constant}{size}{kind} U = {declaration}\n{targets} = {product} + {other}{more}")
    return definition.weights["U"], definition.resolve(4, 6), definition.numbers()


@pytest.mark.parametrize("targets", ["h", "a, z"])
@pytest.mark.parametrize("declaration", KINDS)
def test_the_matrix_of_a_step(declaration, targets):
    weight, sizes, constants = weight_of(declaration, targets)
    G = weight.blocks
    assert len(targets.split(",")) == G
    n = {"blocks(2)": 2, "blocks(n)": 3}.get(declaration, 1)
    assert shape(weight, sizes) == (G * 6, 6 // n)
    parameter = np.random.default_rng(0).normal(size=(G * 6, 6 // n))
    matrix = effective(weight, parameter, sizes, constants)
    assert matrix.shape == (G * 6, 6)
    for g in range(G):
        U, E = parameter[g * 6:(g + 1) * 6], matrix[g * 6:(g + 1) * 6]
        if weight.kind == "antisymmetric":
            gamma = 0.7 if "(g" in declaration else 0.3
            np.testing.assert_allclose(E, U - U.T - gamma * np.eye(6))
        elif weight.kind == "blocks":
            expected = np.zeros((6, 6))
            for i in range(6):
                for j in range(6 // n):
                    expected[i, i // (6 // n) * (6 // n) + j] = U[i, j]
            np.testing.assert_array_equal(E, expected)
        else:
            np.testing.assert_array_equal(E, U)


def test_diagonal_blocks_that_are_not_square():
    weight, sizes, constants = weight_of("blocks(2)", product="U x")
    assert shape(weight, sizes) == (6, 2)
    parameter = np.arange(1.0, 13).reshape(6, 2)
    matrix = effective(weight, parameter, sizes, constants)
    np.testing.assert_array_equal(matrix[:3, :2], parameter[:3])
    np.testing.assert_array_equal(matrix[3:, 2:], parameter[3:])
    assert np.count_nonzero(matrix) == 12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("declaration", KINDS)
def test_the_dtype_is_the_parameters(declaration, dtype):
    weight, sizes, constants = weight_of(declaration)
    parameter = np.ones(shape(weight, sizes), dtype)
    mask = np.ones(parameter.shape, dtype)
    assert effective(weight, parameter, sizes, constants, mask).dtype == dtype
    gradient = pull_back(weight, np.ones((6, 6), dtype), sizes, constants, mask)
    assert gradient.dtype == dtype
    assert gradient.flags.c_contiguous


@pytest.mark.parametrize("targets", ["h", "a, z"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("declaration", KINDS)
def test_the_gradient_of_the_parameter_is_that_of_differences(declaration, masked, targets):
    weight, sizes, constants = weight_of(declaration, targets)
    rng = np.random.default_rng(1)
    parameter = rng.normal(size=shape(weight, sizes))
    mask = rng.normal(size=parameter.shape) if masked else None
    d = rng.normal(size=(weight.blocks * 6, 6))
    gradient = pull_back(weight, d, sizes, constants, mask)
    assert gradient.shape == parameter.shape
    for place in np.ndindex(parameter.shape):
        moved = []
        for step in (0.5, -0.5):  # the matrix is affine in the parameter: any step is exact
            changed = parameter.copy()
            changed[place] += step
            moved.append((effective(weight, changed, sizes, constants, mask) * d).sum())
        assert gradient[place] == pytest.approx(moved[0] - moved[1], abs=1e-10)


# ------------------------------------------------------------------------------------ first values


def drawn(declaration, targets="h", kind="weight", product="U h", dtype=np.float64, seed=0):
    weight, sizes, constants = weight_of(declaration, targets, kind, product)
    return initial(weight, np.random.default_rng(seed), sizes, constants, dtype)


@pytest.mark.parametrize("declaration", [*KINDS, "orthogonal", "identity", "normal(0.5)", "zeros",
                                         "uniform(2, 3)"])
def test_a_seed_gives_the_same_values_in_every_dtype(declaration):
    a, b = drawn(declaration), drawn(declaration, dtype=np.float32)
    assert a.dtype == np.float64
    assert b.dtype == np.float32
    np.testing.assert_array_equal(a.astype(np.float32), b)
    random = declaration not in ("identity", "zeros")
    assert np.array_equal(a, drawn(declaration, seed=1)) is not random


def test_uniform_and_normal_and_zeros():
    bound = 1 / np.sqrt(6)
    for declaration, low, high in (("uniform", -bound, bound), ("blocks(2)", -bound, bound),
                                   ("uniform(2, 3)", 2, 3), ("antisymmetric(0.1)", -bound, bound)):
        a = np.concatenate([drawn(declaration, seed=seed) for seed in range(50)])
        assert low <= a.min() < low + 0.05 * (high - low)
        assert high >= a.max() > high - 0.05 * (high - low)
    a = np.concatenate([drawn("normal(0.5)", seed=seed) for seed in range(50)])
    assert a.std() == pytest.approx(0.5, rel=0.1)
    assert abs(a.mean()) < 0.1
    assert not drawn("zeros").any()


@pytest.mark.parametrize("product", ["U h", "U x"])
def test_orthogonal_and_identity_by_row_block(product):
    columns = 6 if product == "U h" else 4
    for g in range(2):
        a = drawn("orthogonal", "a, z", product=product)[g * 6:(g + 1) * 6]
        assert a.shape == (6, columns)
        np.testing.assert_allclose(a.T @ a, np.eye(columns), atol=1e-12)
        a = drawn("identity", "a, z", product=product)[g * 6:(g + 1) * 6]
        np.testing.assert_array_equal(a, np.eye(6, columns))
    two = drawn("orthogonal", "a, z")
    assert not np.allclose(two[:6], two[6:])


def test_orthogonal_matrices_have_no_preferred_signs():
    corners = np.array([drawn("orthogonal", seed=seed)[0, 0] for seed in range(60)])
    assert 15 < (corners > 0).sum() < 45


def test_a_wide_orthogonal_matrix_has_orthonormal_rows():
    definition = cell("weight R = orthogonal\nsize P = 2\nc = W x + U h\nh[P] = R c")
    a = initial(definition.weights["R"], np.random.default_rng(0), definition.resolve(3, 5), {},
                np.float64)
    assert a.shape == (2, 5)
    np.testing.assert_allclose(a @ a.T, np.eye(2), atol=1e-12)


def test_a_sparse_matrix_has_its_density_and_its_spectral_radius():
    definition = cell("constant rho = 0.9\nfixed U = sparse(0.2, rho)\nh = tanh(W x + U h)")
    for rho in (0.9, 1.2):
        a = initial(definition.weights["U"], np.random.default_rng(0), definition.resolve(3, 60),
                    {"rho": rho}, np.float64)
        assert np.abs(np.linalg.eigvals(a)).max() == pytest.approx(rho)
        assert np.count_nonzero(a) / 3600 == pytest.approx(0.2, abs=0.03)


def test_a_sparse_matrix_without_a_spectral_radius_is_refused():
    definition = cell("fixed U = sparse(0.000001, 1)\nh = tanh(W x + U h)")
    with pytest.raises(ValueError, match="drew matrices of 4 rows whose eigenvalues are all 0"):
        initial(definition.weights["U"], np.random.default_rng(0), definition.resolve(3, 4), {})


def test_a_small_sparse_matrix_is_drawn_until_it_has_a_spectral_radius():
    definition = cell("fixed U = sparse(0.1, 0.9)\nh = tanh(W x + U h)")
    for seed in range(20):  # most of the first draws are nilpotent
        a = initial(definition.weights["U"], np.random.default_rng(seed),
                    definition.resolve(3, 4), {}, np.float64)
        assert np.abs(np.linalg.eigvals(a)).max() == pytest.approx(0.9)


@pytest.mark.parametrize(("declaration", "low", "high"), [
    ("0.25", 0.25, 0.25), ("-2", -2, -2), ("k", 0.5, 0.5), ("uniform(-1, 3)", -1, 3),
    ("uniform(k, 1)", 0.5, 1), ("normal(7, 0.01)", 6.9, 7.1)])
def test_learned_vectors(declaration, low, high):
    constant = "constant k = 0.5\n" if "k" in declaration else ""
    definition = cell(f"{constant}learned p = {declaration}\nh = W x + p * h + b")
    sizes, rng = definition.resolve(3, 200), np.random.default_rng(0)
    assert shape(definition.vectors["p"], sizes) == (200,)
    a = initial(definition.vectors["p"], rng, sizes, definition.numbers(), np.float64)
    assert low <= a.min() <= a.max() <= high
    assert low == high or a.std() > 0
    bias = initial(definition.vectors["b"], rng, sizes, definition.numbers(), np.float64)
    assert 0.9 < np.abs(bias).max() * np.sqrt(200) <= 1
