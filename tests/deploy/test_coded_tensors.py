"""Weights taken out of a file as indices and codebooks, and put back."""

import numpy as np
import pytest

from tfcompress.deploy.coded_tensors import (
    _ENTRY,
    Parts,
    StoredTensor,
    _gaps,
    put_back,
    take_out,
)


def _clustered(shape, dtype, values=9, zeros=0.0, seed=0):
    rng = np.random.default_rng(seed)
    found = rng.choice(np.arange(values) - values // 2, shape)
    return np.where(rng.random(shape) < zeros, 0, found).astype(dtype)


def _file(*arrays):
    """The arrays with something before, between and behind them."""
    return b"head" + b"between".join(a.tobytes() for a in arrays) + b"tail"


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "float32"])
@pytest.mark.parametrize("axis", [None, 0, -1, 1])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 0.9999])
def test_what_was_taken_out_comes_back(dtype, axis, zeros):
    arrays = [_clustered((12, 30, 8), dtype, zeros=zeros, seed=s) for s in (0, 1)]
    content = _file(*arrays)
    parts = take_out(content, [StoredTensor(a, axis) for a in arrays])
    assert put_back(parts, len(content)) == content
    if dtype == "float32" and zeros < 0.99:
        assert parts.table and len(parts.rest) < 100


def test_a_sparse_weight_becomes_gaps_and_symbols():
    array = _clustered((300, 300), "int8", zeros=0.9)
    content = _file(array)
    parts = take_out(content, [StoredTensor(array)])
    count = np.count_nonzero(array)
    assert len(parts.symbols) == count and count <= len(parts.gaps) < 1.1 * count
    assert put_back(parts, len(content)) == content


def test_channels_of_other_scales_have_the_same_symbols():
    index = _clustered((1, 500), "int8", values=5)
    array = (index * np.int8([[3], [25], [60]])).astype("int8")
    parts = take_out(_file(array), [StoredTensor(array, 0)])
    symbols = np.frombuffer(parts.symbols, np.int8).reshape(3, 500)
    assert np.array_equal(symbols[0], index[0])
    assert np.array_equal(symbols, symbols[[0, 0, 0]])


def test_every_bit_of_a_float_comes_back():
    odd = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, 1e-45, -1.5], "float32")
    array = np.random.default_rng(0).choice(odd, (40, 20))
    content = _file(array)
    parts = take_out(content, [StoredTensor(array)])
    assert parts.table and put_back(parts, len(content)) == content


@pytest.mark.parametrize("zeros", [254, 255, 256, 509, 510, 511, 2000])
def test_long_gaps(zeros):
    array = np.zeros(3 * zeros + 60, "int8")
    array[[0, zeros + 1, 2 * zeros + 2, 2 * zeros + 3]] = 1, 2, 3, 4
    gaps, symbols = _gaps(array.view(np.uint8))
    entry = _ENTRY.pack(0, 1, array.size, 1, 0, len(gaps))
    books = bytes([4, 0, 0, 1, 2, 3, 4])
    parts = Parts(b"", entry, books, gaps, symbols)
    assert put_back(parts, array.size) == array.tobytes()
    assert np.frombuffer(gaps, np.uint8).max() == min(zeros, 255)


def test_what_would_not_get_smaller_stays():
    rng = np.random.default_rng(0)
    many = rng.normal(size=(40, 30)).astype("float32")
    small = np.zeros(20, "int8")
    content = _file(many, small)
    parts = take_out(content, [StoredTensor(many, -1), StoredTensor(small)])
    assert parts.rest == content and not parts.table


def test_the_same_bytes_twice_and_bytes_within_others():
    array = _clustered((20, 20), "float32", zeros=0.5)
    content = _file(array, array)
    inner = StoredTensor(array[2:12])
    parts = take_out(content, [StoredTensor(array), StoredTensor(array), inner])
    assert put_back(parts, len(content)) == content
    assert put_back(take_out(content, []), len(content)) == content


def test_parts_that_do_not_fit_are_an_error_and_make_nothing_big():
    index = _clustered((4, 300), "int8", values=5, zeros=0.8)
    array = (index * np.int8([[3], [25], [40], [60]])).astype("int8")
    content = _file(array)
    parts = take_out(content, [StoredTensor(array, 0)])
    assert all(parts)
    for name in Parts._fields:
        whole = getattr(parts, name)
        for changed in (whole[:-1], whole + b"\\x00", b""):
            with pytest.raises(ValueError):
                put_back(parts._replace(**{name: changed}), len(content))
    # Any byte of the table and of gaps: an error, or another file of the same size.
    for name in ("table", "gaps", "books", "symbols"):
        whole = getattr(parts, name)
        for place in range(len(whole)):
            for value in (0, 255, whole[place] ^ 1):
                changed = whole[:place] + bytes([value]) + whole[place + 1 :]
                try:
                    found = put_back(parts._replace(**{name: changed}), len(content))
                except ValueError:
                    continue
                assert len(found) == len(content)
