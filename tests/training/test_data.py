"""Batches: what each step reads, and what is refused as data."""

import numpy as np
import pytest
from runs import sine

from fastrnn import GRU, SequenceModel, fit
from fastrnn.training import Batch, Generated, Samples, Windows, evaluate


def read(windows):
    return [windows(k) for k in range(windows.count)]


@pytest.mark.parametrize(("N", "T", "B"), [(101, 7, 4), (101, 25, 4), (58, 7, 2), (9, 1, 1)])
def test_windows_walk_every_row_to_its_end_and_targets_follow(N, T, B):
    data = np.arange(N, dtype=np.uint8)
    windows = Windows(data, T, B)
    per = (N - 1) // B
    assert windows.count == -(-per // T)
    batches = read(windows)
    for k, batch in enumerate(batches):
        (symbols,) = batch.inputs
        assert symbols.dtype == batch.targets.dtype == np.int32
        np.testing.assert_array_equal(batch.targets, symbols + 1)
        assert batch.first == (k == 0)
        assert batch.size == symbols.size
        assert len(symbols) == (T if k + 1 < windows.count else per - T * k)
    whole = np.concatenate([batch.inputs[0] for batch in batches])
    np.testing.assert_array_equal(whole, np.arange(per)[:, None] + per * np.arange(B))
    assert [windows(k).first for k in range(2 * windows.count + 1)] == \
        ([True] + [False] * (windows.count - 1)) * 2 + [True]


def test_windows_of_bytes_numbers_and_targets():
    data = np.frombuffer(b"a text of some length", np.uint8)
    for given in (b"a text of some length", bytearray(data), memoryview(data), data.tolist()):
        np.testing.assert_array_equal(Windows(given, 3, 2)(1).inputs[0],
                                      Windows(data, 3, 2)(1).inputs[0])
    series = np.arange(20) / 2
    batch = Windows(series, 4, 2)(0)
    assert batch.inputs[0].shape == (4, 2, 1)
    np.testing.assert_array_equal(batch.inputs[0] + 0.5, batch.targets)
    for n in (19, 20):
        tags = np.arange(n) % 3
        windows = Windows(series, 3, 2, tags)
        assert windows(0).targets.shape == (3, 2)
        per = n // 2
        np.testing.assert_array_equal(np.concatenate([b.targets for b in read(windows)]),
                                      tags[: 2 * per].reshape(2, per).T)


@pytest.mark.parametrize("far", [2**31, 2**32, 2**33, -(2**32), 2**40])
def test_symbols_beyond_32_bits_are_no_other_symbols(far):
    model = SequenceModel(GRU(2, 4, seed=0), 5, vocab_size=5, seed=0)
    near = np.arange(40) % 5
    for windows in (Windows(near + far, 10, 2), Windows(near, 10, 2, targets=near + far)):
        for run in (lambda w: evaluate(model, w, 2), lambda w: fit(model, w, steps=1)):
            with pytest.raises(IndexError, match=str(far)[:6]):
                run(windows)


def test_a_view_of_memory_is_what_it_views():
    a = np.arange(6)
    for view, array in ((memoryview(a), a), (memoryview(a / 7), a / 7),
                        (memoryview(b"abcdef"), np.frombuffer(b"abcdef", np.uint8)),
                        (memoryview(b"abcdef").cast("c"), np.frombuffer(b"abcdef", np.uint8)),
                        (memoryview(a)[::2], a[::2])):
        of = (Windows(each, 1, 2) for each in (view, array))
        for got, expected in zip(*map(read, of), strict=True):
            np.testing.assert_array_equal(got.inputs[0], expected.inputs[0])
            np.testing.assert_array_equal(got.targets, expected.targets)
    model = SequenceModel(GRU(1, 4, seed=0), 1, loss="mse", seed=0)
    series = np.sin(np.arange(9, dtype=np.float32))
    np.testing.assert_array_equal(model.predict(memoryview(series)), model.predict(series))


def test_windows_of_several_series_side_by_side():
    x = np.arange(3 * 10).reshape(3, 10).T  # (steps, series)
    windows = Windows.of_series(x, x + 1, 4, 2)
    assert windows.count == 6
    batches = read(windows)
    assert [batch.inputs[0].shape for batch in batches] == [(4, 2), (4, 2), (2, 2), (4, 1), (4, 1),
                                                            (2, 1)]
    assert [batch.first for batch in batches] == [True, False, False] * 2
    np.testing.assert_array_equal(np.concatenate([b.inputs[0] for b in batches[3:]]), x[:, 2:])


@pytest.mark.parametrize("order", ["C", "first"])
def test_samples_are_all_read_once_an_epoch_in_a_new_order(order):
    x = np.arange(5 * 7).reshape(5, 7, 1)
    if order == "first":  # as it lies in memory when sequences are first
        x = np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    data = Samples(x, np.arange(7), 2, axis=0, weights=np.arange(7) / 7,
                   context=np.arange(7)[:, None], seed=1)
    assert data.count == 4
    epochs = []
    for epoch in range(2):
        batches = [data(epoch * 4 + k) for k in range(4)]
        for batch in batches:
            (columns,) = batch.inputs
            np.testing.assert_array_equal(columns[0, :, 0], batch.targets)
            np.testing.assert_array_equal(batch.weights, batch.targets / 7)
            np.testing.assert_array_equal(batch.context[:, 0], batch.targets)
            assert batch.first
        assert [batch.size for batch in batches] == [10, 10, 10, 5]
        epochs.append(np.concatenate([batch.targets for batch in batches]))
        assert sorted(epochs[-1].tolist()) == list(range(7))
    assert epochs[0].tolist() != epochs[1].tolist()
    np.testing.assert_array_equal(data(5).targets, epochs[1][2:4])
    np.testing.assert_array_equal(data(0).targets, epochs[0][:2])
    plain = Samples(x, np.arange(7), 3, axis=0, shuffle=False)
    assert np.concatenate([plain(k).targets for k in range(6)]).tolist() == [*range(7)] * 2


def test_samples_have_targets_and_masks_for_each_step():
    x = np.arange(5 * 7).reshape(5, 7, 1)
    data = Samples(x.tolist(), x + 1, 3, weights=(x[..., 0] % 2).astype(bool))
    for k in range(data.count):
        batch = data(k)
        np.testing.assert_array_equal(batch.inputs[0] + 1, batch.targets)
        np.testing.assert_array_equal(batch.weights, batch.inputs[0][..., 0] % 2)


def test_generated_batches_depend_on_seed_and_step_alone():
    def draw(rng):
        return Batch(rng.standard_normal((3, 2, 1)), rng.standard_normal((3, 2, 1)))

    a, b, c = Generated(draw, 1), Generated(draw, 1), Generated(draw, 2)
    np.testing.assert_array_equal(a(5).targets, b(5).targets)
    assert not np.array_equal(a(5).targets, a(6).targets)
    assert not np.array_equal(a(5).targets, c(5).targets)


def test_the_size_of_a_batch_is_the_steps_of_all_rows_whatever_the_targets():
    x = np.zeros((5, 3, 2))
    for targets in (np.zeros((5, 3)), np.zeros((5, 3, 4)), np.zeros(3), np.zeros((3, 4)), [0] * 3):
        assert Batch(x, targets).size == Batch((x,), targets).size == 15
    assert Batch((x, np.zeros((2, 3))), None).size == 15 + 6


def test_fingerprints_differ_with_what_is_read():
    x = np.arange(60.0).reshape(5, 6, 2)
    made = [Samples(x, x, 2), Samples(x, x, 3), Samples(x, x, 2, seed=1), Samples(x, -x, 2),
            Samples(x, x, 2, shuffle=False), Samples(x.astype(np.float32), x, 2),
            Samples(x, x, 2, weights=np.ones((5, 6))),
            Windows(sine(), 7, 3), Windows(sine(), 7, 4), Windows(sine(), 8, 3),
            Windows(sine() + 1, 7, 3), Windows(sine(430), 7, 3)]
    found = [repr(data.fingerprint()) for data in made]
    assert len(set(found)) == len(found)
    assert Samples(x.copy(), x, 2).fingerprint() == made[0].fingerprint()
    assert Samples(np.asfortranarray(x), x, 2).fingerprint()["data"][1] == \
        made[0].fingerprint()["data"][1]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Windows(sine(10), 4, 3), ValueError,
         "Windows: sequence has 10 elements, expected at least 13 for 3 rows of 4"),
        (lambda: Windows(sine(12), 4, 3, np.zeros(12)[:11]), ValueError, "expected at least 13"),
        (lambda: Windows(sine(11), 4, 3, np.zeros(11)), ValueError, "expected at least 12 for 3"),
        (lambda: Windows(sine(10), 0, 3), ValueError, "Windows: T is 0"),
        (lambda: Windows("some text", 2, 1), TypeError, "Windows: sequence is a str, expected an"),
        (lambda: Windows(b"", 2, 1), ValueError, "sequence has 0 elements"),
        (lambda: Windows(3.0, 2, 1), ValueError, r"sequence has shape \(\), expected \(N,\)"),
        (lambda: Windows([[1], [2, 3]], 2, 1), ValueError, "sequence is a ragged sequence"),
        (lambda: Windows(["a", "b"], 2, 1), TypeError, r"sequence is \[.*\], expected number"),
        (lambda: Windows(sine(10), 2, 1, np.zeros(8)), ValueError,
         "targets has 8 elements, expected 10, as many as sequence, or one less"),
        (lambda: Windows(sine(10), 2, 1, np.zeros(11)), ValueError, "targets has 11 elements"),
        (lambda: Samples(np.zeros((5, 3, 1)), np.zeros((5, 4)), 2), ValueError,
         r"Samples: targets has shape \(5, 4\), expected 3 along axis 1"),
        (lambda: Samples(np.zeros((5, 3, 1)), np.zeros(3), 2), ValueError,
         r"targets has shape \(3,\), expected 3 along axis 1"),
        (lambda: Samples(np.zeros((5, 3, 1)), np.zeros(4), 2, axis=0), ValueError, "along axis 0"),
        (lambda: Samples(np.zeros((5, 3, 1)), np.zeros(3), 2, axis=2), ValueError, "axis is 2"),
        (lambda: Samples(np.zeros(5), np.zeros(5), 2), ValueError,
         r"x has shape \(5,\), expected \(T, N, ...\)"),
        (lambda: Samples(np.zeros((5, 0, 1)), np.zeros((5, 0)), 2), ValueError, "at least one seq"),
        (lambda: Samples([[1, 2], [3]], [1], 2), ValueError, "x is a ragged sequence, expected"),
        (lambda: Samples([["a"]], [["b"]], 2), TypeError, r"x is \[.*\], expected numbers"),
        (lambda: Samples(np.zeros((5, 3)), np.zeros((5, 3)), 2, weights=np.zeros(3)), ValueError,
         r"weights has shape \(3,\), expected 3 along axis 1"),
        (lambda: Samples(np.zeros((5, 3)), np.zeros((5, 3)), 0), ValueError, "batch_size is 0"),
        (lambda: Samples(np.zeros((5, 3)), np.zeros((5, 3)), 1, seed=-1), ValueError, "seed is -1"),
        (lambda: Generated(3), TypeError, "Generated: draw is of type int, expected a function"),
        (lambda: Generated(lambda rng: None, None), ValueError, "seed is None"),
    ],
)
def test_errors(make, error, match):
    with pytest.raises(error, match=match) as raised:
        make()
    assert "\n" not in str(raised.value)
