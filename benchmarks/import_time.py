"""Prints the seconds that `import tfcompress` adds to `import keras`.

Each run is a fresh process that imports keras, and then times what is left for
tfcompress: the start of Python and of TensorFlow, which vary more, stay outside.

    python benchmarks/import_time.py [runs]
"""

import platform
import statistics
import subprocess
import sys

_CODE = """
import time
start = time.perf_counter()
import keras
middle = time.perf_counter()
import tfcompress
print(middle - start, time.perf_counter() - middle)
"""


def seconds():
    """Seconds that importing keras, and then tfcompress, takes in a new process."""
    command = [sys.executable, "-c", _CODE]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return tuple(map(float, done.stdout.split()))


def main(runs=7):
    """Times both and prints medians and ranges."""
    seconds()  # Fills the disk cache; not counted.
    times = zip(*(seconds() for _ in range(runs)), strict=True)
    for name, found in zip(("keras", "tfcompress"), times, strict=True):
        print(
            f"import {name:<12} median {statistics.median(found):.3f} s, "
            f"range {min(found):.3f} to {max(found):.3f} s"
        )
    print(
        f"{runs} runs, after one that is not counted; "
        f"Python {platform.python_version()}, {platform.machine()}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
