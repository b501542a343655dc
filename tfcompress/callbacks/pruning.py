"""Pruning as a callback: any model, any training script.

Example:
    ```python
    model.fit(x, y, epochs=10, callbacks=[tfc.Pruning(sparsity=0.8)])
    ```
"""

import keras
from absl import logging

from tfcompress import schedules, selection
from tfcompress.callbacks.chosen_weights import check_room, choose, zeros_elsewhere
from tfcompress.callbacks.masked_weight import raise_together, release, retrace
from tfcompress.callbacks.pruning_arguments import check_arguments, check_rewinding
from tfcompress.callbacks.rewinding import Rewinding
from tfcompress.callbacks.run_steps import RunSteps
from tfcompress.callbacks.signals import Signals
from tfcompress.checks import check_model
from tfcompress.graph import slots_of
from tfcompress.numerics import masks, patterns, scores

_UPDATES_PER_RAMP = 64
# Part of the training while masks regrow, and how often (Evci et al., 2020).
_REGROW_UNTIL = 0.75
_REGROW_EVERY, _REGROWTHS_AT_LEAST = 100, 16
_ROUNDS = 5
# Fraction of exact zeros from which a kernel counts as pruned already.
_MASK_FROM = 0.1


@keras.saving.register_keras_serializable(package="tfcompress")
class Pruning(keras.callbacks.Callback):
    """Sets the least weights of the kernels to zero while `fit` trains the rest.

    After each optimizer step the weights are projected on their mask through
    `variable.constraint`, which works for every model and every Keras optimizer. Masks
    are recomputed between batches as the schedule rises; a weight once zero stays zero,
    unless `regrow` lets it back. Nothing stays on the model: after `fit` it is the
    plain model, with zeros. (A `fit` that raises cannot tidy up: masks stay in force
    until the next `fit` with a `Pruning`.) Since the zeros are in the weights, a later
    `Pruning` finds its masks there again: kernels with 10 % zeros or more count as
    pruned, and those that it does not choose keep the zeros they have.

    Where training is in the schedule follows from the epoch: a run that is resumed, or
    starts at `initial_epoch`, goes on at that point. (Two things it cannot know:
    `rewind` raises, since the weights to go back to are gone, and `score="movement"`
    adds up anew.) A callback that replaces weights, such as
    `EarlyStopping(restore_best_weights=True)`, belongs before this one in the list, so
    that the mask has the last word.

    The fraction of zeros in the kernels that are pruned is in the logs as `sparsity`. A
    constraint that you set on a weight is applied before the mask and is back in place
    after `fit`.

    Args:
        sparsity: Fraction of zeros wanted, in [0, 1), rounded to whole weights. `None`
            keeps every zero there is, for plain fine-tuning.
        schedule: A `tfc.schedules` schedule from step (batches since the start of
            `fit`) to sparsity, instead of `sparsity`. By default it rises from 0 over
            the first half of the training that `fit` was asked for, as
            `Polynomial(0, sparsity, end=half)`; all is pruned before the first step
            with `regrow`, `"snip"` and `"grasp"`; and in five rounds with `rewind`.
        frequency: Steps between updates of the masks; `None` spreads 64 updates over
            the rise. With `regrow`, steps between regrowths: 100, or 16 regrowths where
            training is short. An `Iterative` schedule has steps of its own.
        include: Regular expression(s) on the weight's path, or predicate(s): only these
            kernels are pruned.
        exclude: The same: these are not.
        rules: List of `tfc.Rule(match, sparsity=...)`: final sparsities of kernels,
            whatever the scope.
        scope: Where the fraction is reached: `"erk"` in all kernels together, with a
            sparsity for each that follows from its shape, more for large ones
            (Erdős–Rényi kernel); `"global"` in all together, by one threshold, each
            keeping a weight; `"layer"` in each. By default `"erk"`, which cost the
            least accuracy that we measured and needs no scores that compare between
            layers; `"layer"` with an N:M pattern, which leaves no choice.
        score: What makes a weight matter:

            - `"magnitude"`, or `"random"`;
            - `"taylor"`: weight times gradient of `model.compute_loss` on `data`;
            - `"snip"`: the same at initialization; `"grasp"`: weight times the product
              of Hessian and gradient, at initialization. Both were published with
              `scope="global"`;
            - `"wanda"`: weight times the norm of its input over `data`;
            - `"movement"`: the sum over the steps of weight times its change. With SGD
              the change is `-learning_rate * gradient`, as published; with Adam and
              others it is the optimizer's own, preconditioned step, which is what a
              weight in fact moves by. 8 bytes a weight while `fit` lasts;
            - or a function from a weight (float32 array) and its path to scores of its
              shape, called whenever masks change.
        pattern: Which weights go together: `None`, each by itself; `"2:4"` (any N:M),
            at most two of four in a row of the input axis, the one before the last,
            stay; `(rows, columns)`, blocks of the kernel's matrix, which has a column
            for each output; `"filter"` or `"channel"`, whole output or input channels
            (biases stay). Then the fraction is rounded to the nearest whole units. Only
            kernels of Dense, Conv1D, Conv2D and Conv3D are pruned then; others are
            named in a warning.
        data: For scores and regrowth that read gradients: `(x, y)`, or a batched
            `tf.data.Dataset` of such tuples. All of it is read at each update, so a few
            hundred examples do. `"wanda"` needs no labels.
        regrow: Dynamic sparse training: the sparsity is there from the first step, and
            from time to time the weights of least score make room for others, which
            start at zero: `"random"` ones (SET) or those with the largest gradients on
            `data` (RigL). The papers start from random masks of scope `"erk"`; here the
            score finds the first mask too, so that trained models may be given.
        regrow_fraction: Fraction of the weights kept that makes room at the start. It
            falls as half a cosine wave to nothing at 75 % of the training.
        rewind: Lottery tickets: whenever the sparsity rises, in rounds, what was
            trained goes back to `rewind_step` and is trained again under the new masks:
            `"weights"`, with the optimizer and its learning rate, or only the
            `"learning_rate"`, its schedule and moments. A learning rate set by another
            callback is not rewound: hand the optimizer a
            `keras.optimizers.schedules` one, as long as a round.
        rewind_step: Step that is gone back to, before the first round ends.
        skip_small_and_last: Whether kernels of fewer than 100 weights and those of the
            last layer are left alone, with a line in the log: they lose most accuracy
            for least bytes. Those that `include` or a rule matches are pruned all the
            same.

    Raises:
        ValueError: At construction if a sparsity is out of range, or more than an N:M
            pattern allows, or arguments contradict each other; at the start of `fit` if
            the model has no prunable weight, nothing would be left of a kernel, a
            regular expression matches nothing, or `data` are missing.

    Reference:
        Zhu & Gupta, "To prune, or not to prune", 2017. arXiv:1710.01878; SET: Mocanu et
        al., 2018. arXiv:1707.04780; RigL: Evci et al., 2020, section 3 and eq. 1.
        arXiv:1911.11134; rewinding of weights: Frankle et al., 2019. arXiv:1903.01611;
        of the learning rate: Renda et al., 2020. arXiv:2003.02389
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
        scope=None,
        score="magnitude",
        pattern=None,
        data=None,
        regrow=None,
        regrow_fraction=0.3,
        rewind=None,
        rewind_step=0,
        skip_small_and_last=True,
    ):
        super().__init__()
        self.sparsity = None if sparsity is None else masks.check_sparsity(sparsity)
        self.schedule = schedule
        self.frequency = frequency
        self.include = include
        self.exclude = exclude
        self.rules = list(rules)
        self.scope = _default_scope(pattern) if scope is None else scope
        self.score = score
        self.pattern = pattern
        self.data = data
        self.regrow = regrow
        self.regrow_fraction = regrow_fraction
        self.rewind = rewind
        self.rewind_step = rewind_step
        self.skip_small_and_last = skip_small_and_last
        self.criterion = scores.find(score)
        self.units = patterns.parse(pattern)
        check_arguments(self)
        check_room(self, [r.settings["sparsity"] for r in self.rules])
        self._pruned = []
        self._kept = []
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
            "regrow": self.regrow,
            "regrow_fraction": self.regrow_fraction,
            "rewind": self.rewind,
            "rewind_step": self.rewind_step,
            "skip_small_and_last": self.skip_small_and_last,
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
        self._check_data()
        self._signals = Signals(self.criterion.reads, self.model, self.data)
        if self.regrow == "gradient":
            self._growth = Signals("gradients", self.model, self.data)
        self._attach()

    def on_epoch_begin(self, epoch, logs=None):
        # The weights may have been restored since `on_train_begin`, so their zeros are
        # read here.
        step = self._steps.begin_epoch(epoch)
        if self._last_update is None:
            self._check_length(epoch)
            for pruned in self._pruned:
                pruned.find_mask(at_least=0 if self._only_keeps else _MASK_FROM)
            self._keep_others()
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
        for pruned in self._pruned + self._kept:
            pruned.apply_mask()
        self._detach()
        self._rewinding = None
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
        self._signals = self._growth = None
        self._rewinding = self.rewind and Rewinding(self.rewind, self.rewind_step)

    @property
    def final(self):
        """Sparsity at the end of the schedule; `None` if zeros are only kept."""
        return self.sparsity if self.schedule is None else self.schedule.final

    @property
    def _only_keeps(self):
        return self.final is None

    def _check_data(self):
        wants = self.regrow == "gradient" and "regrow='gradient'"
        wants = wants or (self.criterion.needs_data and f"score={self.score!r}")
        if wants and self.data is None:
            raise ValueError(
                f"{wants} reads examples. Pass `data`, some hundred with their labels: "
                "tfc.Pruning(..., data=(x, y))."
            )

    def _attach(self):
        for variable in self.model.trainable_variables:
            release(variable)
        self._pruned, self._kept = [], []
        for pruned in choose(self):
            pruned.attach()
            self._pruned.append(pruned)
        retrace(self.model)
        self._measure()

    def _keep_others(self):
        """Holds the zeros that an earlier pruning left in kernels not chosen here."""
        own = {id(pruned.variable) for pruned in self._pruned}
        self._kept = zeros_elsewhere(self, own, at_least=_MASK_FROM)
        for kept in self._kept:
            kept.attach()
        if self._kept:
            retrace(self.model)

    def _detach(self):
        for pruned in self._pruned + self._kept:
            pruned.detach()
        retrace(self.model)

    def _measure(self):
        total = sum(pruned.size for pruned in self._pruned)
        self._reached = sum(pruned.zeros for pruned in self._pruned) / total

    def _advance(self, step):
        """Brings the masks to where they are to be at `step`, if they are due."""
        if self._only_keeps:
            self._last_update = step
        else:
            curve = self._curve = self._curve or self._default_curve()
            if curve is None:
                return
            self._remember(curve, step)
            if not self._due(curve, step):
                return
            last, self._last_update = self._last_update, step
            if self._grows(curve, last):
                self._regrow(step)
            elif last is None and step and self.criterion.reads == "movement":
                # A resumed run has to see some movement first.
                self._last_update = min(step, curve.end - 1)
            else:
                self._raise(curve, step)
                if self._rewinding and curve(step) > curve(last or 0):
                    self._go_back()
        self._measure()

    def _due(self, curve, step):
        last = self._last_update
        if last is None:
            return True
        if self._grows(curve, last):
            total = self._total_steps()
            if total is None or step >= _REGROW_UNTIL * total:
                return False
            often = int(_REGROW_UNTIL * total) // _REGROWTHS_AT_LEAST
            interval = self.frequency or max(1, min(_REGROW_EVERY, often))
            return step - last >= interval
        if last >= curve.end or step < curve.begin:
            return False
        if isinstance(curve, schedules.Iterative):
            return curve(step) > curve(last)
        rise = curve.end - curve.begin
        interval = self.frequency or max(1, rise // _UPDATES_PER_RAMP)
        return step >= curve.end or step - last >= interval

    def _grows(self, curve, last):
        """Whether the sparsity is there, so that only regrowth is left to do."""
        return self.regrow is not None and last is not None and last >= curve.begin

    def _raise(self, curve, step):
        share = curve(step) / curve.final if curve.final else 0.0
        if share:
            self._read_signals()
        ruled = [p for p in self._pruned if p.final is not None]
        others = [p for p in self._pruned if p.final is None]
        for pruned in ruled:
            pruned.raise_sparsity(share * pruned.final)
        if self.scope == "global":
            raise_together(others, curve(step))
        else:
            for pruned in others:
                pruned.raise_sparsity(curve(step))

    def _regrow(self, step):
        end = _REGROW_UNTIL * self._total_steps()
        fraction = schedules.Cosine(self.regrow_fraction, 0.0, end=end)(step)
        self._read_signals()
        gradients = [None] * len(self._pruned)
        if self._growth is not None:
            gradients = self._growth.of(self._pruned)
        slots = []
        if getattr(self.model, "optimizer", None) is not None:
            slots = slots_of(self.model.optimizer, self.model.trainable_variables)
        for pruned, gradient in zip(self._pruned, gradients, strict=True):
            pruned.regrow(fraction, step, gradient)
            for slot in slots:
                if slot.weight is pruned.variable and slot.what == "momentum":
                    pruned.forget_regrown(slot.variable)

    def _read_signals(self):
        found = self._signals.of(self._pruned)
        for pruned, signal in zip(self._pruned, found, strict=True):
            pruned.signal = signal

    def _remember(self, curve, step):
        """Notes the state to rewind to; nothing if all rounds are over."""
        if self._rewinding and self._last_update is None:
            check_rewinding(self, curve, step)
            if step > self.rewind_step:
                self._rewinding = None
        if self._rewinding:
            self._rewinding.remember(self.model, step)

    def _go_back(self):
        self._rewinding.rewind(self.model)
        for pruned in self._pruned + self._kept:
            pruned.apply_mask()
            pruned.start_over()

    def _check_length(self, epoch):
        known = self._steps.per_epoch is not None or self.params["epochs"] - epoch > 1
        needed = self.regrow or (
            not self._only_keeps and self.schedule is None and not self._at_once
        )
        if needed and not known:
            self._detach()
            raise ValueError(
                "Pruning cannot tell how long this `fit` will be: it has one epoch of "
                "a data set of unknown length. Pass `steps_per_epoch` to `fit`, or "
                "schedule=tfc.schedules.Polynomial(0, sparsity, end=...) here."
            )

    @property
    def _at_once(self):
        return self.regrow is not None or self.criterion.at_once

    def _default_curve(self):
        """The curve of `sparsity`; `None` while the run's length is unknown."""
        if self._at_once and self.rewind is None:
            return schedules.Constant(self.sparsity)
        total = self._total_steps()
        if total is None:
            return None
        if self.rewind is not None:
            # As long again after the last round as each of them.
            every = max(total // (_ROUNDS + 1), 1)
            return schedules.Iterative(self.sparsity, rounds=_ROUNDS, every=every)
        return schedules.Polynomial(0.0, self.sparsity, end=max(total // 2, 1))

    def _total_steps(self):
        """Steps of the whole run; `None` while unknown."""
        per_epoch = self._steps.per_epoch
        return None if per_epoch is None else self.params["epochs"] * per_epoch


def _default_scope(pattern):
    units = patterns.parse(pattern)
    return "erk" if units.highest_sparsity == 1 else "layer"
