"""Inlining nested models."""

import keras
import models
import numpy as np
import pytest
from keras import layers

from tfcompress.graph import Graph, flatten


def _names(model):
    return [call.operation.name for call in Graph(model).calls]


@pytest.mark.parametrize("name", models.ALL)
def test_flat_model_computes_the_same_and_holds_no_model(name):
    model = models.ALL[name]()
    flat = flatten(model)
    assert not any(isinstance(c.operation, keras.Model) for c in Graph(flat).calls)
    x = models.examples(model)
    models.assert_same(models.outputs(flat, x), models.outputs(model, x))


@pytest.mark.parametrize("name", models.ALL)
def test_layer_names_are_unique_and_parameters_are_as_many(name):
    model = models.ALL[name]()
    flat = flatten(model)
    names = [layer.name for layer in flat.layers]
    assert len(set(names)) == len(names)
    assert flat.count_params() == model.count_params()
    assert flat.name == model.name


def test_layers_of_a_nested_model_are_named_after_it():
    assert _names(flatten(models.nested())) == [
        "dense",
        "block_dense",
        "block_bn",
        "block_head_dense",
        "block_head_relu",
        "out",
    ]


def test_names_that_would_clash_are_numbered():
    inner = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="b")], name="a")
    inputs = keras.Input((2,), name="x")
    y = layers.Dense(2, name="a_b")(inputs)
    flat = flatten(keras.Model(inputs, inner(y)))
    assert _names(flat) == ["a_b", "a_b_2"]


def test_a_flat_model_is_returned_itself():
    model = models.operators()
    assert flatten(model) is model


def test_a_nested_model_that_is_called_twice_stays_shared():
    flat = flatten(models.shared())
    names = _names(flat)
    assert sorted(names) == ["add", "tower_dense", "tower_dense", "twice", "twice"]
    assert len(flat.trainable_variables) == 4


def test_inputs_keep_their_names_structure_and_dtype():
    model = models.dictionaries()
    flat = flatten(model)
    assert flat._inputs_struct.keys() == {"left", "right"}
    assert [t.name for t in flat.inputs] == [t.name for t in model.inputs]
    assert set(flat.output) == {"first", "second"}


@pytest.mark.parametrize("name", ["nested", "shared", "dictionaries", "sequential"])
def test_the_original_is_left_as_it_was(name):
    model = models.ALL[name]()
    config, weights = model.get_config(), model.get_weights()
    x = models.examples(model)
    before = models.outputs(model, x)
    flat = flatten(model)
    for variable in flat.weights:
        variable.assign(np.zeros(variable.shape))
    assert model.get_config() == config
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    models.assert_same(models.outputs(model, x), before)
    single = [n for n in _names(model) if _names(model).count(n) == 1]
    assert all(model.get_layer(n).output is not None for n in single)


def _normalized(training):
    """Batch normalization at three depths, the inner two called with `training`."""
    inner_in = keras.Input((3,), name="inner_in")
    deep_in = keras.Input((3,), name="deep_in")
    deep = keras.Model(
        deep_in, layers.BatchNormalization(name="bn")(deep_in), name="deep"
    )
    y = layers.BatchNormalization(name="bn")(deep(inner_in))
    inner = keras.Model(inner_in, y, name="inner")
    inputs = keras.Input((3,), name="x")
    kwargs = {} if training is None else {"training": training}
    y = layers.BatchNormalization(name="own")(inner(inputs, **kwargs))
    return models.randomized(keras.Model(inputs, y))


def _training_of(flat):
    return {
        call.operation.name: call.arguments.kwargs.get("training")
        for call in Graph(flat).calls
    }


@pytest.mark.parametrize("training", [False, True])
def test_layers_of_a_nested_model_are_called_with_its_choice_of_training(training):
    flat = flatten(_normalized(training))
    assert _training_of(flat) == {
        "inner_deep_bn": training,
        "inner_bn": training,
        "own": None,
    }


def test_without_a_choice_of_training_there_is_none_in_the_flat_model():
    assert set(_training_of(flatten(_normalized(None))).values()) == {None}


@pytest.mark.parametrize("called_with", [None, False, True])
@pytest.mark.parametrize("training", [None, False, True])
def test_batch_normalization_is_in_the_mode_it_had_when_nested(training, called_with):
    # What an explicit `training` of the outer call does to the inner choice is for
    # Keras to say, and has changed between its versions: the flat model does the same.
    model = _normalized(training)
    flat = flatten(model)
    x = models.examples(model)
    models.assert_same(
        models.outputs(flat, x, training=called_with),
        models.outputs(model, x, training=called_with),
    )
    # The moving averages: unchanged in both, or updated alike in both.
    models.assert_same(
        sorted(float(v.numpy().sum()) for v in flat.non_trainable_variables),
        sorted(float(v.numpy().sum()) for v in model.non_trainable_variables),
    )


def test_a_nested_model_called_with_training_false_stays_in_inference_mode():
    # Inside another model's call, as long as the outer call leaves it open.
    flat = flatten(_normalized(False))
    before = flat.get_layer("inner_bn").moving_mean.numpy()
    flat(np.full((8, 3), 9.0, "float32"))
    np.testing.assert_array_equal(flat.get_layer("inner_bn").moving_mean, before)


def test_an_inner_choice_of_training_wins_over_the_outer_one():
    inner_in = keras.Input((3,), name="i")
    y = layers.BatchNormalization(name="bn")(inner_in, training=False)
    inner = keras.Model(inner_in, y, name="inner")
    inputs = keras.Input((3,), name="x")
    model = models.randomized(keras.Model(inputs, inner(inputs)))
    flat = flatten(model)
    x = models.examples(model)
    models.assert_same(
        models.outputs(flat, x, training=True), models.outputs(model, x, training=True)
    )


def test_frozen_layers_stay_frozen():
    model = models.nested()
    model.get_layer("block").trainable = False
    assert len(flatten(model).trainable_variables) == len(model.trainable_variables)


def test_training_a_flat_model_is_training_the_nested_one():
    model = models.nested()
    flat = flatten(model)
    x, y = models.examples(model, 16), np.zeros((16, 2), "float32")
    for m in (model, flat):
        m.compile(keras.optimizers.SGD(0.01), "mse")
        m.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    models.assert_same(models.outputs(flat, x), models.outputs(model, x))


def test_a_subclassed_model_is_refused_by_name():
    model = models.Subclassed(name="mine")
    model(np.zeros((1, 3), "float32"))
    with pytest.raises(ValueError, match="'mine' .of type Subclassed. is subclassed"):
        flatten(model)


def test_a_subclassed_model_inside_is_refused_with_both_names():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, models.Subclassed(name="mine")(inputs), name="outer")
    with pytest.raises(ValueError, match="'mine' inside 'outer'") as caught:
        flatten(model)
    assert "functional API" in str(caught.value)
