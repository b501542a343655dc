"""What belongs to which weight in an optimizer."""

import keras
import pytest
from keras import layers

from tfcompress.graph.optimizer_slots import slots_of


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_every_weight_has_its_own_slots(optimizer):
    def branch(name):
        inputs = keras.Input((4,))
        return keras.Model(inputs, layers.Dense(3, name="d")(inputs), name=name)

    inputs = keras.Input((4,))
    x = layers.Add()([branch("a")(inputs), branch("b")(inputs)])
    # Names of which one begins the other.
    model = keras.Model(inputs, layers.Dense(3, name="d_kernel")(x))
    weights = model.trainable_variables
    found = keras.optimizers.get(optimizer)
    if optimizer == "sgd":
        found = keras.optimizers.SGD(0.1, momentum=0.9)
    found.build(weights)
    slots = slots_of(found, weights)
    of = {id(w): [s for s in slots if s.weight is w] for w in weights}
    counts = {len(own) for own in of.values()}
    assert len(counts) == 1 and counts != {0}
    for weight in weights:
        assert all(s.variable.shape == weight.shape for s in of[id(weight)])
    # In the order of the weights, as optimizers make them.
    for what in {s.what for s in slots if s.weight is not None}:
        owners = [s.weight for s in slots if s.what == what and s.weight is not None]
        assert [id(w) for w in owners] == [id(w) for w in weights]
    own = [s for s in slots if s.weight is None]
    assert {s.variable.path.split("/")[-1] for s in own} == {
        "iteration",
        "learning_rate",
    }
