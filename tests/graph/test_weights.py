"""Finding kernels and layers by path."""

import keras
import models
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.graph import find_layers, kernels


def test_kernels_of_a_nested_model_have_its_path():
    assert list(kernels(models.nested())) == [
        "dense/kernel",
        "block/dense/kernel",
        "block/head/dense/kernel",
        "out/kernel",
    ]


def test_kernels_are_the_variables_themselves():
    model = models.nested()
    assert kernels(model)["out/kernel"] is model.get_layer("out").kernel


def test_a_shared_weight_appears_once():
    assert list(kernels(models.shared())) == ["tower/dense/kernel", "twice/kernel"]


def test_a_layer_in_two_places_appears_once():
    inner = layers.Dense(2, name="d")
    first = keras.Sequential([keras.Input((2,)), inner], name="first")
    second = keras.Sequential([keras.Input((2,)), inner], name="second")
    inputs = keras.Input((2,))
    assert len(kernels(keras.Model(inputs, second(first(inputs))))) == 1


def test_kernels_of_a_subclassed_model_are_found():
    model = models.Subclassed(name="mine")
    model(np.zeros((1, 3), "float32"))
    first, second = model.first.name, model.second.name
    assert list(kernels(model)) == [f"{first}/kernel", f"{second}/kernel"]


class _Raw(keras.Model):
    """Has weights of its own, a list of layers and a layer with no name in Keras."""

    def __init__(self):
        super().__init__()
        self.parts = [layers.Dense(2, name="part"), layers.Dense(2, name="part")]

    def build(self, shape):
        self.mix = self.add_weight(name="mix", shape=(shape[-1], 3))
        self.shift = self.add_weight(name="shift", shape=(3,))
        self.parts[0].build((None, 3))
        self.parts[1].build((None, 2))

    def call(self, x):
        return self.parts[1](self.parts[0](keras.ops.matmul(x, self.mix) + self.shift))


def test_raw_weights_and_layers_of_one_name_get_paths_of_their_own():
    model = _Raw()
    model.build((None, 4))
    assert list(kernels(model)) == ["mix", "part/kernel", "part/kernel_2"]


@pytest.mark.parametrize(
    "layer, shape, names",
    [
        (layers.Conv2D(2, 3), (5, 5, 1), ["kernel"]),
        (layers.DepthwiseConv2D(3), (5, 5, 2), ["kernel"]),
        (
            layers.SeparableConv2D(2, 3),
            (5, 5, 2),
            ["depthwise_kernel", "pointwise_kernel"],
        ),
        (layers.EinsumDense("ab,bc->ac", 3), (4,), ["kernel"]),
        (layers.LSTM(2), (4, 3), ["lstm_cell/kernel", "lstm_cell/recurrent_kernel"]),
        (layers.Embedding(5, 2), (4,), ["embeddings"]),
        (layers.BatchNormalization(), (3,), []),
        (layers.LayerNormalization(axis=(-2, -1)), (4, 3), []),
        (layers.PReLU(), (4, 3), []),
        (layers.GroupNormalization(1), (4, 3), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else "",
)
def test_what_counts_as_a_kernel(layer, shape, names):
    model = keras.Sequential([keras.Input(shape), layer])
    assert list(kernels(model)) == [f"{layer.name}/{name}" for name in names]


def test_frozen_layers_have_no_kernels():
    model = models.nested()
    model.get_layer("block").trainable = False
    assert list(kernels(model)) == ["dense/kernel", "out/kernel"]


def test_a_distiller_gives_the_kernels_of_its_student_alone():
    student, teacher = models.operators(), models.operators()
    distiller = tfc.distill(
        student, teacher, student_outputs="logits", teacher_outputs="logits"
    )
    found = kernels(distiller)
    assert [id(v) for v in found.values()] == [id(v) for v in kernels(student).values()]
    assert len(found) == 1


def test_a_wrapped_layer_gives_its_latent_kernel():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="d")])
    wrapped = tfc.quantize_aware(model)
    found = list(kernels(wrapped).values())
    assert len(found) == 1
    np.testing.assert_array_equal(found[0].numpy(), model.layers[0].kernel.numpy())


def test_find_layers_looks_inside_and_gives_each_once():
    found = find_layers(models.nested(), layers.Dense)
    assert sorted(x.name for x in found) == ["dense", "dense", "dense", "out"]
    assert len(find_layers(models.shared(), layers.Dense)) == 2


def test_find_layers_includes_the_model_itself():
    model = models.nested()
    assert model in find_layers(model, keras.Model)
    assert len(find_layers(model, keras.Model)) == 3


def test_find_layers_takes_several_classes():
    kinds = (layers.ReLU, layers.BatchNormalization)
    found = find_layers(models.nested(), kinds)
    assert {x.name for x in found} == {"bn", "relu"}
