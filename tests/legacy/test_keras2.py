"""Models of Keras 2 that have what Keras 3 has otherwise, or has not."""

import itertools
import json
import os
import zipfile

import h5py
import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.legacy.layers import UnsupportedLegacyLayer, make_layer

tf_keras = pytest.importorskip("tf_keras")
layers = tf_keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6, 6, 3)).astype("float32")
SEQUENCE = RNG.normal(size=(4, 5, 3)).astype("float32")


def _same(old, *inputs, path=None):
    """Asserts that the models predict the same; returns the new one."""
    if path is None:
        new = tfc.from_tfmot(old)
    else:
        old.save(path, include_optimizer=False)
        new = tfc.load_model(path)
    given = inputs if len(inputs) > 1 else inputs[0]
    found, expected = new(given, training=False), old(given, training=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)
    return new


def _model(function, shape):
    inputs = tf_keras.Input(shape)
    return tf_keras.Model(inputs, function(inputs))


_LAMBDAS = ("layer", "nested")


@pytest.fixture(params=["memory", "h5"])
def path(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "m.h5"


@pytest.mark.filterwarnings("ignore:You are saving your model")
@pytest.mark.parametrize("nested", [False, True])
def test_normalization_normalizes_before_it_is_saved(nested, path):
    normalization = layers.Normalization()
    normalization.adapt(X * 3 + 2)
    model = _model(normalization, X.shape[1:])
    old = _model(model, X.shape[1:]) if nested else model
    _same(old, X, path=path)


@pytest.mark.filterwarnings("ignore:The object being serialized includes")
@pytest.mark.parametrize(
    "form, kind",
    [
        *itertools.product(("SavedModel", "older SavedModel", "keras"), _LAMBDAS),
        ("keras", "activation"),
    ],
)
def test_code_in_a_file_is_not_run(form, kind, tmp_path, monkeypatch):
    monkeypatch.delenv("CODE_RAN", raising=False)

    def code(x):
        __import__("os").environ["CODE_RAN"] = "1"
        return x

    if kind == "activation":
        layer = layers.Dense(2, activation=lambda x: code(x))
    else:
        layer = layers.Lambda(lambda x: code(x), name="secret")
    if kind == "nested":
        layer = _model(layer, (4,))
    path = tmp_path / ("m.keras" if form == "keras" else "m")
    _model(layer, (4,)).save(path, save_format="keras" if form == "keras" else "tf")
    if form == "older SavedModel":
        _move_metadata(path)
    if kind == "activation":
        _name_lambda(path)
    monkeypatch.delenv("CODE_RAN", raising=False)
    with pytest.raises(ValueError, match="has a Lambda, whose Python code would run"):
        tfc.load_model(path)
    assert "CODE_RAN" not in os.environ


def _name_lambda(path):
    """Writes the class of the lambda, which tf_keras forgets, into the config."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    dense = config["config"]["layers"][1]["config"]
    dense["activation"] = {"class_name": "__lambda__", "config": dense["activation"]}
    parts["config.json"] = json.dumps(config)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data)


def _move_metadata(path):
    """As TensorFlow 2.4 wrote it: in the graph of objects."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

    file = path / "keras_metadata.pb"
    model = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    objects = model.meta_graphs[0].object_graph_def.nodes
    for node in SavedMetadata.FromString(file.read_bytes()).nodes:
        objects[node.node_id].user_object.metadata = node.metadata
    (path / "saved_model.pb").write_bytes(model.SerializeToString())
    file.unlink()


def test_saved_model_loads(tmp_path):
    old = tf_keras.Sequential([layers.Dense(3, input_shape=(4,)), layers.Dense(2)])
    old.save(tmp_path / "m", save_format="tf")
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(tfc.load_model(tmp_path / "m")(x), old(x), rtol=1e-6)


def test_folder_of_an_export_is_told_apart(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.export(tmp_path / "m", verbose=False)
    with pytest.raises(ValueError, match="holds functions without the layers"):
        tfc.load_model(tmp_path / "m")


@pytest.mark.parametrize(
    "class_name, config",
    [
        ("Dense", {"units": 2, "kernel_initializer": "GlorotUniform"}),
        ("LSTM", {"units": 2, "recurrent_initializer": "Orthogonal"}),
        (
            "Embedding",
            {"input_dim": 2, "output_dim": 2, "embeddings_initializer": "Uniform"},
        ),
    ],
)
def test_initializers_of_tensorflow_1_are_dropped(class_name, config):
    for key in config:
        if key.endswith("_initializer"):
            config = config | {
                key: {"class_name": config[key], "config": {"dtype": "float32"}}
            }
    assert make_layer(class_name, {"name": "layer", **config}).name == "layer"


def test_settings_that_keras_3_refuses_name_the_layer():
    with pytest.raises(UnsupportedLegacyLayer, match=r"'d' \(Dense\).*refuses"):
        make_layer("Dense", {"name": "d", "units": -1})


# What the layer is given, and a function that has it.
_LAYERS = {
    "SpatialDropout1D": (SEQUENCE, lambda x: layers.SpatialDropout1D(0.1)(x)),
    "SpatialDropout2D": (X, lambda x: layers.SpatialDropout2D(0.1)(x)),
    "RandomFlip": (X, lambda x: layers.RandomFlip()(x)),
    "RandomZoom": (X, lambda x: layers.RandomZoom(0.1)(x)),
    "RandomContrast": (X, lambda x: layers.RandomContrast(0.1)(x)),
    "RandomRotation": (X, lambda x: layers.RandomRotation(0.1)(x)),
    "Discretization": (X, lambda x: layers.Discretization([-0.5, 0.5])(x)),
    "one-hot Discretization": (
        X[:, :, 0, 0],
        lambda x: layers.Discretization([0.0], output_mode="multi_hot")(x),
    ),
    "activation is a layer": (
        SEQUENCE,
        lambda x: layers.Dense(2, activation=layers.LeakyReLU(0.3))(x),
    ),
    "TimeDistributed model": (
        SEQUENCE[..., None],
        lambda x: layers.TimeDistributed(
            tf_keras.Sequential(
                [
                    tf_keras.Input((3, 1)),
                    layers.Conv1D(2, 2, activation="hard_sigmoid"),
                    layers.BatchNormalization(),
                    layers.Flatten(),
                ]
            )
        )(x),
    ),
    "names": (
        SEQUENCE,
        lambda x: layers.Dense(2, name="a_b")(
            layers.TimeDistributed(layers.Dense(3, name="c/d"), name="a/b")(x)
        ),
    ),
    "ConvLSTM": (
        SEQUENCE[..., None],
        lambda x: _continued(layers.ConvLSTM1D, x, filters=2, kernel_size=2),
    ),
    "LSTM": (SEQUENCE, lambda x: _continued(layers.LSTM, x, units=4)),
    "GRU": (SEQUENCE, lambda x: _continued(layers.GRU, x, units=4)),
    "Bidirectional": (SEQUENCE, lambda x: _bidirectional(x)),
}


def _continued(layer, x, **kwargs):
    """A layer that begins with the state of another."""
    _, *states = layer(**kwargs, return_state=True)(x)
    return layer(**kwargs)(x, initial_state=states)


def _bidirectional(x):
    _, *states = layers.Bidirectional(layers.LSTM(2, return_state=True))(x)
    return layers.Bidirectional(layers.LSTM(2))(x, initial_state=states)


@pytest.mark.filterwarnings("ignore:You are saving your model")
@pytest.mark.parametrize("case", _LAYERS)
def test_layer_computes_what_it_did(case, path):
    x, function = _LAYERS[case]
    _same(_model(function, x.shape[1:]), x, path=path)


def test_discretization_keeps_the_bins_that_it_found():
    layer = layers.Discretization(num_bins=3)
    layer.adapt(SEQUENCE.reshape(-1, 1))
    _same(_model(layer, (3,)), SEQUENCE[:, 0])


def test_random_crop_is_refused():
    with pytest.raises(ValueError, match="'RandomCrop' crops at inference"):
        tfc.from_tfmot(_model(layers.RandomCrop(4, 4), X.shape[1:]))


def test_names_with_a_slash_become_others():
    inner = _model(layers.Dense(3, name="x/y"), (3,))
    inner._name = "in/ner"
    inputs = tf_keras.Input((3,), name="in/put")
    x = layers.Dense(3, name="a_b")(layers.Dense(3, name="a/b")(inner(inputs)))
    new = _same(tf_keras.Model(inputs, x), SEQUENCE[:, 0])
    assert [layer.name for layer in new.layers] == ["in_put", "in_ner", "a_b_", "a_b"]


def _edited(path, model, edit, version="2.1.6"):
    model.save(path, include_optimizer=False)
    with h5py.File(path, "a") as file:
        config = edit(json.loads(file.attrs["model_config"]))
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = version
    return path


@pytest.mark.filterwarnings("ignore:You are saving your model")
def test_nested_sequential_whose_config_is_a_list(tmp_path):
    first = layers.Dense(3, input_shape=(4,))
    inner = tf_keras.Sequential([first, layers.Dense(3)], name="inner")
    old = _model(lambda x: layers.Dense(2)(inner(x)), (4,))

    def edit(config):
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "Sequential":
                _, *parts = layer["config"]["layers"]
                layer["config"] = parts
        return config

    x = np.ones((2, 4), "float32")
    new = tfc.load_model(_edited(tmp_path / "m.h5", old, edit))
    np.testing.assert_allclose(new(x), old(x), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:You are saving your model")
def test_damaged_or_older_configs_are_told_apart(tmp_path):
    model = tf_keras.Sequential([layers.Dense(3, input_shape=(4,))])
    path = _edited(tmp_path / "m.h5", model, lambda _: {"class_name": "Model"})
    with pytest.raises(ValueError, match="is damaged.*tells of no layers"):
        tfc.load_model(path)
    path = _edited(tmp_path / "1.h5", model, lambda config: config, version="1.2.2")
    with pytest.raises(ValueError, match="written by Keras 1.*save it there again"):
        tfc.load_model(path)
