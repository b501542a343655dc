"""Schedules: objects that turn a step into a value.

Before `begin` the value is `initial`, from `end` on it is `final`. A schedule knows
nothing of what it drives.

Example:
    ```python
    schedule = tfc.schedules.Polynomial(0.0, 0.8, begin=0, end=1000)
    schedule(500)  # 0.7
    ```
"""

import math

import keras


class Schedule:
    """A function of the step, with a config. Subclasses define `__call__`."""

    def __call__(self, step):
        raise NotImplementedError

    def get_config(self):
        """Returns the constructor's arguments."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config):
        """Rebuilds the schedule from `get_config()`."""
        return cls(**config)

    def __repr__(self):
        settings = ", ".join(f"{k}={v}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({settings})"

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    __hash__ = None


@keras.saving.register_keras_serializable(package="tfcompress")
class Constant(Schedule):
    """`final` at every step from `begin` on, and 0 before.

    Args:
        final: The value.
        begin: First step (batches since the start of `fit`) with the value.
    """

    def __init__(self, final, begin=0):
        self.final = final
        self.begin = begin

    def __call__(self, step):
        return float(self.final) if step >= self.begin else 0.0

    @property
    def end(self):
        """First step at which the value is final."""
        return self.begin

    def get_config(self):
        """Returns the constructor's arguments."""
        return {"final": self.final, "begin": self.begin}


class _Ramp(Schedule):
    """From `initial` at `begin` to `final` at `end`."""

    def __init__(self, initial, final, *, begin=0, end):
        if end <= begin:
            raise ValueError(
                "A schedule must end after it begins. "
                f"Received: begin={begin}, end={end}. Steps count batches from the "
                "start of `fit`."
            )
        self.initial = initial
        self.final = final
        self.begin = begin
        self.end = end

    def __call__(self, step):
        progress = min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.final + (self.initial - self.final) * self._left(progress)

    def _left(self, progress):
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="tfcompress")
class Polynomial(_Ramp):
    """Fast at first, then slower and slower: `1 - (1 - progress)**power`.

    Args:
        initial: Value up to `begin`.
        final: Value from `end` on.
        begin: Step at which the change starts.
        end: Step at which it is complete, above `begin`.
        power: 3 is the cubic of the paper, 1 is linear.

    Raises:
        ValueError: If `end` is not above `begin`.

    Reference:
        Zhu & Gupta, "To prune, or not to prune", 2017, eq. 1. arXiv:1710.01878
    """

    def __init__(self, initial, final, *, begin=0, end, power=3):
        super().__init__(initial, final, begin=begin, end=end)
        self.power = power

    def _left(self, progress):
        return (1.0 - progress) ** self.power


@keras.saving.register_keras_serializable(package="tfcompress")
class Cosine(_Ramp):
    """Slow at both ends: half a cosine wave from `initial` to `final`.

    Args:
        initial: Value up to `begin`.
        final: Value from `end` on.
        begin: Step at which the change starts.
        end: Step at which it is complete, above `begin`.

    Raises:
        ValueError: If `end` is not above `begin`.

    Reference:
        The shape of Loshchilov & Hutter, "SGDR", 2016, eq. 5, one period.
        arXiv:1608.03983
    """

    def _left(self, progress):
        return 0.5 * (1.0 + math.cos(math.pi * progress))


@keras.saving.register_keras_serializable(package="tfcompress")
class Iterative(Schedule):
    """A staircase that takes the same fraction of what is left in every round.

    After round `i` it is `1 - (1 - final) ** (i / rounds)`; 0 before the first ends.

    Args:
        final: Value from the last stair on, in [0, 1).
        rounds: Number of stairs.
        every: Steps between them; the first stands at step `every`.

    Raises:
        ValueError: If `rounds` or `every` is below 1.

    Reference:
        Iterative pruning of Frankle & Carbin, "The Lottery Ticket Hypothesis", 2018,
        section 1. arXiv:1803.03635
    """

    def __init__(self, final, *, rounds=5, every):
        if rounds < 1 or every < 1:
            raise ValueError(
                "A staircase has 1 or more rounds of 1 or more steps. Received: "
                f"rounds={rounds}, every={every}"
            )
        self.final = final
        self.rounds = rounds
        self.every = every

    def __call__(self, step):
        done = min(max(step // self.every, 0), self.rounds)
        if done == self.rounds:
            return float(self.final)
        return 1.0 - (1.0 - self.final) ** (done / self.rounds)

    @property
    def begin(self):
        """Step of the first stair."""
        return self.every

    @property
    def end(self):
        """First step at which the value is final."""
        return self.every * self.rounds
