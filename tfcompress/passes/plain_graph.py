"""The form of a plain model that converters take.

Example:
    ```python
    converter = tf.lite.TFLiteConverter.from_keras_model(plain_graph(model))
    ```
"""

import keras

from tfcompress.graph import Graph, find_layers, flatten, functional, rewrite
from tfcompress.passes.extreme_index import index_of
from tfcompress.passes.strip import strip


def plain_graph(model, *, half=False):
    """The model without our layers and without what no converter has a form for.

    Args:
        model: `keras.Model`.
        half: Whether layers that compute in float16 or bfloat16 may stay so.

    Returns:
        `strip(model)`, or a functional model in float32 with forms of its own for
        `keras.ops.argmax` and `argmin`.

    Raises:
        ValueError: If a subclassed model computes in half precision and may not.
    """
    model = strip(model)
    dtypes = {layer.compute_dtype for layer in find_layers(model, keras.layers.Layer)}
    dtype = "float32" if dtypes & {"float16", "bfloat16"} and not half else None
    if dtype is None and functional(model) is None:
        return model
    graph = Graph(flatten(model, keep_subclassed=dtype is None))
    if dtype is None and not any(index_of(call.operation) for call in graph.calls):
        return model
    return rewrite(graph, _converts, dtype=dtype)


def _converts(call, clone, args, kwargs):
    find = index_of(call.operation)
    return (find or clone(call.operation))(*args, **kwargs)
