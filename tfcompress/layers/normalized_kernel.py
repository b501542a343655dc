"""A kernel and the batch normalization behind it as one layer.

Example:
    ```python
    layer = NormalizedKernel(conv, batch_norm)
    TransformWeights(layer, {"kernel": [FoldedFakeQuantizeWeight()]})
    ```
"""

import keras


@keras.saving.register_keras_serializable(package="tfcompress")
class NormalizedKernel(keras.layers.Layer):
    """Runs a layer and then its batch normalization.

    A scale for the whole folded weight depends on both, so one transform must see both.

    Args:
        layer: Built Conv1D, Conv2D, DepthwiseConv2D or Dense without activation.
        normalization: Built BatchNormalization over the last axis.
    """

    def __init__(self, layer, normalization, **kwargs):
        own = {"name": layer.name, "dtype": layer.dtype_policy}
        super().__init__(**(own | kwargs))
        self.layer = layer
        self.normalization = normalization
        self.built = True

    def call(self, inputs, training=None):
        return self.normalization(self.layer(inputs), training=training)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def build_from_config(self, config):
        """Builds both layers, whose shapes are in this one's config."""

    def get_config(self):
        config = {
            name: {
                "layer": keras.saving.serialize_keras_object(layer),
                "build": layer.get_build_config(),
            }
            for name, layer in (
                ("layer", self.layer),
                ("normalization", self.normalization),
            )
        }
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("layer", "normalization"):
            stored = config[name]
            layer = keras.saving.deserialize_keras_object(stored["layer"])
            if not layer.built:
                layer.build_from_config(stored["build"])
            config[name] = layer
        return cls(**config)
