"""The lowest versions that are allowed: none with an advisory that was published when they were last looked through."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

WITHOUT_ADVISORY = {
    "filelock": "3.20.3",
    "gradio": "6.7",
    "h11": "0.16",
    "jinja2": "3.1.6",
    "onnx": "1.21",
    "pillow": "12.2",
    "pyarrow": "14.0.1",
    "pydantic": "2.4",
    "python-multipart": "0.0.26",
    "pyyaml": "5.4",
    "ray": "2.55",
    "scikit-learn": "1.5",
    "starlette": "0.49.1",
    "torch": "2.8",
}
"""The first release without a known advisory, by package."""


def _lower_bounds() -> dict[str, list[Version]]:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    found: dict[str, list[Version]] = {}
    for requirement in map(Requirement, wanted):
        lowest = [Version(each.version) for each in requirement.specifier if each.operator in (">=", "==", "~=")]
        found.setdefault(requirement.name.lower(), []).append(max(lowest, default=Version("0")))
    found.pop("clca")
    return found


@pytest.mark.parametrize("name", WITHOUT_ADVISORY)
def test_no_version_with_a_known_advisory_is_allowed(name: str) -> None:
    bounds = _lower_bounds()[name]
    assert min(bounds) >= Version(WITHOUT_ADVISORY[name])


def test_every_dependency_has_a_lower_bound() -> None:
    assert [name for name, bounds in _lower_bounds().items() if min(bounds) == Version("0")] == []


def test_the_bounds_can_be_met_here() -> None:
    from importlib.metadata import version

    assert all(Version(version(name)) >= Version(lowest) for name, lowest in WITHOUT_ADVISORY.items())
