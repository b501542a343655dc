"""Builds a changed copy of a model by walking its calls in order.

Example:
    ```python
    def without_dropout(call, clone, args, kwargs):
        if isinstance(call.operation, keras.layers.Dropout):
            return args[0]
        return clone(call.operation)(*args, **kwargs)

    smaller = rewrite(Graph(model), without_dropout)
    ```
"""

import copy

import keras

from tfcompress.graph.depth import allow_depth
from tfcompress.graph.remade import remade
from tfcompress.graph.weights import children


def rewrite(
    graph, visit, *, batch_size="same", dtype=None, name=None, input_dtypes=None
):
    """Builds a new model from `graph`, deciding call by call.

    Args:
        graph: `Graph` of the model. It is left as it is.
        visit: `visit(call, clone, args, kwargs)` returns the new output of a call.
            `args` and `kwargs` are the call's arguments with tensors of the new model;
            `clone(operation)` is the operation's copy, the same at each call of a
            shared one.
        batch_size: Batch size of the new inputs; `"same"` keeps what there is.
        dtype: Dtype policy of the copies, and dtype of inputs that are not integers;
            `None` keeps each layer's own.
        name: Name of the new model; `None` keeps the old.
        input_dtypes: Dict from the name of an input to its new dtype.

    Returns:
        A new functional model of the class of the old (see `remade`), with its inputs
        and outputs. Copies carry the weights of their originals.
    """
    allow_depth()
    copies = {}

    def clone_once(operation):
        if id(operation) not in copies:
            copies[id(operation)] = (operation, clone(operation, dtype=dtype))
        return copies[id(operation)][1]

    inputs = keras.tree.map_structure(
        lambda t: _new_input(t, batch_size, dtype, input_dtypes or {}),
        graph.inputs_struct,
    )
    new = {
        id(old): tensor
        for old, tensor in zip(graph.inputs, keras.tree.flatten(inputs), strict=True)
    }
    for call in graph.calls:
        args, kwargs = call.arguments.fill_in(new)
        outputs = keras.tree.flatten(visit(call, clone_once, args, kwargs))
        new.update(
            (id(old), tensor) for old, tensor in zip(call.outputs, outputs, strict=True)
        )
    outputs = keras.tree.map_structure(lambda t: new[id(t)], graph.outputs_struct)
    for operation, copied in copies.values():
        copy_weights(operation, copied)
    return remade(graph.model, inputs, outputs, name)


def unchanged(call, clone, args, kwargs):
    """The visitor that copies every call."""
    return clone(call.operation)(*args, **kwargs)


def clone(operation, *, name=None, dtype=None, into=None, **changes):
    """Copies an operation without its weights or its place in a graph.

    Args:
        operation: A Keras layer or operation.
        name: Name of the copy; `None` keeps the old.
        dtype: Dtype policy of the copy; `None` keeps the old.
        into: Layer class of the copy, which takes the same config; `None` keeps it.
        **changes: Entries of the layer's config to replace.

    Returns:
        The copy, not built.

    Raises:
        ValueError: If the layer cannot be rebuilt from its config.
    """
    name = name or operation.name
    if not isinstance(operation, keras.layers.Layer):
        # An operation has no weights and hardly a config: all there is to it are its
        # attributes and the calls it has had, which are not the copy's.
        copied = copy.copy(operation)
        copied.name = name
        copied._inbound_nodes, copied._outbound_nodes = [], []
        return copied
    changes |= {"name": name} | ({} if dtype is None else {"dtype": dtype})
    try:
        cls = into or type(operation)
        # A lambda from this very process is as safe as the process.
        trusted = {"safe_mode": False} if cls is keras.layers.Lambda else {}
        copied = cls.from_config(operation.get_config() | changes, **trusted)
    except Exception as err:
        raise ValueError(
            f"Cannot copy layer {operation.name!r} of type "
            f"{type(operation).__name__} from its config: {err}. Give the class a "
            "`get_config` that returns the arguments of its constructor."
        ) from err
    _set_policies_within(operation, copied, dtype)
    return copied


def _set_policies_within(layer, copied, dtype):
    """Gives layers that a constructor made the dtype policy of those they stand for.

    Keras gave them the policy that is global now, which need not be that of then.
    """
    # Level by level, as the copy has yet to build what building makes.
    for old, new in zip(children(layer), children(copied), strict=False):
        if type(old) is type(new):
            new.dtype_policy = dtype or old.dtype_policy
            _set_policies_within(old, new, dtype)


def built_copy(layer, /, **changes):
    """Copies a built layer with its weights, outside any graph.

    Args:
        layer: Built Keras layer.
        **changes: As for `clone`.

    Returns:
        The copy, built for the same input shape, with the same weights.
    """
    copied = clone(layer, **changes)
    _build_alike(layer, copied)
    if changes.get("into") is None:
        copy_weights(layer, copied)
        return copied
    by_name = {v.name: v for v in layer.variables}
    for variable in copied.variables:
        if variable.name in by_name:
            variable.assign(by_name[variable.name])
    return copied


def _build_alike(layer, copied):
    """Builds a copy, and the layers in it that wait for their first call."""
    if not copied.built and not getattr(copied.build, "_is_default", False):
        copied.build_from_config(layer.get_build_config())
    old, new = children(layer), children(copied)
    # An activation that is a layer may have been replaced by a function.
    for pair in zip(old, new, strict=True) if len(old) == len(new) else ():
        _build_alike(*pair)
    if not copied.built:
        copied.build_from_config(layer.get_build_config())


def copy_weights(source, target):
    """Copies all variables of a layer and of the layers within it."""
    if not isinstance(source, keras.layers.Layer):
        return
    freeze_alike(source, target)
    # Through the saving protocol, so that layers with state beyond their weights
    # (Normalization) restore that too.
    stores = [store for _, store in _stateful(source)]
    layers = [layer for layer, _ in _stateful(target)]
    for layer, store in zip(layers, stores, strict=True):
        layer.load_own_variables(store)


def freeze_alike(source, target):
    """Freezes what is frozen of the layers within a layer; its config does not say."""
    # Without variables there is nothing to freeze, and a replaced activation differs.
    layers = [
        [sub for sub in layer._flatten_layers() if sub.variables]
        for layer in (source, target)
    ]
    counts = [len(found) for found in layers]
    if counts[0] != counts[1]:
        raise ValueError(
            f"Cannot copy layer {source.name!r} of type {type(source).__name__}: it "
            f"holds {counts[0]} layers with weights and its copy {counts[1]}. Give the "
            "class a `get_config` that returns the arguments of its constructor."
        )
    for old, new in zip(*layers, strict=True):
        if not old.trainable:
            new.trainable = False


def _stateful(layer):
    """Pairs of each layer within that has variables of its own, and these."""
    for sub in layer._flatten_layers():
        store = {}
        sub.save_own_variables(store)
        if store:
            yield sub, store


def _new_input(tensor, batch_size, dtype, dtypes):
    shape = tensor.shape
    if batch_size != "same":
        shape = (batch_size, *shape[1:])
    own = (
        dtype if dtype and keras.backend.is_float_dtype(tensor.dtype) else tensor.dtype
    )
    dtype = dtypes.get(tensor.name, own)
    return keras.Input(batch_shape=shape, dtype=dtype, name=tensor.name)
