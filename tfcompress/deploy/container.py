"""The format of a packed file: a header, and five parts that LZMA has compressed.

The header has a magic word, the version of the format, the kind and size of the file in
it, its SHA-256, the sizes of all parts and a checksum of itself. LZMA is what Python
and every device have a decoder of; the symbols it gets are a few percent above their
entropy (`benchmarks/pack.py`).

Example:
    ```python
    packed = written(content, ".tflite", take_out(content, tensors))
    content, kind, digest = read(packed, "model.tfcpack", max_bytes=2**31)
    ```
"""

import hashlib
import lzma
import os
import struct
import zlib

from tfcompress.deploy.coded_tensors import MOST_TIMES, Parts, put_back

_MAGIC = b"tfcpack\n"
_VERSION = 1
KINDS = (".tflite", ".keras")
# Magic, version, kind, number of bytes, their SHA-256.
_HEADER = struct.Struct("<8sHHQ32s")
# Bytes of a part before and after LZMA: one pair for each of five.
_SIZES = struct.Struct("<10Q")
_CHECKSUM = struct.Struct("<I")
_HEAD_BYTES = _HEADER.size + _SIZES.size + _CHECKSUM.size
# What LZMA looks at to guess a byte: of indices neither neighbours nor the place within
# a word tell anything.
_CONTEXTS = Parts(
    rest={"lc": 3, "pb": 2},
    table={"lc": 0, "pb": 1},
    books={"lc": 0, "pb": 0},
    gaps={"lc": 0, "pb": 0},
    symbols={"lc": 0, "pb": 0},
)
_DICTIONARY = 1 << 24
# Bytes that the parts of a tiny file may have beyond those of the file.
_SLACK = 1 << 16


def written(content, kind, parts):
    """Bytes of a container.

    Args:
        content: Bytes of the file in it.
        kind: Its suffix, one of `KINDS`.
        parts: The `Parts` into which it was taken apart.
    """
    streams = [
        _compress(part, **context)
        for part, context in zip(parts, _CONTEXTS, strict=True)
    ]
    digest = hashlib.sha256(content).digest()
    head = _HEADER.pack(_MAGIC, _VERSION, KINDS.index(kind), len(content), digest)
    sizes = zip(map(len, parts), map(len, streams), strict=True)
    head += _SIZES.pack(*(size for pair in sizes for size in pair))
    return b"".join([head, _CHECKSUM.pack(zlib.crc32(head)), *streams])


def _filters(size, context):
    dictionary = min(max(size, 4096), _DICTIONARY)
    return [
        {
            "id": lzma.FILTER_LZMA1,
            "preset": 9,
            "dict_size": dictionary,
            "lp": 0,
            **context,
        }
    ]


def _compress(part, **context):
    return lzma.compress(
        part, format=lzma.FORMAT_RAW, filters=_filters(len(part), context)
    )


def _decompress(stream, size, context):
    """`size` bytes, and not one more, whatever the stream holds."""
    decoder = lzma.LZMADecompressor(
        format=lzma.FORMAT_RAW, filters=_filters(size, context)
    )
    found = bytearray()
    data = stream
    while len(found) <= size and not decoder.eof:
        piece = decoder.decompress(data, max_length=size + 1 - len(found))
        data = b""
        if not piece and not decoder.eof:
            break
        found += piece
    if len(found) != size or not decoder.eof:
        raise ValueError("a part has another size than the header says")
    return bytes(found)


def read(packed, path, max_bytes):
    """The file in a container.

    Args:
        packed: Bytes of the container.
        path: Where it came from, for messages.
        max_bytes: Size from which on the file is refused.

    Returns:
        `(content, kind, hash)`: bytes, suffix, and 32 bytes that were checked.

    Raises:
        ValueError: If it is no container, of another version, cut off, damaged, or
            holds more.
    """
    name = os.fspath(path)
    if packed[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{name!r} is no file that `tfc.pack` wrote.")
    if len(packed) < _HEAD_BYTES:
        raise ValueError(f"{name!r} is cut off: its header is not whole.")
    _, version, kind, size, digest = _HEADER.unpack_from(packed)
    if version != _VERSION:
        raise ValueError(
            f"{name!r} is of version {version} of the format; this tfcompress reads "
            f"version {_VERSION}. Install a newer one."
        )
    head = packed[: _HEADER.size + _SIZES.size]
    (checksum,) = _CHECKSUM.unpack_from(packed, len(head))
    if zlib.crc32(head) != checksum or kind >= len(KINDS):
        raise ValueError(f"{name!r} is damaged: its header has another checksum.")
    sizes = _SIZES.unpack_from(packed, _HEADER.size)
    sizes = list(zip(sizes[::2], sizes[1::2], strict=True))
    expected = _HEAD_BYTES + sum(stored for _, stored in sizes)
    if len(packed) != expected:
        raise ValueError(
            f"{name!r} is cut off or has something behind it: {len(packed):,} bytes "
            f"where its header says {expected:,}. Fetch it again."
        )
    if size > max_bytes:
        raise ValueError(
            f"{name!r} holds a file of {size:,} bytes. To allow so many, pass "
            f"`max_bytes`. Received: max_bytes={max_bytes}"
        )
    whole = sum(whole for whole, _ in sizes)
    if whole > MOST_TIMES * size + _SLACK:
        raise ValueError(
            f"{name!r} is damaged or made to fill the memory: its header says that a "
            f"file of {size:,} bytes comes from parts of {whole:,}. Fetch it again."
        )
    try:
        content = _assembled(packed, sizes, size)
    except (ValueError, lzma.LZMAError) as err:
        raise ValueError(f"{name!r} is damaged ({err}). Fetch it again.") from err
    if len(content) != size or hashlib.sha256(content).digest() != digest:
        raise ValueError(
            f"{name!r} is damaged: what it holds has another SHA-256 than it should. "
            "Fetch it again."
        )
    return content, KINDS[kind], digest


def _assembled(packed, sizes, size):
    parts, position = [], _HEAD_BYTES
    for (whole, stored), context in zip(sizes, _CONTEXTS, strict=True):
        stream = packed[position : position + stored]
        parts.append(_decompress(stream, whole, context))
        position += stored
    return put_back(Parts(*parts), size)
