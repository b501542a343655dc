"""Checks of what a user hands in, raised once, at the door.

Example:
    ```python
    check_model(model)
    for x, y in batches(model, data, argument="calibration_data"):
        ...
    ```
"""

import numbers

import keras
import numpy as np
import tensorflow as tf

from tfcompress.graph import inputs_struct

_LEGACY_MODULES = ("tf_keras.", "keras.engine.", "tensorflow.python.keras.")


def check_model(model, *, argument="model"):
    """Raises unless `model` is a built Keras 3 model with finite weights.

    Args:
        model: What the user passed.
        argument: Its name in messages.

    Raises:
        TypeError: If it is no Keras 3 model.
        ValueError: If it is not built, or a weight is NaN or infinite.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(_not_a_model(model, argument))
    if not model.built or (isinstance(model, keras.Sequential) and not model.inputs):
        raise ValueError(
            f"`{argument}` {model.name!r} is not built, so it has no weights yet. Call "
            "it on a batch, or give it a keras.Input, first."
        )
    broken = [v.path for v in model.weights if not _finite(v.numpy())]
    if broken:
        raise ValueError(
            f"`{argument}` {model.name!r} has NaN or infinite weights: "
            f"{', '.join(broken[:5])}{' ...' if len(broken) > 5 else ''}. Go back to a "
            "checkpoint from before the training diverged."
        )


def check_count(name, value):
    """Raises `ValueError` unless an argument is a whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"`{name}` must be a whole number from 1. Received: {name}={value!r}"
        )


def check_batch_size(batch_size):
    """Raises `ValueError` unless it is a positive integer, or `None`."""
    whole = isinstance(batch_size, numbers.Integral) and batch_size is not True
    if batch_size is not None and not (whole and batch_size > 0):
        raise ValueError(
            "`batch_size` must be a positive integer, or None to leave it open. "
            f"Received: batch_size={batch_size!r}"
        )


def is_legacy_model(model):
    """Whether `model` is one of Keras 2 (`tf_keras`), by the module of its class."""
    modules = [cls.__module__ + "." for cls in type(model).__mro__]
    return any(module.startswith(_LEGACY_MODULES) for module in modules)


def _not_a_model(model, argument):
    received = f"Received: {argument}={model!r} (of type {type(model).__name__})"
    if is_legacy_model(model):
        return (
            f"`{argument}` is a legacy tf_keras (Keras 2) model; this library works on "
            "Keras 3 models. Pass tfc.from_tfmot(model), which is the same model in "
            f"Keras 3. {received}"
        )
    return f"`{argument}` must be a Keras 3 model (keras.Model). {received}"


def _finite(array):
    array = np.asarray(array)
    if array.dtype.kind not in "iubf":
        # ml_dtypes such as bfloat16 have no isfinite of their own in every numpy.
        array = array.astype("float32")
    return array.dtype.kind in "iub" or bool(np.isfinite(array).all())


def batches(model, data, *, argument, batch_size=32):
    """Iterates over a user's data as checked batches of model inputs and labels.

    Args:
        model: Built `keras.Model`, or anything with `inputs`: symbolic tensors with
            shape and dtype.
        data: Arrays with one row an example, in the structure of the model's inputs;
            or `(inputs, labels)` of such arrays; or a batched `tf.data.Dataset`,
            `keras.utils.PyDataset` or other iterable of such batches.
        argument: Name of the data in messages.
        batch_size: Batch size where `data` are whole arrays.

    Yields:
        `(inputs, labels)`: `inputs` a list of numpy arrays in the order of
        `model.inputs`, in their dtypes; `labels` as given, or `None`.

    Raises:
        TypeError: If the data are of a type that cannot be read.
        ValueError: If there are none, a shape does not fit, or a value is not finite.
    """
    count = 0
    for batch in _raw_batches(data, argument, batch_size):
        inputs, labels = _split(batch, model)
        inputs = _check_batch(inputs, model, argument)
        count += 1
        yield inputs, labels
    if not count:
        raise ValueError(f"`{argument}` is empty: it gave no batch. Received: {data!r}")


def first_examples(checked, examples):
    """The batches that hold the first examples, the last one cut.

    Args:
        checked: What `batches` gives.
        examples: How many examples.

    Returns:
        List of lists of arrays, one for each input.
    """
    taken = []
    for inputs, _ in checked:
        inputs = [array[:examples] for array in inputs]
        taken.append(inputs)
        examples -= len(inputs[0])
        if not examples:
            break
    return taken


def _raw_batches(data, argument, batch_size):
    if data is None or isinstance(data, (str, bytes, int, float)):
        raise TypeError(
            f"`{argument}` must be arrays, a tf.data.Dataset or an iterable of "
            f"batches. Received: {data!r} (of type {type(data).__name__})"
        )
    if isinstance(data, tf.data.Dataset) and data.cardinality() == (
        tf.data.INFINITE_CARDINALITY
    ):
        raise ValueError(
            f"`{argument}` repeats without end. Take a part of it: data.take(100)."
        )
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(len(data)))
    if isinstance(data, (np.ndarray, tf.Tensor, tuple, list, dict)):
        return _slices(data, argument, batch_size)
    if not hasattr(data, "__iter__"):
        raise TypeError(
            f"`{argument}` must be arrays, a tf.data.Dataset or an iterable of "
            f"batches. Received: an object of type {type(data).__name__}"
        )
    return iter(data)


def _slices(data, argument, batch_size):
    arrays = keras.tree.map_structure(np.asarray, data)
    lengths = {a.shape[0] if a.ndim else None for a in keras.tree.flatten(arrays)}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            f"`{argument}` must hold arrays with one row an example, equally many rows "
            f"each. Received: {[a.shape for a in keras.tree.flatten(arrays)]}"
        )
    for start in range(0, lengths.pop(), batch_size):
        stop = start + batch_size
        yield keras.tree.map_structure(lambda a, b=start, e=stop: a[b:e], arrays)


def _split(batch, model):
    """Tells inputs from `(inputs, labels[, sample_weight])`."""
    expected = len(model.inputs) if getattr(model, "inputs", None) else 1
    if isinstance(batch, (tuple, list)):
        if len(batch) == 1 or (isinstance(batch, tuple) and len(batch) in (2, 3)):
            whole = len(keras.tree.flatten(batch)) == expected
            if len(batch) == 1 or not whole or expected == 1:
                return batch[0], (batch[1] if len(batch) > 1 else None)
    return batch, None


def _check_batch(inputs, model, argument):
    specs = getattr(model, "inputs", None)
    if isinstance(inputs, dict) and specs:
        inputs = _in_order(inputs, model, argument)
    arrays = [np.asarray(a) for a in keras.tree.flatten(inputs)]
    if specs and len(arrays) != len(specs):
        raise ValueError(
            f"`{argument}` must give {len(specs)} input(s) a batch. Received: "
            f"{len(arrays)}. To pass a list of batches, pass iter(batches)."
        )
    return [
        _check_array(array, spec, argument)
        for array, spec in zip(arrays, specs or [None] * len(arrays), strict=True)
    ]


def _in_order(inputs, model, argument):
    """A dict by the model's own keys, or by the names of its input layers."""
    struct = inputs_struct(model)
    names = list(struct) if isinstance(struct, dict) else [t.name for t in model.inputs]
    if set(inputs) != set(names):
        raise ValueError(
            f"`{argument}` must be keyed by the model's inputs {sorted(names)}. "
            f"Received: {sorted(inputs)}"
        )
    ordered = {name: inputs[name] for name in names}
    return (
        keras.tree.flatten(ordered)
        if isinstance(struct, dict)
        else list(ordered.values())
    )


def _check_array(array, spec, argument):
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"`{argument}` must be numbers. Received: an array of type {array.dtype}"
        )
    if array.ndim and array.shape[0] == 0:
        raise ValueError(f"`{argument}` holds a batch of length zero.")
    if spec is not None:
        wanted = tuple(spec.shape)
        fits = len(wanted) == array.ndim and all(
            w is None or w == a
            for w, a in zip(wanted[1:], array.shape[1:], strict=True)
        )
        if not fits:
            hint = (
                " It looks like one example: add the batch axis with x[None]."
                if array.ndim == len(wanted) - 1
                else ""
            )
            raise ValueError(
                f"`{argument}` does not fit the model's input {spec.name!r}: expected "
                f"shape {wanted}. Received: shape {array.shape}.{hint}"
            )
        array = array.astype(spec.dtype)
    if not _finite(array):
        raise ValueError(
            f"`{argument}` holds NaN or infinite values. Remove or repair those "
            "examples first: `np.isfinite(x)` finds them."
        )
    return array
