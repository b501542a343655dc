"""A model of simpler operations computes what the model it came from computed."""

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, examples
from keras import layers, ops

import tfcompress as tfc
from tfcompress.graph import Graph, functional
from tfcompress.layers import FakeQuant
from tfcompress.passes import quantize_rules as rules
from tfcompress.passes.lowering import functional_form, lower


def _lowered(model):
    return lower(model if functional(model) else functional_form(model)).model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_computes_the_same_from_operations_that_have_an_integer_form(name):
    model = ARCHITECTURES[name]()
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name.startswith(("gamma", "scale", "moving_variance", "alpha")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif "seed" not in variable.name:
            variable.assign(rng.normal(0, 0.4, variable.shape))
    x = keras.tree.map_structure(np.abs, examples(model))
    expected = keras.tree.flatten(model(x))
    simple = _lowered(model)
    found = keras.tree.flatten(simple(x))
    for one, other in zip(expected, found, strict=True):
        # 1e-4: other orders of float32 sums; masked attention is exact to exp(-16).
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    left = [c.operation for c in Graph(simple).calls if not rules.known(c.operation)]
    assert not left
    # Every weight is still trained.
    sizes = [
        sum(int(np.prod(v.shape)) for v in m.trainable_variables)
        for m in (model, simple)
    ]
    assert sizes[0] == sizes[1]


def test_a_frozen_layer_stays_frozen():
    inputs = keras.Input((6, 8))
    frozen = layers.LSTM(3, trainable=False)
    simple = _lowered(keras.Model(inputs, layers.LayerNormalization()(frozen(inputs))))
    assert len(simple.trainable_variables) == 2


def test_parts_know_the_layer_they_belong_to():
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    x = layers.TimeDistributed(layers.LayerNormalization(), name="each")(x)
    result = lower(keras.Model(inputs, x))
    assert result.origins["mha_query_dense"] == "mha"
    assert "each/each_layer_normalization" in "".join(result.origins.values())
    assert {p.split("/")[0] for p in result.origins.values()} == {"mha", "each"}


def test_two_blocks_of_attention_know_their_lengths():
    inputs = keras.Input((6, 8))
    x = inputs
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(y, y)])
    model = keras.Model(inputs, x)
    x = np.random.default_rng(0).normal(size=(3, 6, 8)).astype("float32")
    # float32 sums in another order.
    np.testing.assert_allclose(model(x), _lowered(model)(x), atol=1e-5)


def test_a_shared_layer_stays_shared():
    inputs = keras.Input((6, 8))
    norm = layers.LayerNormalization()
    simple = _lowered(keras.Model(inputs, norm(norm(inputs))))
    assert len(simple.trainable_variables) == 2


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LSTM(4, return_sequences=True, return_state=True),
        lambda: layers.LSTM(4, go_backwards=True, use_bias=False),
        lambda: layers.GRU(4, use_bias=False, return_sequences=True),
        lambda: layers.GRU(4, recurrent_activation="hard_sigmoid", activation="relu"),
        lambda: layers.SimpleRNN(4, activation="relu", return_state=True),
        lambda: layers.Bidirectional(layers.GRU(4), merge_mode="sum"),
        lambda: layers.Bidirectional(layers.SimpleRNN(4), merge_mode=None),
    ],
)
def test_recurrent_layers_of_every_kind(layer):
    inputs = keras.Input((5, 3))
    model = keras.Model(inputs, layer()(inputs))
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
    expected, found = (keras.tree.flatten(m(x)) for m in (model, _lowered(model)))
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        # float32 sums in another order.
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_recurrent_layer_with_a_given_state():
    inputs, state = keras.Input((5, 3)), keras.Input((4,))
    model = keras.Model([inputs, state], layers.GRU(4)(inputs, initial_state=state))
    x = [np.ones((2, 5, 3), "float32"), np.full((2, 4), 0.3, "float32")]
    np.testing.assert_allclose(model(x), _lowered(model)(x), atol=1e-6)


@pytest.mark.parametrize(
    ("equation", "shape", "bias"),
    [
        ("abc,cd->abd", (None, 7), "d"),
        ("abc,cde->adbe", (2, None, 3), "de"),
        ("abc,cde->aebd", (3, None, 2), "e"),
        ("abcd,cde->abe", (None, 7), None),
        ("...x,xy->...y", 7, "y"),
        ("abc,bd->adc", (7, None), "d"),
    ],
)
def test_einsum_layers(equation, shape, bias):
    dims = {"abcd,cde->abe": (6, 4, 2)}.get(equation, (6, 8))
    inputs = keras.Input(dims)
    layer = layers.EinsumDense(
        equation, shape, bias_axes=bias, bias_initializer="random_normal"
    )
    model = keras.Model(inputs, layer(inputs))
    x = np.random.default_rng(0).normal(size=(3, *dims)).astype("float32")
    # float32 sums in another order.
    np.testing.assert_allclose(model(x), _lowered(model)(x), atol=1e-5)


def test_attention_reads_a_mask():
    inputs, mask = keras.Input((5, 8)), keras.Input((5, 5), dtype="bool")
    outputs = layers.MultiHeadAttention(2, 4)(inputs, inputs, attention_mask=mask)
    model = keras.Model([inputs, mask], outputs)
    rng = np.random.default_rng(0)
    keep = rng.random((3, 5, 5)) < 0.7
    keep[:, :, 0] = True
    x = [rng.normal(size=(3, 5, 8)).astype("float32"), keep]
    # exp(-16) of a probability is left where the mask takes all.
    np.testing.assert_allclose(model(x), _lowered(model)(x), atol=1e-5)


def test_division_by_a_tensor_of_either_sign():
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], a / b)
    x = [np.full((1, 4), 3.0, "float32"), np.array([[-2.0, 0.5, 1, -9]], "float32")]
    np.testing.assert_allclose(_lowered(model)(x), x[0] / x[1], rtol=1e-5)


def test_a_weight_that_is_computed_with_alone_is_not_lost():
    class Alone(layers.Layer):
        def build(self, input_shape):
            self.w = self.add_weight(shape=(4,), name="w")

        def call(self, inputs):
            return inputs * ops.exp(self.w)

    inputs = keras.Input((4,))
    result = lower(keras.Model(inputs, Alone(name="alone")(inputs)))
    assert "reads weights in a way that is not recorded" in result.failures["alone"]


def test_a_layer_that_does_nothing_at_inference_is_kept_for_training():
    @keras.saving.register_keras_serializable(package="tests")
    class Noise(layers.Layer):
        def call(self, inputs, training=False):
            return inputs * keras.random.uniform(()) if training else inputs

    inputs = keras.Input((4,))
    result = lower(keras.Model(inputs, Noise(name="noise")(inputs)))
    assert result.identities == {"noise"}


NEUTRAL = {
    "x * 1": lambda x: x * 1.0,
    "1 * x": lambda x: 1.0 * x,
    "x / 1": lambda x: x / 1.0,
    "x + 0": lambda x: x + 0.0,
    "0 + x": lambda x: 0.0 + x,
    "x - 0": lambda x: x - 0.0,
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_changes_nothing_is_not_rounded_again(name, tmp_path):
    """InceptionResNetV2 ends so: the converter refused two roundings in a row."""
    inputs = keras.Input((1, 1, 3))
    x = layers.Conv2D(4, 1, name="first")(inputs)
    y = NEUTRAL[name](layers.Conv2D(4, 1, name="second")(x))
    model = keras.Model(inputs, layers.Conv2D(3, 1)(layers.Add(name="sum")([x, y])))
    data = np.random.default_rng(0).normal(size=(64, 1, 1, 3)).astype("float32")
    qat = tfc.quantize_aware(model, calibration_data=data)
    names = [q.name for q in tfc.graph.find_layers(qat, FakeQuant)]
    assert len(names) == 5 and {"second_quant", "sum_quant"} < set(names)
    # As training would, where it sees the two at other steps.
    for quantizer in tfc.graph.find_layers(qat, FakeQuant):
        low, high = quantizer.range()
        quantizer.set_range(0, 1.05 * low, 0.97 * high)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    assert result.fully_integer and result.operators["CONV_2D"] == 3


@pytest.mark.parametrize("name", ["1 * x", "x * 1", "0 + x", "x + 0"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_what_makes_real_numbers_of_others_stays(name, dtype):
    inputs = keras.Input((4,), dtype=dtype)
    model = keras.Model(inputs, layers.Dense(3)(NEUTRAL[name](inputs)))
    x = np.random.default_rng(0).integers(0, 2, (8, 4)).astype(dtype)
    simple = _lowered(model)
    np.testing.assert_allclose(simple(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [lambda x: x * np.float32([1, 2]), lambda x: x + 0.5, lambda x: 0.0 - x],
    ids=["vector", "not 0", "from 0"],
)
def test_what_changes_something_stays(change):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, change(inputs))
    x = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype("float32")
    qat = tfc.quantize_aware(model, calibration_data=x)
    # Half a step of 3 / 255 at the input (twice at most), and at the output.
    np.testing.assert_allclose(qat(x), model(x), atol=0.03)
