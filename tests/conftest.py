"""Fixtures for all tests."""

import gc
import importlib.metadata
import os
import pathlib

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_configure(config):
    """Lets a warning pass that Keras before 3.13 gives of every loaded model."""
    version = importlib.metadata.version("keras").split(".")
    if [int(part) for part in version[:2]] < [3, 13]:
        config.addinivalue_line(
            "filterwarnings",
            "ignore:The structure of .inputs. doesn't match:UserWarning",
        )


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    """Leaves what outlives a test out of later collections of garbage.

    TensorFlow keeps graphs of every step that was traced, and its converter collects
    garbage each time: after some hundred tests that took most of the time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_dir():
    """The folder of shared material beside the repository."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the shared material in {folder}")
    return folder


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same weights and order in every run of a test."""
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture
def tensorflow_log():
    """Messages that TensorFlow logs during a test, from INFO up."""
    import logging

    messages = []
    logger = logging.getLogger("tensorflow")
    level = logger.level
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)
