"""The data of a run: trained on by `fit`, and read in part by verbs.

Example:
    ```python
    data = RunData((x, y), "data")
    some = data.first(256)     # (x[:256], y[:256])
    ```
"""

import hashlib
import itertools

import keras
import numpy as np
import tensorflow as tf

_BATCH_SIZE = 32


class RunData:
    """Training or test data: arrays with labels, or batches of them.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)` of arrays with one row an example (or
            structures of such arrays), or a batched `tf.data.Dataset` or
            `keras.utils.PyDataset` of such tuples.
        argument: Name in messages.

    Raises:
        TypeError: If it is neither.
        ValueError: If there are no labels, or numbers of rows differ.
    """

    def __init__(self, data, argument):
        self.data = data
        self.argument = argument
        self.is_arrays = isinstance(data, tuple)
        if self.is_arrays:
            self._check_arrays()
        elif not isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
            raise TypeError(
                f"`{argument}` must be a tuple (x, y) of arrays, a batched "
                "tf.data.Dataset or a keras.utils.PyDataset of such tuples. Received: "
                f"{type(data).__name__}"
            )

    def _check_arrays(self):
        if len(self.data) not in (2, 3):
            raise ValueError(
                f"`{self.argument}` must be (x, y) or (x, y, sample_weight). Received: "
                f"{len(self.data)} part(s)"
            )
        self.data = keras.tree.map_structure(np.asarray, self.data)
        lengths = {len(a) if a.ndim else 0 for a in keras.tree.flatten(self.data)}
        if len(lengths) != 1 or not min(lengths):
            raise ValueError(
                f"`{self.argument}` must hold arrays with one row an example, equally "
                "many rows each. Received shapes "
                f"{[a.shape for a in keras.tree.flatten(self.data)]}"
            )
        self.rows = lengths.pop()

    def steps(self, batch_size):
        """Batches of an epoch; `None` if the data set does not know."""
        if self.is_arrays:
            return -(-self.rows // (batch_size or _BATCH_SIZE))
        if isinstance(self.data, keras.utils.PyDataset):
            return self.data.num_batches
        count = int(self.data.cardinality())
        return None if count < 0 else count

    def check_end(self):
        """Raises if the data repeat without end, as an epoch would."""
        if isinstance(self.data, tf.data.Dataset):
            endless = self.data.cardinality() == tf.data.INFINITE_CARDINALITY
        else:
            endless = not self.is_arrays and self.data.num_batches is None
        if endless:
            raise ValueError(
                f"`{self.argument}` repeats without end, and so would an epoch. Leave "
                "out `.repeat()`, or take the batches of an epoch: data.take(100). Of "
                "a PyDataset let `num_batches` say how many there are."
            )

    def for_fit(self, batch_size):
        """The first argument of `fit`, and a dict of the others.

        Raises:
            ValueError: If a batch size is given beside batches.
        """
        if not self.is_arrays:
            self.check_batch_size(batch_size)
            # It shuffles by itself; Keras warns otherwise.
            is_dataset = isinstance(self.data, tf.data.Dataset)
            return self.data, {"shuffle": False} if is_dataset else {}
        settings = {"batch_size": batch_size or _BATCH_SIZE}
        if len(self.data) == 3:
            settings["sample_weight"] = self.data[2]
        return self.data[0], {"y": self.data[1], **settings}

    def check_batch_size(self, batch_size):
        """Raises if a batch size is given that data in batches cannot follow."""
        if not self.is_arrays and batch_size is not None:
            raise ValueError(
                "`batch_size` is for arrays; the data set has batches already. Leave "
                f"it out. Received: batch_size={batch_size}"
            )

    def first(self, count):
        """The first examples, `(inputs, labels)` of arrays; fewer if there are no more.

        Args:
            count: How many.
        """
        if self.is_arrays:
            found = self.data
        else:
            batches, rows = [], 0
            for batch in self._batches():
                batch = keras.tree.map_structure(np.asarray, batch)
                batches.append(batch)
                rows += len(keras.tree.flatten(batch)[0])
                if rows >= count:
                    break
            if not batches:
                raise ValueError(f"`{self.argument}` is empty.")
            if not isinstance(batches[0], tuple):
                raise ValueError(
                    f"`{self.argument}` must give tuples (x, y). Received: "
                    f"{type(batches[0]).__name__}"
                )
            found = keras.tree.map_structure(lambda *a: np.concatenate(a), *batches)
        return tuple(keras.tree.map_structure(lambda a: a[:count], found)[:2])

    def _batches(self):
        if isinstance(self.data, tf.data.Dataset):
            return iter(self.data)
        count = self.data.num_batches
        indices = itertools.count() if count is None else range(count)
        return (self.data[i] for i in indices)

    def fingerprint(self):
        """A string that is the same for the same data.

        Of arrays it depends on every value; of a data set on its structure and length
        only, for it may be shuffled.
        """
        if isinstance(self.data, tf.data.Dataset):
            return f"{self.data.element_spec} x {int(self.data.cardinality())}"
        if not self.is_arrays:
            return f"{type(self.data).__name__} x {self.data.num_batches}"
        found = hashlib.sha256()
        for array in keras.tree.flatten(self.data):
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()
