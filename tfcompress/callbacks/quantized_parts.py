"""What `quantize_aware` put into a model, as a schedule drives it."""

import dataclasses

import keras

from tfcompress.graph import find_layers
from tfcompress.layers import (
    Binary,
    FakeQuant,
    FusedBatchNormalization,
    LearnedStep,
    QuantizeWeight,
    Ternary,
    TransformWeights,
    find_weight,
)


class RoundedWeight:
    """A transform that rounds a weight, with its state.

    Args:
        wrapper: `TransformWeights`.
        name: Name of the weight in the wrapper's `transforms`.
        position: Position of the transform in the list there.
    """

    def __init__(self, wrapper, name, position):
        self.transform = wrapper.transforms[name][position]
        self.state = wrapper.states[name][position]
        self.latent = find_weight(wrapper.layer, name)
        self.few_levels = isinstance(self.transform, (Ternary, Binary))

    def round_to(self, bits):
        """Rounds to `bits`, or the transform's own if they are more; 0 is float."""
        if bits and self.few_levels:
            bits = self.transform.bits
        elif bits:
            bits = max(bits, self.transform.bits)
        starts = bits and float(self.state["bits"].numpy()) <= 0
        if starts and isinstance(self.transform, LearnedStep):
            # It stood still while the weights moved.
            initial = self.transform.initial_state(self.latent.numpy())
            self.state["step"].assign(initial["step"])
        self.state["bits"].assign(float(bits))


@dataclasses.dataclass(frozen=True)
class QuantizedParts:
    """What of a model is scheduled.

    Attributes:
        quantizers: The `FakeQuant` layers.
        normalizations: The `FusedBatchNormalization` layers.
        weights: A `RoundedWeight` for each transform that rounds.
    """

    quantizers: list
    normalizations: list
    weights: list

    @classmethod
    def of(cls, model):
        """Finds them in a model, of a distiller in its student."""
        # Nothing of a distiller's teacher is trained, even if it is quantized itself.
        student = getattr(model, "student", None)
        model = student if isinstance(student, keras.Model) else model
        return cls(
            quantizers=find_layers(model, FakeQuant),
            normalizations=find_layers(model, FusedBatchNormalization),
            weights=[
                RoundedWeight(wrapper, name, position)
                for wrapper in find_layers(model, TransformWeights)
                for name, chain in wrapper.transforms.items()
                for position, transform in enumerate(chain)
                if isinstance(transform, QuantizeWeight)
            ],
        )
