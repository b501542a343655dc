"""The bounds of what parameters take on the chip, against compiled models."""

import json
import pathlib

import numpy as np
import pytest
from test_edgetpu_check import _file_of, _names

from tfcompress.deploy import edgetpu_memory
from tfcompress.deploy.edgetpu_check import check_edgetpu, check_file
from tfcompress.deploy.edgetpu_log import parse_compiler_output
from tfcompress.deploy.edgetpu_memory import estimate_memory
from tfcompress.deploy.tflite_file import Operation, Tensor

MIB = 2**20
PAIRS = pathlib.Path(__file__).parent / "edgetpu_pairs"


@pytest.mark.parametrize("name", _names(".json"))
def test_bounds_hold_for_every_compiled_model(name, shared_dir):
    truth = json.loads((shared_dir / f"edgetpu/pairs/{name}.json").read_text())
    memory = check_file(_file_of(truth)).memory
    # The package holds the parameters and the programs, so it bounds from above only.
    package = truth["compiled"]["edgetpu_package_bytes"]
    assert memory.parameter_bytes <= package <= memory.parameter_bytes_at_most


@pytest.fixture(scope="module")
def pairs(shared_dir):
    """Of each pair the memory that we expect, and the bytes of its package."""
    found = []
    for path in sorted((shared_dir / "edgetpu" / "pairs").glob("*.json")):
        truth = json.loads(path.read_text())
        package = truth["compiled"]["edgetpu_package_bytes"]
        found.append((check_file(_file_of(truth)).memory, package))
    assert len(found) == 25
    return found


def test_what_is_said_of_the_pairs_agrees_with_their_packages(pairs):
    # 7.04 MiB is the least that a log of a model with ordinary activations reports.
    for memory, package in pairs:
        fits = package + memory.activation_bytes <= 7.04 * MIB
        if memory.cached:
            assert fits
        else:
            # No package is as large as the memory, so none is known not to fit.
            assert memory.cached is None and memory.activation_bytes > 5 * MIB
    assert sum(memory.cached is True for memory, _ in pairs) == 16


@pytest.mark.parametrize("left_out", range(3))
def test_bound_from_two_thirds_of_the_pairs_holds_for_the_third(pairs, left_out):
    def program(numbers):
        """The most bytes of a package beyond the padded parameters."""
        chosen = [pairs[number] for number in numbers]
        return max(p - edgetpu_memory._PADDED * m.parameter_bytes for m, p in chosen)

    numbers = set(range(len(pairs)))
    rest = set(range(left_out, len(pairs), 3))
    assert program(rest) <= 1.25 * program(numbers - rest) <= edgetpu_memory._PROGRAM


def test_dense_layer_takes_what_the_compiler_says():
    # The compiler reports 66.00 KiB for 256 units of 256 inputs without a bias.
    check = check_edgetpu(PAIRS / "LibrEdgeTPU__dense_256.tflite")
    assert check.memory.parameter_bytes == 66 * 1024
    assert check.memory.cached is True
    assert "all stay on the chip" in str(check)


def test_memory_that_logs_report_is_what_we_count_with(shared_dir):
    totals = {}
    for path in (shared_dir / "edgetpu" / "logs").glob("*.log"):
        models = parse_compiler_output(path.read_text()).models
        if len(models) == 1 and models[0].subgraphs:
            (model,) = models
            if model.on_chip_used_bytes is not None:
                used, left = model.on_chip_used_bytes, model.on_chip_remaining_bytes
                totals[path.name[:2]] = (used + left) / MIB
    # Number 45 alone has large activations, which take the memory of the parameters.
    large = totals.pop("45")
    assert large == pytest.approx(1.09, abs=0.01)
    assert len(totals) == 7
    assert 7.04 <= min(totals.values()) and max(totals.values()) <= 8.06


def _dense(units, features, rows=1):
    kernel = Tensor(1, "k", (units, features), "INT8", buffer=b"0")
    bias = Tensor(2, "b", (units,), "INT32", buffer=b"0")
    x = Tensor(0, "x", (rows, features), "INT8")
    y = Tensor(3, "y", (rows, units), "INT8")
    return Operation(0, "FULLY_CONNECTED", 4, (x, kernel, bias), (y,), {})


def test_too_many_parameters_are_streamed():
    memory = estimate_memory([_dense(4096, 4096)])
    assert memory.cached is False
    assert memory.parameter_bytes == 4096 * 4096 + 8 * 4096
    assert "fetched at every inference" in str(memory)


def test_between_the_bounds_the_compiler_decides():
    memory = estimate_memory([_dense(2048, 3000)])
    assert memory.cached is None
    assert "the compiler decides" in str(memory)


def test_large_activations_leave_it_open():
    operation = _dense(64, 64, rows=100_000)
    assert estimate_memory([operation]).cached is None
    assert estimate_memory([operation]).activation_bytes == 2 * 64 * 100_000


def test_shared_constants_count_once():
    operation = _dense(64, 64)
    once = estimate_memory([operation])
    assert estimate_memory([operation] * 2).parameter_bytes == once.parameter_bytes


def test_nothing_mapped_takes_nothing():
    memory = estimate_memory([])
    assert (memory.parameter_bytes, memory.parameter_bytes_at_most) == (0, 0)
    assert np.isclose(memory.activation_bytes, 0)
