"""Weights of few values, taken out of a file as indices and codebooks.

A weight that was pruned, clustered and rounded has few values in each channel. Written
as an index counted from zero (0 is zero, 1 the least value above it, 255 the greatest
below), all channels have the same few symbols, whatever their scales. Where most are
zero, the distances between the others stand for them: a coder of bytes is wasteful with
symbols of less than a bit.

Example:
    ```python
    parts = take_out(content, tensors)
    put_back(parts, len(content))   # `content` again
    ```
"""

import lzma
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# Below it a table entry costs more than it saves.
_SMALLEST = 64
# Offset, rows, columns, bytes of a value, transposed, number of gaps.
_ENTRY = struct.Struct("<QIIBBI")
# Part of zeros from which gaps are shorter.
_SPARSE = 0.5
_MOST_VALUES = 256
# So many times the bytes of a file may its parts have, before they are compressed.
MOST_TIMES = 2
# Enough of a row to see that it has more.
_LOOKED_AT = 4096
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Parts(NamedTuple):
    """A file taken apart, all bytes.

    Attributes:
        rest: What is no weight, or did not get smaller.
        table: Where weights were, and how they are coded.
        books: Codebooks.
        gaps: Zeros before each symbol, where most are zero.
        symbols: Indices into codebooks.
    """

    rest: bytes
    table: bytes
    books: bytes
    gaps: bytes
    symbols: bytes


@dataclass(frozen=True)
class StoredTensor:
    """A weight as it lies in a file.

    Attributes:
        values: Numpy array of the stored type.
        axis: Axis of the channels that may have codebooks of their own; `None` if there
            is none.
    """

    values: Any
    axis: int | None = None


def take_out(content, tensors):
    """Splits a file into what its weights are coded as, and the rest.

    Args:
        content: Bytes of the file.
        tensors: Iterable of `StoredTensor`; those that would not get smaller stay.

    Returns:
        The `Parts`.
    """
    found = {}
    for tensor in tensors:
        raw = tensor.values.tobytes()
        offset = content.find(raw) if len(raw) >= _SMALLEST else -1
        if offset >= 0 and offset not in found:
            coded = _coded(tensor)
            if coded is not None:
                found[offset] = len(raw), *coded
    pieces, end = [], 0
    for offset in sorted(found):
        size, layout, books, gaps, symbols = found[offset]
        if offset < end:
            continue  # The same bytes within another weight.
        entry = _ENTRY.pack(offset, *layout, len(gaps))
        pieces.append(Parts(content[end:offset], entry, books, gaps, symbols))
        end = offset + size
    pieces.append(Parts(content[end:], b"", b"", b"", b""))
    return Parts(*map(b"".join, zip(*pieces, strict=True)))


def _gaps(symbols):
    """Gaps and the symbols between them; no gaps if they would be longer."""
    other = np.flatnonzero(symbols)
    if other.size > (1 - _SPARSE) * symbols.size:
        return b"", symbols.tobytes()
    gaps = np.diff(other, prepend=-1) - 1
    # 255 stands for so many zeros and no symbol, and may come several times.
    ends = np.cumsum(gaps // 255 + 1)
    coded = np.full(ends[-1] if ends.size else 0, 255, np.uint8)
    coded[ends - 1] = gaps % 255
    # A tensor without symbols has a gap all the same, to tell it from one with all.
    return coded.tobytes() or b"\xff", symbols[other].tobytes()


def _coded(tensor):
    """`(layout, books, gaps, symbols)` by the better layout; `None` if none is."""
    values = np.ascontiguousarray(tensor.values)
    bits = values.view(_UNSIGNED[values.itemsize])
    best, least = None, None
    for rows, columns, transposed in _layouts(values.shape, tensor.axis):
        matrix = bits.reshape(columns, rows).T if transposed else bits
        coded = _indexed(matrix.reshape(rows, columns), values.dtype)
        if coded is None:
            continue
        least = _compressed_bytes(values.tobytes()) if least is None else least
        parts = coded[0], *_gaps(coded[1].ravel())
        if _ENTRY.size + sum(map(len, parts)) > MOST_TIMES * values.nbytes:
            continue  # A reader takes it for an attack on its memory.
        cost = sum(map(_compressed_bytes, parts))
        if cost < least:
            layout = rows, columns, values.itemsize, transposed
            best, least = (layout, *parts), cost
    return best


def _compressed_bytes(part):
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 6, "lc": 0, "pb": 0}]
    return len(lzma.compress(part, format=lzma.FORMAT_RAW, filters=filters))


def _layouts(shape, axis):
    size = int(np.prod(shape))
    yield 1, size, False
    if axis is None or shape[axis] == 1:
        return
    rows = shape[axis]
    if axis % len(shape) == 0:
        yield rows, size // rows, False
    elif axis % len(shape) == len(shape) - 1:
        yield rows, size // rows, True


def _indexed(matrix, dtype):
    """Codebooks and symbols of rows of bits; `None` if a row has too many values."""
    books = []
    symbols = np.empty(matrix.shape, np.uint8)
    for number, row in enumerate(matrix):
        # By their bits, so that -0.0 and every NaN come back as they were.
        if np.unique(row[:_LOOKED_AT]).size > _MOST_VALUES:
            return None
        found, index = np.unique(row, return_inverse=True)
        if found.size > _MOST_VALUES:
            return None
        real = found.view(dtype).astype("float64")
        order = np.argsort(real, kind="stable")
        rank = np.empty(found.size, np.int64)
        rank[order] = np.arange(found.size)
        first = int(np.count_nonzero(real < 0))
        symbols[number] = (rank[index.reshape(-1)] - first) % 256
        books.append(bytes((found.size - 1, first % 256)) + found[order].tobytes())
    return b"".join(books), symbols


def put_back(parts, size):
    """The file of `size` bytes that `take_out` took apart.

    Raises:
        ValueError: If the parts do not fit each other, before more than `size` bytes
            are made of them.
    """
    if len(parts.table) % _ENTRY.size:
        raise ValueError("the table has half an entry")
    reader = _Reader(parts)
    pieces, end = [], 0
    for entry in _ENTRY.iter_unpack(parts.table):
        offset, rows, columns, itemsize, transposed, gaps = entry
        count = rows * columns
        if not count or offset < end or offset + count * itemsize > size:
            raise ValueError("the table points outside the file")
        if itemsize not in _UNSIGNED or transposed > 1:
            raise ValueError("the table has an entry of no known kind")
        if gaps > count:
            raise ValueError("a weight has more gaps than values")
        pieces.append(reader.take("rest", offset - end).tobytes())
        symbols = reader.symbols(count, gaps).reshape(rows, columns)
        matrix = np.empty((rows, columns), _UNSIGNED[itemsize])
        for number in range(rows):
            matrix[number] = reader.values(itemsize, symbols[number])
        pieces.append((matrix.T if transposed else matrix).tobytes())
        end = offset + matrix.nbytes
    pieces.append(reader.take("rest", size - end).tobytes())
    reader.check_end()
    return b"".join(pieces)


class _Reader:
    """Reads the parts from their beginnings on."""

    def __init__(self, parts):
        self.parts = {
            name: np.frombuffer(part, np.uint8)
            for name, part in parts._asdict().items()
        }
        self.read = dict.fromkeys(self.parts, 0)

    def take(self, name, count):
        """The next bytes of a part."""
        begin = self.read[name]
        self.read[name] = begin + count
        if self.read[name] > self.parts[name].size:
            raise ValueError(f"the {name} end too early")
        return self.parts[name][begin : begin + count]

    def symbols(self, count, gaps):
        """The next `count` symbols, zeros between them included."""
        if not gaps:
            return self.take("symbols", count)
        coded = self.take("gaps", gaps)
        last = coded < 255
        positions = np.cumsum(coded.astype(np.int64) + last)[last] - 1
        if positions.size and positions[-1] >= count:
            raise ValueError("gaps lead outside a weight")
        found = np.zeros(count, np.uint8)
        found[positions] = self.take("symbols", positions.size)
        return found

    def values(self, itemsize, index):
        """The values of symbols by the next codebook."""
        head = self.take("books", 2)
        count, first = int(head[0]) + 1, head[1]
        values = self.take("books", count * itemsize).tobytes()
        rank = index + first  # Wraps around, as it is meant to.
        if int(rank.max()) >= count:
            raise ValueError("a symbol has no value")
        return np.frombuffer(values, _UNSIGNED[itemsize])[rank]

    def check_end(self):
        """Raises if something is left over."""
        del self.parts["table"]
        if any(part.size != self.read[name] for name, part in self.parts.items()):
            raise ValueError("the table leaves something over")
