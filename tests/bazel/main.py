"""Runs pytest on the files that Bazel names, with the settings of setup.cfg."""

import os
import sys

import pytest

if __name__ == "__main__":
    # The runfiles are read-only: no cache of pytest's, no bytecode. TensorFlow and
    # matplotlib want a home that they may write to.
    os.environ.setdefault("HOME", os.environ.get("TEST_TMPDIR", "/tmp"))
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
