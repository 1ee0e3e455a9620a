"""One tiny run, and one page of it, for all tests of a process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_page import make_run, page_of


@pytest.fixture(scope="session")
def vines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose training images are here."""
    return make_run(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="session")
def address(vines: Path) -> Iterator[str]:
    """Of a page that offers the run twice, so that there are two to choose from."""
    with page_of([vines, vines]) as found:
        yield found
