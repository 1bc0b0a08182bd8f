"""Fixtures that more than one folder of tests uses."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the released tokenizers, golden numbers and real pairs; absent on a user's machine."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"reference material {folder} is not on this machine")
    return folder
