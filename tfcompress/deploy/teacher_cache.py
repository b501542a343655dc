"""A file of what a teacher said of each example, looked up by the example itself.

The key is a hash of the example's bytes, so order and batches do not matter, and an
example that was changed is not found instead of getting an answer to another one.

Example:
    ```python
    with open(path, "wb") as file:
        writer = CacheWriter(file, fingerprint="of the teacher")
        writer.add(example_keys([x]), {"0/output/0": probabilities})
        writer.close()
    TeacherCache(path).rows(example_keys([x]))
    ```
"""

import hashlib
import json
import os

import numpy as np

_MAGIC = b"tfcompress teacher cache 1\n"
_DIGEST = 16


def example_keys(arrays):
    """A key for each example of a batch.

    Args:
        arrays: List of arrays, one for each input, with one row an example.

    Returns:
        uint64 array `(batch,)`.
    """
    kinds = "".join(f"{a.dtype.str}{a.shape[1:]}" for a in arrays).encode()
    keys = []
    for row in range(len(arrays[0])):
        state = hashlib.blake2b(kinds, digest_size=8)
        for array in arrays:
            state.update(_bytes(array[row]))
        keys.append(int.from_bytes(state.digest(), "little"))
    return np.array(keys, "uint64")


def _bytes(row):
    if isinstance(row, (bytes, str)) or getattr(row, "dtype", None) == np.dtype("O"):
        # Each with its length, so that two texts do not run into one another.
        texts = [x if isinstance(x, bytes) else str(x).encode() for x in np.ravel(row)]
        return b"".join(len(t).to_bytes(8, "little") + t for t in texts)
    return np.ascontiguousarray(row).tobytes()


class CacheWriter:
    """Writes a cache, batch by batch. `close` makes it whole.

    Args:
        file: Open binary file.
        fingerprint: Text by which the teacher is known again.
    """

    def __init__(self, file, fingerprint):
        self._file, self._hash = file, hashlib.blake2b(digest_size=_DIGEST)
        self._fingerprint = fingerprint
        self._dtype = None
        self.keys = set()

    def add(self, keys, arrays):
        """Adds examples; one that is there already is passed over.

        Args:
            keys: From `example_keys`.
            arrays: Dict from name to array, with one row an example.

        Raises:
            ValueError: If rows have another shape than those before, or a value is NaN
                or infinite.
        """
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"The teacher gives NaN or infinite values in {name}.")
        if self._dtype is None:
            self._begin(arrays)
        chosen = []
        for row, key in enumerate(keys.tolist()):
            if key not in self.keys:
                self.keys.add(key)
                chosen.append(row)
        records = np.empty(len(chosen), self._dtype)
        records["key"] = keys[chosen]
        for name, array in arrays.items():
            if array.shape[1:] != self._dtype[name].shape:
                raise ValueError(
                    f"The teacher's {name} must have one shape for all examples, and "
                    f"has {self._dtype[name].shape} and {array.shape[1:]}. Pad the "
                    "inputs to one length."
                )
            records[name] = array[chosen]
        self._write(records.tobytes())

    def _begin(self, arrays):
        fields = {name: list(array.shape[1:]) for name, array in arrays.items()}
        header = {"fingerprint": self._fingerprint, "fields": fields}
        header = json.dumps(header).encode()
        self._dtype = _record(fields)
        self._write(_MAGIC + len(header).to_bytes(8, "little") + header)

    def close(self):
        """Writes how many there are, and a checksum."""
        self._write(len(self.keys).to_bytes(8, "little"))
        self._file.write(self._hash.digest())

    def _write(self, content):
        self._hash.update(content)
        self._file.write(content)


class TeacherCache:
    """A cache on disk, open for reading; values stay there until they are asked for.

    Args:
        path: Path of the file.

    Attributes:
        fields: Dict from name to the shape of a row.
        fingerprint: Text by which the teacher is known again.

    Raises:
        ValueError: If it is no cache, or damaged.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError(
                    f"{self.path!r} is no cache of a teacher, or of another version of "
                    "this library. Choose another path."
                )
            self._check_digest(file)
            file.seek(len(_MAGIC))
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            begin = file.tell()
            file.seek(-_DIGEST - 8, os.SEEK_END)
            count = int.from_bytes(file.read(8), "little")
        self.fields = header["fields"]
        self.fingerprint = header["fingerprint"]
        self._records = np.memmap(
            path, _record(self.fields), mode="r", offset=begin, shape=(count,)
        )
        keys = np.array(self._records["key"])
        self._order = np.argsort(keys)
        self._keys = keys[self._order]

    def _check_digest(self, file):
        left = os.fstat(file.fileno()).st_size - _DIGEST
        file.seek(0)
        state = hashlib.blake2b(digest_size=_DIGEST)
        while left > 0 and (part := file.read(min(left, 1 << 22))):
            state.update(part)
            left -= len(part)
        if file.read() != state.digest():
            raise ValueError(
                f"{self.path!r} is damaged: its checksum is not that of its content. "
                "Delete it and write it again with tfc.cache_teacher."
            )

    def __len__(self):
        return len(self._keys)

    def rows(self, keys):
        """What the teacher said of examples.

        Args:
            keys: From `example_keys`.

        Returns:
            List of float32 arrays in the order of `fields`.

        Raises:
            ValueError: If an example is not there.
        """
        place = np.searchsorted(self._keys, keys)
        place = np.minimum(place, len(self._keys) - 1)
        missing = int(np.sum(self._keys[place] != keys))
        if missing:
            raise ValueError(
                f"{missing} of {len(keys)} examples are not in the teacher's cache "
                f"{self.path!r}. Either it was written for other data, or the dataset "
                "changes its examples from one pass to the next. Cache before "
                "augmentation: tfc.cache_teacher(dataset, ...).map(augment)."
            )
        found = self._records[self._order[place]]
        return [np.ascontiguousarray(found[name]) for name in self.fields]


def _record(fields):
    columns = [(name, "<f4", tuple(shape)) for name, shape in fields.items()]
    return np.dtype([("key", "<u8"), *columns])
