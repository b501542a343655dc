"""`tfc.prune_layers`: shallower models whose skips take over."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from networks import compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.graph import Graph
from tfcompress.passes.residual_blocks import gain_of_weights, residual_blocks

SCALES = {"a": 1.0, "b": 0.01, "c": 0.5, "d": 0.1}


def _block(x, name, scale, channels=8):
    y = layers.Conv2D(channels, 3, padding="same", name=f"{name}_conv")(x)
    y = layers.BatchNormalization(name=f"{name}_bn")(y)
    y = layers.ReLU(name=f"{name}_relu")(y)
    last = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_last")
    y = last(y)
    last.kernel.assign(last.kernel * scale)
    return layers.Add(name=name)([x, y])


def _network():
    """Four blocks whose branches are of known size, one that changes the shape."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    for name, scale in SCALES.items():
        x = _block(x, name, scale)
        if name == "b":
            shortcut = layers.Conv2D(8, 1, strides=2, name="shortcut")(x)
            y = layers.Conv2D(8, 3, strides=2, padding="same", name="down")(x)
            x = layers.Add(name="changes_shape")([shortcut, y])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(3, activation="softmax", name="out")(x)
    return keras.Model(inputs, outputs, name="network")


def _outputs(model, x):
    return np.asarray(model(x, training=False))


@pytest.mark.parametrize("score", ["output", "loss", "similarity", "weights"])
def test_blocks_that_add_least_go_first(score):
    x, y = image_data(64)
    data = None if score == "weights" else (x, y)
    model = _network()
    # What a block changes in the loss may be for the better: amounts of it, then.
    loss = keras.losses.CategoricalCrossentropy() if score == "loss" else None
    if score == "loss":
        data = (x, _outputs(model, x))
    found, report = tfc.prune_layers(
        model, 3, data, score=score, loss=loss, return_report=True
    )
    assert [c.layer for c in report.changes] == ["b", "d", "c", "a"]
    assert [c.what for c in report.changes][2:] == ["block of 4 dropped", "kept"]
    names = {layer.name for layer in found.layers}
    assert {"a_conv", "changes_shape", "shortcut"} <= names
    assert not {"b", "b_conv", "c_bn", "d_last"} & names
    own = 9 * 64 + 8 + 4 * 8 + 64
    assert report.changes[0].parameters_before == own
    assert found.count_params() == model.count_params() - 3 * own


def test_what_is_left_computes_as_if_the_branch_were_zero():
    x, _ = image_data(16)
    model = _network()
    found = tfc.prune_layers(model, 2, score="weights")
    for name in ("b", "d"):
        last = model.get_layer(f"{name}_last")
        last.kernel.assign(np.zeros(last.kernel.shape))
    np.testing.assert_allclose(_outputs(found, x), _outputs(model, x), atol=1e-6)


def test_the_score_is_the_relative_change_of_the_outputs():
    x, _ = image_data(48)
    model = _network()
    found, report = tfc.prune_layers(model, 1, x, return_report=True)
    before, after = _outputs(model, x), _outputs(found, x)
    expected = np.linalg.norm(before - after) / np.linalg.norm(before)
    np.testing.assert_allclose(report.changes[0].error, expected, rtol=1e-3)


def test_the_score_is_the_rise_of_the_loss_the_model_was_compiled_with():
    x, y = image_data(48)
    model = compiled(_network())
    found, report = tfc.prune_layers(model, 1, (x, y), score="loss", return_report=True)
    rise = [
        float(np.mean(-np.log(_outputs(m, x)[np.arange(48), y])))
        for m in (found, model)
    ]
    np.testing.assert_allclose(report.changes[0].error, rise[0] - rise[1], atol=1e-5)
    # The one whose loss rises least, found by trying all.
    each = [tfc.prune_layers(model, 1, include=f"^{n}$") for n in SCALES]
    losses = [np.mean(-np.log(_outputs(m, x)[np.arange(48), y])) for m in each]
    assert report.changes[0].layer == list(SCALES)[int(np.argmin(losses))]


def test_a_share_of_the_blocks_and_names_choose():
    model = _network()
    _, report = tfc.prune_layers(model, 0.5, exclude="^b$", return_report=True)
    gone = [c.layer for c in report.changes if "dropped" in c.what]
    assert gone == ["d", "c"]
    assert "b" not in [c.layer for c in report.changes]


def test_additions_by_operator_and_in_the_other_order_are_blocks_too():
    inputs = keras.Input((6,))
    x = inputs + layers.Dense(6, name="one")(inputs)
    x = ops.add(layers.Dense(6, name="two")(ops.relu(x)), x)
    x = layers.Add(name="three")([layers.Dense(6, name="deep")(x), x])
    model = keras.Model(inputs, x)
    found = tfc.prune_layers(model, 3)
    data = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    np.testing.assert_array_equal(_outputs(found, data), data)


def test_a_block_around_blocks_takes_them_with_it():
    inputs = keras.Input((6,))
    inner = layers.Dense(6, name="first")(inputs)
    inner = layers.Add(name="inner")([inner, layers.Dense(6, name="second")(inner)])
    last = layers.Dense(6, name="last")
    outputs = layers.Add(name="outer")([inputs, last(inner)])
    last.kernel.assign(last.kernel * 1e-3)
    model = keras.Model(inputs, layers.Dense(2, name="out")(outputs))
    found, report = tfc.prune_layers(model, 1, return_report=True)
    assert [layer.name for layer in found.layers[1:]] == ["out"]
    assert [c.layer for c in report.changes] == ["outer"]


def test_what_is_no_block_is_told_with_the_reason():
    inputs = keras.Input((6,))
    a, b = layers.Dense(6, name="a")(inputs), layers.Dense(6, name="b")(inputs)
    x = layers.Add(name="parallel")([a, b])
    y = layers.Dense(6, name="read_twice")(x)
    z = layers.Add(name="leaks")([x, y])
    wide = layers.Add(name="broadcasts")([z, layers.Dense(1, name="one")(z)])
    tripled = layers.Add(name="three")([wide, wide, wide])
    model = keras.Model(inputs, [tripled, y])
    _, others = residual_blocks(Graph(model))
    assert {name: reason.split()[0] for name, reason in others.items()} == {
        "parallel": "neither",
        "leaks": "something",
        "broadcasts": "adds",
        "three": "does",
    }
    with pytest.raises(ValueError, match="parallel: neither input is computed"):
        tfc.prune_layers(model, 1)
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    with pytest.raises(ValueError, match=r"no addition at all"):
        tfc.prune_layers(plain, 1)


def test_the_gain_of_weights_is_the_size_of_the_branch():
    inputs = keras.Input((64,))
    x = layers.Dense(256, name="up")(inputs)
    x = layers.Dense(64, use_bias=False, name="down")(x)
    model = keras.Model(inputs, layers.Add(name="add")([inputs, x]))
    (block,), _ = residual_blocks(Graph(model))
    noise = np.random.default_rng(0).normal(size=(500, 64)).astype("float32")
    branch = keras.Model(inputs, x)(noise)
    np.testing.assert_allclose(
        gain_of_weights(block), np.sqrt(np.mean(np.square(branch))), rtol=0.1
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, blocks", [("MobileNetV2", 10), pytest.param("ResNet50", 12)]
)
def test_networks_that_people_use_have_their_blocks_found(name, blocks):
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(32, 32, 3), classes=3
    )
    found, others = residual_blocks(Graph(model))
    assert len(found) == blocks
    # The first block of each of ResNet's stages has a convolution for its skip.
    assert len(others) == (4 if name == "ResNet50" else 0)
    pruned = tfc.prune_layers(model, 3)
    assert len(residual_blocks(Graph(pruned))[0]) == blocks - 3


@pytest.mark.slow
def test_the_result_saves_loads_and_trains_and_the_original_is_as_it_was(tmp_path):
    x, y = image_data()
    model = _network()
    before = model.get_weights()
    found = tfc.prune_layers(model, 2, x[:32])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    found.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(_outputs(loaded, x), _outputs(found, x))
    history = compiled(loaded).fit(x, y, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert len(tfc.prune_layers(conv_net(), 1).layers) < len(conv_net().layers)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"amount": 0}, ValueError, "from 1 to 4, .* Received: amount=0"),
        ({"amount": 5}, ValueError, "from 1 to 4, .* Received: amount=5"),
        ({"amount": 1.5}, ValueError, r"a share in \(0, 1\)"),
        ({"amount": 0.1}, ValueError, "of 4 block.* rounds to none. Pass amount=1"),
        ({"amount": "all"}, TypeError, "Received: amount='all'"),
        ({"amount": True}, TypeError, "Received: amount=True"),
        ({"amount": 1, "score": "size"}, ValueError, "'output', 'loss', 'similarity'"),
        ({"amount": 1, "score": "output"}, ValueError, "score='output' needs `data`"),
        (
            {"amount": 1, "score": "loss", "data": np.zeros((4, 8, 8, 3))},
            ValueError,
            "or compile the model with one. Received: loss=None",
        ),
        (
            {
                "amount": 1,
                "score": "loss",
                "loss": "mse",
                "data": np.zeros((4, 8, 8, 3)),
            },
            ValueError,
            "labels missing",
        ),
        ({"amount": 1, "data": np.zeros((4, 9, 8, 3))}, ValueError, "does not fit"),
        ({"amount": 1, "include": "nowhere"}, ValueError, "'nowhere' matches nothing"),
    ],
)
def test_wrong_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        tfc.prune_layers(_network(), **settings)
