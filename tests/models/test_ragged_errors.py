"""Lists, lengths and episodes that do not fit: one sentence each, and nothing has changed."""

import numpy as np
import pytest
from kinds import model_of, pair_of
from lists import LENGTHS, grid, lists_of, pair_lists

from fastrnn import LSTM, Stack

TAGS, NUMBERS, CLASSES = (model_of(k) for k in ("tags of symbols", "numbers", "a class"))
X, Y = lists_of(TAGS).x, lists_of(TAGS).targets
R, Z = lists_of(NUMBERS).x, lists_of(NUMBERS).targets
PADDED = grid(R, 1, 0)
GOALS = grid(Z, 1, 0)


def with_one(arrays, i, a):
    return [*arrays[:i], a, *arrays[i + 1 :]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NUMBERS([]), ValueError,
         "SequenceModel: x is an empty list, expected at least one sequence"),
        (lambda: NUMBERS(()), ValueError, "x is an empty tuple, expected at least one"),
        (lambda: Stack(LSTM(3, 4))([]), ValueError, "Stack: x is an empty list"),
        (lambda: NUMBERS(with_one(R, 2, np.zeros((3, 5)))), ValueError,
         r"x\[2\] has shape \(3, 5\), expected \(T, 2\)"),
        (lambda: NUMBERS(with_one(R, 1, np.zeros(3))), ValueError, r"x\[1\] has shape \(3,\)"),
        (lambda: NUMBERS(with_one(R, 3, np.zeros((3, 2), np.float32))), TypeError,
         r"x\[3\] is float32, expected float64"),
        (lambda: NUMBERS(with_one(R, 3, None)), TypeError, r"x\[3\] is"),
        (lambda: TAGS(with_one(X, 2, np.zeros((3, 1), int))), ValueError,
         r"x\[2\] has shape \(3, 1\), expected \(T,\)"),
        (lambda: TAGS(with_one(X, 2, np.zeros(3, np.int16))), TypeError,
         r"x\[2\] is int16, expected int64 like x\[0\]"),
        (lambda: TAGS([np.ones(2), np.ones(3)]), TypeError, "x is float64, expected whole numbers"),
        (lambda: TAGS(with_one(X, 2, np.array([6]))), IndexError, "x has numbers from 1 to 6"),
        (lambda: NUMBERS(R, lengths=LENGTHS), ValueError, "lengths is given with a list, expected "
         "None: each sequence of x has a length of its own"),
        (lambda: NUMBERS(PADDED, lengths=[1] * 5), ValueError,
         r"lengths has shape \(5,\), expected \(6,\)"),
        (lambda: NUMBERS(PADDED, lengths=[8] * 6), ValueError,
         "numbers from 8 to 8, expected 0 to 7"),
        (lambda: NUMBERS(PADDED, lengths=[1.0] * 6), TypeError,
         "lengths is float64, expected whole"),
        (lambda: TAGS(np.zeros(6, int), lengths=[1] * 6), ValueError,
         r"x has shape \(6,\), expected"),
        (lambda: TAGS(np.zeros((2, 2)), lengths=[1, 1]), TypeError, "x is float64, expected whole"),
        (lambda: TAGS(np.full((2, 2), 9), lengths=[1, 1]), IndexError, "x has numbers from 0 to 9"),
        (lambda: NUMBERS(PADDED, episode_start=np.zeros((7, 5), bool)), ValueError,
         r"episode_start has shape \(7, 5\), expected \(7, 6\)"),
        (lambda: NUMBERS(PADDED, episode_start=np.zeros((7, 6))), TypeError,
         "episode_start is float64, expected booleans"),
        (lambda: NUMBERS(R, episode_start=np.zeros((7, 6), bool)), TypeError,
         "episode_start is of type ndarray, expected a list like x: an array for each sequence"),
        (lambda: NUMBERS(R, episode_start=[np.zeros(n, bool) for n in LENGTHS[:5]]), ValueError,
         "episode_start has 5 sequences, expected 6: as many as x"),
        (lambda: NUMBERS(R, episode_start=[np.zeros(4, bool)] * 6), ValueError,
         r"episode_start\[1\] has shape \(4,\), expected \(0,\)"),
        (lambda: NUMBERS(R, episode_start=[np.zeros(n) for n in LENGTHS]), TypeError,
         r"episode_start\[0\] is float64, expected booleans"),
        (lambda: NUMBERS.loss(R, Z[:5]), ValueError,
         "SequenceModel.loss: targets has 5 sequences, expected 6: as many as x"),
        (lambda: NUMBERS.loss(R, with_one(Z, 4, Z[4][1:])), ValueError,
         r"targets\[4\] has shape \(5, 4\), expected \(6, 4\): x\[4\] has 6 steps"),
        (lambda: NUMBERS.loss(R, GOALS), TypeError, "targets is of type ndarray, expected a list"),
        (lambda: NUMBERS.loss(R, [z.astype(np.float32) for z in Z]), TypeError,
         "targets is float32, expected float64"),
        (lambda: NUMBERS.loss(R, with_one(Z, 0, Z[0].astype(np.float32))), TypeError,
         r"targets\[2\] is float64, expected float32 like targets\[0\]"),
        (lambda: NUMBERS.loss(PADDED, GOALS[1:], lengths=LENGTHS), ValueError,
         r"targets has shape \(6, 6, 4\), expected \(7, 6, 4\)"),
        (lambda: NUMBERS.loss(PADDED, Z, lengths=LENGTHS), ValueError, "targets is a ragged seq"),
        (lambda: NUMBERS.loss(R, Z, weights=[np.ones(2)] * 6), ValueError,
         r"weights\[0\] has shape \(2,\), expected \(4,\): x\[0\] has 4 steps"),
        (lambda: NUMBERS.loss(R, Z, weights=np.ones(5)), ValueError,
         r"weights has shape \(5,\), expected \(6,\), one for each sequence of x, or a list"),
        (lambda: NUMBERS.loss(R, Z, weights=[-1.0] * 6), ValueError, "weights has numbers from -1"),
        (lambda: NUMBERS.loss(PADDED, GOALS, lengths=LENGTHS, weights=np.ones(6)), ValueError,
         r"weights has shape \(6,\), expected \(7, 6\)"),
        (lambda: TAGS.loss(X, with_one(Y, 0, Y[0] + 4)), IndexError, "targets has numbers"),
        (lambda: CLASSES.loss(lists_of(CLASSES).x, [np.zeros(n, int) for n in LENGTHS]), ValueError,
         "targets is a ragged sequence"),
        (lambda: NUMBERS.forward(R)[2].backward([z[:1] for z in Z]), ValueError,
         r"doutputs\[0\] has shape \(1, 4\), expected \(4, 4\)"),
        (lambda: NUMBERS.forward(PADDED, lengths=LENGTHS)[2].backward(GOALS[1:]), ValueError,
         r"doutputs has shape \(6, 6, 4\), expected \(7, 6, 4\)"),
        (lambda: pair_of().loss(pair_lists()[0][:5], *pair_lists()[1:3]), ValueError,
         "EncoderDecoder.loss: inputs has 6 rows, expected 5: as many as source"),
        (lambda: pair_of().loss([], *pair_lists()[1:3]), ValueError, "source is an empty list"),
        (lambda: pair_of().generate(pair_lists()[0], np.zeros(5, int), 3), ValueError,
         "first has 5 rows, expected 6"),
        (lambda: pair_of().loss(*pair_lists()[:2], pair_lists()[2][1:]), ValueError,
         "targets has 5 sequences, expected 6: as many as inputs"),
    ],
)
def test_what_does_not_fit_is_one_sentence(call, error, message):
    before = [{n: g.copy() for n, g in m.grads.items()} for m in (TAGS, NUMBERS, CLASSES)]
    with pytest.raises(error, match=message) as caught:
        call()
    assert caught.type in (TypeError, ValueError, IndexError)
    assert "\n" not in str(caught.value)
    for model, grads in zip((TAGS, NUMBERS, CLASSES), before, strict=True):
        for name, grad in grads.items():
            np.testing.assert_array_equal(model.grads[name], grad)


def test_a_pass_with_a_wrong_gradient_can_still_go_back():
    _, _, p = NUMBERS.forward(R)
    with pytest.raises(ValueError, match="doutputs has 5 sequences"):
        p.backward(Z[:5])
    p.backward(Z)
    NUMBERS.zero_grad()


def test_nested_lists_of_numbers_are_still_one_array():
    numbers = np.arange(6).reshape(2, 3).tolist()
    np.testing.assert_array_equal(TAGS(numbers)[0], TAGS(np.array(numbers))[0])
    with pytest.raises(ValueError, match=r"x is a ragged sequence of lists, .* a list of arrays"):
        TAGS([[0], [1, 2]])
