"""Schedules at the ends of their range, and back from their configs."""

import math

import keras
import pytest

from tfcompress import schedules

_POLYNOMIAL = schedules.Polynomial(0.2, 0.8, begin=10, end=20)
_LINEAR = schedules.Polynomial(0.2, 0.8, begin=10, end=20, power=1)
_COSINE = schedules.Cosine(0.2, 0.8, begin=10, end=20)
_FALLING = schedules.Polynomial(1.0, 0.0, begin=0, end=4, power=2)


@pytest.mark.parametrize(
    "schedule, values",
    [
        (
            _POLYNOMIAL,
            {9: 0.2, 10: 0.2, 11: 0.8 - 0.6 * 0.9**3, 15: 0.725, 20: 0.8, 21: 0.8},
        ),
        (_LINEAR, {9: 0.2, 10: 0.2, 11: 0.26, 15: 0.5, 19: 0.74, 20: 0.8, 21: 0.8}),
        (
            _COSINE,
            {
                9: 0.2,
                10: 0.2,
                12: 0.5 - 0.3 * math.cos(0.2 * math.pi),
                15: 0.5,
                20: 0.8,
                21: 0.8,
            },
        ),
        (_FALLING, {-1: 1.0, 0: 1.0, 1: 0.5625, 2: 0.25, 4: 0.0, 5: 0.0}),
        (
            schedules.Iterative(0.875, rounds=3, every=10),
            {0: 0, 9: 0, 10: 0.5, 19: 0.5, 20: 0.75, 29: 0.75, 30: 0.875, 99: 0.875},
        ),
        (schedules.Constant(0.7, begin=3), {2: 0.0, 3: 0.7, 4: 0.7, 1000: 0.7}),
        (schedules.Constant(0.7), {0: 0.7, 1: 0.7}),
    ],
    ids=repr,
)
def test_value_at_each_end_one_step_beyond_and_between(schedule, values):
    for step, value in values.items():
        # 1e-12: float64 arithmetic in another order.
        assert schedule(step) == pytest.approx(value, abs=1e-12), step


def test_the_default_polynomial_is_the_cubic_of_zhu_and_gupta():
    schedule = schedules.Polynomial(0.0, 0.8, begin=0, end=1000)
    assert schedule(500) == pytest.approx(0.8 + (0.0 - 0.8) * (1 - 0.5) ** 3)
    assert schedule(500) == pytest.approx(0.7)  # As the module's docstring says.


@pytest.mark.parametrize("schedule", [_POLYNOMIAL, _LINEAR, _COSINE])
def test_ramps_rise_all_the_way_and_end_exactly_at_their_final_value(schedule):
    values = [schedule(step) for step in range(10, 21)]
    assert values == sorted(values)
    assert len(set(values)) == len(values)
    assert schedule(20) == schedule.final
    assert schedule(10) == pytest.approx(schedule.initial, abs=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        _POLYNOMIAL,
        _LINEAR,
        _COSINE,
        schedules.Constant(0.5, begin=7),
        schedules.Iterative(0.5, rounds=2, every=7),
    ],
    ids=repr,
)
def test_config_round_trip_gives_an_equal_schedule(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    back = keras.saving.deserialize_keras_object(config)
    assert back == schedule
    assert [back(s) for s in range(30)] == [schedule(s) for s in range(30)]


def test_schedules_of_other_settings_or_kind_are_not_equal():
    assert _POLYNOMIAL != _LINEAR
    assert _COSINE != _POLYNOMIAL


@pytest.mark.parametrize("kind", [schedules.Polynomial, schedules.Cosine])
@pytest.mark.parametrize("end", [5, 4])
def test_a_schedule_must_end_after_it_begins(kind, end):
    with pytest.raises(ValueError, match="must end after it begins") as caught:
        kind(0.0, 0.5, begin=5, end=end)
    assert f"begin=5, end={end}" in str(caught.value)


@pytest.mark.parametrize("settings", [{"rounds": 0, "every": 3}, {"every": 0}])
def test_a_staircase_has_stairs(settings):
    with pytest.raises(ValueError, match="1 or more rounds"):
        schedules.Iterative(0.5, **settings)


def test_a_staircase_begins_and_ends_with_a_stair():
    schedule = schedules.Iterative(0.5, rounds=3, every=10)
    assert (schedule.begin, schedule.end) == (10, 30)


def test_a_constant_ends_where_it_begins():
    assert schedules.Constant(0.5, begin=7).end == 7


def test_repr_shows_the_settings():
    assert repr(schedules.Constant(0.5, begin=7)) == "Constant(final=0.5, begin=7)"
