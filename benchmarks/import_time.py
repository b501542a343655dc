"""Prints the seconds that `import tfcompress` adds to `import keras`.

Both are timed in fresh processes, alternately, so that both meet the same disk cache
and the same load of the machine.

    python benchmarks/import_time.py [runs]
"""

import platform
import statistics
import subprocess
import sys
import time

_CODE = {
    "keras": "import keras",
    "tfcompress": "import keras, tfcompress",
}


def seconds(code):
    """Wall time of a process that runs `code`, start of Python included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def main(runs=7):
    """Times both and prints medians and ranges."""
    for code in _CODE.values():
        seconds(code)  # Fills the disk cache; not counted.
    times = {name: [] for name in _CODE}
    for _ in range(runs):
        for name, code in _CODE.items():
            times[name].append(seconds(code))
    for name, found in times.items():
        print(
            f"{_CODE[name]:<26} median {statistics.median(found):.2f} s, "
            f"range {min(found):.2f} to {max(found):.2f} s"
        )
    pairs = zip(times["tfcompress"], times["keras"], strict=True)
    added = [whole - base for whole, base in pairs]
    print(
        f"tfcompress adds            median {statistics.median(added):.2f} s, "
        f"range {min(added):.2f} to {max(added):.2f} s"
    )
    print(
        f"{runs} alternating runs each, after one that is not counted; "
        f"Python {platform.python_version()}, {platform.machine()}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
