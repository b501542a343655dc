"""Fixtures for all tests."""

import pathlib

import pytest


@pytest.fixture(scope="session")
def shared_dir():
    """The folder of shared material beside the repository."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the shared material in {folder}")
    return folder
