"""Settings of a loss that may change while it is trained.

Example:
    ```python
    value_at(tfc.schedules.Polynomial(8, 2, end=1000), optimizer.iterations)
    ```
"""

import keras
import numpy as np
from keras import ops

from tfcompress.schedules import Schedule

_LONGEST = 10_000_000


def value_at(setting, step):
    """The value of a setting at a step.

    Args:
        setting: A number, or a `Schedule`.
        step: Integer scalar, a tensor as well.

    Returns:
        The number itself, or a float32 scalar tensor.
    """
    if not isinstance(setting, Schedule):
        return setting
    # A schedule is plain Python, which cannot see a tensor. Its values are looked up:
    # before `begin` and from `end` on they do not change.
    first = setting.begin - 1
    table = np.array([setting(s) for s in range(first, setting.end + 1)], "float32")
    index = ops.clip(ops.cast(step, "int32") - first, 0, len(table) - 1)
    return ops.take(table, index)


def is_always(setting, value):
    """Whether a setting is a number, and this one."""
    return not isinstance(setting, Schedule) and setting == value


def check_setting(setting, name, *, above=None, low=None, high=None):
    """Raises unless a number, or all values of a schedule, are within bounds.

    Args:
        setting: What the user passed.
        name: Its name in messages.
        above: Bound that is not allowed itself.
        low: Smallest value allowed.
        high: Largest value allowed.

    Returns:
        `setting`.

    Raises:
        TypeError: If it is no number and no schedule.
        ValueError: If a value is out of bounds, or a schedule is too long to look up.
    """
    for value in _values(setting, name):
        fits = (
            (above is None or value > above)
            and (low is None or value >= low)
            and (high is None or value <= high)
        )
        if not fits:
            wanted = f"above {above}" if above is not None else f"{low} or more"
            if high is not None:
                wanted = f"in [{low}, {high}]"
            raise ValueError(f"`{name}` must be {wanted}. Received: {name}={setting!r}")
    return setting


def _values(setting, name):
    if isinstance(setting, Schedule):
        begin, end = (getattr(setting, x, None) for x in ("begin", "end"))
        if begin is None or end is None or end - begin > _LONGEST:
            raise ValueError(
                f"`{name}`: a schedule needs `begin` and `end`, at most {_LONGEST} "
                f"steps apart. Received: {setting!r}"
            )
        # A bound that holds at a hundred steps of a monotonous schedule holds at all.
        steps = np.linspace(begin - 1, end, min(end - begin + 2, 100)).astype(int)
        return [setting(int(step)) for step in steps]
    if isinstance(setting, bool) or not isinstance(setting, (int, float, np.number)):
        raise TypeError(
            f"`{name}` must be a number or one of tfc.schedules. Received: {setting!r} "
            f"(of type {type(setting).__name__})"
        )
    return [setting]


def config_of(setting):
    """A setting as JSON can hold it."""
    return keras.saving.serialize_keras_object(setting)


def from_config(config):
    """Back from `config_of`."""
    return keras.saving.deserialize_keras_object(config)
