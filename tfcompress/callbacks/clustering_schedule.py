"""When weights join their clusters, and when centroids are recomputed.

Example:
    ```python
    shared = tfc.cluster(model, 16)
    shared.compile("adam", "sparse_categorical_crossentropy")
    schedule = tfc.ClusteringSchedule({0: 0.5, 200: 0.75, 400: 1.0})
    shared.fit(x, y, epochs=10, callbacks=[schedule])
    ```
"""

import numbers

import keras
from absl import logging

from tfcompress import schedules
from tfcompress.callbacks.clustered_weights import clustered_weights, kmeans_step
from tfcompress.callbacks.run_steps import RunSteps
from tfcompress.checks import check_model


@keras.saving.register_keras_serializable(package="tfcompress")
class ClusteringSchedule(keras.callbacks.Callback):
    """Lets weights join their clusters bit by bit, and recomputes centroids.

    Steps count batches from the start of `fit`, as those of `Pruning` do: they follow
    from the epoch, so that a run that is resumed, or starts at `initial_epoch`, goes on
    where it was. With `steps_per_execution` above 1 a change waits for the end of the
    execution that its step falls in. What is in force is kept in variables of the
    model and is saved with it. The fraction of weights that have joined is in the logs
    of an epoch as `clustered`. A callback that replaces weights, such as
    `EarlyStopping(restore_best_weights=True)`, belongs before this one in the list.

    Args:
        fraction: What part of each kernel's weights is clustered over time, in [0, 1],
            the largest first: a `tfc.schedules` schedule, or a dict or pairs of step
            and fraction in force from it on, 0 before the first. The others train in
            float meanwhile. It must not fall and must end at 1. The paper freezes
            weights that have joined; here they learn on, as all do later. `None` has
            all of them clustered. Product quantization always has.
        kmeans_every: Steps between steps of k-means: each weight counts for its nearest
            centroid, which moves to their mean; blocks of product quantization choose
            their vectors anew. `None` leaves centroids to the gradient, and blocks with
            their vectors.
        frequency: Steps between changes of the fraction by a schedule.

    Raises:
        TypeError: At construction if an argument is of the wrong type.
        ValueError: At construction if an argument is out of range or both are `None`;
            at the start of `fit` if the model has no clustered weights.

    Reference:
        Zhou et al., "Incremental Network Quantization", 2017, section 2.2.
        arXiv:1702.03044
    """

    def __init__(self, fraction=None, *, kmeans_every=None, frequency=50):
        super().__init__()
        self.fraction = _checked_fraction(fraction)
        self.kmeans_every = _checked_steps("kmeans_every", kmeans_every, optional=True)
        self.frequency = _checked_steps("frequency", frequency)
        if fraction is None and kmeans_every is None:
            raise ValueError(
                "ClusteringSchedule has nothing to do. Pass `fraction`, for example "
                "{0: 0.5, 1000: 1.0}, or `kmeans_every`."
            )
        self._start_over()

    def get_config(self):
        """Returns the constructor's arguments, serialised."""
        fraction = self.fraction
        if isinstance(fraction, schedules.Schedule):
            fraction = keras.saving.serialize_keras_object(fraction)
        return {
            "fraction": fraction,
            "kmeans_every": self.kmeans_every,
            "frequency": self.frequency,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuilds the callback from `get_config()`."""
        fraction = config["fraction"]
        if isinstance(fraction, dict):
            fraction = keras.saving.deserialize_keras_object(fraction)
        return cls(**config | {"fraction": fraction})

    # Keras calls these.

    def on_train_begin(self, logs=None):
        self._start_over()
        self._steps = RunSteps(self.params.get("steps"))
        check_model(self.model)
        self._weights = clustered_weights(self.model)
        if not self._weights:
            raise ValueError(
                f"Model {self.model.name!r} has no clustered weights, so there is "
                "nothing to schedule. `fit` a clustered one: tfc.cluster(model)."
            )
        if self.fraction is not None and not any(w.joins for w in self._weights):
            raise ValueError(
                f"All weights of model {self.model.name!r} are clustered in blocks, "
                "which join at once. Leave out `fraction`. Received: "
                f"fraction={self.fraction!r}"
            )

    def on_epoch_begin(self, epoch, logs=None):
        if epoch and self._steps.per_epoch is None:
            raise ValueError(
                f"ClusteringSchedule cannot tell at which step epoch {epoch} begins: "
                "the data set is of unknown length. Pass `steps_per_epoch` to `fit`."
            )
        step = self._steps.begin_epoch(epoch)
        if self._last_kmeans is None:
            self._last_kmeans = step
        self._advance(step)

    def on_train_batch_end(self, batch, logs=None):
        self._advance(self._steps.end_batch(batch))

    def on_epoch_end(self, epoch, logs=None):
        self._steps.end_epoch()
        if logs is not None:
            logs["clustered"] = self._reached()

    def on_train_end(self, logs=None):
        reached = self._reached()
        if self.fraction is not None and reached < 1:
            logging.warning(
                "Training ended at step %d with %.0f %% of the weights clustered: the "
                "others are float still. Train longer, or end the schedule earlier.",
                self._steps.now,
                100 * reached,
            )

    # How it works.

    def _start_over(self):
        self._steps = RunSteps()
        self._weights = []
        self._applied = self._last_kmeans = self._last_join = None

    def _reached(self):
        found = [w.fraction for w in self._weights if w.joins]
        return sum(found) / len(found) if found else 1.0

    def _advance(self, step):
        """Brings the model to where the schedule is at `step`."""
        if self.fraction is not None:
            self._join(step)
        every = self.kmeans_every
        if every and step // every > self._last_kmeans // every:
            kmeans_step(self._weights)
        self._last_kmeans = step

    def _join(self, step):
        fraction = self._fraction_at(step)
        early = self._last_join is not None and step - self._last_join < self.frequency
        waits = early and fraction < 1 and isinstance(self.fraction, schedules.Schedule)
        if fraction == self._applied or waits:
            return
        for weight in self._weights:
            weight.join(fraction)
        self._applied, self._last_join = fraction, step

    def _fraction_at(self, step):
        if isinstance(self.fraction, schedules.Schedule):
            return min(max(float(self.fraction(step)), 0.0), 1.0)
        reached = [fraction for begin, fraction in self.fraction if begin <= step]
        return reached[-1] if reached else 0.0


def _checked_steps(name, value, *, optional=False):
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{name}` must be a whole number of steps. Received: {name}={value!r} (of "
            f"type {type(value).__name__})"
        )
    if value < 1:
        raise ValueError(f"`{name}` must be 1 or more. Received: {name}={value}")
    return int(value)


def _checked_fraction(fraction):
    """The schedule, or pairs `[step, fraction]` in the order of their steps."""
    if fraction is None:
        return None
    if isinstance(fraction, schedules.Schedule):
        _check_rises([getattr(fraction, "initial", 0.0), fraction.final], fraction)
        return fraction
    pairs = list(fraction.items()) if isinstance(fraction, dict) else fraction
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(isinstance(v, numbers.Real) for v in pair)
        for pair in pairs
    ):
        raise TypeError(
            "`fraction` must be a schedule of tfc.schedules, a dict {step: fraction} "
            f"or pairs (step, fraction). Received: fraction={fraction!r} (of type "
            f"{type(fraction).__name__})"
        )
    found = sorted([int(step), float(part)] for step, part in pairs)
    _check_rises([part for _, part in found], fraction)
    if found[0][0] < 0:
        raise ValueError(f"Steps must be 0 or more. Received: fraction={fraction!r}")
    return found


def _check_rises(parts, fraction):
    if not parts or parts != sorted(parts) or parts[0] < 0 or parts[-1] != 1:
        raise ValueError(
            "`fraction` must rise within [0, 1] and end at 1, or some weights would "
            f"never be clustered. Received: fraction={fraction!r}"
        )
