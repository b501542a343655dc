"""The form of a plain model that converters take.

Example:
    ```python
    converter = tf.lite.TFLiteConverter.from_keras_model(plain_graph(model))
    ```
"""

import keras

from tfcompress.graph import Graph, find_layers, flatten, functional, rewrite
from tfcompress.passes.extreme_index import index_of, is_index
from tfcompress.passes.strip import strip


def plain_graph(model, *, half=False):
    """The model without our layers and without what no converter has a form for.

    Args:
        model: `keras.Model`.
        half: Whether layers that compute in float16 or bfloat16 may stay so.

    Returns:
        `strip(model)`; where that is in half precision, or a functional model with
        `keras.ops.argmax` or `argmin`, a copy in float32 or with forms of these that
        convert.

    Raises:
        ValueError: If a subclassed model computes in half precision and may not.
    """
    model = strip(model)
    dtypes = {layer.compute_dtype for layer in find_layers(model, keras.layers.Layer)}
    dtype = "float32" if dtypes & {"float16", "bfloat16"} and not half else None
    if dtype is None and not _finds_index(model):
        return model
    graph = Graph(flatten(model, keep_subclassed=dtype is None))
    return rewrite(graph, _convertible, dtype=dtype)


def _finds_index(model):
    """Whether a functional model, or one in it, has an operation for `index_of`."""
    if functional(model) is None:
        return False
    operations = [call.operation for call in Graph(model).calls]
    return any(
        is_index(operation)
        or (isinstance(operation, keras.Model) and _finds_index(operation))
        for operation in operations
    )


def _convertible(call, clone, args, kwargs):
    form = index_of if is_index(call.operation) else clone
    return form(call.operation)(*args, **kwargs)
