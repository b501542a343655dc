"""TensorFlow operations that tf2onnx (1.17) has no ONNX form of.

Exact GELU is the one that matters: TensorFlow computes it by `Erfc`.

Example:
    ```python
    tf2onnx.convert.from_function(infer, custom_op_handlers=handlers(), ...)
    ```
"""

import numpy as np


def handlers():
    """Dict from the TensorFlow operation to what tf2onnx asks for."""
    forms = {"Erfc": _erfc, "Expm1": _expm1, "Log1p": _log1p}
    return {name: (_handler(form), []) for name, form in forms.items()}


def _erfc(graph, x, one):
    return "Sub", [one, graph.make_node("Erf", [x]).output[0]]


def _expm1(graph, x, one):
    return "Sub", [graph.make_node("Exp", [x]).output[0], one]


def _log1p(graph, x, one):
    return "Log", [graph.make_node("Add", [x, one]).output[0]]


def _handler(form):
    """A function that puts ONNX nodes in the place of one of TensorFlow's."""

    def replace(graph, node, name, args):
        from tf2onnx import utils

        (output,) = node.output
        dtype = graph.get_dtype(output)
        shape = graph.get_shape(output)
        one = np.ones((), utils.map_onnx_to_numpy_type(dtype))
        one = graph.make_const(utils.make_name(f"{name}_one"), one).output[0]
        (x,) = node.input
        graph.remove_node(node.name)
        kind, inputs = form(graph, x, one)
        graph.make_node(
            kind, inputs, outputs=[output], name=name, shapes=[shape], dtypes=[dtype]
        )

    return replace
