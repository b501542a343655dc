"""`tfc.distill`: the loss it trains with, and what it leaves alone."""

import keras
import numpy as np
import pytest
from keras import layers
from networks import Subclassed, compiled, conv_net, image_data

import tfcompress as tfc


def dense(units=8, *, softmax=True, regularizer=None, name=None):
    inputs = keras.Input((6,))
    x = layers.Dense(units, "relu", kernel_regularizer=regularizer)(inputs)
    return keras.Model(
        inputs, layers.Dense(3, "softmax" if softmax else None)(x), name=name
    )


def vectors(examples=64):
    rng = np.random.default_rng(1)
    return rng.normal(size=(examples, 6)).astype("float32"), rng.integers(
        0, 3, examples
    )


def by_hand(student, teacher, x, y, *, temperature, alpha, weight=None):
    """The loss of one batch in numpy, from softmax outputs."""
    p, q = (m.predict(x, verbose=0).astype("float64") for m in (student, teacher))
    weight = np.ones(len(x)) if weight is None else weight

    def soften(probabilities):
        scaled = probabilities ** (1 / temperature)
        return scaled / scaled.sum(axis=1, keepdims=True)

    soft_p, soft_q = soften(p), soften(q)
    divergence = (soft_q * np.log(soft_q / soft_p)).sum(axis=1) * temperature**2
    hard = -np.log(p[np.arange(len(y)), y])
    return np.mean(weight * (alpha * hard + (1 - alpha) * divergence))


@pytest.mark.parametrize("weighted", [None, "one axis", "two axes"])
def test_the_loss_is_the_one_of_the_paper(weighted):
    x, y = vectors()
    student, teacher = dense(), dense(16)
    weight = np.linspace(0, 2, len(x)) if weighted else None
    distiller = compiled(
        tfc.distill(student, teacher, temperature=3, alpha=0.3),
        optimizer=keras.optimizers.SGD(0.0),
    )
    expected = by_hand(student, teacher, x, y, temperature=3, alpha=0.3, weight=weight)
    if weighted == "two axes":
        weight = weight[:, None]
    history = distiller.fit(
        x, y, sample_weight=weight, batch_size=len(x), verbose=0, shuffle=False
    )
    # float32 logarithms of probabilities down to 0.01.
    np.testing.assert_allclose(history.history["loss"][0], expected, rtol=1e-4)


def test_regularizers_count_in_full_whatever_alpha_is():
    x, y = vectors()
    teacher = dense(16, regularizer=keras.regularizers.L2(100.0))
    losses = {}
    for factor in (0.0, 0.5):
        keras.utils.set_random_seed(3)
        student = dense(regularizer=keras.regularizers.L2(factor))
        distiller = tfc.distill(student, teacher, alpha=0.2)
        compiled(distiller, optimizer=keras.optimizers.SGD(0.0))
        history = distiller.fit(x, y, batch_size=len(x), verbose=0)
        losses[factor] = history.history["loss"][0]
        penalty = factor * np.sum(student.layers[1].kernel.numpy() ** 2)
    np.testing.assert_allclose(losses[0.5] - losses[0.0], penalty, rtol=1e-3)


def test_logits_and_probabilities_give_the_same_loss():
    x, y = vectors()
    losses = []
    for softmax in (True, False):
        keras.utils.set_random_seed(5)
        student, teacher = dense(softmax=softmax), dense(16, softmax=softmax)
        distiller = compiled(
            tfc.distill(student, teacher),
            optimizer=keras.optimizers.SGD(0.0),
            from_logits=not softmax,
        )
        losses.append(distiller.fit(x, y, batch_size=64, verbose=0).history["loss"][0])
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_the_student_learns_the_teachers_answers_without_labels():
    x, _ = vectors(256)
    teacher = dense(16)
    teacher.layers[-1].kernel.assign(5 * teacher.layers[-1].kernel)
    student = dense(32)
    distiller = compiled(tfc.distill(student, teacher, alpha=0, temperature=2))
    distiller.fit(x, np.zeros(len(x)), epochs=60, verbose=0)
    same = student.predict(x, verbose=0).argmax(1) == teacher.predict(
        x, verbose=0
    ).argmax(1)
    assert same.mean() > 0.95


@pytest.mark.slow
def test_the_teacher_is_not_changed():
    x, y = image_data(64)
    teacher, student = conv_net(), conv_net()
    before = teacher.get_weights()
    distiller = compiled(tfc.distill(student, teacher))
    distiller.fit(x, y, epochs=2, verbose=0, callbacks=[tfc.Pruning(0.5)])
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert teacher.trainable and all(layer.trainable for layer in teacher.layers)
    assert len(distiller.trainable_variables) == len(student.trainable_variables)


@pytest.mark.slow
def test_batch_statistics_move_once_a_step():
    x, y = image_data(32)
    plain, student = conv_net(), conv_net()
    student.set_weights(plain.get_weights())
    still = {"optimizer": keras.optimizers.SGD(0.0)}
    compiled(plain, **still).fit(x, y, batch_size=32, verbose=0)
    distiller = compiled(
        tfc.distill(student, conv_net()), optimizer=keras.optimizers.SGD(0.0)
    )
    distiller.fit(x, y, batch_size=32, verbose=0)
    np.testing.assert_array_equal(
        plain.get_layer("conv_bn").moving_mean.numpy(),
        student.get_layer("conv_bn").moving_mean.numpy(),
    )


def test_evaluation_and_prediction_are_the_students():
    x, y = vectors()
    student = dense()
    distiller = compiled(tfc.distill(student, dense(16)))
    compiled(student)
    np.testing.assert_array_equal(
        distiller.predict(x, verbose=0), student.predict(x, verbose=0)
    )
    expected = student.evaluate(x, y, verbose=0, return_dict=True)
    found = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["accuracy"] == expected["accuracy"]


def test_the_student_comes_out_plain():
    student = dense(name="pupil")
    distiller = tfc.distill(student, dense(16))
    assert distiller.student is student
    assert tfc.strip(distiller) is student


@pytest.mark.slow
def test_alpha_zero_needs_no_loss():
    x, y = vectors()
    distiller = tfc.distill(dense(), dense(16), alpha=0)
    distiller.compile("adam")
    assert distiller.fit(x, y, verbose=0).history["loss"][0] > 0


# Bad input.


def test_one_output_value_must_be_declared():
    inputs = keras.Input((6,))
    models = [keras.Model(inputs, layers.Dense(1)(inputs)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"one linear value.*Regression\(\)"):
        tfc.distill(*models)
    with pytest.raises(ValueError, match="needs two classes or more"):
        tfc.distill(*models, student_outputs="logits")


def test_outputs_of_different_shape():
    inputs = keras.Input((6,))
    teacher = keras.Model(inputs, layers.Dense(5, "softmax")(inputs))
    with pytest.raises(ValueError, match="outputs of one shape"):
        tfc.distill(dense(), teacher)


def test_a_sigmoid_teacher_does_not_teach_a_softmax():
    inputs = keras.Input((6,))
    teacher = keras.Model(inputs, layers.Dense(3, "sigmoid")(inputs))
    with pytest.raises(ValueError, match="teacher_outputs='logits'"):
        tfc.distill(dense(), teacher)


@pytest.mark.slow
def test_a_subclassed_teacher_must_be_declared():
    x, _ = image_data(4)
    teacher = Subclassed()
    teacher(x)
    with pytest.raises(ValueError, match="subclassed"):
        tfc.distill(conv_net(), teacher)
    distiller = tfc.distill(conv_net(), teacher, teacher_outputs="probabilities")
    compiled(distiller).fit(*image_data(32), verbose=0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temperature": 0}, "`temperature` must be above 0"),
        ({"alpha": 1.5}, r"`alpha` must be in \[0, 1\]"),
        ({"teacher_outputs": "odds"}, "must be one of"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(ValueError, match=text):
        tfc.distill(dense(), dense(16), **settings)


def test_a_teacher_that_is_no_model():
    with pytest.raises(TypeError, match="`teacher` must be a Keras 3 model"):
        tfc.distill(dense(), 3)


@pytest.mark.parametrize("how", ["average", "sum", "lambda", "dropout", "clip"])
def test_probabilities_are_not_taken_for_logits(how):
    inputs = keras.Input((4,))
    a, b = (layers.Dense(3, activation="softmax")(inputs) for _ in range(2))
    made = {
        "average": lambda: layers.Average()([a, b]),
        "sum": lambda: (a + b) / 2,
        "lambda": lambda: layers.Lambda(keras.ops.softmax)(layers.Dense(3)(inputs)),
        "dropout": lambda: layers.Dropout(0.5)(a),
        "clip": lambda: keras.ops.clip(a, 1e-6, 1.0),
    }
    teacher = keras.Model(inputs, made[how]())
    student = keras.Sequential([inputs, layers.Dense(3)])
    if how == "dropout":
        (taught,) = tfc.distill(student, teacher)._pairing.of_teachers(0)
        assert taught.output.kind == "probabilities"
        return
    with pytest.raises(ValueError, match="teacher_outputs"):
        tfc.distill(student, teacher)
    assert tfc.distill(student, teacher, teacher_outputs="probabilities")


def test_a_teacher_that_shares_layers_with_the_student_is_refused():
    inputs = keras.Input((4,))
    shared = layers.Dense(3)
    teacher = keras.Model(inputs, layers.Dense(3)(shared(inputs)))
    student = keras.Model(inputs, layers.Dense(3)(shared(inputs)))
    with pytest.raises(ValueError, match="shares layers with the student"):
        tfc.distill(student, teacher)


def test_a_policy_of_half_precision_leaves_the_inputs_alone():
    inputs = keras.Input((1,), dtype="float32")
    ids = layers.Embedding(4000, 2, dtype="float32")(inputs)
    student = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(ids)))
    x = np.array([[2049.0], [3999.0]], "float32")
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        taught = tfc.distill(student, keras.models.clone_model(student))
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_array_equal(
        taught.predict(x, verbose=0), student.predict(x, verbose=0)
    )


def test_a_dict_of_outputs_and_a_list_are_not_paired_by_chance():
    inputs = keras.Input((4,))
    a, b = layers.Dense(3, name="a")(inputs), layers.Dense(3, name="b")(inputs)
    teacher = keras.Model(inputs, {"zeta": a, "alpha": b})
    c, d = layers.Dense(3, name="c")(inputs), layers.Dense(3, name="d")(inputs)
    with pytest.raises(ValueError, match="no order says which belong together"):
        tfc.distill(keras.Model(inputs, [c, d]), teacher)
