"""`tfc.cache_teacher`: the same answers, once; refusal of what would be wrong ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy.teacher_cache import TeacherCache, example_keys

d = tfc.distillation


def dataset(examples=40, batch=8, *, labels=True):
    x, y = image_data(examples)
    return tf.data.Dataset.from_tensor_slices((x, y) if labels else x).batch(batch)


def taught(student, teacher, data, **settings):
    pupil = tfc.distill(student, teacher, **settings)
    compiled(pupil, optimizer=keras.optimizers.SGD(0.1))
    return pupil.fit(data, epochs=2, verbose=0, shuffle=False).history["loss"]


def test_training_is_as_with_the_teacher_who_does_not_run(tmp_path, monkeypatch):
    teacher, student = conv_net(), conv_net()
    terms = [d.SoftLabels(2.0), d.Hint("conv_relu", "hidden")]
    data = dataset()
    start = student.get_weights()
    keras.utils.set_random_seed(7)
    expected = taught(student, teacher, data, terms=terms)
    cached = tfc.cache_teacher(data, teacher, tmp_path / "a.cache", layers=["hidden"])
    weights = student.get_weights()
    student.set_weights(start)
    keras.utils.set_random_seed(7)
    pupil = tfc.distill(student, teacher, terms=terms)
    compiled(pupil, optimizer=keras.optimizers.SGD(0.1))
    monkeypatch.setattr(type(teacher), "call", _only(type(teacher).call, id(student)))
    found = pupil.fit(cached, epochs=2, verbose=0, shuffle=False).history["loss"]
    # 1e-5: the teacher ran in other batches.
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for one, other in zip(weights, student.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def _only(call, allowed):
    def checked(self, *args, **kwargs):
        assert id(self) == allowed, f"{self.name} runs"
        return call(self, *args, **kwargs)

    return checked


def test_the_file_is_shared_by_runs_and_by_other_orders_and_batches(tmp_path):
    teacher = conv_net()
    path = tmp_path / "a.cache"
    tfc.cache_teacher(dataset(), teacher, path)
    written = path.stat().st_mtime_ns
    shuffled = dataset(batch=7).unbatch().shuffle(40, seed=1).batch(9)
    cached = tfc.cache_teacher(shuffled, teacher, path)
    assert path.stat().st_mtime_ns == written
    for packed, _ in cached:
        expected = teacher.predict(packed["inputs"].numpy(), verbose=0)
        (found,) = packed["teacher_outputs"].values()
        found = found["0/output/0"]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_augmentation_behind_the_cache_keeps_the_teachers_answers(tmp_path):
    teacher, student = conv_net(), conv_net()
    cached = tfc.cache_teacher(dataset(), teacher, tmp_path / "a.cache")

    def flip(packed, y):
        flipped = tf.image.random_flip_left_right(packed["inputs"])
        return {**packed, "inputs": flipped}, y

    losses = taught(student, teacher, cached.map(flip).shuffle(5), alpha=0.5)
    assert np.isfinite(losses).all()


def test_several_teachers_and_data_without_labels(tmp_path):
    teachers, student = [conv_net(), conv_net()], conv_net()
    data = dataset(labels=False)
    cached = tfc.cache_teacher(data, teachers, tmp_path / "a.cache")
    losses = []
    start = student.get_weights()
    for each in (data, cached):
        student.set_weights(start)
        pupil = tfc.distill(student, teachers, alpha=0)
        pupil.compile(keras.optimizers.SGD(0.1))
        losses.append(
            pupil.fit(each, epochs=2, verbose=0, shuffle=False).history["loss"]
        )
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_inputs_in_a_dict_of_text_and_numbers_have_keys():
    rows = [np.array([[b"ab", b"c"], [b"a", b"bc"]], object), np.zeros((2, 3))]
    keys = example_keys(rows)
    assert len(set(keys.tolist())) == 2
    np.testing.assert_array_equal(keys, example_keys(rows))
    assert (example_keys([rows[0], np.ones((2, 3))]) != keys).all()
    assert (example_keys([rows[0], np.zeros((2, 3), "int64")]) != keys).all()


# What would teach the wrong thing.


def test_augmentation_before_the_cache_is_refused_and_leaves_no_file(tmp_path):
    rng = np.random.default_rng(0)

    def noisy(x, y):
        # Not TensorFlow's: with a seed for all it gives each pass the same noise.
        noise = tf.numpy_function(
            lambda n: rng.normal(size=(n, 8, 8, 3)).astype("float32"),
            [tf.shape(x)[0]],
            tf.float32,
        )
        return tf.ensure_shape(x + noise, x.shape), y

    with pytest.raises(ValueError, match="Cache before augmentation"):
        tfc.cache_teacher(dataset().map(noisy), conv_net(), tmp_path / "a.cache")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_of_other_data_is_refused(tmp_path):
    teacher = conv_net()
    tfc.cache_teacher(dataset(), teacher, tmp_path / "a.cache")
    other = dataset().map(lambda x, y: (x + 1, y))
    with pytest.raises(ValueError, match="8 of 8 examples are not in"):
        tfc.cache_teacher(other, teacher, tmp_path / "a.cache")


@pytest.mark.slow
def test_an_example_that_is_missing_later_stops_the_training(tmp_path):
    teacher = conv_net()
    tfc.cache_teacher(dataset(), teacher, tmp_path / "a.cache")
    # As long as what is looked at again: seen only when it is trained on.
    longer = dataset().repeat(13).concatenate(dataset().map(lambda x, y: (x + 1, y)))
    cached = tfc.cache_teacher(longer, teacher, tmp_path / "a.cache")
    pupil = compiled(tfc.distill(conv_net(), teacher))
    with pytest.raises(tf.errors.OpError, match="not in the teacher's cache"):
        pupil.fit(cached, verbose=0, shuffle=False)


@pytest.mark.parametrize("change", ["weights", "layers"])
def test_a_cache_of_another_teacher_is_refused(change, tmp_path):
    teacher = conv_net()
    tfc.cache_teacher(dataset(), teacher, tmp_path / "a.cache")
    if change == "weights":
        teacher.get_layer("hidden").bias.assign_add(np.ones(8, "float32"))
    names = ["hidden"] if change == "layers" else []
    with pytest.raises(ValueError, match="was written for another teacher"):
        tfc.cache_teacher(dataset(), teacher, tmp_path / "a.cache", layers=names)


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_file_is_an_error(damage, tmp_path):
    path = tmp_path / "a.cache"
    teacher = conv_net()
    tfc.cache_teacher(dataset(), teacher, path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-100]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = b"something else entirely"
    path.write_bytes(content)
    text = "is no cache of a teacher" if damage == "foreign" else "is damaged"
    with pytest.raises(ValueError, match=text):
        TeacherCache(path)
    with pytest.raises(ValueError, match=text):
        tfc.cache_teacher(dataset(), teacher, path)


def test_a_cache_of_another_teacher_teaches_nobody(tmp_path):
    cached = tfc.cache_teacher(dataset(), conv_net(), tmp_path / "a.cache")
    pupil = compiled(tfc.distill(conv_net(), conv_net()))
    for run in (pupil.fit, pupil.evaluate):
        with pytest.raises(ValueError, match="answers of another teacher"):
            run(cached, verbose=0)


def test_a_killed_writer_leaves_nothing(tmp_path):
    def stop():
        yield from dataset().take(2)
        raise KeyboardInterrupt

    broken = tf.data.Dataset.from_generator(
        stop, output_signature=dataset().element_spec
    )
    with pytest.raises(Exception, match="KeyboardInterrupt"):
        tfc.cache_teacher(broken, conv_net(), tmp_path / "a.cache")
    assert list(tmp_path.iterdir()) == []


def test_features_that_were_not_cached_are_asked_for(tmp_path):
    teacher = conv_net()
    cached = tfc.cache_teacher(dataset(), teacher, tmp_path / "a.cache")
    pupil = tfc.distill(conv_net(), teacher, terms=[d.Hint("conv", "hidden")])
    with pytest.raises(ValueError, match=r"layers=\['hidden'\]"):
        compiled(pupil).fit(cached, verbose=0, shuffle=False)


def test_rows_of_two_lengths_are_refused(tmp_path):
    inputs = keras.Input((None, 3))
    teacher = keras.Model(inputs, layers.Dense(2)(inputs))
    data = tf.data.Dataset.from_generator(
        lambda: (np.zeros((2, n, 3), "float32") + n for n in (3, 4)),
        output_signature=tf.TensorSpec((None, None, 3)),
    )
    with pytest.raises(ValueError, match="Pad the inputs to one length"):
        tfc.cache_teacher(data, teacher, tmp_path / "a.cache")


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (image_data, TypeError, "must be a batched tf.data.Dataset"),
        (lambda: dataset().repeat(), ValueError, "repeats without end"),
        (lambda: dataset().take(0), ValueError, "is empty"),
    ],
    ids=["arrays", "endless", "empty"],
)
def test_data_that_cannot_be_cached(data, error, text, tmp_path):
    with pytest.raises(error, match=text):
        tfc.cache_teacher(data(), conv_net(), tmp_path / "a.cache")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        tfc.cache_teacher(dataset(), conv_net(), tmp_path / "no" / "a.cache")
