"""A teacher's outputs, computed once and kept on disk: `cache_teacher`.

Example:
    ```python
    cached = tfc.cache_teacher(dataset, teacher, "answers.cache")
    student = tfc.distill(small, teacher)
    student.compile("adam", "sparse_categorical_crossentropy")
    student.fit(cached, epochs=10)   # the teacher does not run
    ```
"""

import json
import os
import pathlib

import keras
import tensorflow as tf

from tfcompress.deploy.files import check_writable, written_atomically
from tfcompress.deploy.teacher_cache import CacheWriter, TeacherCache, example_keys
from tfcompress.deploy.teachers import as_teacher
from tfcompress.graph import layer_paths
from tfcompress.passes.distill import cached_name, teacher_signals
from tfcompress.passes.distillation.fingerprint import fingerprint
from tfcompress.progress import tracked
from tfcompress.selection import select_one

# Examples of a second pass that must be those of the first.
_LOOKED_AT_AGAIN = 512


def cache_teacher(dataset, teacher, path, *, layers=()):
    """Computes a teacher's outputs for a dataset once, and adds them to its batches.

    If the file is there, it is read, if it was written for this teacher. Answers are
    looked up by the bytes of each example, so the dataset may be shuffled and batched
    anew; one whose examples change from pass to pass is refused.

    The answers are to the examples as they are in `dataset`. What is augmented behind
    the cache, `cache_teacher(dataset, ...).map(augment)` with inputs `{"inputs": x,
    "teacher_outputs": {...}}`, is taught the answer to the example before. Where that
    costs accuracy (Beyer et al., 2022, section 3.1), put several augmented copies into
    `dataset`, or leave the cache out. arXiv:2106.05237

    Args:
        dataset: Finite, batched `tf.data.Dataset` of inputs, `(x, y)` or
            `(x, y, sample_weight)`.
        teacher: As of `distill`; a list as well.
        path: Path of the file. Rows are float32: `4 * examples * values` bytes.
        layers: Paths or patterns of layers that terms read (`teacher_layer`), one list
            for all teachers.

    Returns:
        A `tf.data.Dataset` for `fit` of a distiller with this teacher.

    Raises:
        TypeError: If `dataset` is no `tf.data.Dataset`.
        ValueError: If the dataset is empty, repeats, or changes its examples; if the
            file is damaged or of another teacher; or a layer is not there.
        OSError: If the file cannot be written.
    """
    _check_dataset(dataset)
    teachers = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    teachers = [as_teacher(t) for t in teachers]
    chosen = [_chosen(t, layers) for t in teachers]
    of_teachers = fingerprint(teachers)
    of_file = json.dumps([of_teachers, [sorted(found) for found in chosen]])
    path = pathlib.Path(path)
    if not path.exists():
        check_writable(path)
        with written_atomically(path) as temporary:
            _write(dataset, teachers, chosen, temporary, of_file)
    cache = TeacherCache(path)
    if cache.fingerprint != of_file:
        raise ValueError(
            f"{os.fspath(path)!r} was written for another teacher, other weights of it "
            "or other `layers`. Delete it, or choose another path."
        )
    _look_again(dataset, cache.rows)
    return dataset.map(lambda *element: _with_answers(element, cache, of_teachers))


def _check_dataset(dataset):
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            "`dataset` must be a batched tf.data.Dataset, for example "
            "tf.data.Dataset.from_tensor_slices((x, y)).batch(32). Received: "
            f"{type(dataset).__name__}"
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "`dataset` repeats without end. Cache it first: "
            "tfc.cache_teacher(dataset, ...).repeat()."
        )


def _chosen(teacher, layers):
    """Dict from path to layer, of those that are in a cache."""
    paths = layer_paths(teacher) if isinstance(teacher, keras.Model) else {}
    patterns = [layers] if isinstance(layers, str) else layers
    found = (select_one(paths, pattern, argument="layers") for pattern in patterns)
    return {path: paths[path] for path in found}


def _write(dataset, teachers, chosen, path, of_file):
    @tf.function(reduce_retracing=True, autograph=False)
    def answers(inputs):
        found = {}
        for number, (teacher, layers) in enumerate(zip(teachers, chosen, strict=True)):
            outputs, features = teacher_signals(teacher, layers, inputs)
            for index, output in enumerate(outputs):
                found[cached_name(number, output=index)] = output
            for name, feature in features.items():
                found[cached_name(number, layer=name)] = feature
        return {name: tf.cast(x, tf.float32) for name, x in found.items()}

    with open(path, "wb") as file:
        writer = CacheWriter(file, of_file)
        total = max(int(dataset.cardinality()), 0) or None
        for batch in tracked(dataset, "Asking the teacher", total=total):
            inputs, _ = _split(batch)
            found = {name: x.numpy() for name, x in answers(inputs).items()}
            writer.add(_keys(inputs), found)
        if not writer.keys:
            raise ValueError("`dataset` is empty: it gave no batch.")
        writer.close()
    _look_again(dataset, lambda keys: _check_known(keys, writer.keys))


def _check_known(keys, known):
    changed = sum(key not in known for key in keys.tolist())
    if changed:
        raise ValueError(
            f"`dataset` changes its examples: {changed} of {len(keys)} in a second pass"
            " were not in the first, so the teacher's answers would be to others. Cache"
            " before augmentation: tfc.cache_teacher(dataset, ...).map(augment)."
        )


def _look_again(dataset, check):
    """Checks the first examples of a new pass over a dataset."""
    seen = 0
    for batch in dataset:
        keys = _keys(_split(batch)[0])
        check(keys)
        seen += len(keys)
        if seen >= _LOOKED_AT_AGAIN:
            return


def _split(batch):
    """Tells inputs from `(inputs, labels[, sample_weight])`, as `fit` does."""
    if isinstance(batch, tuple):
        return batch[0], batch[1:]
    return batch, ()


def _keys(inputs):
    return example_keys([x.numpy() for x in keras.tree.flatten(inputs)])


def _with_answers(element, cache, of_teachers):
    # A dataset of inputs alone gives them as the only argument.
    inputs, rest = element[0], element[1:]
    names = list(cache.fields)
    flat = keras.tree.flatten(inputs)

    def look_up(*arrays):
        return cache.rows(example_keys(list(arrays)))

    answers = tf.numpy_function(look_up, flat, [tf.float32] * len(names))
    for name, answer in zip(names, answers, strict=True):
        answer.set_shape((flat[0].shape[0], *cache.fields[name]))
    packed = {
        "inputs": inputs,
        # By which a distiller knows that they are of its teacher.
        "teacher_outputs": {of_teachers: dict(zip(names, answers, strict=True))},
    }
    return (packed, *rest) if rest else packed
