"""How large the inputs are that the weights of a kernel multiply.

Example:
    ```python
    InputNorms(model, x).of(variables)   # arrays that broadcast to the kernels
    ```
"""

import keras
import numpy as np
import tensorflow as tf

from tfcompress.checks import batches
from tfcompress.graph import find_layers, flat_call, tapped

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_KINDS = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    *_CONVOLUTIONS,
    *_TRANSPOSED,
    *_DEPTHWISE,
)


class InputNorms:
    """Computes L2 norms of input features over data, with the model as in inference.

    A feature is an input of Dense, the channel of a convolution (all its positions), or
    what an index of an EinsumDense kernel multiplies. A layer that is called several
    times adds its inputs up.

    Args:
        model: Built `keras.Model`.
        data: Inputs or `(inputs, labels)`, as arrays or a batched data set.
    """

    def __init__(self, model, data):
        self.model = model
        self.data = data

    def of(self, variables):
        """Norms, a float32 array for each variable that broadcasts to it.

        Args:
            variables: Dict from path to `keras.Variable`, kernels of the model.

        Raises:
            ValueError: If the inputs of a kernel cannot be seen.
        """
        layers = {id(x.kernel): x for x in find_layers(self.model, _KINDS)}
        hidden = [path for path, v in variables.items() if id(v) not in layers]
        if hidden:
            raise ValueError(
                "score='wanda' reads the inputs of Dense, EinsumDense and convolution "
                f"layers, and cannot see those of {hidden}. Leave them out with "
                "`exclude`, or take score='magnitude'."
            )
        watched = [layers[id(v)] for v in variables.values()]
        sums = self._sums(watched)
        unseen = [
            path for path, total in zip(variables, sums, strict=True) if total is None
        ]
        if unseen:
            raise ValueError(
                f"score='wanda': the model does not call the layers of {unseen} on "
                "`data`. Leave them out with `exclude`."
            )
        return [np.sqrt(total) for total in sums]

    def _sums(self, watched):
        run = tf.function(
            lambda inputs: _squares(flat_call(self.model), inputs, watched),
            reduce_retracing=True,
            autograph=False,
        )
        sums = None
        for inputs, _ in batches(self.model, self.data, argument="data"):
            found = [np.asarray(total) for total in run(inputs)]
            sums = (
                found
                if sums is None
                else [a + b for a, b in zip(sums, found, strict=True)]
            )
        return [total if total.size else None for total in sums]


def _squares(infer, inputs, watched):
    """Sums of squares of what each layer was called on; empty for none."""
    seen = {id(layer): [] for layer in watched}

    def noting(layer):
        def note(inputs, outputs):
            squares = tf.cast(inputs, tf.float32) ** 2
            seen[id(layer)].append(_of_features(layer, squares))

        return note

    # A layer that is watched for two kernels is noted once.
    layers = {id(layer): layer for layer in watched}.values()
    with tapped([(layer, noting(layer)) for layer in layers]):
        infer(*inputs)
    return [
        tf.add_n(seen[id(layer)]) if seen[id(layer)] else tf.zeros([0])
        for layer in watched
    ]


def _of_features(layer, squares):
    """Sums squares over everything but the features, broadcastable to the kernel."""
    if isinstance(layer, keras.layers.EinsumDense):
        return _of_einsum(layer, squares)
    rank = len(squares.shape)
    first = getattr(layer, "data_format", None) == "channels_first"
    axis = 1 if first else rank - 1
    sums = tf.reduce_sum(squares, axis=[i for i in range(rank) if i != axis])
    if isinstance(layer, _TRANSPOSED):
        return sums
    if isinstance(layer, _CONVOLUTIONS) and layer.groups > 1:
        # Each group of filters reads channels of its own.
        groups = tf.transpose(tf.reshape(sums, (layer.groups, -1)))
        return tf.repeat(groups, layer.filters // layer.groups, axis=1)
    return sums[:, None]


def _of_einsum(layer, squares):
    """By the letters that input and kernel share; the kernel's other axes are 1."""
    inputs, kernel = layer.equation.split("->")[0].split(",")
    shared = "".join(letter for letter in kernel if letter in inputs)
    # What an ellipsis stands for is never of the kernel.
    rest = "..." if "..." in inputs else ""
    sums = tf.einsum(f"{inputs}->{rest}{shared}", squares)
    sums = tf.reduce_sum(sums, axis=list(range(len(sums.shape) - len(shared))))
    sides = zip(kernel, layer.kernel.shape, strict=True)
    sides = [n if letter in shared else 1 for letter, n in sides]
    return tf.reshape(sums, sides)
