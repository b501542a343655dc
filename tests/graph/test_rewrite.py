"""Rebuilding a model call by call."""

import keras
import models
import numpy as np
import pytest
from keras import layers

from tfcompress.graph import Graph, built_copy, clone, flatten, rewrite


def _same(call, clone, args, kwargs):
    return clone(call.operation)(*args, **kwargs)


@pytest.mark.parametrize("name", models.ALL)
def test_rewriting_nothing_gives_an_equal_model(name):
    model = flatten(models.ALL[name]())
    copied = rewrite(Graph(model), _same)
    x = models.examples(model)
    models.assert_same(models.outputs(copied, x), models.outputs(model, x))
    assert copied.name == model.name
    assert [t.name for t in copied.inputs] == [t.name for t in model.inputs]


@pytest.mark.parametrize("name", models.ALL)
def test_weights_are_copied_exactly_and_are_not_shared(name):
    model = flatten(models.ALL[name]())
    copied = rewrite(Graph(model), _same)
    for old, new in zip(model.weights, copied.weights, strict=True):
        assert old is not new
        if not old.path.endswith("seed_generator_state"):
            np.testing.assert_array_equal(old.numpy(), new.numpy())


def test_a_normalization_layer_keeps_its_mean_and_variance():
    model = models.with_state()
    copied = rewrite(Graph(model), _same)
    old, new = model.get_layer("normalize"), copied.get_layer("normalize")
    np.testing.assert_array_equal(old.mean, new.mean)
    np.testing.assert_array_equal(old.variance, new.variance)
    x = models.examples(model)
    np.testing.assert_array_equal(new(x), old(x))


@pytest.mark.parametrize("name", models.ALL)
def test_the_original_keeps_config_weights_and_outputs(name):
    model = flatten(models.ALL[name]())
    config, weights = model.get_config(), model.get_weights()
    copied = rewrite(Graph(model), _same)
    for variable in copied.weights:
        variable.assign(variable.numpy() * 0)
    assert model.get_config() == config
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    calls = [call.operation for call in Graph(model).calls]
    for operation in calls:
        if calls.count(operation) == 1:
            # Keras refuses this once an operation has a second call.
            assert operation.output is not None
            assert len(operation._inbound_nodes) == 1


@pytest.mark.parametrize("name", models.ALL)
def test_the_copy_saves_and_loads(name, tmp_path):
    copied = rewrite(Graph(flatten(models.ALL[name]())), _same)
    copied.save(tmp_path / "copy.keras")
    back = keras.models.load_model(tmp_path / "copy.keras")
    x = models.examples(copied)
    models.assert_same(models.outputs(back, x), models.outputs(copied, x))


def test_a_visitor_can_leave_a_call_out():
    model = models.with_state()

    def without_dropout(call, clone, args, kwargs):
        if isinstance(call.operation, layers.Dropout):
            return args[0]
        return clone(call.operation)(*args, **kwargs)

    smaller = rewrite(Graph(model), without_dropout)
    assert [x.name for x in smaller.layers] == ["x", "normalize", "dense", "bn"]
    x = models.examples(model)
    models.assert_same(models.outputs(smaller, x), models.outputs(model, x))


def test_a_visitor_can_insert_and_replace():
    model = models.operators()

    def doubled(call, clone, args, kwargs):
        y = clone(call.operation)(*args, **kwargs)
        if call.operation.name == "dense":
            y = layers.Rescaling(2.0, name="double")(y)
        return y

    changed = rewrite(Graph(model), doubled)
    for variable in model.get_layer("dense").weights:
        variable.assign(2 * variable.numpy())
    x = models.examples(model)
    models.assert_same(models.outputs(changed, x), models.outputs(model, x))


def test_a_shared_layer_stays_shared():
    model = flatten(models.shared())
    copied = rewrite(Graph(model), _same)
    assert len(copied.weights) == len(model.weights) == 4
    assert len({id(c.operation) for c in Graph(copied).calls}) == 3


def test_batch_size_name_and_dtype_can_be_changed():
    model = models.operators()
    fixed = rewrite(Graph(model), _same, batch_size=1, name="other")
    assert fixed.input_shape == (1, 3)
    assert fixed.name == "other"
    mixed = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2, dtype="mixed_float16", name="d")]
    )
    plain = rewrite(Graph(mixed), _same, dtype="float32")
    assert plain.get_layer("d").compute_dtype == "float32"
    np.testing.assert_array_equal(plain.get_weights()[0], mixed.get_weights()[0])


def test_structure_of_inputs_and_outputs_is_kept():
    model = flatten(models.dictionaries())
    copied = rewrite(Graph(model), _same)
    x = models.examples(model)
    assert set(copied(x)) == {"first", "second"}


def test_an_output_that_is_an_input_is_passed_through():
    inputs = keras.Input((2,), name="x")
    model = keras.Model(inputs, [inputs, layers.Dense(1)(inputs)])
    copied = rewrite(Graph(model), _same)
    x = models.examples(model)
    models.assert_same(models.outputs(copied, x), models.outputs(model, x))


class _NoConfig(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(units)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {"name": self.name}


def test_a_layer_that_cannot_be_copied_is_named_with_the_cause():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, _NoConfig(3, name="odd")(inputs))
    with pytest.raises(ValueError, match="'odd' of type _NoConfig") as caught:
        rewrite(Graph(model), _same)
    assert "get_config" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_clone_is_not_built_and_takes_changes():
    layer = models.operators().get_layer("dense")
    copied = clone(layer, name="other", units=7)
    assert (copied.name, copied.units, copied.built) == ("other", 7, False)
    assert layer.units == 4


def test_a_built_copy_has_the_weights_and_no_graph():
    layer = models.operators().get_layer("dense")
    copied = built_copy(layer, activation="relu")
    np.testing.assert_array_equal(copied.kernel.numpy(), layer.kernel.numpy())
    np.testing.assert_array_equal(copied.bias.numpy(), layer.bias.numpy())
    assert copied.activation is keras.activations.relu
    assert not copied._inbound_nodes


def _mixed(make):
    """What `make` returns while the global policy is another."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return make()
    finally:
        keras.config.set_dtype_policy("float32")


class _Inner(layers.Layer):
    """Its layer gets the global dtype policy."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(3)

    def call(self, x):
        return self.inner(x)


class _Mixed(_Inner):
    """A part that building makes longer, and one behind it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = {
            "attention": layers.MultiHeadAttention(2, 3),
            "dense": layers.Dense(3),
        }

    def call(self, x):
        return self.parts["dense"](self.parts["attention"](x, x)) + self.inner(x)


class _OwnWeight(_Inner):
    """A `build` of its own that leaves the layer within to the first call."""

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(3,), initializer="ones", name="gain")

    def call(self, x):
        return self.inner(x) * self.gain


class _MadeInBuild(layers.Layer):
    def build(self, input_shape):
        self.inner = layers.Dense(3)

    def call(self, x):
        return self.inner(x)


@pytest.mark.parametrize("make", [_Inner, _Mixed, _OwnWeight, _MadeInBuild])
def test_what_the_first_call_builds_is_built_in_a_copy(make):
    layer = make()
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    expected = layer(x)
    np.testing.assert_array_equal(built_copy(layer)(x), expected)


class _Deep(layers.Layer):
    """Its config keeps to itself how deep it is."""

    def __init__(self, depth=1, **kwargs):
        super().__init__(**kwargs)
        self.inner = [layers.Dense(4) for _ in range(depth)]

    def call(self, x):
        for layer in self.inner:
            x = layer(x)
        return x

    def get_config(self):
        return {"name": self.name}


@pytest.mark.filterwarnings("ignore:`build")
def test_a_copy_with_fewer_layers_is_named():
    layer = _Deep(3, name="deep")
    layer(np.zeros((2, 4), "float32"))
    with pytest.raises(ValueError, match="'deep'.*holds 4 layers.*its copy 0"):
        built_copy(layer)


@pytest.mark.parametrize(
    "make", [_Inner, _Mixed, lambda: layers.TimeDistributed(layers.Dense(3))]
)
def test_layers_within_a_copy_keep_their_dtype_policy_or_get_the_new(make):
    layer = _mixed(make)
    layer(np.zeros((2, 5, 4), "float32"))
    for dtype, policy in ((None, "mixed_float16"), ("float32", "float32")):
        copied = built_copy(layer) if dtype is None else clone(layer, dtype=dtype)
        found = {sub.dtype_policy.name for sub in copied._flatten_layers()}
        assert found == {policy}


def test_inputs_of_half_precision_become_those_of_the_new_dtype():
    inputs = {
        "half": keras.Input((4,), dtype="float16", name="half"),
        "index": keras.Input((4,), dtype="int32", name="index"),
    }
    taken = keras.ops.take(inputs["half"], inputs["index"], axis=1)
    graph = Graph(keras.Model(inputs, taken))
    same, single = rewrite(graph, _same), rewrite(graph, _same, dtype="float32")
    assert {k: t.dtype for k, t in same.input.items()} == {
        "half": "float16",
        "index": "int32",
    }
    assert {k: t.dtype for k, t in single.input.items()} == {
        "half": "float32",
        "index": "int32",
    }


def test_trainable_flags_are_kept():
    model = models.with_state()
    model.get_layer("dense").trainable = False
    copied = rewrite(Graph(model), _same)
    assert not copied.get_layer("dense").trainable
    assert copied.get_layer("bn").trainable


def test_a_frozen_part_of_a_layer_stays_frozen():
    inputs = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(2, 3, name="attention")
    model = keras.Model(inputs, attention(inputs, inputs))
    attention.query_dense.trainable = False
    copied = rewrite(Graph(model), _same)
    assert not copied.get_layer("attention").query_dense.trainable
    assert len(copied.trainable_variables) == len(model.trainable_variables) == 6
