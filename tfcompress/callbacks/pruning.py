"""Pruning as a callback: any model, any training script.

Example:
    ```python
    model.fit(x, y, epochs=10, callbacks=[tfc.Pruning(sparsity=0.8)])
    ```
"""

import contextlib

import keras
from absl import logging

from tfcompress import schedules, selection
from tfcompress.callbacks.masked_weight import MaskedWeight, raise_together, release
from tfcompress.callbacks.run_steps import RunSteps
from tfcompress.checks import check_model
from tfcompress.graph import find_layers, kernels
from tfcompress.loss_gradients import LossGradients
from tfcompress.numerics import masks, patterns, scores
from tfcompress.numerics.layer_sparsity import erdos_renyi_kernel

_UPDATES_PER_RAMP = 64
_SCOPES = ("layer", "global", "erk")
# Layers whose kernels end in an axis of inputs and one of outputs.
_MATRICES = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)
# Fraction of exact zeros from which a kernel counts as pruned already.
_MASK_FROM = 0.1


@keras.saving.register_keras_serializable(package="tfcompress")
class Pruning(keras.callbacks.Callback):
    """Sets the least weights of the kernels to zero while `fit` trains the rest.

    After each optimizer step the weights are projected on their mask through
    `variable.constraint`, which works for every model and every Keras optimizer. Masks
    are recomputed between batches as the schedule rises; a weight once zero stays zero.
    Nothing stays on the model: after `fit` it is the plain model, with zeros. (A `fit`
    that raises cannot tidy up: masks stay in force until the next `fit` with a
    `Pruning`.) Since the zeros are in the weights, a later `Pruning` finds its masks
    there again: kernels with 10 % zeros or more count as pruned.

    Where training is in the schedule follows from the epoch: a run that is resumed, or
    starts at `initial_epoch`, goes on at that point. A callback that replaces weights,
    such as `EarlyStopping(restore_best_weights=True)`, belongs before this one in the
    list, so that the mask has the last word.

    The fraction of zeros is in the logs as `sparsity`. A constraint that you set on a
    weight is applied before the mask and is back in place after `fit`.

    Args:
        sparsity: Fraction of zeros wanted, in [0, 1), rounded to whole weights; each
            kernel keeps one. `None` keeps every zero there is, for plain fine-tuning.
        schedule: A `tfc.schedules` schedule from step (batches since the start of
            `fit`) to sparsity, instead of `sparsity`. By default it rises from 0 over
            the first half of the training that `fit` was asked for, as
            `Polynomial(0, sparsity, end=half)`.
        frequency: Steps between updates of the masks; `None` spreads 64 updates over
            the rise.
        include: Regular expression(s) on the weight's path, or predicate(s): only these
            kernels are pruned.
        exclude: The same: these are not.
        rules: List of `tfc.Rule(match, sparsity=...)`: final sparsities of kernels,
            whatever the scope.
        scope: Where the fraction is reached: `"layer"` in each kernel; `"global"` in
            all together, by one threshold; `"erk"` in all together, with a sparsity
            for each kernel that follows from its shape (Erdős–Rényi kernel).
        score: What makes a weight matter: `"magnitude"`; `"random"`; `"taylor"`, the
            weight times the gradient of `model.compute_loss` on `data` (SNIP, if all
            is pruned before the first step); or a function from a weight (float32
            array) and its path to scores of its shape, called whenever masks change.
        pattern: Which weights go together: `None`, each by itself; `"2:4"` (any N:M),
            at most two of four in a row of the input axis, the one before the last,
            stay; `(rows, columns)`, blocks of the kernel's matrix, which has a column
            for each output. Then the fraction is rounded to whole blocks. Only kernels
            of Dense, Conv1D, Conv2D and Conv3D are pruned then; others are named in a
            warning.
        data: For `score="taylor"`: `(x, y)`, or a batched `tf.data.Dataset` of such
            tuples. All of it is read at each update, so a few hundred examples do.

    Raises:
        ValueError: At construction if a sparsity is out of range, or more than an N:M
            pattern allows; at the start of `fit` if the model has no prunable weight,
            a regular expression matches nothing, or the score needs `data`.

    Reference:
        Zhu & Gupta, "To prune, or not to prune", 2017. arXiv:1710.01878
    """

    def __init__(
        self,
        sparsity=0.8,
        *,
        schedule=None,
        frequency=None,
        include=None,
        exclude=None,
        rules=(),
        scope="layer",
        score="magnitude",
        pattern=None,
        data=None,
    ):
        super().__init__()
        _check_arguments(sparsity, schedule, frequency, rules)
        if scope not in _SCOPES:
            raise ValueError(f"`scope` must be one of {_SCOPES}. Received: {scope!r}")
        self.scope = scope
        self.score = score
        self.pattern = pattern
        self.data = data
        self._score = scores.find(score)
        self._pattern = patterns.parse(pattern)
        self.sparsity = None if sparsity is None else masks.check_sparsity(sparsity)
        self.schedule = schedule
        self.frequency = frequency
        self.include = include
        self.exclude = exclude
        self.rules = list(rules)
        _check_pattern(self, [r.settings["sparsity"] for r in self.rules])
        self._pruned = []
        self._gradients = None
        self._start_over()

    def get_config(self):
        """Returns the constructor's arguments, serialised, without the data."""
        serialize = keras.saving.serialize_keras_object
        return {
            "sparsity": self.sparsity,
            "schedule": serialize(self.schedule) if self.schedule else None,
            "frequency": self.frequency,
            "include": self.include,
            "exclude": self.exclude,
            "rules": [rule.get_config() for rule in self.rules],
            "scope": self.scope,
            "score": serialize(self.score) if callable(self.score) else self.score,
            "pattern": self.pattern,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuilds the callback from `get_config()`."""
        config = dict(config)
        for name in ("schedule", "score"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        config["rules"] = [selection.Rule.from_config(r) for r in config["rules"]]
        return cls(**config)

    # Keras calls these.

    def on_train_begin(self, logs=None):
        self._start_over()
        self._steps = RunSteps(self.params.get("steps"))
        check_model(self.model)
        self._gradients = self._loss_gradients()
        self._attach()

    def on_epoch_begin(self, epoch, logs=None):
        # The weights may have been restored since `on_train_begin`, so their zeros are
        # read here.
        step = self._steps.begin_epoch(epoch)
        if self._last_update is None:
            self._check_length(epoch)
            for pruned in self._pruned:
                pruned.find_mask(at_least=0 if self._only_keeps else _MASK_FROM)
            self._advance(step)

    def on_train_batch_end(self, batch, logs=None):
        self._advance(self._steps.end_batch(batch))
        if logs is not None:
            logs["sparsity"] = self._reached

    def on_epoch_end(self, epoch, logs=None):
        self._steps.end_epoch()
        if logs is not None:
            logs["sparsity"] = self._reached

    def on_train_end(self, logs=None):
        # An optimizer with `use_ema=True` has just overwritten the weights.
        for pruned in self._pruned:
            pruned.apply_mask()
        self._detach()
        if self._curve is not None and self._steps.now < self._curve.end:
            logging.warning(
                "Training ended at step %d, before the pruning schedule did (step %d): "
                "sparsity is %.3f. Train longer, or end the schedule earlier.",
                self._steps.now,
                self._curve.end,
                self._reached,
            )

    # How it works.

    def _start_over(self):
        self._steps = RunSteps()
        self._last_update = None
        self._curve = self.schedule
        self._reached = 0.0

    @property
    def final(self):
        """Sparsity at the end of the schedule; `None` if zeros are only kept."""
        return self.sparsity if self.schedule is None else self.schedule.final

    @property
    def _only_keeps(self):
        return self.final is None

    def _loss_gradients(self):
        if self.score not in scores.FROM_GRADIENTS:
            return None
        if self.data is None:
            raise ValueError(
                f"score={self.score!r} reads gradients of the loss. Pass `data`, some "
                "hundred examples with labels: tfc.Pruning(..., data=(x, y))."
            )
        return LossGradients(self.model, self.data)

    def _attach(self):
        for variable in self.model.trainable_variables:
            release(variable)
        self._pruned = []
        for pruned in _choose(self):
            pruned.attach()
            self._pruned.append(pruned)
        self._retrace()
        self._measure()

    def _detach(self):
        for pruned in self._pruned:
            pruned.detach()
        self._retrace()

    def _retrace(self):
        # A train function that was traced before does not know of the constraints.
        if getattr(self.model, "train_function", None) is not None:
            self.model.make_train_function(force=True)

    def _measure(self):
        total = sum(pruned.size for pruned in self._pruned)
        self._reached = sum(pruned.zeros for pruned in self._pruned) / total

    def _advance(self, step):
        """Brings the masks to where the schedule is at `step`, if they are due."""
        if self._only_keeps:
            self._last_update = step
            self._measure()
            return
        curve = self._curve = self._curve or self._default_curve()
        if curve is None:
            return
        if self._last_update is not None and not self._due(curve, step):
            return
        self._last_update = step
        share = curve(step) / curve.final if curve.final else 0.0
        if self._gradients is not None and share:
            found = self._gradients.of([p.variable for p in self._pruned])
            for pruned, gradient in zip(self._pruned, found, strict=True):
                pruned.gradient = gradient
        ruled = [p for p in self._pruned if p.final is not None]
        others = [p for p in self._pruned if p.final is None]
        for pruned in ruled:
            pruned.raise_sparsity(share * pruned.final)
        if self.scope == "global":
            raise_together(others, curve(step))
        else:
            for pruned in others:
                pruned.raise_sparsity(curve(step))
        self._measure()

    def _due(self, curve, step):
        if self._last_update >= curve.end or step < curve.begin:
            return False
        rise = curve.end - curve.begin
        interval = self.frequency or max(1, rise // _UPDATES_PER_RAMP)
        return step >= curve.end or step - self._last_update >= interval

    def _check_length(self, epoch):
        known = self._steps.per_epoch is not None or self.params["epochs"] - epoch > 1
        if not known and self.schedule is None and self.sparsity is not None:
            self._detach()
            raise ValueError(
                "Pruning cannot tell how long this `fit` will be: it has one epoch of "
                "a data set of unknown length. Pass `steps_per_epoch` to `fit`, or "
                "schedule=tfc.schedules.Polynomial(0, sparsity, end=...) here."
            )

    def _default_curve(self):
        """The cubic over the first half of the run; `None` while that is unknown."""
        if self._steps.per_epoch is None:
            return None
        total = self.params["epochs"] * self._steps.per_epoch
        return schedules.Polynomial(0.0, self.sparsity, end=max(total // 2, 1))


def _choose(callback):
    """The kernels of the model that are pruned, with their final sparsities."""
    model = callback.model
    found = kernels(model)
    if not found:
        raise ValueError(
            f"Model {model.name!r} has no prunable weight: no trainable kernel of two "
            f"dimensions or more among {[v.path for v in model.weights]}."
        )
    chosen = selection.select(
        found, include=callback.include, exclude=callback.exclude, rules=callback.rules
    )
    if not chosen:
        raise ValueError(
            "Nothing is left to prune after `include` and `exclude`. The paths there "
            f"are: {list(found)}"
        )
    if callback.pattern is not None:
        chosen = _with_inputs_and_outputs(chosen, found, callback)
    strategy = getattr(model, "distribute_strategy", None)
    with strategy.scope() if strategy else contextlib.nullcontext():
        pruned = [
            MaskedWeight(
                found[path],
                path,
                callback._score,
                callback._pattern,
                settings.get("sparsity"),
            )
            for path, settings in chosen.items()
        ]
    free = [p for p in pruned if p.final is None]
    if callback.scope == "erk" and callback.final is not None and free:
        shapes = [tuple(p.variable.shape) for p in free]
        finals = erdos_renyi_kernel(shapes, callback.final)
        _check_pattern(callback, finals)
        for one, final in zip(free, finals, strict=True):
            one.final = final
    return pruned


def _with_inputs_and_outputs(chosen, found, callback):
    """Leaves out kernels whose last two axes are not inputs and outputs."""
    fitting = {id(layer.kernel) for layer in find_layers(callback.model, _MATRICES)}
    left = [path for path in chosen if id(found[path]) not in fitting]
    if len(left) == len(chosen):
        raise ValueError(
            f"Pattern {callback.pattern!r} is for kernels of Dense, Conv1D, Conv2D and "
            f"Conv3D layers, and none is chosen. Received: {left}"
        )
    if left:
        logging.warning(
            "Pattern %r is for kernels of Dense, Conv1D, Conv2D and Conv3D layers; "
            "left alone: %s",
            callback.pattern,
            left,
        )
    return {path: settings for path, settings in chosen.items() if path not in left}


def _check_pattern(callback, finals):
    """Raises if more zeros are wanted than the pattern has room for."""
    highest = callback._pattern.highest_sparsity
    wanted = [final for final in (callback.final, *finals) if final is not None]
    if max(wanted, default=0) > highest + 1e-9:
        raise ValueError(
            f"Pattern {callback.pattern!r} has {highest:g} zeros at most. Received: "
            f"sparsity={max(wanted):g}. Pass sparsity={highest:g} or less (and scope="
            "'layer')."
        )


def _check_arguments(sparsity, schedule, frequency, rules):
    if schedule is not None and not isinstance(schedule, schedules.Schedule):
        raise TypeError(
            "`schedule` must be one of tfc.schedules. "
            f"Received: schedule={schedule!r} (of type {type(schedule).__name__})"
        )
    if schedule is not None:
        initial = masks.check_sparsity(getattr(schedule, "initial", 0.0))
        if masks.check_sparsity(schedule.final) < initial:
            raise ValueError(
                "Sparsity cannot fall: a weight once zero stays zero. "
                f"Received: schedule={schedule!r}"
            )
    if frequency is not None and frequency < 1:
        raise ValueError(
            f"`frequency` must be a number of steps from 1 on. Received: {frequency}"
        )
    for rule in rules:
        if set(rule.settings) != {"sparsity"}:
            raise ValueError(f"A rule for pruning sets `sparsity`. Received: {rule!r}")
        masks.check_sparsity(rule.settings["sparsity"])
    if sparsity is None and schedule is None and rules:
        raise ValueError("`rules` need a `sparsity`; with None zeros are only kept.")
