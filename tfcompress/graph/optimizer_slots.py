"""What an optimizer remembers of each weight: momenta, moving averages.

Example:
    ```python
    for slot in slots_of(model.optimizer, model.trainable_variables):
        print(slot.weight, slot.what, slot.variable.shape)
    ```
"""

import collections
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
    by_path = {}
    for weight in weights:
        by_path.setdefault(weight.path, []).append(weight)
    # Of names that start alike the longest is meant; of equal ones each in its turn.
    paths = sorted(by_path, key=lambda path: -len(path))
    turns = collections.Counter()
    found = []
    for variable in optimizer.variables:
        # Optimizers that Keras makes by itself are numbered.
        kind, _, name = variable.path.partition("/")
        slot = Slot(None, (re.sub(r"_\d+$", "", kind), name), variable)
        for path in paths:
            prefix = path.replace("/", "_") + "_"
            if variable.name.startswith(prefix):
                what = variable.name.removeprefix(prefix)
                turn = turns[path, what] % len(by_path[path])
                turns[path, what] += 1
                slot = Slot(by_path[path][turn], what, variable)
                break
        found.append(slot)
    return found
