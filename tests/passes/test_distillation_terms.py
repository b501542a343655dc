"""Terms of `tfc.distill`: what they read, what is trained beside, schedules, errors."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from networks import Subclassed, compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.graph import kernels
from tfcompress.numerics import feature_distillation

d = tfc.distillation


def wide_net(classes=3):
    """A teacher of other widths, strides and names than `conv_net`."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="a")(inputs)
    x = layers.Conv2D(16, 3, strides=2, padding="same", name="b")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="top")(x), name="wide")


def slim_net():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="c")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(8, "relu", name="h")(x)
    return keras.Model(inputs, layers.Dense(3)(x), name="slim")


TERMS = {
    "soft": lambda: d.SoftLabels(3.0),
    "hard": lambda: d.HardLabels(),
    "decoupled": lambda: d.DecoupledSoftLabels(2.0, others_weight=2.0),
    "mse": lambda: d.LogitsMSE(),
    "cosine": lambda: d.LogitsCosine(),
    "regression": lambda: d.Regression("huber"),
    "hint, other width": lambda: d.Hint("c", "a"),
    "hint, other stride": lambda: d.Hint("c", "b"),
    "hint, other rank": lambda: d.Hint("h", "b"),
    "attention": lambda: d.AttentionTransfer("c", "b"),
    "similarity": lambda: d.SimilarityPreserving("h", "pool"),
    "relational": lambda: d.Relational("h", "pool"),
    "contrastive": lambda: d.Contrastive("h", "pool", size=4, memory=24),
}


# With nothing but a term on features the layers behind them learn nothing.
FEATURES_ALONE = "ignore:Gradients do not exist:UserWarning"


@pytest.mark.filterwarnings(FEATURES_ALONE)
@pytest.mark.parametrize("name", TERMS)
def test_every_term_is_learned_and_survives_its_config(name):
    x, y = image_data(64)
    term = TERMS[name]()
    config = keras.saving.serialize_keras_object(term)
    term = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    student = slim_net()
    pupil = tfc.distill(student, wide_net(), terms=[term], alpha=0.0)
    pupil.compile(keras.optimizers.Adam(0.01))
    history = pupil.fit(x, y, batch_size=16, epochs=6, verbose=0, shuffle=False)
    losses = history.history["distillation_loss"]
    assert np.isfinite(losses).all() and losses[-1] < 0.95 * losses[0], losses
    assert pupil.student is student


@pytest.mark.slow
def test_a_projection_is_trained_beside_the_student_and_never_pruned():
    student = conv_net(softmax=False)
    pupil = tfc.distill(student, wide_net(), terms=[d.Hint("conv_relu", "a")])
    beside = pupil.terms[0].trainable_variables
    assert [tuple(v.shape) for v in beside] == [(8, 12), (12,)]
    assert len(pupil.trainable_variables) == len(student.trainable_variables) + 2
    assert len(kernels(pupil)) == len(kernels(student))
    before = beside[0].numpy()
    compiled(pupil, from_logits=True)
    pupil.fit(*image_data(32), verbose=0, callbacks=[tfc.Pruning(0.5)])
    assert (beside[0].numpy() != before).all()
    names = {v.path for v in student.variables}
    assert not any("hint" in name for name in names)


def test_equal_widths_need_no_projection_and_the_loss_is_numpys():
    x, y = image_data(16)
    student, teacher = conv_net(), conv_net()
    term = d.Hint("conv_relu", "conv_relu")
    pupil = compiled(tfc.distill(student, teacher, terms=[term], alpha=0.0))
    assert pupil.terms[0].trainable_variables == []
    features = [
        keras.Model(m.inputs, m.get_layer("conv_relu").output).predict(x, verbose=0)
        for m in (student, teacher)
    ]
    found = pupil.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    expected = np.mean((features[0] - features[1]) ** 2)
    assert found["distillation_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_student_runs_once_a_step_with_features():
    x, y = image_data(32)
    plain, student = conv_net(), conv_net()
    student.set_weights(plain.get_weights())
    still = {"optimizer": keras.optimizers.SGD(0.0)}
    compiled(plain, **still).fit(x, y, batch_size=32, verbose=0)
    terms = [d.Hint("conv_relu", "a"), d.AttentionTransfer("depthwise_relu", "b")]
    pupil = tfc.distill(student, wide_net(), terms=terms, alpha=0.5)
    compiled(pupil, optimizer=keras.optimizers.SGD(0.0)).fit(
        x, y, batch_size=32, verbose=0
    )
    for one, other in zip(plain.weights, student.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.slow
def test_patterns_find_nested_and_subclassed_layers():
    x, y = image_data(16)
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="deep")], name="inner"
    )
    inputs = keras.Input((8, 8, 3))
    pool = layers.GlobalAveragePooling2D()(inner(inputs))
    student = keras.Model(inputs, layers.Dense(3, "softmax")(pool))
    teacher = Subclassed()
    teacher(x)
    pupil = tfc.distill(
        student,
        teacher,
        terms=[d.SoftLabels(), d.Hint(r"inner/de.p", "conv", weight=0.5)],
        teacher_outputs="probabilities",
    )
    history = compiled(pupil).fit(x, y, verbose=0).history
    assert {"loss", "accuracy", "distillation_loss", "soft_labels", "hint"} == set(
        history
    )
    expected = history["soft_labels"][0] + 0.5 * history["hint"][0]
    assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_schedules_follow_the_optimizers_step_and_go_on_after_loading(tmp_path):
    x, y = image_data(32)
    falling = tfc.schedules.Polynomial(8.0, 2.0, begin=2, end=6, power=1)
    rising = tfc.schedules.Cosine(0.0, 1.0, begin=0, end=4)
    weight = tfc.schedules.Constant(2.0, begin=3)
    term = d.SoftLabels(falling, weight=weight)
    student, teacher = conv_net(), conv_net()

    def losses(model):
        still = [x[:8], y[:8]]
        found = []
        for _ in range(4):
            history = model.fit(*still, batch_size=8, verbose=0).history
            found.append((history["loss"][0], history["distillation_loss"][0]))
        return found

    # A rate of zero and no batch norm: every step has the same two losses but for T.
    student = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)]
    )
    pupil = tfc.distill(student, teacher, terms=[term], alpha=rising)
    compiled(pupil, optimizer=keras.optimizers.SGD(0.0), from_logits=True)
    found = losses(pupil)
    pupil.save(tmp_path / "pupil.keras")
    found += losses(keras.models.load_model(tmp_path / "pupil.keras"))
    hard = found[-1][0]  # alpha is 1 at the end.
    probabilities = teacher.predict(x[:8], verbose=0)
    logits = student.predict(x[:8], verbose=0)
    for step, (loss, soft) in enumerate(found):
        expected = weight(step) * np.mean(
            np.asarray(
                _soft(logits, np.log(probabilities), falling(step)),
            )
        )
        assert soft == pytest.approx(expected, rel=1e-3, abs=1e-6)
        a = rising(step)
        # 1e-3: float32 logarithms of probabilities.
        assert loss == pytest.approx(a * hard + (1 - a) * soft, rel=1e-3)


def _soft(student, teacher, temperature):
    p, q = (np.exp(z.astype("float64") / temperature) for z in (teacher, student))
    p, q = (z / z.sum(axis=1, keepdims=True) for z in (p, q))
    return (p * np.log(p / q)).sum(axis=1) * temperature**2


@pytest.mark.slow
@pytest.mark.filterwarnings(FEATURES_ALONE)
def test_a_memory_of_contrast_is_bounded_and_keeps_the_latest():
    x, y = image_data(40)
    term = d.Contrastive("hidden", "pool", size=4, memory=24)
    pupil = tfc.distill(conv_net(softmax=False), wide_net(), terms=[term], alpha=0)
    pupil.compile(keras.optimizers.SGD(0.0))
    pupil.fit(x, y, batch_size=10, verbose=0, shuffle=False)
    state = pupil.terms[0]
    assert int(state.taken_in) == 40 and state.queue.shape == (24, 4)
    pooled = keras.Model(
        pupil.teacher.inputs, pupil.teacher.get_layer("pool").output
    ).predict(x, verbose=0)
    projected = state.projections[1](pooled).numpy()
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    # Example i is in row i % 24: the last 24 of 40.
    expected = {i % 24: projected[i] for i in range(16, 40)}
    for row, value in expected.items():
        np.testing.assert_allclose(state.queue.numpy()[row], value, atol=1e-5)
    pupil.evaluate(x, y, verbose=0)
    assert int(state.taken_in) == 40


@pytest.mark.slow
def test_masked_steps_of_a_sequence_do_not_count():
    inputs = keras.Input((5,), dtype="int32")
    tokens = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    labels = np.zeros((2, 5), int)

    def tagger(width, name):
        x = layers.Embedding(10, width, mask_zero=True, name="embedding")(inputs)
        return keras.Model(inputs, layers.Dense(3, "softmax")(x), name=name)

    student, teacher = tagger(4, "s"), tagger(4, "t")
    terms = [d.SoftLabels(1.0), d.Hint("embedding", "embedding")]
    pupil = tfc.distill(student, teacher, terms=terms)
    compiled(pupil)
    found = pupil.evaluate(tokens, labels, verbose=0, return_dict=True)
    valid = tokens != 0
    p, q = (m.predict(tokens, verbose=0)[valid] for m in (teacher, student))
    expected = np.mean((p * np.log(p / q)).sum(-1))
    assert found["soft_labels"] == pytest.approx(expected, rel=1e-4)
    a, b = (m.get_layer("embedding").embeddings.numpy() for m in (student, teacher))
    expected = np.mean((a[tokens[valid]] - b[tokens[valid]]) ** 2)
    assert found["hint"] == pytest.approx(expected, rel=1e-4)


def two_headed(width, name):
    inputs = keras.Input((6,))
    x = layers.Dense(width, "relu", name="trunk")(inputs)
    outputs = {
        "kind": layers.Dense(3, "softmax", name="kind")(x),
        "size": layers.Dense(1, name="size")(x),
    }
    return keras.Model(inputs, outputs, name=name)


@pytest.mark.slow
def test_outputs_in_a_dict_have_terms_and_weights_of_their_own():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(32, 6)).astype("float32")
    y = {"kind": rng.integers(0, 3, 32), "size": rng.normal(size=(32, 1))}
    weight = {"kind": np.ones(32), "size": np.linspace(0, 2, 32)}
    student, teacher = two_headed(4, "s"), two_headed(8, "t")
    terms = [d.SoftLabels(2.0, output="kind"), d.Regression(output="size", weight=3.0)]
    pupil = tfc.distill(student, teacher, terms=terms, alpha=0.25)
    pupil.compile(
        keras.optimizers.SGD(0.0),
        {"kind": "sparse_categorical_crossentropy", "size": "mse"},
    )
    history = pupil.fit(x, y, sample_weight=weight, batch_size=32, verbose=0).history
    p, q = (m.predict(x, verbose=0) for m in (teacher, student))
    soft = np.mean(_soft(np.log(q["kind"]), np.log(p["kind"]), 2.0))
    values = np.mean(weight["size"] * (p["size"] - q["size"])[:, 0] ** 2)
    hard = -np.log(q["kind"][np.arange(32), y["kind"]]).mean()
    hard += np.mean(weight["size"] * (q["size"] - y["size"])[:, 0] ** 2)
    assert history["soft_labels"][0] == pytest.approx(soft, rel=1e-3)
    assert history["regression"][0] == pytest.approx(values, rel=1e-3)
    expected = 0.25 * hard + 0.75 * (soft + 3 * values)
    assert history["loss"][0] == pytest.approx(expected, rel=1e-3)


def test_a_sigmoid_is_taken_as_two_classes_however_it_is_given():
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    inputs = keras.Input((6,))
    found = []
    for activation, kind in (("sigmoid", "auto"), (None, "binary_logits")):
        keras.utils.set_random_seed(1)
        student, teacher = (
            keras.Model(inputs, layers.Dense(1, activation)(inputs)) for _ in range(2)
        )
        kinds = {"student_outputs": kind, "teacher_outputs": kind}
        pupil = tfc.distill(student, teacher, temperature=2, alpha=0, **kinds)
        pupil.compile(keras.optimizers.SGD(0.0))
        found.append(pupil.fit(x, batch_size=16, verbose=0).history["loss"][0])
    s, t = (m.predict(x, verbose=0)[:, 0].astype("float64") for m in (student, teacher))
    both = [np.stack([np.zeros(16), z], axis=1) for z in (s, t)]
    # 1e-3: float32 logarithms of probabilities, as in training with them.
    np.testing.assert_allclose(found, [np.mean(_soft(*both, 2.0))] * 2, rtol=1e-3)


def test_a_margin_reads_the_labels_of_a_regression():
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    y = x[:, 0]
    inputs = keras.Input((6,))
    student, teacher = (keras.Model(inputs, layers.Dense(1)(inputs)) for _ in range(2))
    pupil = tfc.distill(student, teacher, terms=[d.Regression(margin=0.5)], alpha=0.5)
    pupil.compile(keras.optimizers.SGD(0.0), "mse")
    found = pupil.fit(x, y, batch_size=16, verbose=0).history["distillation_loss"][0]
    s, t = ((m.predict(x, verbose=0)[:, 0] - y) ** 2 for m in (student, teacher))
    assert found == pytest.approx(np.mean(np.where(s + 0.5 > t, s, 0)), rel=1e-4)


def test_classes_that_differ_need_a_map_and_then_learn_the_merged_ones():
    x, y = image_data(32)
    teacher = wide_net(classes=5)
    student = conv_net(softmax=False)
    with pytest.raises(ValueError, match=r"class_map=\[7, 2, "):
        tfc.distill(student, teacher)
    settings = {"temperature": 1, "class_map": [4, [0, 2], 1]}
    pupil = compiled(tfc.distill(student, teacher, **settings), from_logits=True)
    found = pupil.evaluate(x, y, verbose=0, return_dict=True)["distillation_loss"]
    z = teacher.predict(x, verbose=0).astype("float64")
    p = np.exp(z)
    p = np.stack([p[:, 4], p[:, 0] + p[:, 2], p[:, 1]], axis=1)
    expected = _soft(student.predict(x, verbose=0), np.log(p), 1.0).mean()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "class_map", [[0, 1], [0, 1, 5], [0, 1, [1, 2]], [0, 1, []], 3, [0, "x", 2]]
)
def test_a_class_map_that_does_not_fit(class_map):
    with pytest.raises(ValueError, match="`class_map` must"):
        tfc.distill(conv_net(), wide_net(classes=5), class_map=class_map)


def test_a_term_of_the_users_own():
    @keras.saving.register_keras_serializable(package="tests")
    class Margin(d.OutputTerm):
        def call(self, student, teacher):
            return keras.ops.mean(keras.ops.abs(student - teacher), axis=-1)

    x, y = image_data(16)
    student, teacher = conv_net(softmax=False), wide_net()
    pupil = tfc.distill(student, teacher, terms=[Margin(weight=2.0)])
    found = compiled(pupil, from_logits=True).evaluate(
        x, y, verbose=0, return_dict=True
    )["distillation_loss"]
    s, t = (m.predict(x, verbose=0) for m in (student, teacher))
    assert found == pytest.approx(2 * np.mean(np.abs(s - t)), rel=1e-4)


@pytest.mark.filterwarnings(FEATURES_ALONE)
def test_the_weight_of_an_example_weighs_its_features_too():
    x, y = image_data(8)
    student, teacher = conv_net(), conv_net()
    term = d.AttentionTransfer("conv_relu", "conv_relu")
    pupil = tfc.distill(student, teacher, terms=[term], alpha=0.0)
    pupil.compile(keras.optimizers.SGD(0.0))
    weight = np.array([0, 0, 0, 0, 0, 0, 3.0, 0])
    # The batch's own statistics would mix examples: frozen, they do not.
    student.get_layer("conv_bn").trainable = False
    pupil.compile(keras.optimizers.SGD(0.0))
    found = pupil.fit(x, y, sample_weight=weight, batch_size=8, verbose=0).history
    maps = [
        keras.Model(m.inputs, m.get_layer("conv_relu").output).predict(x, verbose=0)
        for m in (student, teacher)
    ]
    values = np.asarray(feature_distillation.attention_transfer(*maps))
    assert found["distillation_loss"][0] == pytest.approx(3 * values[6] / 8, rel=1e-3)


# Bad input.


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: d.Hint("conv_rel", "z9"), "`teacher_layer`: 'z9' matches nothing"),
        (lambda: d.Hint("cnv_relu", "a"), "Did you mean 'conv_relu'"),
        (lambda: d.Hint("conv", "a"), None),
        (lambda: d.Hint("relu", "a"), "must match exactly one path. It matches 2"),
        (lambda: d.AttentionTransfer("hidden", "b"), "compares positions"),
        (lambda: d.Hint("conv_relu", ["a", "b"]), "`teacher_layer` must be one for"),
        (lambda: d.SoftLabels(output="sizes"), "no output 'sizes'"),
        (lambda: d.DeepSupervision(["nowhere"]), "`student_layers`: 'nowhere'"),
    ],
)
def test_terms_that_do_not_fit_the_models(make, text):
    if text is None:  # An exact path is meant, though the pattern is in others too.
        tfc.distill(conv_net(softmax=False), wide_net(), terms=[make()])
        return
    with pytest.raises(ValueError, match=text):
        tfc.distill(conv_net(softmax=False), wide_net(), terms=[make()])


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: d.SoftLabels(0), ValueError, "`temperature` must be above 0"),
        (lambda: d.SoftLabels("hot"), TypeError, "a number or one of tfc.schedules"),
        (lambda: d.SoftLabels(weight=-1), ValueError, "`weight` must be 0 or more"),
        (
            lambda: d.SoftLabels(tfc.schedules.Polynomial(4, 0, end=9)),
            ValueError,
            "`temperature` must be above 0",
        ),
        (lambda: d.Regression("cubic"), ValueError, "`error` must be one of"),
        (lambda: d.Contrastive("a", "b", memory=0), ValueError, "`memory` must be"),
        (lambda: d.Relational("a", "b", distance=0, angle=0), ValueError, "nothing"),
        (lambda: d.DeepSupervision("a"), ValueError, "must be a list"),
    ],
)
def test_settings_of_terms_out_of_range(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_two_classes_cannot_be_decoupled():
    inputs = keras.Input((6,))
    models = [keras.Model(inputs, layers.Dense(2)(inputs)) for _ in range(2)]
    with pytest.raises(ValueError, match="needs three classes or more"):
        tfc.distill(*models, terms=[d.DecoupledSoftLabels()])


def test_terms_that_are_none():
    with pytest.raises(ValueError, match="`terms` must be a list of one or more"):
        tfc.distill(conv_net(), conv_net(), terms=[])
    with pytest.raises(TypeError, match="`terms` must be of tfc.distillation"):
        tfc.distill(conv_net(), conv_net(), terms=["soft"])
    with pytest.raises(ValueError, match=r"SoftLabels\(3\)"):
        tfc.distill(conv_net(), conv_net(), terms=[d.LogitsMSE()], temperature=3)


def test_labels_that_are_missing_are_asked_for():
    pupil = tfc.distill(
        conv_net(), conv_net(), terms=[d.DecoupledSoftLabels()], alpha=0
    )
    pupil.compile("adam")
    with pytest.raises(ValueError, match="DecoupledSoftLabels needs labels"):
        pupil.fit(image_data(8)[0], verbose=0)


def test_labels_that_count_need_a_loss():
    with pytest.raises(ValueError, match="With alpha=0.1 the labels count"):
        pupil = tfc.distill(conv_net(), conv_net())
        pupil.compile("adam")
        pupil.fit(*image_data(8), verbose=0)
