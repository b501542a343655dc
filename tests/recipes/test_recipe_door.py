"""What runs of recipes take: metrics, outputs, labels, data, losses, teachers."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from recipes.test_recipe_run import Kill

import tfcompress as tfc
from tfcompress.recipes.data import RunData
from tfcompress.recipes.rehearsal import has_accuracy
from tfcompress.recipes.training import loss_text

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
CLASSES = np.arange(32) % 4
ONE_HOT = np.eye(4, dtype="float32")[CLASSES]


def _dense(outputs=4, activation="softmax", *, heads=1):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    h = layers.Dense(8, activation="relu", name="hidden")(inputs)
    found = [
        layers.Dense(outputs, activation=activation, name=f"out{n}")(h)
        for n in range(heads)
    ]
    return keras.Model(inputs, found[0] if heads == 1 else found)


class _StopAtTheEnd(Kill):
    """Ends the process' work after the last epoch, before the stage is written."""

    def on_train_end(self, logs=None):
        raise KeyboardInterrupt


def test_a_metric_of_several_values_is_a_list_in_the_history(tmp_path):
    model = _dense()
    model.compile("adam", "categorical_crossentropy", metrics=[keras.metrics.F1Score()])
    recipe = tfc.Recipe([{"fit": {"epochs": 2}}])
    result = recipe.run(model, (X, ONE_HOT), tmp_path / "out")
    history = json.loads((tmp_path / "out/01_fit/report.json").read_text())["history"]
    assert np.shape(history["f1_score"]) == (2, 4) and np.shape(history["loss"]) == (2,)
    assert result.stages[0]["history"] == history


def test_a_fit_whose_report_failed_is_not_trained_again(tmp_path):
    model = _dense()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    recipe = tfc.Recipe(
        [
            {"Pruning": {"sparsity": 0.5, "skip_small_and_last": False}},
            {"fit": {"epochs": 2}},
            {"fit": {"epochs": 2}},
        ]
    )
    stop, again = _StopAtTheEnd(99), Kill(99)
    with pytest.raises(KeyboardInterrupt):
        recipe.run(model, (X, CLASSES), tmp_path / "out", callbacks=[stop])
    result = recipe.run(model, (X, CLASSES), tmp_path / "out", callbacks=[again])
    # The second fit has all of its epochs, though the first one had none left.
    assert stop.begun == [0, 1] and again.begun == [0, 1]
    assert result.stages[1]["history"] == {}
    assert len(result.stages[2]["history"]["loss"]) == 2
    assert not list((tmp_path / "out").glob("*/backup"))
    straight = recipe.run(model, (X, CLASSES), tmp_path / "straight").model
    for a, b in zip(straight.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_several_outputs_train_and_have_no_accuracy(tmp_path):
    model = _dense(heads=2)
    model.compile("adam", ["categorical_crossentropy"] * 2)
    data = X, [ONE_HOT, ONE_HOT]
    result = tfc.Recipe([{"fit": {"epochs": 1}}]).run(
        model, data, tmp_path / "out", test_data=data
    )
    assert result.stages[0]["accuracy"] is None
    assert [m.accuracy for m in result.measurements] == [None, None]
    row = next(line for line in str(result).splitlines() if line.startswith("1 fit"))
    assert row.split()[2] == "-"


@pytest.mark.parametrize(
    "labels, outputs, has_one",
    [
        (CLASSES, 4, True),
        (CLASSES.astype("float32")[:, None], 4, True),
        (ONE_HOT, 4, True),
        (0.9 * ONE_HOT + 0.025, 4, True),
        (np.minimum(ONE_HOT + ONE_HOT[::-1], 1), 4, False),
        (X[:, :4], 4, False),
        (CLASSES % 2, 1, True),
        ((CLASSES % 2).astype("float32")[:, None], 1, True),
        (CLASSES, 1, False),
        (X[:, 0], 1, False),
    ],
    ids=[
        "numbers",
        "float_numbers",
        "one_hot",
        "smoothed",
        "multi_hot",
        "vectors",
        "binary",
        "float_binary",
        "counts",
        "values",
    ],
)
def test_an_accuracy_is_of_classes_only(labels, outputs, has_one):
    model = _dense(outputs, None)
    assert has_accuracy(model, RunData((X, labels), "test_data")) is has_one
    batches = tf.data.Dataset.from_tensor_slices((X, labels)).batch(8)
    assert has_accuracy(model, RunData(batches, "test_data")) is has_one


def test_test_data_that_do_not_fit_are_refused_before_training(tmp_path):
    model, recipe = _dense(), tfc.Recipe([{"fit": {"epochs": 1, "loss": "mse"}}])
    with pytest.raises(ValueError, match="labels of shape .* do not fit"):
        recipe.run(
            model, (X, ONE_HOT), tmp_path / "out", test_data=(X, ONE_HOT[:, :2] * 0)
        )
    unlabelled = tf.data.Dataset.from_tensor_slices((X,)).batch(8)
    with pytest.raises(ValueError, match="`test_data` must give labels"):
        recipe.run(model, (X, ONE_HOT), tmp_path / "out", test_data=unlabelled)
    assert not (tmp_path / "out").exists()


class _Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return X, CLASSES


def test_data_without_end_are_refused(tmp_path):
    model = _dense()
    model.compile("adam", "sparse_categorical_crossentropy")
    recipe = tfc.Recipe([{"fit": {"epochs": 1, "decay": "none"}}])
    endless = tf.data.Dataset.from_tensors((X, CLASSES)).repeat()
    for data, test in ((endless, None), ((X, CLASSES), endless), (_Endless(), None)):
        with pytest.raises(ValueError, match=r"without end.*data\.take\(100\)"):
            recipe.run(model, data, tmp_path / "out", test_data=test)
    RunData(endless.take(3), "data").check_end()
    assert not (tmp_path / "out").exists()


def test_the_text_of_a_loss_tells_losses_apart():
    def own(y, p):
        return y - p

    crossentropy = keras.losses.CategoricalCrossentropy
    losses = [
        "mse",
        own,
        {"a": "mse", "b": own},
        keras.losses.MeanSquaredError(),
        crossentropy(),
        crossentropy(label_smoothing=0.1),
    ]
    texts = [loss_text({"loss": loss, "metrics": [own]}) for loss in losses]
    assert len(set(texts)) == len(losses)
    assert loss_text({"loss": crossentropy(label_smoothing=0.1)}) == texts[-1]
    weighted = {"loss": losses[2], "loss_weights": {"a": np.float32(0.5), "b": 1.0}}
    assert loss_text(weighted) != texts[2]


def test_a_file_of_another_kind_may_teach(tmp_path):
    teacher, student = _dense(), _dense()
    tfc.export_tflite(teacher, tmp_path / "t.tflite")
    settings = {
        "teacher": str(tmp_path / "t.tflite"),
        "teacher_outputs": "probabilities",
    }
    recipe = tfc.Recipe([{"distill": settings}, {"fit": {"epochs": 1}}])
    student.compile("adam", "sparse_categorical_crossentropy")
    result = recipe.run(student, (X, CLASSES), tmp_path / "out")
    assert result.stages[1]["history"]["distillation_loss"][0] >= 0


def test_a_model_that_is_trained_itself_learns_from_its_copy():
    model = _dense()
    recipe = tfc.Recipe(["Pruning", "distill", {"fit": {"epochs": 1}}])
    both = recipe.apply(model)
    assert both.student is model and both.teacher is not model
    np.testing.assert_array_equal(both.teacher(X), model(X))
    before = both.teacher.get_weights()
    model.set_weights([w + 1 for w in model.get_weights()])
    for old, now in zip(before, both.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
