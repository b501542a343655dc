"""The layers and kernels of a model by path, nested and subclassed models included."""

import keras

from tfcompress.graph.names import unused_name

_LEFT_ALONE = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.PReLU,
    keras.layers.Normalization,
)


def find_layers(model, kind):
    """All layers of a type, the model itself included, each once.

    Args:
        model: Any `keras.Model` or layer.
        kind: Layer class, or tuple of classes.

    Returns:
        List in order of definition.
    """
    return [layer for layer in model._flatten_layers() if isinstance(layer, kind)]


def kernels(model):
    """The trainable weight matrices and convolution kernels of a model.

    These are what pruning acts on: trainable float variables of rank 2 and more.
    Biases, normalization and the slopes of PReLU are not among them.

    Args:
        model: Any built `keras.Model`.

    Returns:
        Dict from path (`"encoder/conv2d/kernel"`) to `keras.Variable`. A weight that is
        shared by layers appears once.
    """
    # What the whole model trains decides: a distiller's teacher is a layer of it, but
    # nothing of the teacher is trained.
    left = {id(v) for v in model.trainable_variables}
    found = {}
    for path, layer in _walk(model, ""):
        # What a distiller trains beside its student is no part of what comes out.
        if getattr(layer, "auxiliary", False):
            left -= {id(v) for v in layer.variables}
            continue
        inner = {id(v) for sub in children(layer) for v in sub.variables}
        for variable in layer.trainable_variables:
            if id(variable) in inner or id(variable) not in left:
                continue
            left.remove(id(variable))
            if _is_kernel(variable, layer):
                found[unused_name(f"{path}{variable.name}", found)] = variable
    return found


def layer_paths(model):
    """The layers inside a model by path, nested models' too.

    Args:
        model: Any built `keras.Model`.

    Returns:
        Dict from path (`"encoder/block3"`) to layer, in order of definition. A layer
        that is shared appears once.
    """
    found, seen = {}, {id(model)}
    for path, layer in _walk(model, ""):
        if id(layer) not in seen:
            seen.add(id(layer))
            found[unused_name(path.rstrip("/"), found)] = layer
    return found


def _is_kernel(variable, layer):
    return (
        len(variable.shape) >= 2
        and keras.backend.is_float_dtype(variable.dtype)
        and not isinstance(layer, _LEFT_ALONE)
        # Attention and recurrent layers have biases of rank 2.
        and not variable.name.endswith("bias")
    )


def _walk(layer, path):
    yield path, layer
    for sub in children(layer):
        yield from _walk(sub, f"{path}{sub.name}/")


def children(layer):
    """The layers that a layer holds itself, as a list."""
    return list(layer._flatten_layers(include_self=False, recursive=False))
