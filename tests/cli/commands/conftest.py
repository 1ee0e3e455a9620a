"""One tiny run for the commands that serve one."""

from pathlib import Path

import pytest
from small_page import make_run


@pytest.fixture(scope="session")
def vines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose training images are here."""
    return make_run(tmp_path_factory.mktemp("page"))
