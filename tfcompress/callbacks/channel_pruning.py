"""Channel pruning as a callback: shrinks channels while `fit` trains, then cuts them.

Example:
    ```python
    pruning = tfc.ChannelPruning(0.5)
    model.fit(x, y, epochs=10, callbacks=[pruning])
    small = pruning.cut()            # the same function, without the channels
    ```
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfcompress.callbacks.masked_weight import Project, release, retrace
from tfcompress.callbacks.run_steps import RunSteps
from tfcompress.passes.channel_budget import check_choice, within_budget
from tfcompress.passes.channel_choice import channels_of, choose_producers
from tfcompress.passes.channel_plan import ChannelPlan
from tfcompress.passes.channel_removal import carry_optimizer, remove_channels
from tfcompress.passes.channel_scores import find_scores
from tfcompress.passes.distill import Distiller
from tfcompress.selection import Rule


@keras.saving.register_keras_serializable(package="tfcompress")
class ChannelPruning(keras.callbacks.Callback):
    """Takes the least channels away bit by bit while the others learn to do without.

    At `begin` the channels that will go are chosen. From there to `end` each optimizer
    step multiplies all their weights, made and read, by a factor that brings them to
    zero in equal steps if the loss does not object: a regularization that grows until
    nothing can resist it. Behind `end` they are zero and the rest trains on, so `cut`
    changes nothing but the size (and the statistics of layer, RMS and group
    normalization, which are of what stays). Channels of frozen kernels, and those that
    products sum over without a kernel, stay. What is left of them is in the logs as
    `channel_scale`, from 1 down to 0.

    With `sparsity_penalty`, up to `begin` each step also takes that share of the mean
    norm of its layer's channels from the norm of every channel (group lasso, as a
    proximal step), so that those that matter little show.

    Args:
        amount: Fraction of the channels to remove, in [0, 1).
        budget: Instead of it, as of `tfc.prune_channels`, without latency.
        begin: Step (batches since the start of `fit`) at which channels are chosen;
            by default the first, and with a penalty after a quarter of the run.
        end: Step at which they are zero; by default half of what is left then.
        sparsity_penalty: Share of the norm that group lasso takes a step, 0 for none;
            1e-3 is a usual value for a thousand steps.
        scope: As of `tfc.prune_channels`.
        score: As of `tfc.prune_channels`.
        round_to: As of `tfc.prune_channels`.
        data: As of `tfc.prune_channels`.
        include: As of `tfc.prune_channels`.
        exclude: As of `tfc.prune_channels`.
        rules: As of `tfc.prune_channels`.

    Raises:
        ValueError: At construction or at the start of `fit`, as `tfc.prune_channels`;
            also if the model holds nested models, or `Pruning` works in the same `fit`.

    Reference:
        Wang et al., "Neural Pruning via Growing Regularization", 2021, algorithm 1
        (here the factor is set by the time that is left). arXiv:2012.09243; Wen et
        al., "Learning Structured Sparsity in Deep Neural Networks", 2016, eq. 4.
        arXiv:1608.03665
    """

    def __init__(
        self,
        amount=None,
        *,
        budget=None,
        begin=None,
        end=None,
        sparsity_penalty=0.0,
        scope="layer",
        score="l2",
        round_to=1,
        data=None,
        include=None,
        exclude=None,
        rules=(),
    ):
        super().__init__()
        check_choice(amount, budget, scope, round_to, measured=False)
        if begin is not None and end is not None and not 0 <= begin < end:
            raise ValueError(
                "`end` must be above `begin`, and `begin` not below 0. Received: "
                f"begin={begin}, end={end}"
            )
        if not 0 <= sparsity_penalty < 1:
            raise ValueError(
                "`sparsity_penalty` is a share a step, in [0, 1). Received: "
                f"{sparsity_penalty}"
            )
        self.amount = amount
        self.budget = budget
        self.begin = begin
        self.end = end
        self.sparsity_penalty = sparsity_penalty
        self.scope = scope
        self.score = score
        self.round_to = round_to
        self.data = data
        self.include = include
        self.exclude = exclude
        self.rules = list(rules)
        self._plan = self._removed = None
        self._shrinking = []

    def get_config(self):
        """Returns the constructor's arguments, serialised, without the data."""
        score = self.score
        if callable(score):
            score = keras.saving.serialize_keras_object(score)
        return {
            "amount": self.amount,
            "budget": self.budget,
            "begin": self.begin,
            "end": self.end,
            "sparsity_penalty": self.sparsity_penalty,
            "scope": self.scope,
            "score": score,
            "round_to": self.round_to,
            "include": self.include,
            "exclude": self.exclude,
            "rules": [rule.get_config() for rule in self.rules],
        }

    @classmethod
    def from_config(cls, config):
        """Rebuilds the callback from `get_config()`."""
        config = dict(config)
        if isinstance(config.get("score"), dict):
            config["score"] = keras.saving.deserialize_keras_object(config["score"])
        config["rules"] = [Rule.from_config(rule) for rule in config["rules"]]
        return cls(**config)

    def cut(self, keep_optimizer=False):
        """The trained model without the channels that were shrunk to zero.

        Args:
            keep_optimizer: Whether to compile it as the model was, with what stays of
                the optimizer's state.

        Returns:
            A new `keras.Model`; the trained one is left as it is.

        Raises:
            RuntimeError: If no `fit` brought the channels to zero yet, or another
                callback brought them back.
            ValueError: If the optimizer's state cannot be kept.
        """
        if self._removed is None or self._factor_now > 0:
            raise RuntimeError(
                "There is nothing to cut: no `fit` with this callback has reached "
                f"its `end` (step {self._end})."
                if self._removed is not None
                else "There is nothing to cut: this callback has not been in a `fit`."
            )
        self._check_zero()
        small, moved = remove_channels(self._plan.channels, self._removed)
        if keep_optimizer:
            carry_optimizer(self._plan.channels.graph.model, small, moved)
        return small

    # Keras calls these.

    def on_train_begin(self, logs=None):
        self._steps = RunSteps(self.params.get("steps"))
        self._find_ends()
        model = self.model.student if isinstance(self.model, Distiller) else self.model
        channels = channels_of(model, verb="ChannelPruning", open_layers=False)
        if channels.graph.model is not model:
            raise ValueError(
                f"Model {model.name!r} holds nested models, or is subclassed. Make it "
                "flat first: tfc.fold(model, exclude='.*') returns a flat one with all "
                "its layers."
            )
        self._channels = channels
        self._chosen = choose_producers(
            channels, self.include, self.exclude, self.rules
        )
        self._plan = self._removed = None
        self._factor_now = 1.0
        self._attach()

    def on_epoch_begin(self, epoch, logs=None):
        step = self._steps.begin_epoch(epoch)
        self._check_attached()
        self._advance(step)

    def on_train_batch_begin(self, batch, logs=None):
        # In force for the steps of this call alone: a `fit` that is interrupted leaves
        # the constraints behind, and they must not go on.
        now = tf.cast(self.model.optimizer.iterations.value, tf.int64)
        self._until.assign(now + self._steps_a_call)

    def on_train_batch_end(self, batch, logs=None):
        self._advance(self._steps.end_batch(batch))
        if logs is not None:
            logs["channel_scale"] = self._factor_now

    def on_epoch_end(self, epoch, logs=None):
        self._steps.end_epoch()
        if logs is not None:
            logs["channel_scale"] = self._factor_now

    def on_train_end(self, logs=None):
        for shrinking in self._shrinking:
            # An optimizer with `use_ema=True` has just overwritten the weights.
            if self._factor_now == 0:
                values = shrinking.variable.numpy()
                shrinking.variable.assign(shrinking.zeroed(values))
            release(shrinking.variable)
        retrace(self.model)

    # How it works.

    def _attach(self):
        strategy = getattr(self.model, "distribute_strategy", None)
        with strategy.scope() if strategy else contextlib.nullcontext():
            self._factor = tf.Variable(1.0, trainable=False, name="channel_factor")
            self._lasso = tf.Variable(
                self.sparsity_penalty, trainable=False, name="channel_lasso"
            )
            self._until = tf.Variable(0, trainable=False, dtype=tf.int64)
            iterations = self.model.optimizer.iterations

            def is_on():
                return tf.cast(iterations.value, tf.int64) <= self._until

            self._shrinking = []
            made = {
                id(p.variable): p.axis
                for p in self._channels.producers
                if p.name in self._chosen and self._channels.groups(p.ids).any()
            }
            for weight in self._channels.weights.values():
                if weight.variable.trainable:
                    release(weight.variable)
                    axis = made.get(id(weight.variable))
                    self._shrinking.append(
                        _Shrinking(weight, self._factor, self._lasso, axis, is_on)
                    )
        retrace(self.model)

    def _check_attached(self):
        if any(s.variable.constraint is not s.constraint for s in self._shrinking):
            raise ValueError(
                "Another callback (`Pruning`, a second `ChannelPruning`) took over the "
                "weights that this one shrinks. Give it a `fit` of its own, on the "
                "model that is cut."
            )

    def _find_ends(self):
        per_epoch, ahead = self._steps.per_epoch, self.model.steps_per_execution
        if per_epoch is None and None in (self.begin, self.end):
            raise ValueError(
                "ChannelPruning cannot tell how long this `fit` will be: the data set "
                "is of unknown length. Pass `steps_per_epoch` to `fit`, or `begin` and "
                "`end` here."
            )
        if not isinstance(ahead, int):
            raise ValueError(
                "ChannelPruning must know how many steps a call makes. Compile with a "
                f"number. Received: steps_per_execution={ahead!r}"
            )
        self._steps_a_call = ahead
        total = self.params["epochs"] * (per_epoch or 0)
        self._begin = self.begin
        if self._begin is None:
            self._begin = total // 4 if self.sparsity_penalty else 0
        self._end = self.end
        if self._end is None:
            self._end = max((self._begin + total) // 2, self._begin + 1)

    def _advance(self, step):
        """Sets what the next optimizer steps multiply by."""
        if self._removed is None and step >= self._begin:
            self._choose()
        if self._removed is None:
            return
        ahead = self._steps_a_call
        left = max(self._end - step, 0)
        after = max(left - ahead, 0)
        self._factor_now = after / (self._end - self._begin)
        # Equal steps: what is left of all the way, relative to what was left before.
        factor = (after / left) ** (1 / ahead) if after else 0.0
        self._factor.assign(factor)

    def _choose(self):
        scores = find_scores(
            self._channels,
            self.score,
            self.data,
            chosen=self._chosen,
            compiled=self.model,
        )
        plan = ChannelPlan(
            self._channels,
            scores,
            self._chosen,
            self.scope,
            self.round_to,
            kept=self._cannot_shrink(),
        )
        if self.budget is None:
            removed = plan.removed(self.amount)
        else:
            removed = within_budget(plan, self.budget)
        self._plan, self._removed = plan, removed
        self._lasso.assign(0.0)
        for shrinking in self._shrinking:
            shrinking.choose(removed, self._channels)

    def _cannot_shrink(self):
        """Groups that zeros in trainable weights would not silence."""
        frozen = [
            ids
            for weight in self._channels.weights.values()
            if not weight.variable.trainable and len(weight.axes) > 1
            for ids in weight.axes
            if ids is not None
        ]
        found = [self._channels.groups(ids) for ids in frozen + self._channels.summed]
        return np.unique(np.concatenate(found)) if found else ()

    def _check_zero(self):
        for shrinking in self._shrinking:
            values = shrinking.variable.numpy()
            if np.any(values != shrinking.zeroed(values)):
                raise RuntimeError(
                    f"Weight {shrinking.variable.path!r} has values where channels "
                    "were zero: something changed the weights after this callback, "
                    "such as EarlyStopping(restore_best_weights=True). Put that before "
                    "it in the list."
                )


class _Shrinking:
    """A weight, and which indices of its axes shrink."""

    def __init__(self, weight, factor, lasso, made_axis, is_on):
        self.variable = weight.variable
        self.weight = weight
        self.gone = [
            None if ids is None else tf.Variable(tf.zeros(len(ids), tf.bool))
            for ids in weight.axes
        ]
        self.constraint = _Shrink(
            self.variable.constraint, self.gone, factor, lasso, made_axis, is_on
        )
        self.variable.constraint = self.constraint

    def choose(self, removed, channels):
        for ids, gone in zip(self.weight.axes, self.gone, strict=True):
            if ids is not None:
                gone.assign(removed[channels.groups(ids)])

    def zeroed(self, values):
        """Values with zeros for the channels that go."""
        values = np.array(values)
        for axis, gone in enumerate(self.gone):
            if gone is not None:
                np.moveaxis(values, axis, 0)[gone.numpy()] = 0
        return values


class _Shrink(Project):
    """The user's constraint, if any, and then smaller channels."""

    def __init__(self, inner, gone, factor, lasso, made_axis, is_on):
        self.is_on = is_on
        self.inner = inner
        self.gone = gone
        self.factor = factor
        self.lasso = lasso
        self.made_axis = made_axis

    def __call__(self, w):
        w = keras.ops.convert_to_tensor(w if self.inner is None else self.inner(w))
        is_on = self.is_on()
        factor = tf.cast(tf.where(is_on, self.factor, 1.0), w.dtype)
        for axis, gone in enumerate(self.gone):
            if gone is not None:
                w *= _along(tf.where(gone, factor, 1), axis, len(w.shape))
        if self.made_axis is None:
            return w
        left = tf.where(is_on, self._proximal(w), 1)
        return w * _along(left, self.made_axis, len(w.shape))

    def _proximal(self, w):
        """What group lasso leaves of each channel."""
        others = [axis for axis in range(len(w.shape)) if axis != self.made_axis]
        norms = tf.sqrt(tf.reduce_sum(tf.square(w), axis=others))
        taken = tf.cast(self.lasso, w.dtype) * tf.reduce_mean(norms)
        return tf.maximum(1 - tf.math.divide_no_nan(taken, norms), 0)


def _along(vector, axis, rank):
    return tf.reshape(vector, [-1 if i == axis else 1 for i in range(rank)])
