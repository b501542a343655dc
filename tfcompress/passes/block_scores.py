"""What dropping a residual block does to a model, measured on data.

Example:
    ```python
    scores = DataScores(graph, blocks, data, "output")
    scores([], blocks)            # one number for each block
    scores(blocks[:1], blocks[1:])  # with the first one gone
    ```
"""

import keras
import numpy as np
import tensorflow as tf

from tfcompress.checks import batches


class DataScores:
    """Runs the model with gates on its blocks, so that it is traced once for all.

    Called with a list of blocks that are gone and a list of others, it returns what
    each of these costs, as `tfc.prune_layers` describes.

    Args:
        graph: `Graph` of the model.
        blocks: All `ResidualBlock`s that may go.
        data: Examples, as `tfc.prune_layers` takes them.
        score: `"output"`, `"loss"` or `"similarity"`.
        loss: Keras loss for `"loss"`.

    Raises:
        ValueError: If the data do not fit the model or the score.
    """

    def __init__(self, graph, blocks, data, score, loss=None):
        self.graph = graph
        self.blocks = blocks
        self.score = score
        self.loss = loss
        self.batches = list(batches(graph.model, data, argument="data"))
        if loss is not None:
            self._check_labels()
        self.run = tf.function(self._run, autograph=False, reduce_retracing=True)
        self.reference = None
        if score != "similarity":
            self.reference = self._outputs(())

    def _check_labels(self):
        if len(self.graph.outputs) != 1 or any(y is None for _, y in self.batches):
            raise ValueError(
                "score='loss' needs a model of one output, and `data` with labels: "
                f"(inputs, labels). Received: {len(self.graph.outputs)} output(s), "
                f"labels {'missing' if self.batches[0][1] is None else 'given'}"
            )

    def __call__(self, dropped, left):
        if self.score == "similarity":
            return self._similarities(dropped, left)
        return [self._cost([*dropped, block]) for block in left]

    def _cost(self, dropped):
        outputs = self._outputs(dropped)
        if self.loss is not None:
            return self._mean_loss(outputs) - self._mean_loss(self.reference)
        changes = [
            np.linalg.norm(a - b) / max(np.linalg.norm(b), np.finfo("float32").tiny)
            for a, b in zip(outputs, self.reference, strict=True)
        ]
        return float(np.mean(changes))

    def _mean_loss(self, outputs):
        labels = np.concatenate([np.asarray(y) for _, y in self.batches])
        return float(keras.ops.mean(self.loss(labels, outputs[0])))

    def _outputs(self, dropped):
        found = [self.run(x, self._gates(dropped))[0] for x, _ in self.batches]
        return [
            np.concatenate([np.asarray(t, "float64") for t in parts])
            for parts in zip(*found, strict=True)
        ]

    def _similarities(self, dropped, left):
        gates = self._gates(dropped)
        found = np.mean([self.run(x, gates)[1] for x, _ in self.batches], axis=0)
        positions = {id(block): i for i, block in enumerate(self.blocks)}
        return [float(found[positions[id(block)]]) for block in left]

    def _gates(self, dropped):
        gone = {id(block) for block in dropped}
        return tf.constant([0.0 if id(b) in gone else 1.0 for b in self.blocks])

    def _run(self, inputs, gates):
        """Outputs, and one minus the cosine for each block."""
        numbers = {id(block.addition): i for i, block in enumerate(self.blocks)}
        values = {
            id(t): tf.convert_to_tensor(x)
            for t, x in zip(self.graph.inputs, inputs, strict=True)
        }
        distances = [None] * len(self.blocks)
        for call in self.graph.calls:
            number = numbers.get(id(call))
            if number is None:
                args, kwargs = call.arguments.fill_in(values)
                outputs = keras.tree.flatten(call.operation(*args, **kwargs))
            else:
                block = self.blocks[number]
                skip, branch = (values[id(t)] for t in (block.skip, block.branch))
                outputs = [skip + branch * tf.cast(gates[number], branch.dtype)]
                distances[number] = _distance(skip, skip + branch)
            values.update(zip(map(id, call.outputs), outputs, strict=True))
        return [values[id(t)] for t in self.graph.outputs], tf.stack(distances)


def _distance(one, other):
    """Mean over examples of one minus the cosine."""
    flat = [
        tf.cast(tf.reshape(t, (tf.shape(t)[0], -1)), "float32") for t in (one, other)
    ]
    cosine = tf.reduce_sum(
        tf.math.l2_normalize(flat[0], -1) * tf.math.l2_normalize(flat[1], -1), -1
    )
    return 1.0 - tf.reduce_mean(cosine)
