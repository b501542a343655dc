"""`tfc.distill` with teachers of every kind, and `tfc.distill_mutually`."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import compiled, conv_net, image_data

import tfcompress as tfc

d = tfc.distillation


def soft_loss(pupil, x, y):
    compiled(pupil)
    return pupil.evaluate(x, y, batch_size=len(x), verbose=0, return_dict=True)[
        "distillation_loss"
    ]


def by_hand(student, probabilities, x, temperature=4.0):
    p, q = (
        a.astype("float64") ** (1 / temperature)
        for a in (probabilities, student.predict(x, verbose=0))
    )
    p, q = (a / a.sum(axis=1, keepdims=True) for a in (p, q))
    return np.mean((p * np.log(p / q)).sum(axis=1)) * temperature**2


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_several_teachers_are_averaged_in_probability(weights):
    x, y = image_data(16)
    # One gives probabilities, the other logits.
    student, one, other = conv_net(), conv_net(), conv_net(softmax=False)
    logits = other.predict(x, verbose=0)
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    share = 0.5 if weights is None else 0.75
    mean = share * one.predict(x, verbose=0) + (1 - share) * q
    pupil = tfc.distill(student, [one, other], teacher_weights=weights)
    # 1e-3: float32 logarithms of probabilities.
    assert soft_loss(pupil, x, y) == pytest.approx(by_hand(student, mean, x), rel=1e-3)
    assert pupil.teacher == [one, other]


def test_features_of_several_teachers_are_put_beside_one_another():
    x, y = image_data(16)
    inputs = keras.Input((8, 8, 3))
    features = layers.Conv2D(16, 3, padding="same", name="wide")(inputs)
    pool = layers.GlobalAveragePooling2D()(features)
    student = keras.Model(inputs, layers.Dense(3, "softmax")(pool))
    teachers = [conv_net(), conv_net()]
    term = d.Hint("wide", ["conv_relu", "max_pool"])
    pupil = tfc.distill(student, teachers, terms=[term])
    # 8 channels of each, the student's 16: no projection.
    assert pupil.terms[0].trainable_variables == []
    one, other = (
        keras.Model(t.inputs, t.get_layer(name).output).predict(x, verbose=0)
        for t, name in zip(teachers, ("conv_relu", "max_pool"), strict=True)
    )
    other = other.repeat(2, axis=1).repeat(2, axis=2)
    mine = keras.Model(inputs, features).predict(x, verbose=0)
    expected = np.mean((mine - np.concatenate([one, other], axis=-1)) ** 2)
    assert soft_loss(pupil, x, y) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_born_again_generations_teach_the_next_one():
    x, y = image_data(96)
    first = compiled(small_net())
    first.fit(x, y, epochs=8, verbose=0)
    second = keras.models.clone_model(first)
    compiled(tfc.distill(second, first)).fit(x, y, epochs=8, verbose=0)
    third = keras.models.clone_model(first)
    compiled(tfc.distill(third, [first, second])).fit(x, y, epochs=8, verbose=0)
    assert np.mean(third.predict(x, verbose=0).argmax(1) == y) > 0.9


@pytest.mark.slow
def test_deep_supervision_needs_no_teacher():
    x, y = image_data(96)
    model = conv_net()
    term = d.DeepSupervision(["conv_relu", "max_pool"])
    pupil = compiled(tfc.distill(model, terms=[term], alpha=0.5))
    assert pupil.teacher is None
    pupil.fit(x, y, epochs=8, verbose=0)
    assert np.mean(model.predict(x, verbose=0).argmax(1) == y) > 0.9
    # The classifier on the pooled features of an inner layer has learned, too.
    inner = keras.Model(model.inputs, model.get_layer("max_pool").output)
    pooled = inner.predict(x, verbose=0).mean(axis=(1, 2))
    head = pupil.terms[0].heads[1]
    assert np.mean(head(pooled).numpy().argmax(1) == y) > 0.8
    again = type(term).from_config(pupil.terms[0].get_config())
    assert again.get_config() == pupil.terms[0].get_config()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tflite", "saved_model", "keras"])
def test_a_file_teaches_what_its_model_would(kind, tmp_path):
    x, y = image_data(24)
    student, teacher = conv_net(), conv_net()
    declared = {} if kind == "keras" else {"teacher_outputs": "probabilities"}
    if kind == "tflite":
        path = tmp_path / "teacher.tflite"
        tfc.export_tflite(teacher, path, kind="float32")
    elif kind == "keras":
        path = tmp_path / "teacher.keras"
        teacher.save(path)
    else:
        path = tmp_path / "teacher"
        teacher.export(path, verbose=False)
    if declared:
        with pytest.raises(ValueError, match="Cannot tell whether `teacher`"):
            tfc.distill(student, path)
    pupil = tfc.distill(student, str(path), **declared)
    expected = soft_loss(tfc.distill(student, teacher), x, y)
    # 1e-4: TFLite's kernels round in another order.
    assert soft_loss(pupil, x, y) == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(pupil.fit(x, y, batch_size=10, verbose=0).history["loss"]).all()
    if kind == "tflite":
        with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
            compiled(pupil, jit_compile=True)
        compiled(pupil).fit(x, y, verbose=0)
        pupil.save(tmp_path / "pupil.keras")
        loaded = keras.models.load_model(tmp_path / "pupil.keras", safe_mode=True)
        loaded.fit(x, y, verbose=0)


def test_a_file_stands_beside_a_teacher_whose_layers_are_read(tmp_path):
    path = tmp_path / "other.tflite"
    tfc.export_tflite(conv_net(), path, kind="float32")
    student, teacher = conv_net(), conv_net()

    def pupil(layers_of_teachers):
        return tfc.distill(
            student,
            [teacher, path],
            teacher_outputs=["auto", "probabilities"],
            terms=[tfc.distillation.Hint("hidden", layers_of_teachers, weight=0.5)],
        )

    alone = tfc.distill(
        student, teacher, terms=[tfc.distillation.Hint("hidden", "add", weight=0.5)]
    )
    x, y = image_data(24)
    keras.utils.set_random_seed(0)
    expected = soft_loss(alone, x, y)
    keras.utils.set_random_seed(0)
    assert soft_loss(pupil(["add", None]), x, y) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="matches nothing"):
        pupil("add")
    with pytest.raises(ValueError, match="one teacher at least"):
        pupil([None, None])


@pytest.mark.slow
def test_an_int8_file_with_two_inputs_is_read_in_order(tmp_path):
    inputs = [keras.Input((4,), name=n) for n in ("z", "a")]
    x = layers.Concatenate()([layers.Dense(3)(inputs[0]), inputs[1]])
    teacher = keras.Model(inputs, layers.Dense(3, "softmax")(x))
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(40, 4)).astype("float32") for _ in range(2)]
    data[1] *= 3
    path = tmp_path / "teacher.tflite"
    tfc.export_tflite(teacher, path, kind="int8", calibration_data=data)
    file = tfc.distill(
        keras.models.clone_model(teacher), path, teacher_outputs="probabilities"
    ).teacher
    found = file([tf.constant(a[:8]) for a in data]).numpy()
    # 0.05: 8 bits in each of three operations.
    expected = teacher.predict([a[:8] for a in data], verbose=0)
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.parametrize(
    ("teacher", "error", "text"),
    [
        ("nowhere.tflite", FileNotFoundError, "there is nothing at"),
        (__file__, ValueError, "must be the path of a .tflite file"),
    ],
)
def test_a_file_that_is_no_teacher(teacher, error, text):
    with pytest.raises(error, match=text):
        tfc.distill(conv_net(), teacher)


def test_a_student_is_not_its_own_teacher():
    model = conv_net()
    with pytest.raises(ValueError, match="clone_model"):
        tfc.distill(model, model)


def test_a_term_that_needs_a_teacher_has_one():
    with pytest.raises(ValueError, match="SoftLabels needs a teacher"):
        tfc.distill(conv_net())


def test_weights_that_do_not_fit_the_teachers():
    with pytest.raises(ValueError, match="`teacher_weights` must be 2 numbers"):
        tfc.distill(conv_net(), [conv_net(), conv_net()], teacher_weights=[1, 0])


def test_outputs_that_do_not_correspond():
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(inputs)
    teacher = keras.Model(inputs, [layers.Dense(3, "softmax")(x) for _ in range(2)])
    with pytest.raises(ValueError, match="equally many outputs"):
        tfc.distill(conv_net(), teacher)


# Where Keras' own goes wrong.


def keras_pupil(student, teacher):
    distillation = pytest.importorskip("keras.distillation")
    pupil = distillation.Distiller(
        teacher=teacher,
        student=student,
        distillation_losses=distillation.LogitsDistillation(temperature=4.0),
        student_loss_weight=0.1,
    )
    pupil.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return pupil


def our_pupil(student, teacher):
    pupil = tfc.distill(student, teacher)
    return compiled(pupil, optimizer=keras.optimizers.SGD(0.1), from_logits=True)


def _linear(regularizer=None):
    inputs = keras.Input((6,))
    dense = layers.Dense(3, kernel_regularizer=regularizer, name="dense")
    return keras.Model(inputs, dense(inputs))


def _vectors():
    rng = np.random.default_rng(3)
    return rng.normal(size=(32, 6)).astype("float32"), rng.integers(0, 3, 32)


@pytest.mark.parametrize("make", [our_pupil, keras_pupil], ids=["ours", "keras"])
def test_examples_of_weight_zero_teach_nothing_and_keras_ignores_weights(make):
    x, y = _vectors()
    student = _linear()
    before = student.get_weights()
    make(student, _linear()).fit(x, y, sample_weight=np.zeros(32), verbose=0)
    moved = any(
        (a != b).any() for a, b in zip(before, student.get_weights(), strict=True)
    )
    assert moved == (make is keras_pupil)


@pytest.mark.parametrize("make", [our_pupil, keras_pupil], ids=["ours", "keras"])
def test_regularizers_shrink_the_student_and_keras_drops_them(make):
    x, y = _vectors()
    kernels = []
    teacher = _linear()
    for factor in (0.0, 1.0):
        keras.utils.set_random_seed(1)
        student = _linear(keras.regularizers.L2(factor))
        make(student, teacher).fit(x, y, batch_size=32, verbose=0, shuffle=False)
        kernels.append(student.get_layer("dense").kernel.numpy())
    assert (kernels[0] != kernels[1]).any() == (make is our_pupil)


def test_class_weight_is_the_students():
    x, y = _vectors()
    weight = {0: 0.0, 1: 2.0, 2: 1.0}
    losses = []
    for settings in (
        {"class_weight": weight},
        {"sample_weight": np.vectorize(weight.get)(y)},
    ):
        keras.utils.set_random_seed(1)
        pupil = our_pupil(_linear(), _linear())
        losses.append(pupil.fit(x, y, verbose=0, shuffle=False, **settings).history)
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-6)
    assert losses[0]["distillation_loss"] == pytest.approx(
        losses[1]["distillation_loss"], rel=1e-6
    )


@pytest.mark.slow
def test_two_devices_take_the_step_of_one():
    script = pathlib.Path(__file__).parent / "passes" / "distill_on_two_devices.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["moved"] > 1e-3
    # 1e-6: sums of two halves round in another order.
    assert result["difference"] < 1e-6
    assert result["losses"][0] == pytest.approx(result["losses"][1], rel=1e-5)
    assert result["taught"][0] == pytest.approx(result["taught"][1], rel=1e-5)


# Students that teach one another.


@pytest.mark.slow
def test_the_mutual_loss_is_the_papers_and_regularizers_count_once():
    x, y = _vectors()
    students = [_linear(keras.regularizers.L2(0.3)), _linear()]
    both = compiled(
        tfc.distill_mutually(students, alpha=0.25),
        optimizer=keras.optimizers.SGD(0.0),
        from_logits=True,
    )
    found = both.fit(x, y, batch_size=32, verbose=0).history
    p = [np.exp(s.predict(x, verbose=0).astype("float64")) for s in students]
    p = [a / a.sum(axis=1, keepdims=True) for a in p]
    labels = [-np.log(a[np.arange(32), y]).mean() for a in p]
    mutual = [
        (p[1] * np.log(p[1] / p[0])).sum(1).mean(),
        (p[0] * np.log(p[0] / p[1])).sum(1).mean(),
    ]
    penalty = 0.3 * np.sum(students[0].get_layer("dense").kernel.numpy() ** 2)
    expected = 0.25 * sum(labels) + 0.75 * sum(mutual) + penalty
    assert found["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert found["distillation_loss"][0] == pytest.approx(np.mean(mutual), rel=1e-4)
    right = [np.mean(a.argmax(1) == y) for a in p]
    assert found["accuracy"][0] == pytest.approx(np.mean(right))


def small_net():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"jit_compile": True}, id="jit", marks=pytest.mark.slow),
    ],
)
def test_mutual_students_learn_save_and_go_on(settings, tmp_path):
    x, y = image_data(96)
    students = [small_net(), small_net(), small_net()]
    both = compiled(tfc.distill_mutually(students), **settings)
    both.fit(x, y, epochs=8, batch_size=32, verbose=0)
    for student in students:
        assert np.mean(student(x).numpy().argmax(1) == y) > 0.8
    both.save(tmp_path / "both.keras")
    loaded = keras.models.load_model(tmp_path / "both.keras", safe_mode=True)
    for either in (both, loaded):
        either.fit(x, y, batch_size=32, verbose=0, shuffle=False)
    for one, other in zip(both.weights, loaded.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="has 3 students"):
        tfc.strip(both)


def test_mutual_students_that_are_none():
    model = conv_net()
    with pytest.raises(ValueError, match="two models or more"):
        tfc.distill_mutually([model])
    with pytest.raises(ValueError, match="one is there twice"):
        tfc.distill_mutually([model, model])
    with pytest.raises(ValueError, match="take terms on outputs"):
        tfc.distill_mutually([model, conv_net()], terms=[d.Hint("conv", "conv")])
