"""Learning-rate schedules against their equations."""

import dataclasses
import math
import pickle

import numpy as np
import pytest

from fastrnn import schedules

FALLS = [schedules.CosineDecay, schedules.LinearDecay, schedules.ExponentialDecay]


def test_constant_and_steps():
    assert [schedules.Constant()(step, 0.3) for step in (0, 7)] == [1, 1]
    schedule = schedules.StepDecay(3, 0.5)
    assert [schedule(step, 0.9) for step in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("fall", FALLS)
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_a_fall_from_one_to_final_behind_a_warmup(fall, warmup):
    schedule = fall(final=0.1, warmup=warmup)
    fractions = np.linspace(0, 1, 101)
    factors = np.array([schedule(0, fraction) for fraction in fractions])
    rising = fractions < warmup
    np.testing.assert_allclose(factors[rising], fractions[rising] / 0.2)
    x = (fractions[~rising] - warmup) / (1 - warmup)
    expected = {"CosineDecay": 0.1 + 0.9 * np.cos(np.pi * x / 2) ** 2, "LinearDecay": 1 - 0.9 * x,
                "ExponentialDecay": np.exp(np.log(0.1) * x)}[fall.__name__]
    np.testing.assert_allclose(factors[~rising], expected, rtol=1e-13)
    assert schedule(10**6, 1.5) == schedule(0, 1.0) == pytest.approx(0.1)


def test_the_defaults():
    assert schedules.CosineDecay() == schedules.CosineDecay(0.05, 0.0)
    assert schedules.LinearDecay() == schedules.LinearDecay(0.0, 0.0)
    assert schedules.LinearDecay()(0, 1.0) == 0
    for fraction in np.linspace(0, 1, 57):  # what training has always used, to the bit
        expected = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * fraction))
        assert schedules.CosineDecay()(0, fraction) == expected


@pytest.mark.parametrize("schedule", [schedules.Constant(), schedules.StepDecay(7, 0.3),
                                      *(fall(0.2, 0.1) for fall in FALLS)], ids=repr)
def test_a_schedule_is_a_value(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert dataclasses.replace(schedule) == schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.final = 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: schedules.StepDecay(0, 0.5), "StepDecay: every is 0, expected a whole number"),
        (lambda: schedules.StepDecay(5, 0), "StepDecay: factor is 0.0, expect"),
        (lambda: schedules.StepDecay(5, 1.5), "StepDecay: factor is 1.5, expected a number fr"),
        (lambda: schedules.CosineDecay(final=-0.1), "CosineDecay: final is -0.1, expec"),
        (lambda: schedules.CosineDecay(warmup=1), "CosineDecay: warmup is 1, expec"),
        (lambda: schedules.LinearDecay(warmup="x"), "LinearDecay: warmup is 'x'"),
        (lambda: schedules.ExponentialDecay(final=0), "ExponentialDecay: final is 0"),
    ],
)
def test_errors_of_schedules(make, match):
    with pytest.raises(ValueError, match=match):
        make()
