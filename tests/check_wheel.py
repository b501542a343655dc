"""Installs nothing: imports a wheel from outside the repository and uses its data.

python tests/check_wheel.py dist/tfcompress-*.whl
"""

import os
import subprocess
import sys
import tempfile
import zipfile

CHECK = """
import tfcompress as tfc
assert tfc.__file__.startswith({folder!r}), tfc.__file__
train, test = tfc.datasets.spoken_digits()
assert train.x.shape == (1800, 49, 10, 1)
import tfcompress_command
print("wheel", tfc.__version__, "works outside the repository")
"""

with tempfile.TemporaryDirectory() as folder:
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        names = wheel.namelist()
        wheel.extractall(folder)
    for wanted in (
        "tfcompress/py.typed",
        "tfcompress/data/LICENSE.spoken_digits.md",
        "tfcompress/data/spoken_digits_mfcc.npz",
        "tfcompress/recipes/presets/edge-int8.yaml",
    ):
        assert wanted in names, f"{wanted} is not in the wheel"
    assert not any(name.startswith("tests/") for name in names)
    environment = {**os.environ, "PYTHONPATH": folder, "TF_CPP_MIN_LOG_LEVEL": "3"}
    sys.exit(
        subprocess.run(
            [sys.executable, "-c", CHECK.format(folder=os.path.realpath(folder))],
            cwd=folder,
            env=environment,
        ).returncode
    )
