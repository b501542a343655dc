"""The predicted mapping, against what the real compiler did."""

import json
import pathlib

import numpy as np
import pytest
from fake_edgetpu_compiler import compiled_model

from tfcompress.deploy.edgetpu_check import check_edgetpu, check_file
from tfcompress.deploy.tflite_file import Operation, Tensor, TFLiteFile, read_tflite

PAIRS = pathlib.Path(__file__).parent / "edgetpu_pairs"
SHARED_PAIRS = pathlib.Path(__file__).resolve().parents[3] / "shared/edgetpu/pairs"
_SHAPE = (1, 8, 8, 4)


def _names(suffix):
    return sorted(path.stem for path in SHARED_PAIRS.glob(f"*{suffix}"))


def _compare(check, truth):
    assert len(check.operations) == len(truth["ops"])
    wrong = [
        (op.index, op.operator, op.reason)
        for op, seen in zip(check.operations, truth["ops"], strict=True)
        if op.mapped != seen["mapped"]
    ]
    assert not wrong


@pytest.mark.parametrize("name", sorted(path.stem for path in PAIRS.glob("*.tflite")))
def test_agrees_with_the_compiler(name):
    truth = json.loads((PAIRS / f"{name}.json").read_text())
    _compare(check_edgetpu(PAIRS / f"{name}.tflite"), truth)


@pytest.mark.parametrize("name", _names(".tflite"))
def test_agrees_with_the_compiler_on_every_model(name, shared_dir):
    folder = shared_dir / "edgetpu" / "pairs"
    truth = json.loads((folder / f"{name}.json").read_text())
    _compare(check_edgetpu(folder / f"{name}.tflite"), truth)


@pytest.mark.parametrize("name", sorted(set(_names(".json")) - set(_names(".tflite"))))
def test_agrees_with_the_compiler_where_only_the_structure_is_known(name, shared_dir):
    truth = json.loads((shared_dir / f"edgetpu/pairs/{name}.json").read_text())
    _compare(check_file(_file_of(truth)), truth)


def _file_of(truth):
    """A file of the listed operations; each reads the latest tensor that fits."""
    tensors, inputs, operations = [], [], []
    latest = {}

    def add(entry, buffer=None):
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        tensors.append(Tensor(len(tensors), "", shape, dtype, buffer=buffer))
        return tensors[-1]

    def read(entry):
        if entry is None:
            return None
        if entry["const"]:
            return add(entry, np.array(entry.get("value", 0), np.int32).tobytes())
        key = (entry["dtype"], *entry["shape"])
        if key not in latest:
            inputs.append(add(entry))
            latest[key] = inputs[-1]
        return latest[key]

    for entry in truth["ops"]:
        operator = entry["op"].removeprefix("CUSTOM:")
        options = {k[0].lower() + k[1:]: v for k, v in entry["options"].items()}
        sources = tuple(read(tensor) for tensor in entry["inputs"])
        results = tuple(add(tensor) for tensor in entry["outputs"])
        latest.update({(t.dtype, *t.shape): t for t in results})
        custom = operator != entry["op"]
        operations.append(
            Operation(
                entry["index"],
                operator,
                entry["version"],
                sources,
                results,
                options,
                custom,
            )
        )
    return TFLiteFile("", 0, tuple(operations), tuple(tensors), tuple(inputs), ())


class Graph:
    """Builds a file operation by operation."""

    def __init__(self):
        self.tensors, self.inputs, self.operations = [], [], []

    def tensor(self, shape=_SHAPE, dtype="INT8", value=None, **settings):
        if value is not None:
            value = np.asarray(value, np.int32 if dtype == "INT32" else np.int8)
            shape, settings["buffer"] = value.shape, value.tobytes()
        self.tensors.append(
            Tensor(len(self.tensors), "t", tuple(shape), dtype, **settings)
        )
        return self.tensors[-1]

    def input(self, *args, **settings):
        self.inputs.append(self.tensor(*args, **settings))
        return self.inputs[-1]

    def integers(self, *value):
        return self.tensor(dtype="INT32", value=value)

    def op(self, operator, *inputs, shape=_SHAPE, dtype="INT8", version=1, **options):
        custom = options.pop("custom", False)
        output = self.tensor(shape, dtype)
        self.operations.append(
            Operation(
                len(self.operations),
                operator,
                version,
                inputs,
                (output,),
                options,
                custom,
            )
        )
        return output

    def check(self):
        return check_file(
            TFLiteFile(
                "model.tflite",
                0,
                tuple(self.operations),
                tuple(self.tensors),
                tuple(self.inputs),
                (),
            )
        )


def _one(build):
    graph = Graph()
    build(graph, graph.input())
    return graph.check().operations[-1]


_WEIGHT = np.zeros((4, 1, 1, 4))
# What one operation is, "where" it is expected (? = uncertain), and why.
_RULES = {
    "stride": (
        lambda g, x: g.op(
            "STRIDED_SLICE",
            x,
            g.integers(0, 0, 0, 0),
            g.integers(1, 8, 8, 4),
            g.integers(1, 2, 2, 1),
        ),
        "CPU",
        "strides [1, 2, 2, 1]",
    ),
    "unit strides": (
        lambda g, x: g.op(
            "STRIDED_SLICE",
            x,
            g.integers(0, 0, 0, 0),
            g.integers(1, 8, 8, 4),
            g.integers(1, 1, 1, 1),
        ),
        "Edge TPU",
        "",
    ),
    "unknown operator": (
        lambda g, x: g.op("LEAKY_RELU", x, version=2),
        "CPU",
        "not among the operations",
    ),
    "known custom operation": (
        lambda g, x: g.op("TFLite_Detection_PostProcess", x, custom=True),
        "CPU",
        "custom operations run on the CPU",
    ),
    "int16": (lambda g, x: g.op("ADD", x, x, dtype="INT16"), "CPU", "works on INT16"),
    "float": (
        lambda g, x: g.op("DEQUANTIZE", x, dtype="FLOAT32"),
        "CPU",
        "not among the operations",
    ),
    "batch": (
        lambda g, x: g.op("ADD", x, x, shape=(2, 8, 8, 4)),
        "CPU",
        "three innermost",
    ),
    "five dimensions, three of them real": (
        lambda g, x: g.op("ADD", x, x, shape=(1, 1, 8, 8, 4), version=2),
        "Edge TPU",
        "",
    ),
    "computed weights": (
        lambda g, x: g.op("CONV_2D", x, x, version=3),
        "CPU",
        "is computed",
    ),
    "constant weights": (
        lambda g, x: g.op("CONV_2D", x, g.tensor(value=_WEIGHT), version=3),
        "Edge TPU",
        "",
    ),
    "version not seen": (
        lambda g, x: g.op("CONV_2D", x, g.tensor(value=_WEIGHT), version=4),
        "CPU ?",
        "version 4: the highest seen mapped is 3",
    ),
    "unequal dilation": (
        lambda g, x: g.op(
            "CONV_2D",
            x,
            g.tensor(value=_WEIGHT),
            dilationHFactor=2,
            dilationWFactor=1,
        ),
        "CPU ?",
        "dilation 2x1",
    ),
    "fused pooling": (
        lambda g, x: g.op("MAX_POOL_2D", x, fusedActivationFunction=1),
        "CPU ?",
        "documented limit exceeded: no fused activation",
    ),
    "long softmax": (
        lambda g, x: g.op("SOFTMAX", x, shape=(1, 16_384)),
        "Edge TPU ?",
        "documented limit exceeded: 16384 > 16000",
    ),
    "softmax": (lambda g, x: g.op("SOFTMAX", x, shape=(1, 10)), "Edge TPU", ""),
    "dense on several positions": (
        lambda g, x: g.op(
            "FULLY_CONNECTED", x, g.tensor(value=np.zeros((5, 4))), shape=(64, 5)
        ),
        "CPU ?",
        "more than one row",
    ),
    "mean over the batch": (
        lambda g, x: g.op("MEAN", x, g.integers(0)),
        "CPU ?",
        "batch dimension",
    ),
    "mean over the image": (
        lambda g, x: g.op("MEAN", x, g.integers(1, 2), shape=(1, 4)),
        "Edge TPU",
        "",
    ),
    "padded batch": (
        lambda g, x: g.op("PAD", x, g.tensor(dtype="INT32", value=[[1, 0]] * 4)),
        "CPU ?",
        "pads the batch",
    ),
    "split batch": (
        lambda g, x: g.op("SPLIT", g.tensor(dtype="INT32", value=-4), x),
        "CPU ?",
        "splits the batch",
    ),
    "alpha of an image": (
        lambda g, x: g.op("PRELU", x, g.tensor(value=np.zeros((8, 8, 4)))),
        "CPU ?",
        "alpha of shape (8, 8, 4)",
    ),
    "constant ones concatenated": (
        lambda g, x: g.op("CONCATENATION", x, g.tensor(value=np.ones((1, 8, 8, 4)))),
        "CPU ?",
        "must be zeros",
    ),
    "constant zeros concatenated": (
        lambda g, x: g.op("CONCATENATION", x, g.tensor(value=np.zeros((1, 8, 8, 4)))),
        "Edge TPU",
        "",
    ),
    "resize by 2": (
        lambda g, x: g.op(
            "RESIZE_BILINEAR", x, g.integers(16, 16), shape=(1, 16, 16, 4)
        ),
        "Edge TPU",
        "",
    ),
    "resize by 16": (
        lambda g, x: g.op(
            "RESIZE_BILINEAR", x, g.integers(128, 128), shape=(1, 128, 128, 4)
        ),
        "CPU ?",
        "enlarges by 16",
    ),
    "transpose": (
        lambda g, x: g.op("TRANSPOSE", x, g.integers(0, 2, 1, 3)),
        "Edge TPU ?",
        "no rule is known",
    ),
    "never seen": (
        lambda g, x: g.op("SPACE_TO_DEPTH", x),
        "Edge TPU ?",
        "not seen in a compiled file",
    ),
}


@pytest.mark.parametrize("case", _RULES)
def test_rule(case):
    build, where, reason = _RULES[case]
    op = _one(build)
    assert op.mapped == where.startswith("Edge TPU")
    assert op.certain == ("?" not in where)
    assert reason in op.reason
    assert bool(op.reason) == bool(reason)


@pytest.mark.parametrize("case", _RULES)
def test_what_stays_on_the_cpu_has_a_remedy(case):
    op = _one(_RULES[case][0])
    assert op.mapped or op.remedy


@pytest.mark.parametrize("name", _names(".json"))
def test_every_cpu_operation_of_the_pairs_has_a_remedy(name, shared_dir):
    truth = json.loads((shared_dir / f"edgetpu/pairs/{name}.json").read_text())
    for op in check_file(_file_of(truth)).operations:
        assert op.mapped or (op.reason and op.remedy), op


@pytest.mark.parametrize(
    "operator, remedy",
    [
        ("HARD_SWISH", "tfc.replace_activations(model, {'hard_silu': 'relu6'})"),
        ("ELU", "tfc.replace_activations(model, {'elu': 'relu6'})"),
        ("LEAKY_RELU", "tfc.replace_activations(model, {'leaky_relu': 'relu'})"),
    ],
)
def test_activations_are_replaced_by_our_verb(operator, remedy):
    assert remedy in _one(lambda g, x: g.op(operator, x)).remedy


def test_operator_that_is_younger_than_the_compiler_refuses_the_file():
    graph = Graph()
    x = graph.input()
    graph.op("GELU", graph.op("ADD", x, x))
    for op in graph.check().operations:
        assert not op.mapped and not op.certain
        assert "refuses the file: GELU (operation 1)" in op.reason
        assert "tfc.replace_activations(model, {'gelu': 'relu6'})" in op.remedy


def test_all_that_depends_on_a_cpu_operation_stays_on_the_cpu():
    graph = Graph()
    x = graph.input()
    first = graph.op("ADD", x, x)
    on_cpu = graph.op("LEAKY_RELU", first)
    after = graph.op("MUL", on_cpu, on_cpu)
    graph.op("SUB", after, first)
    graph.op("LOGISTIC", first)
    check = graph.check()
    assert [op.mapped for op in check.operations] == [True, False, False, False, True]
    for op in check.operations[2:4]:
        assert op.reason == "depends on operation 1 LEAKY_RELU, which is on the CPU"
        assert op.remedy == "Solve operation 1 first."
        assert op.certain


def test_cpu_prefix_at_the_input_is_tolerated():
    graph = Graph()
    x = graph.input(dtype="FLOAT32")
    x = graph.op("QUANTIZE", x)
    x = graph.op("ADD", x, x)
    x = graph.op("MUL", x, x)
    graph.op("DEQUANTIZE", x, dtype="FLOAT32")
    check = graph.check()
    assert [op.mapped for op in check.operations] == [False, True, True, False]
    assert all(op.certain for op in check.operations)
    assert "FLOAT32" in check.operations[0].reason


def test_prefix_after_the_edge_tpu_part_began_is_not():
    graph = Graph()
    integers, floats = graph.input(), graph.input(dtype="FLOAT32")
    begun = graph.op("ADD", integers, integers)
    late = graph.op("QUANTIZE", floats)
    graph.op("ADD", begun, late)
    assert [op.mapped for op in graph.check().operations] == [True, False, False]


def test_doubt_is_passed_on():
    graph = Graph()
    x = graph.op("TRANSPOSE", graph.input(), graph.integers(0, 2, 1, 3))
    x = graph.op("ADD", x, x)
    graph.op("MUL", x, x)
    last = graph.check().operations[-1]
    assert last.mapped and not last.certain
    assert last.reason == "depends on operation 0 TRANSPOSE, which may stay on the CPU"


def test_file_with_nothing_quantized_stays_on_the_cpu():
    graph = Graph()
    x = graph.input(dtype="FLOAT32")
    weight = graph.tensor(value=_WEIGHT)  # As in a dynamic-range file.
    graph.op("CONV_2D", x, weight, dtype="FLOAT32")
    graph.op("LEAKY_RELU", x, dtype="FLOAT32")
    check = graph.check()
    assert check.cpu_count == 2 and not check.fully_mapped
    for op in check.operations:
        assert op.certain
        assert "nothing in the file is quantized" in op.reason
        assert 'tfc.export_tflite(model, path, kind="int8")' in op.remedy


def test_refused_version_keeps_the_whole_file_on_the_cpu():
    graph = Graph()
    x = graph.input()
    x = graph.op("ADD", x, x)
    graph.op("CONV_2D", x, graph.tensor(value=_WEIGHT), version=6)
    check = graph.check()
    assert check.mapped_count == 0
    assert all(op.certain for op in check.operations)
    assert "CONV_2D version 6 (operation 1)" in check.operations[0].reason


@pytest.mark.parametrize(
    "operator, version, lowered",
    [
        ("CONV_2D", 4, True),
        ("CONV_2D", 6, True),
        ("TRANSPOSE_CONV", 4, True),
        ("ADD", 3, False),
        ("QUANTIZE", 3, False),
        ("REVERSE_V2", 3, False),
    ],
)
def test_export_for_an_edge_tpu_is_advised_where_it_helps(operator, version, lowered):
    def build(graph, x):
        weight = graph.tensor(value=_WEIGHT)
        inputs = [x, weight] if lowered else [x, x]
        graph.op(operator, *inputs, version=version)

    found = _one(build)
    assert not found.mapped and found.remedy
    assert ('target="edgetpu"' in found.remedy) == lowered


def test_unknown_custom_operation_may_refuse_the_file():
    graph = Graph()
    x = graph.input()
    graph.op("Atan", graph.op("ADD", x, x), custom=True)
    check = graph.check()
    assert check.mapped_count == 0
    assert not any(op.certain for op in check.operations)
    assert "Atan (operation 1)" in check.operations[0].reason


@pytest.mark.parametrize("shape, certain", [((1, 1, 1, 3), False), (_SHAPE, True)])
def test_dynamic_batch_is_no_problem_but_a_dynamic_size_may_be(shape, certain):
    graph = Graph()
    x = graph.input(shape, dynamic=True)
    graph.op("ADD", x, x, shape=shape)
    (op,) = graph.check().operations
    assert op.mapped and op.certain == certain


def test_dense_per_channel_is_mapped_for_sure():
    path = PAIRS / "LibrEdgeTPU__dense_256.tflite"
    dense = read_tflite(path).operations[1]
    assert len(np.unique(dense.inputs[1].scale)) > 200
    op = check_edgetpu(path).operations[1]
    assert (op.operator, op.mapped, op.certain) == ("FULLY_CONNECTED", True, True)


def test_printed_table_is_aligned():
    graph = Graph()
    x = graph.input()
    graph.op("LEAKY_RELU", graph.op("TRANSPOSE", x, graph.integers(0, 2, 1, 3)))
    check = graph.check()
    title, *lines, memory = str(check).splitlines()
    assert memory.startswith("parameters take 0.00 to ")
    assert title == "model.tflite: 1 of 2 operations map (1 uncertain, marked ?)"
    assert lines[0].split() == ["#", "operator", "where", "reason", "remedy"]
    column = lines[0].index("reason")
    for line, op in zip(lines[1:], check.operations, strict=True):
        assert line[column:].startswith(op.reason)
        assert line.endswith(op.remedy or op.reason)
    assert lines[1].split()[:4] == ["0", "TRANSPOSE", "Edge", "TPU"]


def test_counts():
    check = check_edgetpu(PAIRS / "LibrEdgeTPU__dense_256.tflite")
    assert (check.mapped_count, check.cpu_count, check.fully_mapped) == (3, 0, True)
    assert [op.index for op in check.operations] == [0, 1, 2]


def test_compiled_file_is_refused(tmp_path):
    path = tmp_path / "model_edgetpu.tflite"
    path.write_bytes(compiled_model())
    with pytest.raises(ValueError, match="compiled for the Edge TPU already"):
        check_edgetpu(path)


def test_bad_files_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such .tflite file"):
        check_edgetpu(tmp_path / "absent.tflite")
    whole = (PAIRS / "LibrEdgeTPU__dense_256.tflite").read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        check_edgetpu(path)
