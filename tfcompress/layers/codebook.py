"""Transforms that let weights share few values, and layers share a codebook.

Example:
    ```python
    TransformWeights(dense, {"kernel": [KeepZeros(), Codebook(clusters=16)]})
    ```
"""

import keras
import numpy as np
import tensorflow as tf

from tfcompress.layers.transforms import Transform
from tfcompress.numerics import centroids, codebooks, vector_codebooks


class SharedValues(Transform):
    """Base of transforms that replace weights by entries of a codebook.

    Args:
        clusters: Number of entries, zero included.
        gradient: What an entry gets of its weights' gradients: `"mean"`, `"sum"` or
            `None`, which leaves it to `tfc.ClusteringSchedule`.
        steps: Steps of k-means before training.
        seed: Of what is drawn at the start.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, clusters, gradient, steps, seed):
        self.clusters = _checked_count("clusters", clusters, 2, 65536)
        if gradient not in codebooks.GRADIENTS:
            raise ValueError(
                f"`gradient` must be one of {codebooks.GRADIENTS}. "
                f"Received: gradient={gradient!r}"
            )
        self.gradient = gradient
        self.steps = _checked_count("steps", steps, 0, 10_000)
        self.seed = _checked_count("seed", seed, 0, 2**63)

    @property
    def trainable_state(self):
        """The codebook, unless k-means alone moves it."""
        return () if self.gradient is None else ("centroids",)

    def kmeans(self, weight, state):
        """The state after a step of k-means.

        Args:
            weight: Latent weight, numpy array.
            state: Dict from name to numpy array.

        Returns:
            Dict with the entries that changed.
        """
        raise NotImplementedError

    def represents(self, weight):
        """Whether the weight has so few values that its codebook has them all."""
        weight = np.asarray(weight, "float32")
        state = self.initial_state(weight)
        state = {name: tf.convert_to_tensor(value) for name, value in state.items()}
        return np.array_equal(self(tf.convert_to_tensor(weight), state), weight)


@keras.saving.register_keras_serializable(package="tfcompress")
class Codebook(SharedValues):
    """Replaces each weight by the nearest of a few trained values, of which one is 0.

    See `numerics.codebooks`. The state `centroids` holds the others. The state
    `threshold` is the size from which weights are replaced: 0 for all, infinity for
    none, which makes this the identity.

    Args:
        clusters: Number of values, zero included.
        axes: Axes with codebooks of their own; `()` for one.
        start: How centroids start, one of `numerics.centroids.STARTS`.
        gradient: As of `SharedValues`.
        steps: As of `SharedValues`.
        seed: As of `SharedValues`.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Han et al., "Deep Compression", 2015, section 3. arXiv:1510.00149
    """

    def __init__(
        self,
        clusters=16,
        axes=(),
        start="kmeans++",
        gradient="mean",
        steps=20,
        seed=0,
    ):
        super().__init__(clusters, gradient, steps, seed)
        if start not in centroids.STARTS:
            raise ValueError(
                f"`start` must be one of {centroids.STARTS}. Received: start={start!r}"
            )
        self.axes = tuple(axes)
        self.start = start

    def initial_centroids(self, weight):
        """Where the centroids start for a weight, numpy array."""
        return centroids.initial_centroids(
            weight,
            self.clusters,
            axes=self.axes,
            start=self.start,
            steps=self.steps,
            seed=self.seed,
        )

    def initial_state(self, weight):
        return {
            "centroids": self.initial_centroids(weight),
            "threshold": np.array(0, "float32"),
        }

    def __call__(self, weight, state):
        return codebooks.share_values(
            weight,
            state["centroids"],
            axes=self.axes,
            gradient=self.gradient,
            threshold=state["threshold"],
        )

    def kmeans(self, weight, state):
        moved = centroids.kmeans_step(weight, state["centroids"], axes=self.axes)
        return {"centroids": moved}


@keras.saving.register_keras_serializable(package="tfcompress")
class GroupCodebook(Codebook):
    """As `Codebook`, with the centroids of a `LayerGroup`.

    It is for a weight of a layer in the group; the state `centroids` is the group's.

    Args:
        clusters: As of `Codebook`, and so are the others.
        start: As of `Codebook`.
        gradient: As of `Codebook`.
        steps: As of `Codebook`.
        seed: As of `Codebook`.
    """

    reads = ("centroids",)
    trainable_state = ()

    def __init__(
        self, clusters=16, start="kmeans++", gradient="mean", steps=20, seed=0
    ):
        super().__init__(clusters, (), start, gradient, steps, seed)

    def get_config(self):
        config = super().get_config()
        del config["axes"]
        return config

    def initial_state(self, weight):
        return {"threshold": np.array(0, "float32")}


@keras.saving.register_keras_serializable(package="tfcompress")
class VectorCodebook(SharedValues):
    """Replaces blocks of weights by vectors of a codebook (product quantization).

    See `numerics.vector_codebooks`. The state `centroids` holds the vectors beside the
    zero vector, the state `index` which of them each block has. That changes only with
    `tfc.ClusteringSchedule(kmeans_every=...)`, so that a step of training searches
    nothing.

    Args:
        clusters: Number of vectors, the zero vector included.
        block: Weights of a block, at least 2.
        axis: Axis of the weight along which blocks lie.
        gradient: As of `SharedValues`.
        steps: As of `SharedValues`.
        seed: As of `SharedValues`.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Gong et al., 2014, section 3.2.3. arXiv:1412.6115; trained vectors for blocks
        that stay as in Stock et al., "And the Bit Goes Down", 2019. arXiv:1907.05686
    """

    def __init__(
        self, clusters=256, block=4, axis=-1, gradient="mean", steps=20, seed=0
    ):
        super().__init__(clusters, gradient, steps, seed)
        self.block = _checked_count("block", block, 2, 1024)
        self.axis = axis

    def initial_state(self, weight):
        blocks = self._blocks(weight)
        vectors = vector_codebooks.initial_vectors(
            blocks, self.clusters, steps=self.steps, seed=self.seed
        )
        return {"centroids": vectors.reshape(-1), "index": self._index(blocks, vectors)}

    def __call__(self, weight, state):
        return vector_codebooks.share_vectors(
            weight,
            state["centroids"],
            state["index"],
            block=self.block,
            axis=self.axis,
            gradient=self.gradient,
        )

    def kmeans(self, weight, state):
        blocks = self._blocks(weight)
        vectors = state["centroids"].reshape(-1, self.block)
        index = vector_codebooks.nearest_vectors(blocks, vectors)
        vectors = vector_codebooks.mean_vectors(blocks, index, vectors)
        return {"centroids": vectors.reshape(-1), "index": self._index(blocks, vectors)}

    def _blocks(self, weight):
        weight = np.asarray(weight, "float32")
        return vector_codebooks.to_blocks(weight, block=self.block, axis=self.axis)

    def _index(self, blocks, vectors):
        found = vector_codebooks.nearest_vectors(blocks, vectors)
        return found.astype("uint8" if self.clusters <= 256 else "uint16")


@keras.saving.register_keras_serializable(package="tfcompress")
class LayerGroup(keras.layers.Layer):
    """Layers whose weights share one codebook; each call runs one of them.

    `TransformWeights` around it applies a `GroupCodebook` to weights of its members.

    Args:
        members: The layers, built, with different names.
        clusters: Number of values of the codebook, zero included.
        learns: Whether the codebook is trained.

    Call arguments:
        inputs: Input of the layer.
        member: Number of the layer.
        **kwargs: Further arguments of the layer.
    """

    def __init__(self, members, clusters, learns=True, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.members = list(members)
        self.clusters = clusters
        self.learns = learns
        self.codebook = self.add_weight(
            name="centroids",
            shape=(clusters - 1,),
            initializer="zeros",
            trainable=learns,
            dtype="float32",
            autocast=False,
        )
        self.built = True

    def call(self, inputs, *args, member=0, **kwargs):
        return self.members[member](inputs, *args, **kwargs)

    def compute_output_spec(self, inputs, *args, member=0, **kwargs):
        return self.members[member].compute_output_spec(inputs, *args, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        """None: the member that ran has put its mask on its output."""

    def build_from_config(self, config):
        """Builds nothing: the members' shapes are in the config."""

    def get_config(self):
        members = [
            {
                "layer": keras.saving.serialize_keras_object(layer),
                "build": layer.get_build_config(),
            }
            for layer in self.members
        ]
        return {
            **super().get_config(),
            "members": members,
            "clusters": self.clusters,
            "learns": self.learns,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        members = []
        for stored in config.pop("members"):
            layer = keras.saving.deserialize_keras_object(
                stored["layer"], custom_objects
            )
            if not layer.built:
                layer.build_from_config(stored["build"])
            members.append(layer)
        return cls(members, **config)


def _checked_count(name, value, least, most):
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise ValueError(
            f"`{name}` must be a whole number from {least:,} to {most:,}. "
            f"Received: {name}={value!r}"
        )
    return int(value)
