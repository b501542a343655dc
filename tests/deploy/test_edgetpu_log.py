"""The compiler's wordings, versions 1 to 16."""

import pathlib

import pytest

from tfcompress.deploy.edgetpu_log import parse_compiler_output

LOGS = pathlib.Path(__file__).parent / "edgetpu_logs"


def _parse(name):
    (path,) = LOGS.glob(f"{name}-*.log")
    return parse_compiler_output(path.read_text())


@pytest.mark.parametrize(
    "name, failure, remedy",
    [
        ("21", "Model not quantized", 'kind="int8"'),
        ("22", "Didn't find op for builtin opcode 'EXP' version '2'", "older"),
        ("27", "Compilation failed due to large activation tensors", "smaller"),
        ("28", "only supports static-sized tensors", "fixed shape"),
        ("30", "Segmentation fault", "search_delegate=True"),
        ("31", "Encountered unresolved custom op: Atan", "builtin operations"),
        ("44", "Restored original execution plan", "check_edgetpu"),
    ],
)
def test_failure_names_the_telling_line_and_a_remedy(name, failure, remedy):
    log = _parse(name)
    assert log.succeeded is False
    assert failure in log.failure
    assert remedy in log.remedy
    assert "\n" not in log.failure + log.remedy


@pytest.mark.parametrize(
    "text, failure",
    [
        # google-coral/edgetpu issues 686, 728 and 800.
        (
            "Compilation timeout. This is usually caused by large activations.\n"
            "Compilation failed! \n",
            "Compilation timeout. This is usually caused by large activations",
        ),
        (
            "libc++abi: terminating with uncaught exception of type std::out_of_range: "
            "vector\nCompilation failed! \n",
            "terminating with uncaught exception of type std::out_of_range: vector",
        ),
        ("Compilation failed! \n", "Compilation failed"),
        ("\nInternal compiler error. Aborting! \n", "Internal compiler error"),
        ("Compilation failed: something new.\n", "something new"),
    ],
)
def test_other_failures(text, failure):
    log = parse_compiler_output(f"Edge TPU Compiler version 16.0.384591198\n{text}")
    assert (log.succeeded, log.failure) == (False, failure)
    assert log.remedy


def test_search_that_fails_before_it_succeeds_succeeded():
    log = parse_compiler_output(
        "Try to compile segment with 2 ops\nCompilation failed! \n"
        "Try to compile segment with 1 ops\n\nModel compiled successfully in 912 ms.\n"
        "Compilation succeeded! \n"
    )
    assert (log.succeeded, log.failure, log.remedy) == (True, "", "")


def test_success_gives_memory_and_counts():
    log = _parse("45")
    (model,) = log.models
    assert log.compiler_version == "16.0.384591198"
    assert log.succeeded is True
    assert model.input == "quantized_model.tflite"
    assert model.output == "quantized_model_edgetpu.tflite"
    assert model.on_chip_used_bytes == 604.5 * 1024
    assert model.on_chip_remaining_bytes == 511.5 * 1024
    assert model.off_chip_bytes == round(3.45 * 1024**2)
    assert (model.subgraphs, model.total_operations) == (1, 50)
    assert (log.mapped_count, log.cpu_count) == (50, 0)


def test_version_2_prints_the_whole_memory():
    (model,) = _parse("46").models
    # 7.62 MiB "available" and 5.66 MiB used; a byte or so is lost by rounding twice.
    remaining = (7.62 - 5.66) * 1024**2
    assert model.on_chip_remaining_bytes == pytest.approx(remaining, abs=2)


def test_nothing_mapped_is_a_success_for_the_compiler():
    log = _parse("36")
    assert log.succeeded is True
    assert (log.mapped_count, log.cpu_count) == (0, 69)


def test_table_is_read_row_by_row():
    log = _parse("07")
    assert log.succeeded is None  # A .log file does not say.
    assert len(log.statuses) == 11
    custom = next(row for row in log.statuses if row.operator == "CUSTOM")
    assert custom == (
        "CUSTOM",
        1,
        "Operation is working on an unsupported data type",
        False,
    )
    assert (log.mapped_count, log.cpu_count) == (264, 3)


@pytest.mark.parametrize("text", ["", "bash: edgetpu_compiler: command not found"])
def test_other_text_says_nothing(text):
    log = parse_compiler_output(text)
    assert (log.compiler_version, log.succeeded, log.failure) == ("", None, "")
    assert (log.models, log.statuses, log.mapped_count) == ((), (), None)


# Number of the log -> (succeeded, mapped, cpu, rows, models). Filled from the parser's
# own output and then checked against the texts of the logs by reading.
_EVERY_LOG = {
    1: (None, 6, 0, 4, 1),
    2: (None, 1, 3, 3, 1),
    3: (None, 9, 2, 7, 1),
    4: (None, 230, 24, 25, 1),
    5: (None, 123, 139, 19, 1),
    6: (None, 510, 3, 16, 1),
    7: (None, 264, 3, 11, 1),
    8: (None, 316, 167, 17, 1),
    9: (None, 0, 4, 3, 1),
    10: (None, 145, 0, 9, 1),
    11: (None, 87, 4, 11, 1),
    12: (None, 72, 0, 8, 1),
    13: (None, 124, 1, 7, 1),
    14: (None, 165, 3, 10, 1),
    15: (None, 19, 6, 8, 1),
    16: (None, 98, 1, 7, 1),
    17: (None, 25, 0, 5, 1),
    18: (None, 70, 0, 7, 1),
    19: (True, 134, 0, 9, 1),
    20: (True, 132, 3, 11, 1),
    **{number: (False, None, None, 0, 0) for number in range(21, 34)},
    34: (None, 0, 1, 1, 0),
    35: (None, 0, 1, 1, 0),
    36: (True, 0, 69, 0, 1),
    37: (True, 2, 34, 9, 1),
    38: (True, 1, 293, 18, 1),
    39: (True, 264, 3, 0, 1),
    40: (None, 264, 3, 11, 1),
    41: (True, 719, 31, 25, 0),
    42: (None, 101, 41, 10, 1),
    43: (True, 63, 0, 0, 2),
    44: (False, 84, 0, 0, 1),
    45: (True, 50, 0, 0, 1),
    46: (True, 63, 1, 0, 1),
}


@pytest.mark.parametrize("number", _EVERY_LOG)
def test_every_known_log(number, shared_dir):
    (path,) = (shared_dir / "edgetpu" / "logs").glob(f"{number:02}-*.log")
    log = parse_compiler_output(path.read_text())
    got = (log.succeeded, log.mapped_count, log.cpu_count)
    assert (*got, len(log.statuses), len(log.models)) == _EVERY_LOG[number]
    assert bool(log.failure) == bool(log.remedy) == (log.succeeded is False)
    # The table agrees with the printed totals, where both are there.
    if log.statuses:
        on_chip = sum(row.count for row in log.statuses if row.mapped)
        assert on_chip == log.mapped_count
