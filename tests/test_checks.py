"""What users hand in: every error they can meet, and every form that is accepted."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.checks import batches, check_model


def _model(shape=(3,), name="small"):
    inputs = keras.Input(shape, name="x")
    return keras.Model(inputs, keras.layers.Dense(2)(inputs), name=name)


def _two_inputs(kind):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b", dtype="int32")
    joined = keras.layers.Concatenate()([a, keras.ops.cast(b, "float32")])
    inputs = {"list": [a, b], "dict": {"b": b, "a": a}}[kind]
    return keras.Model(inputs, keras.layers.Dense(2)(joined))


class _Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


X = np.arange(21, dtype="float32").reshape(7, 3)
Y = np.arange(7)
A, B = X, np.arange(14).reshape(7, 2)


# Models.


def test_functional_sequential_and_subclassed_models_pass():
    check_model(_model())
    check_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    subclassed = _Subclassed()
    subclassed(X)
    check_model(subclassed)


@pytest.mark.parametrize("model", [None, "model.keras", 3, keras.layers.Dense(2)])
def test_what_is_no_model_is_refused_by_the_name_of_the_argument(model):
    with pytest.raises(TypeError, match="`teacher` must be a Keras 3 model") as caught:
        check_model(model, argument="teacher")
    assert f"of type {type(model).__name__}" in str(caught.value)


def test_a_model_class_instead_of_a_model_is_refused():
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        check_model(_Subclassed)


def test_a_legacy_tf_keras_model_is_told_how_to_move():
    tf_keras = pytest.importorskip("tf_keras")
    legacy = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    with pytest.raises(TypeError, match="legacy tf_keras") as caught:
        check_model(legacy)
    assert "tfc.from_tfmot(model)" in str(caught.value)


def test_a_model_of_stand_alone_keras_2_is_told_how_to_move():
    # The package cannot be installed beside Keras 3; its classes lived here.
    legacy = type("Model", (), {"__module__": "keras.engine.training"})()
    with pytest.raises(TypeError, match="legacy tf_keras"):
        check_model(legacy)


@pytest.mark.parametrize(
    "model",
    [keras.Sequential([keras.layers.Dense(2)]), keras.Sequential([]), _Subclassed()],
    ids=["sequential", "empty", "subclassed"],
)
def test_an_unbuilt_model_is_refused_with_what_to_do(model):
    with pytest.raises(ValueError, match="is not built") as caught:
        check_model(model)
    assert "keras.Input" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_weights_are_named(value):
    model = _model(name="diverged")
    kernel = model.layers[-1].kernel
    kernel.assign(np.where(np.eye(3, 2), value, kernel.numpy()))
    with pytest.raises(ValueError, match="NaN or infinite weights") as caught:
        check_model(model)
    assert kernel.path in str(caught.value)
    assert "'diverged'" in str(caught.value)


def test_of_many_broken_weights_five_are_named():
    layers = [keras.layers.Dense(2) for _ in range(4)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    for weight in model.weights:
        weight.assign(np.full(weight.shape, np.nan))
    with pytest.raises(ValueError, match=r" \.\.\.\. Go back") as caught:
        check_model(model)
    assert [w.path in str(caught.value) for w in model.weights] == 5 * [True] + 3 * [
        False
    ]


def test_weights_in_bfloat16_and_integers_pass():
    layer = keras.layers.Dense(2, dtype="bfloat16")
    check_model(keras.Sequential([keras.Input((3,)), layer]))
    check_model(keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5)]))


# Data that are accepted.


class _PyDataset(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[index * 4 : index * 4 + 4], Y[index * 4 : index * 4 + 4]


def _tf(data, size=4):
    return tf.data.Dataset.from_tensor_slices(data).batch(size)


_FORMS = {
    "array": (X, False),
    "tensor": (tf.constant(X), False),
    "inputs and labels": ((X, Y), True),
    "inputs, labels and weights": ((X, Y, np.ones(7)), True),
    "tf.data of inputs": (_tf(X), False),
    "tf.data of pairs": (_tf((X, Y)), True),
    "tf.data of triples": (_tf((X, Y, np.ones(7))), True),
    "tf.data of dicts by input name": (_tf({"x": X}), False),
    "PyDataset": (_PyDataset(), True),
    "dict": ({"x": X}, False),
    "dict and labels": (({"x": X}, Y), True),
    "tuple of one": ((X,), False),
    "list of one": ([X], False),
}


@pytest.mark.parametrize("form", _FORMS)
def test_every_form_gives_the_same_batches(form):
    data, labelled = _FORMS[form]
    found = list(batches(_model(), data, argument="data", batch_size=4))
    assert [len(inputs) for inputs, _ in found] == [1, 1]
    np.testing.assert_array_equal(np.concatenate([i[0] for i, _ in found]), X)
    assert all(i[0].dtype == "float32" for i, _ in found)
    if labelled:
        np.testing.assert_array_equal(np.concatenate([y for _, y in found]), Y)
    else:
        assert [y for _, y in found] == [None, None]


def _generator(items):
    yield from items


def test_generators_and_lazy_iterables_of_batches_are_accepted():
    for items, labels in (
        ([X[:4], X[4:]], None),
        ([(X[:4], Y[:4]), (X[4:], Y[4:])], Y),
        ([{"x": X[:4]}, {"x": X[4:]}], None),
        ([[X[:4]], [X[4:]]], None),
    ):
        found = list(batches(_model(), _generator(items), argument="data"))
        np.testing.assert_array_equal(np.concatenate([i[0] for i, _ in found]), X)
        if labels is not None:
            np.testing.assert_array_equal(np.concatenate([y for _, y in found]), Y)


_BOTH = {
    ("list", "list"): [A, B],
    ("list", "tuple"): (A, B),
    ("list", "list and labels"): ([A, B], Y),
    ("list", "tuple and labels"): ((A, B), Y),
    ("list", "list, labels and weights"): ([A, B], Y, np.ones(7)),
    ("list", "tf.data"): _tf(((A, B), Y), 7),
    ("list", "dict by input names"): {"b": B, "a": A},
    ("dict", "dict"): {"b": B, "a": A},
    ("dict", "dict and labels"): ({"a": A, "b": B}, Y),
    ("dict", "tf.data"): _tf(({"b": B, "a": A}, Y), 7),
}


@pytest.mark.parametrize("kind, form", _BOTH)
def test_several_inputs_come_in_the_order_of_the_model(kind, form):
    model = _two_inputs(kind)
    data = _BOTH[kind, form]
    ((inputs, labels),) = batches(model, data, argument="data")
    by_name = dict(zip([t.name for t in model.inputs], inputs, strict=True))
    np.testing.assert_array_equal(by_name["a"], A)
    np.testing.assert_array_equal(by_name["b"], B)
    assert (by_name["a"].dtype, by_name["b"].dtype) == ("float32", "int32")
    assert (labels is None) == ("labels" not in form and form != "tf.data")


def test_values_are_cast_to_the_input_type_of_the_model():
    ((inputs, _),) = batches(_model(), X.astype("int64"), argument="data")
    assert inputs[0].dtype == "float32"


def test_arrays_are_cut_into_batches_and_the_rest_is_kept():
    sizes = [len(i[0]) for i, _ in batches(_model(), X, argument="d", batch_size=3)]
    assert sizes == [3, 3, 1]


def test_inputs_with_free_sizes_take_any():
    model = _model((None, 3))
    for length in (1, 5):
        assert list(batches(model, np.zeros((2, length, 3)), argument="data"))


def test_a_subclassed_model_takes_what_comes():
    model = _Subclassed()
    model(X)
    ((inputs, labels),) = batches(model, (X, Y), argument="data")
    np.testing.assert_array_equal(inputs[0], X)
    np.testing.assert_array_equal(labels, Y)


# Data that are refused.


def _refusal(data, error, model=None):
    with pytest.raises(error, match="`calibration_data`") as caught:
        list(batches(model or _model(), data, argument="calibration_data"))
    return str(caught.value)


def test_a_wrong_shape_is_told_with_what_was_expected():
    message = _refusal(np.zeros((5, 4), "float32"), ValueError)
    assert "input 'x'" in message
    assert "expected shape (None, 3)" in message
    assert "Received: shape (5, 4)" in message
    assert "batch axis" not in message


def test_a_missing_batch_axis_is_recognised():
    assert "x[None]" in _refusal(np.zeros(3, "float32"), ValueError)
    model = _model((4, 4, 1))
    assert "x[None]" in _refusal(np.zeros((4, 4, 1)), ValueError, model)


def test_a_dataset_that_was_not_batched_is_recognised():
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    assert "x[None]" in _refusal(dataset, ValueError)


@pytest.mark.parametrize("data", [None, "data.npz", b"data", 3, 0.5])
def test_what_is_no_data_is_refused_with_what_would_be(data):
    message = _refusal(data, TypeError)
    assert "tf.data.Dataset" in message
    assert repr(data) in message


def test_an_object_that_cannot_be_iterated_is_refused():
    assert "of type object" in _refusal(object(), TypeError)


def test_strings_are_refused():
    assert "must be numbers" in _refusal(np.array([["a", "b", "c"]]), TypeError)
    _refusal(tf.data.Dataset.from_tensors(tf.constant([["a", "b", "c"]])), TypeError)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((0, 3), "float32"),
        (np.zeros((0, 3)), np.zeros(0)),
        _tf(X).take(0),
        [],
        _generator([]),
        {},
    ],
    ids=["array", "pair", "tf.data", "list", "generator", "dict"],
)
def test_empty_data_are_refused(data):
    _refusal(data, ValueError)


def test_a_batch_of_length_zero_is_refused():
    message = _refusal(_generator([X, X[:0]]), ValueError)
    assert "batch of length zero" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    x = X.copy()
    x[6, 2] = value
    message = _refusal(x, ValueError)
    assert "NaN or infinite" in message
    assert "np.isfinite" in message


def test_values_too_large_for_the_input_type_are_refused():
    with np.errstate(over="ignore"):
        _refusal(np.full((2, 3), 1e300), ValueError)


def test_rows_must_be_equally_many():
    message = _refusal((X, Y[:5]), ValueError)
    assert "[(7, 3), (5,)]" in message


def test_a_wrong_number_of_inputs_is_refused():
    message = _refusal([A], ValueError, _two_inputs("list"))
    assert "2 input(s)" in message
    assert "Received: 1" in message
    _refusal([A, A, A, A], ValueError)


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_wrong_keys_are_told_with_the_right_ones(kind):
    message = _refusal({"a": A, "bb": B}, ValueError, _two_inputs(kind))
    assert "keyed by the model's inputs ['a', 'b']" in message
    assert "Received: ['a', 'bb']" in message


def test_a_missing_key_is_refused():
    _refusal({"a": A}, ValueError, _two_inputs("dict"))
