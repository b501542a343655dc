"""When the rounding of quantization-aware training begins, tightens and settles.

Example:
    ```python
    qat = tfc.quantize_aware(model, "int4_weights")
    qat.compile("adam", "sparse_categorical_crossentropy")
    schedule = tfc.QuantizationSchedule(
        start_step=200, bits={200: 8, 400: 6, 600: 4}, freeze_batch_norm_step=800
    )
    qat.fit(x, y, epochs=10, callbacks=[schedule])
    ```
"""

import dataclasses
import numbers

import keras
from absl import logging

from tfcompress import schedules
from tfcompress.callbacks.quantized_parts import QuantizedParts
from tfcompress.callbacks.run_steps import RunSteps
from tfcompress.checks import check_model

_FEWEST_BITS, _MOST_BITS = 2, 8


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizationSchedule(keras.callbacks.Callback):
    """Switches rounding on, and freezes what should settle, while `fit` trains.

    Steps count batches from the start of `fit`, as those of `Pruning` do: they follow
    from the epoch, so that a run that is resumed, or starts at `initial_epoch`, goes on
    where it was. With `steps_per_execution` above 1 a change waits for the end of the
    execution that its step falls in.

    What is in force is kept in variables of the model and is saved with it: a model
    that is loaded computes as it did. A callback that replaces weights, such as
    `EarlyStopping(restore_best_weights=True)`, belongs before this one in the list, so
    that weights from before `start_step` are rounded too.

    Args:
        start_step: Step from which weights and activations are rounded. Before it the
            model trains in float, and ranges of activations are observed. Learned
            steps then start from the weights there are.
        freeze_ranges_step: Step from which ranges of activations stay as they are;
            `None` leaves that as the model has it, as it does of the next argument.
        freeze_batch_norm_step: Step from which batch normalization computes with its
            moving statistics and keeps them, as the exported file does.
        bits: Width of weights over time, 2 to 8: a `tfc.schedules` schedule (rounded
            to whole bits), or a dict or pairs of step and bits in force from it on, 8
            before the first. Bits never rise, and must end at the width for which
            `quantize_aware` made the model: it is the one that the export stores.
            Layers that were given more stay at theirs, and ternary and binary weights
            are rounded or not. The width is in the logs of an epoch as `weight_bits`,
            0 before `start_step`. `None` has every layer at its own.

    Raises:
        TypeError: At construction if an argument is of the wrong type.
        ValueError: At construction if a step is negative or bits are out of range; at
            the start of `fit` if the model has no quantizers, no batch normalization
            to freeze, or weights that do not end at `bits`; when ranges are frozen of
            which one was never seen.

    Reference:
        Delayed and frozen as in Krishnamoorthi, 2018, section 3.2.2. arXiv:1806.08342;
        from more bits to fewer as in Zhuang et al., "Towards Effective Low-bitwidth
        Convolutional Neural Networks", 2017. arXiv:1711.00205
    """

    def __init__(
        self,
        start_step=0,
        freeze_ranges_step=None,
        freeze_batch_norm_step=None,
        bits=None,
    ):
        super().__init__()
        self.start_step = _checked_step("start_step", start_step)
        self.freeze_ranges_step = _checked_step(
            "freeze_ranges_step", freeze_ranges_step, optional=True
        )
        self.freeze_batch_norm_step = _checked_step(
            "freeze_batch_norm_step", freeze_batch_norm_step, optional=True
        )
        self.bits = _checked_bits(bits)
        self._start_over()

    def get_config(self):
        """Returns the constructor's arguments, serialised."""
        bits = self.bits
        if isinstance(bits, schedules.Schedule):
            bits = keras.saving.serialize_keras_object(bits)
        return {
            "start_step": self.start_step,
            "freeze_ranges_step": self.freeze_ranges_step,
            "freeze_batch_norm_step": self.freeze_batch_norm_step,
            "bits": bits,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuilds the callback from `get_config()`."""
        bits = config["bits"]
        if isinstance(bits, dict):
            bits = keras.saving.deserialize_keras_object(bits)
        return cls(**config | {"bits": bits})

    # Keras calls these.

    def on_train_begin(self, logs=None):
        self._start_over()
        self._steps = RunSteps(self.params.get("steps"))
        check_model(self.model)
        self._parts = QuantizedParts.of(self.model)
        self._check_model()

    def on_epoch_begin(self, epoch, logs=None):
        # The weights may have been restored since `on_train_begin`, so that what is in
        # force is set here.
        if epoch and self._steps.per_epoch is None:
            raise ValueError(
                f"QuantizationSchedule cannot tell at which step epoch {epoch} begins: "
                "the data set is of unknown length. Pass `steps_per_epoch` to `fit`."
            )
        self._advance(self._steps.begin_epoch(epoch))

    def on_train_batch_end(self, batch, logs=None):
        self._advance(self._steps.end_batch(batch))

    def on_epoch_end(self, epoch, logs=None):
        self._steps.end_epoch()
        if logs is not None and self.bits is not None:
            logs["weight_bits"] = self._applied.bits

    def on_train_end(self, logs=None):
        if self._applied is None:
            return  # There was no epoch.
        # A callback may have restored the weights of another step.
        self._apply(self._applied)
        if self.start_step and self._steps.now <= self.start_step:
            logging.warning(
                "Training ended at step %d, before rounding began (start_step=%d): the "
                "model has not learned to be rounded. Train longer, or start earlier.",
                self._steps.now,
                self.start_step,
            )
        elif self.bits is not None and self._applied.bits != self._final_bits:
            logging.warning(
                "Training ended at step %d with weights of %d bits, before the "
                "schedule of bits did (%d). Train longer, or end the schedule earlier.",
                self._steps.now,
                self._applied.bits,
                self._final_bits,
            )

    # How it works.

    def _start_over(self):
        self._steps = RunSteps()
        self._applied = None
        self._parts = None

    def _advance(self, step):
        """Brings the model to where the schedule is at `step`, if that is elsewhere."""
        wanted = self._state_at(step)
        if wanted != self._applied:
            if wanted.observing is False:
                self._check_ranges_seen()
            self._apply(wanted)
            self._applied = wanted

    def _state_at(self, step):
        rounding = step >= self.start_step
        return _State(
            rounding=rounding,
            observing=_until(self.freeze_ranges_step, step),
            learning=_until(self.freeze_batch_norm_step, step),
            bits=self._bits_at(step) if rounding else 0,
        )

    def _bits_at(self, step):
        if self.bits is None:
            return _FEWEST_BITS  # Every layer at its own, which is more or equal.
        if isinstance(self.bits, schedules.Schedule):
            return max(round(self.bits(step)), self._final_bits)
        reached = [width for begin, width in self.bits if begin <= step]
        return reached[-1] if reached else _MOST_BITS

    @property
    def _final_bits(self):
        if isinstance(self.bits, schedules.Schedule):
            return round(self.bits.final)
        return self.bits[-1][1]

    def _apply(self, state):
        for quantizer in self._parts.quantizers:
            quantizer.rounding.assign(float(state.rounding))
            if state.observing is not None:
                quantizer.observing.assign(float(state.observing))
        if state.learning is not None:
            for normalization in self._parts.normalizations:
                normalization.frozen.assign(float(not state.learning))
        for weight in self._parts.weights:
            weight.round_to(state.bits)

    def _check_ranges_seen(self):
        unseen = [q.name for q in self._parts.quantizers if q.range() is None]
        if unseen:
            raise ValueError(
                f"Ranges are frozen at step {self._steps.now}, and {len(unseen)} "
                f"quantizer(s) have none yet ({unseen[0]!r}, ...). Pass "
                "`calibration_data` to `quantize_aware`, or freeze later. Received: "
                f"freeze_ranges_step={self.freeze_ranges_step}"
            )

    def _check_model(self):
        name = self.model.name
        if not self._parts.quantizers and not self._parts.weights:
            raise ValueError(
                f"Model {name!r} has no quantizers, so there is nothing to schedule. "
                "`fit` a quantization-aware one: tfc.quantize_aware(model)."
            )
        if self.freeze_batch_norm_step is not None and not self._parts.normalizations:
            raise ValueError(
                f"Model {name!r} has no batch normalization to freeze. Leave out "
                "`freeze_batch_norm_step`. Received: "
                f"freeze_batch_norm_step={self.freeze_batch_norm_step}"
            )
        if self.bits is None:
            return
        own = {w.transform.bits for w in self._parts.weights if not w.few_levels}
        if not own:
            raise ValueError(
                f"Model {name!r} has no weights whose bits could change. Leave out "
                f"`bits`. Received: bits={self.bits!r}"
            )
        if self._final_bits != min(own):
            raise ValueError(
                f"`bits` must end at the width that model {name!r} was made for, "
                f"{min(own)}: that is what the export stores. Received: a schedule "
                f"that ends at {self._final_bits} bits. Set the width by "
                "`tfc.quantize_aware(model, tfc.QuantizationConfig(weight_bits=...))`."
            )


@dataclasses.dataclass(frozen=True)
class _State:
    """What is in force; `None` is left as it is.

    Attributes:
        rounding: Whether activations are rounded.
        observing: Whether ranges follow the activations.
        learning: Whether batch normalization uses and follows the batch.
        bits: Width of weights, 0 for float.
    """

    rounding: bool
    observing: bool | None
    learning: bool | None
    bits: int


def _until(freeze_step, step):
    return None if freeze_step is None else step < freeze_step


def _checked_step(name, step, *, optional=False):
    if step is None and optional:
        return None
    if isinstance(step, bool) or not isinstance(step, numbers.Integral):
        raise TypeError(
            f"`{name}` must be a whole number of steps. Received: {name}={step!r} (of "
            f"type {type(step).__name__})"
        )
    if step < 0:
        raise ValueError(
            f"`{name}` must be 0 or more: steps count batches from the start of `fit`. "
            f"Received: {name}={step}"
        )
    return int(step)


def _checked_bits(bits):
    """The schedule, or pairs `[step, bits]` in the order of their steps."""
    if bits is None:
        return None
    if isinstance(bits, schedules.Schedule):
        _check_widths([getattr(bits, "initial", bits.final), bits.final], bits)
        return bits
    pairs = list(bits.items()) if isinstance(bits, dict) else bits
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        raise TypeError(
            "`bits` must be a schedule of tfc.schedules, a dict {step: bits} or pairs "
            f"(step, bits). Received: bits={bits!r} (of type {type(bits).__name__})"
        )
    found = sorted([_checked_step("bits", step), width] for step, width in pairs)
    _check_widths([width for _, width in found], bits, whole=True)
    return found


def _check_widths(widths, bits, whole=False):
    kind = numbers.Integral if whole else numbers.Real
    if not widths or not all(
        isinstance(w, kind) and _FEWEST_BITS <= w <= _MOST_BITS for w in widths
    ):
        raise ValueError(
            f"`bits` must be whole numbers from {_FEWEST_BITS} to {_MOST_BITS}. "
            f"Received: bits={bits!r}. To train in float first, pass `start_step`."
        )
    if list(widths) != sorted(widths, reverse=True):
        raise ValueError(f"`bits` cannot rise as training goes on. Received: {bits!r}")
