"""What an optimizer remembers of each weight: momenta, moving averages.

Example:
    ```python
    for slot in slots_of(model.optimizer, model.trainable_variables):
        print(slot.weight, slot.what, slot.variable.shape)
    ```
"""

import re
from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class Slot:
    """A variable of an optimizer.

    Attributes:
        weight: The weight that it is of; `None` for a state of its own, such as the
            number of steps.
        what: What of it, the same in each model.
        variable: The variable.
    """

    weight: keras.Variable | None
    what: object
    variable: keras.Variable


def slots_of(optimizer, weights):
    """Lists the variables of a built optimizer, with the weights that they are of.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        weights: The weights that it trains.

    Returns:
        List of `Slot`.
    """
    # Of names that start alike the longest is meant.
    weights = sorted(weights, key=lambda v: -len(v.path))
    found = []
    for variable in optimizer.variables:
        # Optimizers that Keras makes by itself are numbered.
        kind, _, name = variable.path.partition("/")
        slot = Slot(None, (re.sub(r"_\d+$", "", kind), name), variable)
        for weight in weights:
            prefix = weight.path.replace("/", "_") + "_"
            if variable.name.startswith(prefix):
                slot = Slot(weight, variable.name.removeprefix(prefix), variable)
                break
        found.append(slot)
    return found
