"""The recurrent node tests that the package onnx has for every backend: all 18 run."""

import unittest
import warnings

import pytest

pytest.importorskip("onnx")

NAMES = r"^test_(lstm|gru|rnn|simple_rnn)_.*_cpu$"


def cases():
    """Return the names of the tests, and the classes that have them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package draws the data of all its tests with overflow
        import onnx.backend.test
        from onnx_backend import FastrnnBackend

        suite = onnx.backend.test.BackendTest(FastrnnBackend, __name__).include(NAMES)
        tests = list(suite.test_suite)
    return {test.id().rpartition(".")[2]: test for test in tests}


TESTS = cases()


def test_there_are_18():
    run = [name for name, test in TESTS.items() if not skipped(test)]
    assert len(run) == 18, run


def skipped(test):
    method = getattr(test, test.id().rpartition(".")[2])
    return getattr(method, "__unittest_skip__", False)


@pytest.mark.parametrize("name", sorted(name for name, test in TESTS.items() if not skipped(test)))
def test_a_node(name):
    result = unittest.TestResult()
    TESTS[name].run(result)
    assert result.testsRun == 1
    problems = [text for _, text in (*result.errors, *result.failures)]
    assert not problems, problems[0]
    assert not result.skipped
