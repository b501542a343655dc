"""How a model is quantized: a small object, presets by name, and rules per layer.

Example:
    ```python
    tfc.quantize_aware(model, "int4_weights", rules=[tfc.Rule("^stem", weight_bits=8)])
    ```
"""

import dataclasses
import numbers

import numpy as np

from tfcompress.layers import Binary, FakeQuantizeWeight, LearnedStep, Ternary
from tfcompress.numerics.range_estimation import METHODS as HISTOGRAM_METHODS

RANGES = ("minmax", "moving_average", *HISTOGRAM_METHODS)
WEIGHTS = ("max", "learned_step", "ternary", "binary")
# What may differ from layer to layer. Activations may not: layers share their scales,
# and our export writes activations of one width.
OF_WEIGHTS = (
    "weight_bits",
    "per_channel",
    "weights",
    "symmetric_weights",
    "power_of_two",
)


def _check_one_of(name, value, allowed):
    if value not in allowed:
        allowed = list(allowed)
        raise ValueError(
            f"`{name}` must be one of {allowed}. Received: {name}={value!r}"
        )


_TYPES = {
    bool: (bool, np.bool_),
    int: numbers.Integral,
    float: numbers.Real,
    str: str,
}


def _check_type(field, value):
    # To Python a bool is a number.
    mixed_up = isinstance(value, bool) and field.type is not bool
    if mixed_up or not isinstance(value, _TYPES[field.type]):
        raise TypeError(
            f"`{field.name}` must be {field.type.__name__}. Received: "
            f"{field.name}={value!r} (of type {type(value).__name__})"
        )


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """What is rounded, and to what.

    Args:
        weight_bits: Width of weights, 2 to 8.
        activation_bits: Width of activations: 8, or 16 for `"int16x8"` files.
        per_channel: Whether each output channel of a kernel has a scale of its own.
            One scale of any `weights` but `"max"` becomes one a channel in the file
            where batch normalization is folded into the kernel; `tfc.fold` the model
            before to have one there too.
        weights: How the grid of a weight is found: `"max"` (its largest value),
            `"learned_step"` (LSQ, arXiv:1902.08153), `"ternary"` (TWN,
            arXiv:1605.04711) or `"binary"` (BinaryConnect, arXiv:1511.00363).
        symmetric_weights: Whether 0 is the middle of a weight's grid. TFLite stores
            symmetric weights only.
        symmetric_activations: Whether 0 is the middle of an activation's grid; 16 bits
            are always so.
        power_of_two: Whether scales are powers of two (weights and activations; of
            weights those that batch normalization is folded into). With `"max"` only.
        ranges: How calibration data become a range: `"minmax"`, `"moving_average"`
            (mean over batches), `"percentile"`, `"mse"` or `"kl"`.
        percentile: For `"percentile"`: share of values within the range, in percent.
        momentum: Of the moving average of ranges in training, in [0, 1).

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If it is out of place.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True
    weights: str = "max"
    symmetric_weights: bool = True
    symmetric_activations: bool = False
    power_of_two: bool = False
    ranges: str = "minmax"
    percentile: float = 99.99
    momentum: float = 0.99

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_type(field, getattr(self, field.name))
        _check_one_of("weight_bits", self.weight_bits, range(2, 9))
        _check_one_of("activation_bits", self.activation_bits, (8, 16))
        _check_one_of("weights", self.weights, WEIGHTS)
        _check_one_of("ranges", self.ranges, RANGES)
        if not 50 < self.percentile <= 100:
            raise ValueError(
                "`percentile` must be in (50, 100]. Received: "
                f"percentile={self.percentile}"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(
                f"`momentum` must be in [0, 1). Received: momentum={self.momentum}"
            )
        if self.weights != "max" and not self.symmetric_weights:
            raise ValueError(
                f"weights={self.weights!r} has a symmetric grid. Asymmetric ones take "
                "weights='max'."
            )
        if self.weights != "max" and self.power_of_two:
            raise ValueError(
                f"weights={self.weights!r} has scales that are trained or means, not "
                "powers of two. Scales that are powers of two take weights='max'."
            )

    def get_config(self):
        """Returns the settings as a dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        """Rebuilds the object from `get_config()`."""
        return cls(**config)

    def replaced(self, settings):
        """A copy with some settings changed, as a `Rule` does for its layers."""
        unknown = set(settings) - set(OF_WEIGHTS)
        if unknown:
            raise ValueError(
                f"A rule cannot set {sorted(unknown)}. It can set 'quantize' and "
                f"{list(OF_WEIGHTS)}; what activations have in common is set in "
                "`config`."
            )
        return dataclasses.replace(self, **settings)

    def weight_transform(self, axes):
        """The transform that rounds a weight.

        Args:
            axes: Axes of the weight that may have scales of their own.
        """
        axes = axes if self.per_channel else ()
        if self.weights == "learned_step":
            return LearnedStep(bits=self.weight_bits, axes=axes)
        if self.weights == "ternary":
            return Ternary(axes=axes)
        if self.weights == "binary":
            return Binary(axes=axes)
        return FakeQuantizeWeight(
            bits=self.weight_bits,
            axes=axes,
            symmetric=self.symmetric_weights,
            power_of_two=self.power_of_two,
        )


PRESETS = {
    "int8": QuantizationConfig(),
    "int8_per_tensor": QuantizationConfig(per_channel=False),
    "int16x8": QuantizationConfig(activation_bits=16, symmetric_activations=True),
    "int4_weights": QuantizationConfig(weight_bits=4),
}


def resolved(config):
    """The config of a preset's name, or the config itself.

    Raises:
        ValueError: If there is no such preset.
        TypeError: If it is neither.
    """
    if isinstance(config, QuantizationConfig):
        return config
    if not isinstance(config, str):
        raise TypeError(
            "`config` must be the name of a preset or a tfc.QuantizationConfig. "
            f"Received: config={config!r} (of type {type(config).__name__})"
        )
    if config not in PRESETS:
        raise ValueError(
            f"`config` must be one of {tuple(PRESETS)} or a tfc.QuantizationConfig. "
            f"Received: config={config!r}"
        )
    return PRESETS[config]
