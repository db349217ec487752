"""Tables of pandas with columns of several number dtypes."""

import numpy as np
import pytest

from fastrnn import GRU, SequenceModel

pandas = pytest.importorskip("pandas")


def model(I):
    return SequenceModel(GRU(I, 3, seed=0), 1, loss="mse", seed=0)


@pytest.mark.parametrize("dtypes", [("float64", "bool"), ("Float64", "Int64"), ("int8", "float32"),
                                    ("boolean", "Float32"), ("Int64", "bool")], ids="-".join)
def test_a_table_is_its_numbers(dtypes):
    numbers = np.array([[1, 0], [0, 1], [1, 1]])
    table = pandas.DataFrame({name: pandas.array(column, dtype=dtype) for name, column, dtype in
                              zip("ab", numbers.T.tolist(), dtypes, strict=True)})
    found = model(2).predict(table)
    np.testing.assert_array_equal(found, model(2).predict(numbers.astype(np.float64)))


def test_a_list_of_tables():
    table = pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": [True, False, True]})
    numbers = table.to_numpy(np.float64)
    for rows in (3, 2):
        found = model(2).predict([table, table[:rows]])
        expected = model(2).predict([numbers, numbers[:rows]])
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_table_with_words_is_refused():
    table = pandas.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
    with pytest.raises(TypeError, match="x has dtype object, expected numbers"):
        model(2).predict(table)


def test_what_is_missing_in_a_table_is_named():
    table = pandas.DataFrame({"a": pandas.array([1.0, None], "Float64"), "b": [1, 2]})
    with pytest.raises(ValueError, match=r"x\[1, 0\] is nan"):
        model(2).predict(table)
