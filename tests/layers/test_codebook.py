"""What codebooks do beyond the laws that all transforms keep (`tests/contracts`)."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.layers import (
    Codebook,
    GroupCodebook,
    LayerGroup,
    TransformWeights,
    VectorCodebook,
    find_weight,
    name_of_weight,
)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Codebook(1), "`clusters` must be a whole number from 2"),
        (lambda: Codebook(2.0), "`clusters` must be a whole number"),
        (lambda: Codebook(start="median"), "`start` must be one of"),
        (lambda: Codebook(gradient="max"), "`gradient` must be one of"),
        (lambda: Codebook(steps=-1), "`steps` must be a whole number from 0"),
        (lambda: VectorCodebook(block=1), "`block` must be a whole number from 2"),
    ],
)
def test_settings_out_of_range(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_an_infinite_threshold_makes_it_the_identity():
    dense = layers.Dense(3)
    dense.build((None, 50))
    wrapper = TransformWeights(dense, {"kernel": [Codebook(4)]})
    assert len(np.unique(wrapper.effective_weights()["kernel"])) == 4
    wrapper.states["kernel"][0]["threshold"].assign(np.inf)
    np.testing.assert_array_equal(
        wrapper.effective_weights()["kernel"], dense.kernel.numpy()
    )


def test_without_a_gradient_nothing_of_it_is_trained():
    dense = layers.Dense(3)
    dense.build((None, 5))
    for gradient, number in (("mean", 3), (None, 2)):
        wrapper = TransformWeights(dense, {"kernel": [Codebook(4, gradient=gradient)]})
        assert len(wrapper.trainable_variables) == number


def _group(tmp_path=None):
    members = []
    for name, width in (("a", 4), ("b", 6)):
        layer = layers.Dense(6 if name == "a" else 2, name=name)
        layer.build((None, width))
        members.append(layer)
    group = LayerGroup(members, 5, name="group")
    group.codebook.assign([-0.5, -0.1, 0.2, 0.6])
    return TransformWeights(
        group, {"a/kernel": [GroupCodebook(5)], "b/kernel": [GroupCodebook(5)]}
    )


def test_layers_of_a_group_have_one_codebook_which_both_train(tmp_path):
    wrapper = _group()
    inputs = keras.Input((4,))
    outputs = wrapper(wrapper(inputs, member=0), member=1)
    model = keras.Model(inputs, outputs)
    names = [v.name for v in model.trainable_variables]
    assert names.count("centroids") == 1
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    before = wrapper.layer.codebook.numpy()
    model.fit(x, x[:, :2], epochs=2, verbose=0)
    centroids = wrapper.layer.codebook.numpy()
    assert np.all(centroids != before)
    for value in wrapper.effective_weights().values():
        assert set(np.unique(value)) <= {0, *centroids}
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(
        back.predict(x, verbose=0), model.predict(x, verbose=0)
    )


@keras.saving.register_keras_serializable(package="tests.codebook")
class Unnamed(layers.Layer):
    """Layers within it are numbered by Keras, differently in each copy."""

    def build(self, input_shape):
        self.parts = [layers.Dense(4), layers.Dense(4)]
        for part in self.parts:
            part.build(input_shape)

    def call(self, x):
        return self.parts[1](self.parts[0](x))


def test_weights_are_found_in_copies_by_name_path_or_number():
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    attention.build((1, 3, 8), (1, 3, 8))
    unnamed, copy = Unnamed(), Unnamed()
    for layer in (unnamed, copy):
        layer.build((None, 4))
    lstm = layers.LSTM(3)
    lstm.build((None, 5, 4))
    expected = {
        "query/kernel": (attention, attention, 0),
        "recurrent_kernel": (lstm, lstm, 1),
        "kernel:1": (unnamed, copy, 2),
    }
    for name, (layer, like, position) in expected.items():
        assert name_of_weight(layer, position, like=like) == name
        for one in (layer, like):
            assert find_weight(one, name) is one.weights[position]
    with pytest.raises(ValueError, match="one weight named 'kernel:7'"):
        find_weight(unnamed, "kernel:7")
