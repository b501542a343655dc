"""What imports what: the library in levels, and lightly."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "tfcompress"

# A module imports only from lower levels, or from its own folder. The package's
# `__init__` names everything and stands above all.
LEVELS = {
    "numerics": 0,
    "schedules": 0,
    "datasets": 0,
    "zoo": 0,
    "progress": 0,
    "selection": 1,
    "graph": 1,
    "checks": 2,
    "layers": 2,
    "loss_gradients": 2,
    "passes": 3,
    "callbacks": 4,
    "deploy": 4,
    "legacy": 4,
    "measure": 5,
    "plots": 5,
    "cache_teacher": 6,
    "benchmark": 6,
    "debug": 6,
    "distill": 6,
    "prune_channels": 6,
    "report": 6,
    "sensitivity": 6,
    "demo": 7,
    "recipes": 7,
    "verify": 7,
    "quantize_to_accuracy": 7,
    "cli": 8,
}


def _part(path):
    """The folder or module below `tfcompress` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported(source):
    """The parts of `tfcompress` that a module's source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "tfcompress":
                yield rest.split(".")[0], node.lineno


def _offences(part, source):
    for target, line in _imported(source):
        if target == part:
            continue
        if target not in LEVELS or LEVELS[target] >= LEVELS[part]:
            yield line, target


_MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize(
    "path", _MODULES, ids=[str(p.relative_to(PACKAGE)) for p in _MODULES]
)
def test_a_module_imports_only_from_lower_levels(path):
    part = _part(path)
    assert part in LEVELS, f"{path} has no level: give it one in this test"
    offences = [
        f"{path}:{line} imports tfcompress.{target} (level {LEVELS.get(target)}) from "
        f"level {LEVELS[part]}"
        for line, target in _offences(part, path.read_text())
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    "source, offends",
    [
        ("import tfcompress.graph", False),
        ("from tfcompress.graph import kernels", False),
        ("from tfcompress.layers.fake_quant import FakeQuant", False),
        ("from tfcompress import layers", False),
        ("import keras", False),
        ("from tfcompress.passes import strip", True),
        ("import tfcompress.deploy.tflite as t", True),
        ("def f():\n    from tfcompress import measure", True),
        ("import tfcompress", True),
        ("from tfcompress import strip", True),
    ],
)
def test_the_rule_itself_tells_right_from_wrong(source, offends):
    assert bool(list(_offences("layers", source))) == offends


def test_every_level_belongs_to_something_that_exists():
    there = {p.name.removesuffix(".py") for p in PACKAGE.iterdir()}
    assert set(LEVELS) <= there


_LIGHT = """
import json, os, sys, tempfile
import keras, tensorflow
before_modules, before_environment = set(sys.modules), dict(os.environ)
saved = os.dup(1), os.dup(2)
with tempfile.TemporaryFile() as caught:
    os.dup2(caught.fileno(), 1)
    os.dup2(caught.fileno(), 2)
    import tfcompress
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(saved[0], 1)
    os.dup2(saved[1], 2)
    caught.seek(0)
    printed = caught.read().decode()
print("RESULT" + json.dumps({
    "modules": sorted(
        {name.partition(".")[0] for name in set(sys.modules) - before_modules}
    ),
    "environment": {
        key: (before_environment.get(key), os.environ.get(key))
        for key in {*before_environment, *os.environ}
        if before_environment.get(key) != os.environ.get(key)
    },
    "printed": printed,
}))
"""


@pytest.fixture(scope="module")
def imported():
    """What `import tfcompress` adds to `import keras`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return json.loads(done.stdout.partition("RESULT")[2])


@pytest.mark.parametrize(
    "package",
    [
        "tf2onnx",
        "tensorflow_model_optimization",
        "matplotlib",
        "tf_keras",
        "onnx",
        "onnxruntime",
        "ai_edge_litert",
    ],
)
def test_importing_the_library_imports_no_package_that_it_may_not_need(
    imported, package
):
    assert package not in imported["modules"]


def test_importing_the_library_changes_no_environment_variable(imported):
    assert imported["environment"] == {}


def test_importing_the_library_prints_nothing(imported):
    assert imported["printed"] == ""
