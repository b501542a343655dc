"""A weight that is held on its mask by a constraint while a `fit` lasts."""

import zlib

import keras
import numpy as np
import tensorflow as tf

from tfcompress.numerics import masks, scores


class MaskedWeight:
    """A kernel with its mask.

    Args:
        variable: The `keras.Variable`.
        path: Its path, which scores may depend on.
        score: A `numerics.scores.Score`.
        pattern: One of `numerics.patterns`.
        final: Sparsity of its own at the end of the schedule; `None` follows the
            schedule.
        grows: Whether what was dropped may come back.

    Attributes:
        signal: Array that the score reads, set before masks are updated.
        movement: A `Movement` if the score reads it, else `None`.
    """

    def __init__(self, variable, path, score, pattern, final=None, grows=False):
        self.variable = variable
        self.path = path
        self.score = score
        self.pattern = pattern
        self.final = final
        self.grows = grows
        self.signal = None
        self.mask = tf.Variable(
            tf.ones(variable.shape, tf.bool), trainable=False, name="mask"
        )
        self.movement = Movement(variable) if score.reads == "movement" else None
        self.size = int(np.prod(variable.shape))
        self.zeros = 0

    def attach(self):
        """Puts the mask behind the user's constraint, if there is one."""
        self.variable.constraint = Project(
            self.variable.constraint, self.mask, self.movement
        )

    def detach(self):
        """Puts the user's constraint back."""
        release(self.variable)

    def find_mask(self, at_least):
        """Takes the zeros in the weights for the mask that an earlier pruning left."""
        found = masks.kept_zeros(self.variable.numpy(), at_least)
        if found is not None:
            self._set(found)
        self.start_over()

    def start_over(self):
        """Forgets how the weight moved: something else has set it."""
        if self.movement is not None:
            self.movement.start_over(self.variable)

    def raise_sparsity(self, sparsity):
        """Drops the lowest weights until there are so many zeros."""
        dropped = round(sparsity * self.size)
        # Not compared with the zeros there are: some may stand where a pattern has none
        # to give, and others have to go all the same.
        if dropped:
            units = self.units()
            self.keep_units(masks.keep_highest(units, dropped, self.unit_sizes()))
        self.apply_mask()

    def is_emptied_by(self, sparsity):
        """Whether rounding to whole units of the pattern would leave nothing."""
        smallest = np.min(self.unit_sizes())
        return round(sparsity * self.size) > self.size - smallest / 2

    def units(self):
        """Scores of the pattern's units, a vector; lowest where nothing is left."""
        weight = self._weight()
        found = self.score.function(weight, self.path, self.signal)
        found = scores.checked(found, weight, self.path)
        # What the mask dropped must not come back even if an average over time has
        # made it non-zero meanwhile.
        return self.pattern.units(found, np.asarray(self.mask))

    def unit_sizes(self):
        """Weights of each unit: a vector, or 1."""
        return self.pattern.sizes(self.variable.shape)

    def keep_units(self, keep):
        """Drops all other units; what was dropped before stays so, unless it grows."""
        mask = self.pattern.spread(keep, tuple(self.variable.shape))
        self._set(mask if self.grows else mask & np.asarray(self.mask))

    def regrow(self, fraction, step, gradient=None):
        """Lets as many weights grow back, from zero, as it drops.

        Args:
            fraction: Fraction of the weights kept that makes room, by their score.
            step: Different random weights grow at each.
            gradient: The largest grow, in size; `None` has any grow.
        """
        if gradient is None:
            draw = np.random.default_rng([zlib.crc32(self.path.encode()), step])
            growth = draw.random(tuple(self.variable.shape), "float32")
        else:
            growth = scores.checked(np.abs(gradient), self._weight(), self.path)
        every = np.ones(growth.shape, bool)
        keep = masks.swap_lowest(
            self.units(),
            self.pattern.units(growth, every),
            self.zeros,
            round(fraction * (self.size - self.zeros)),
            self.unit_sizes(),
        )
        before = self.mask.numpy()
        self.keep_units(keep)
        self._regrown = self.mask.numpy() & ~before
        self.apply_mask()

    def forget_regrown(self, slot):
        """Sets a momentum to zero where weights grew just now.

        Gradients reach what is masked too: a momentum of that time would push the new
        weight before it has a gradient of its own. Averages of squares stay, which
        bound steps (RigL's own code clears them too).
        """
        if tuple(slot.shape) == self._regrown.shape:
            values = slot.value
            slot.assign(tf.where(self._regrown, tf.zeros_like(values), values))

    def apply_mask(self):
        """Sets what is masked to zero."""
        value = self.variable.value
        self.variable.assign(tf.where(self.mask, value, tf.zeros_like(value)))

    def _weight(self):
        return np.asarray(self.variable.numpy(), "float32")

    def _set(self, mask):
        self.mask.assign(mask)
        self.zeros = self.size - int(np.count_nonzero(mask))


def raise_together(pruned, sparsity):
    """Drops the lowest weights of several kernels until they have so many zeros.

    Args:
        pruned: List of `MaskedWeight`.
        sparsity: Fraction of zeros in all of them; each keeps a unit.
    """
    dropped = round(sparsity * sum(p.size for p in pruned))
    if dropped:
        units = [p.units() for p in pruned]
        for scores_of_one in units:
            scores_of_one[np.argmax(scores_of_one)] = np.inf
        sizes = [p.unit_sizes() for p in pruned]
        sizes = np.concatenate(sizes) if np.ndim(sizes[0]) else 1
        ends = np.cumsum([len(u) for u in units])[:-1]
        keep = masks.keep_highest(np.concatenate(units), dropped, sizes)
        for one, kept in zip(pruned, np.split(keep, ends), strict=True):
            one.keep_units(kept)
    for one in pruned:
        one.apply_mask()


class Movement:
    """Adds up `w * (change of w)` of a weight, step by step.

    Args:
        variable: The `keras.Variable`.

    Attributes:
        total: `tf.Variable` with the sums, float32.
    """

    def __init__(self, variable):
        # Every replica adds the same.
        once = {
            "trainable": False,
            "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
        self.total = tf.Variable(tf.zeros(variable.shape), name="movement", **once)
        self._before = tf.Variable(
            tf.cast(variable.value, tf.float32), name="before", **once
        )

    def add(self, w):
        """Adds the step to a new value of the weight, within the step's graph."""
        w = tf.cast(w, tf.float32)
        before = self._before.read_value()
        self.total.assign_add(before * (w - before))
        self._before.assign(w)

    def start_over(self, variable):
        """Begins again at the value that the weight has."""
        self.total.assign(tf.zeros_like(self.total))
        self._before.assign(tf.cast(variable.value, tf.float32))


class Project(keras.constraints.Constraint):
    """The user's constraint, if any, and then the mask."""

    def __init__(self, inner, mask, movement=None):
        self.inner = inner
        self.mask = mask
        self.movement = movement

    def __call__(self, w):
        w = keras.ops.convert_to_tensor(w if self.inner is None else self.inner(w))
        w = tf.where(self.mask, w, tf.zeros_like(w))
        if self.movement is not None:
            self.movement.add(w)
        return w


def release(variable):
    """Takes a mask off, also one that a `fit` left behind when it raised."""
    if isinstance(variable.constraint, Project):
        variable.constraint = variable.constraint.inner


def retrace(model):
    """Traces the train function anew: one from before does not know the constraints."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
