"""`tfc.replace_activations`: other activations wherever they stand."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from networks import compiled, image_data

import tfcompress as tfc


def _model(shape, *stack):
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def _outputs(model, x):
    return np.asarray(model(x, training=False))


def _hard_silu(x):
    return x * np.clip(x + 3, 0, 6) / 6


def _relu6(x):
    return np.clip(x, 0, 6)


X = np.linspace(-5, 9, 48).reshape(4, 12).astype("float32")


@pytest.mark.parametrize(
    "place",
    [
        layers.Activation("silu"),
        layers.Activation("swish"),
        ops.silu,
        lambda x: ops.swish(x),
        layers.Dense(12, activation="silu", kernel_initializer="identity"),
        layers.EinsumDense(
            "ab,bc->ac", 12, activation="silu", kernel_initializer="identity"
        ),
    ],
    ids=["silu", "swish", "ops", "ops alias", "dense", "einsum"],
)
def test_silu_becomes_hard_silu_wherever_it_stands(place):
    model = _model((12,), place)
    found = tfc.replace_activations(model)
    np.testing.assert_allclose(_outputs(found, X), _hard_silu(X), atol=1e-5)
    assert not np.allclose(_outputs(model, X), _hard_silu(X), atol=1e-2)


@pytest.mark.parametrize(
    "place",
    [
        layers.Activation("gelu"),
        lambda x: ops.gelu(x, approximate=False),
        layers.Dense(12, activation="gelu", kernel_initializer="identity"),
    ],
)
def test_gelu_becomes_relu6(place):
    found = tfc.replace_activations(_model((12,), place))
    np.testing.assert_allclose(_outputs(found, X), _relu6(X), atol=1e-6)


@pytest.mark.parametrize(
    "place, name",
    [
        (layers.ReLU(), "relu"),
        (layers.ReLU(6), "relu6"),
        (layers.ReLU(negative_slope=0.1), "leaky_relu"),
        (layers.ReLU(4), "relu(max_value=4.0, negative_slope=0.0, threshold=0.0)"),
        (layers.LeakyReLU(0.2), "leaky_relu"),
        (layers.ELU(), "elu"),
        (layers.PReLU(), "prelu"),
        (layers.Softmax(), "softmax"),
        (layers.Dense(12, activation=layers.LeakyReLU()), "leaky_relu"),
        (lambda x: ops.leaky_relu(x), "leaky_relu"),
        (lambda x: ops.tanh(x), "tanh"),
        (lambda x: ops.hard_sigmoid(x), "hard_sigmoid"),
    ],
)
def test_every_activation_has_a_name_and_goes_by_it(place, name):
    model = _model((12,), place)
    found, report = tfc.replace_activations(
        model, {name: "sigmoid"}, return_report=True
    )
    x = X
    if isinstance(place, layers.Dense):
        x = X @ place.kernel.numpy()
    np.testing.assert_allclose(_outputs(found, X), 1 / (1 + np.exp(-x)), atol=1e-5)
    assert report.changes[0].what == f"{name} -> sigmoid"
    assert found.count_params() <= model.count_params()


@keras.saving.register_keras_serializable(package="tests")
def halved(x):
    return x / 2


def test_replacements_may_be_functions_and_layers_with_weights(tmp_path):
    model = _model(
        (12,),
        layers.Dense(12, activation="tanh", name="a"),
        layers.Activation("tanh", name="b"),
        layers.Dense(12, activation="relu", name="c"),
    )
    found, report = tfc.replace_activations(
        model,
        {"tanh": layers.PReLU(alpha_initializer="ones"), "relu": halved},
        return_report=True,
    )
    assert [layer.name for layer in found.layers[1:]] == ["a", "a_activation", "b", "c"]
    # A PReLU of slope one is the identity.
    a, c = model.get_layer("a"), model.get_layer("c")
    expected = X @ a.kernel.numpy() @ c.kernel.numpy() / 2
    np.testing.assert_allclose(_outputs(found, X), expected, rtol=1e-4, atol=1e-5)
    assert [x.parameters_after - x.parameters_before for x in report.changes] == [
        12,
        12,
        0,
    ]
    found.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(_outputs(loaded, X), _outputs(found, X))


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LSTM(5, name="r"),
        lambda: layers.Bidirectional(layers.GRU(5), name="r"),
        lambda: layers.RNN(layers.SimpleRNNCell(5), name="r"),
        lambda: layers.TimeDistributed(layers.Dense(3, activation="tanh"), name="r"),
    ],
)
def test_activations_inside_recurrent_layers_and_wrappers(make, tmp_path):
    model = _model((4, 3), make())
    found = tfc.replace_activations(model, {"tanh": "linear"})
    assert "tanh" not in str(found.get_layer("r").get_config())
    for old, new in zip(model.get_weights(), found.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    found.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert "tanh" not in str(loaded.get_layer("r").get_config())
    with pytest.raises(ValueError, match="cannot stand inside layer 'r'"):
        tfc.replace_activations(model, {"tanh": layers.LeakyReLU()})


def test_shared_layers_stay_shared_and_others_are_as_they_were():
    shared = layers.Dense(3, activation="silu", name="shared")
    inputs = keras.Input((3,))
    x = layers.Dense(3, activation="relu", name="other")(shared(shared(inputs)))
    found = tfc.replace_activations(keras.Model(inputs, x))
    assert [layer.name for layer in found.layers[1:]] == ["shared", "other"]
    assert found.get_layer("other").activation is keras.activations.relu
    assert len(found.get_layer("shared")._inbound_nodes) == 2


def test_layers_are_chosen_by_name():
    model = _model(
        (3,),
        layers.Dense(3, activation="silu", name="one"),
        layers.Dense(3, activation="silu", name="two"),
    )
    found = tfc.replace_activations(model, exclude="two")
    assert found.get_layer("one").activation is keras.activations.hard_silu
    assert found.get_layer("two").activation is keras.activations.silu
    with pytest.raises(ValueError, match="'three' matches nothing"):
        tfc.replace_activations(model, include="three")


def test_a_network_loses_all_of_its_silu_and_trains():
    model = keras.applications.EfficientNetB0(
        weights=None, input_shape=(32, 32, 3), classes=3
    )
    found, report = tfc.replace_activations(model, return_report=True)
    assert len(report.changes) == 49 and found.count_params() == model.count_params()
    with pytest.raises(ValueError, match="no chosen layer"):
        tfc.replace_activations(found)


def test_the_result_trains_and_the_original_is_as_it_was():
    x, y = image_data()
    model = _model(
        (8, 8, 3),
        layers.Conv2D(8, 3, activation="silu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3, activation="softmax"),
    )
    before = model.get_weights()
    found = compiled(tfc.replace_activations(model))
    history = found.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert model.layers[1].activation is keras.activations.silu
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "mapping, error, message",
    [
        ({"gelu": "relu"}, ValueError, r"There are: relu \(2\), softmax \(1\)"),
        ({"rleu": "relu6"}, ValueError, "Received: 'rleu'.* has: relu, softmax"),
        ({"relu": "relu7"}, ValueError, "Received: 'relu7'"),
        ({"relu": 6}, TypeError, "a function or a layer object. Received: 6"),
        ({"relu": layers.PReLU}, TypeError, "a class: call it"),
        ("relu6", TypeError, "`mapping` must be a dict"),
        ({}, TypeError, "`mapping` must be a dict"),
    ],
)
def test_wrong_mappings_are_named(mapping, error, message):
    model = _model(
        (3,),
        layers.Dense(3, activation="relu"),
        layers.ReLU(),
        layers.Dense(3, activation="softmax"),
    )
    with pytest.raises(error, match=message):
        tfc.replace_activations(model, mapping)
