"""What layers inside a model get and compute while it is called, whatever its class.

Example:
    ```python
    with recorded({"block3": model.get_layer("block3")}) as seen:
        y = model(x)
    seen["block3"]   # what the layer returned, one entry a call
    ```
"""

import contextlib
import functools
import threading

import keras
import tensorflow as tf

from tfcompress.graph.view import flat_call

_installed = {}
_lock = threading.Lock()
# Replicas of a strategy run in threads of their own and take turns within a call.
_of_thread = threading.local()


@contextlib.contextmanager
def recorded(layers):
    """Notes what layers return while the body calls a model that holds them.

    Args:
        layers: Dict from a name to the layer.

    Yields:
        Dict from the name to a list of what the layer returned, one entry a call.
    """
    seen = {name: [] for name in layers}

    def noting(name):
        return lambda inputs, outputs: seen[name].append(outputs)

    with tapped([(layer, noting(name)) for name, layer in layers.items()]):
        yield seen


@contextlib.contextmanager
def tapped(taps):
    """Calls functions behind every call of layers, while the body calls a model.

    Args:
        taps: Pairs of a layer and a function of its `inputs`, the first argument, and
            its `outputs`.
    """
    wanted = {}
    for layer, tap in taps:
        wanted.setdefault(id(layer), []).append(tap)
    active = _of_thread.__dict__.setdefault("active", [])
    for layer, _ in taps:
        _install(layer)
    active.append(wanted)
    try:
        yield
    finally:
        # Not the last one, if an outer body ended first.
        active[:] = [other for other in active if other is not wanted]
        for layer, _ in taps:
            _remove(layer)


def _install(layer):
    """Puts a `call` on the object that tells; its class stays as it is."""
    with _lock:
        count, own = _installed.get(id(layer), (0, vars(layer).get("call")))
        _installed[id(layer)] = (count + 1, own)
        if count:
            return
        call = layer.call

        @functools.wraps(call)
        def telling(*args, **kwargs):
            outputs = call(*args, **kwargs)
            inputs = args[0] if args else next(iter(kwargs.values()), None)
            for wanted in getattr(_of_thread, "active", ()):
                for tap in wanted.get(id(layer), ()):
                    tap(inputs, outputs)
            return outputs

        object.__setattr__(layer, "call", telling)


def _remove(layer):
    with _lock:
        count, own = _installed.pop(id(layer))
        if count > 1:
            _installed[id(layer)] = (count - 1, own)
            return
        object.__delattr__(layer, "call")
        if own is not None:
            object.__setattr__(layer, "call", own)


def one_tensor(seen, path):
    """The tensor of a layer that was called once.

    Args:
        seen: What `recorded` gave for the layer.
        path: Path of the layer, for messages.

    Raises:
        ValueError: If it was not called, or several times, or returned several tensors,
            or within a function or loop of TensorFlow's own.
    """
    if len(seen) != 1:
        raise ValueError(
            f"Layer {path!r} is called {len(seen)} times a step, and has one output "
            "only if it is called once. Name another layer."
        )
    tensors = keras.tree.flatten(seen[0])
    if len(tensors) != 1:
        raise ValueError(
            f"Layer {path!r} returns {len(tensors)} tensors. Name a layer that returns "
            "one."
        )
    tensor = tensors[0]
    inside = getattr(tensor, "graph", None) if not tf.executing_eagerly() else None
    if inside is not None and inside is not tf.compat.v1.get_default_graph():
        raise ValueError(
            f"Layer {path!r} runs inside a loop or a tf.function of its own, so its "
            "output cannot be seen from outside. Name the layer around it."
        )
    return tensor


def layer_shapes(model, layers):
    """Static shapes of what layers return, without running the model.

    Args:
        model: Built `keras.Model`.
        layers: Dict from path to layer.

    Returns:
        Dict from path to a tuple of ints, `None` where the size varies.

    Raises:
        ValueError: If the inputs of a subclassed model are not known.
    """
    found = {}

    infer = flat_call(model)

    def run(*inputs):
        with recorded(layers) as seen:
            infer(*inputs)
        for path, outputs in seen.items():
            found[path] = tuple(one_tensor(outputs, path).shape)

    tf.function(run, autograph=False).get_concrete_function(*_input_specs(model))
    return found


def _input_specs(model):
    inputs = getattr(model, "inputs", None)
    if inputs:
        return [tf.TensorSpec(t.shape, t.dtype) for t in inputs]
    shape = (model.get_build_config() or {}).get("input_shape")
    if not shape or not all(isinstance(n, (int, type(None))) for n in shape):
        raise ValueError(
            f"Model {model.name!r} is subclassed, and the shapes of its inputs are not "
            "known. Wrap it: x = keras.Input(shape); keras.Model(x, model(x))."
        )
    return [tf.TensorSpec((None, *shape[1:]), model.input_dtype)]
