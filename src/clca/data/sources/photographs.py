"""The photographs that somebody wants to have classified: in files, folders and those that match patterns."""

import glob
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clca.data.sources.leftovers import leftover_above
from clca.data.sources.skipped import describe_unused, images_in_leftovers, is_image, why_left_out
from clca.data.sources.walk import is_hidden, visible_files
from clca.errors import ClcaError, reason
from clca.system.paths import expanded


@dataclass(frozen=True)
class Photographs:
    """Files in the order in which they are classified.

    Attributes:
        files: Each file once; None if it is to be read, otherwise why it is left out.
        warnings: One line for each folder or pattern of which images are left out: how many, and why.
    """

    files: dict[Path, str | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, files: Iterable[tuple[Path, str | None]]) -> None:
        """Add files; one that is named elsewhere, as a file, is read although its folder would leave it out."""
        for path, why in files:
            self.files[path] = None if why is None else self.files.get(path, why)


def find_photographs(paths: str | Path | Iterable[str | Path]) -> Photographs:
    """The named files, those in folders and those that match patterns.

    In folders, hidden files are ignored, and the same images are left out as in training: those of formats that are not
    read, without an extension, or in a cloud only, and those in folders that a system or program made. Only folders
    whose names begin with _ are searched, since there are no classes here. Linked folders are searched too, each once.
    A file or pattern is taken at its word: what it names is read whatever its name.

    Raises:
        ClcaError: A folder cannot be read, a folder or pattern has no image, or `paths` is empty.
    """
    found = Photographs()
    for name in [paths] if isinstance(paths, (str, Path)) else paths:
        path = expanded(name)
        # os.path returns False where Path raises, as for a name that is too long.
        if os.path.isdir(path):
            _add_folder(found, path)
        elif not os.path.lexists(path) and glob.has_magic(str(path)):
            _add_pattern(found, path)
        else:
            found.add([(path, None)])  # a missing file is reported with the others that cannot be read
    if not found.files:
        raise ClcaError("no images given")
    return found


def find_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files that `find_photographs` finds and that are to be read; a warning counts those that are left out.

    Raises:
        ClcaError: As there; or all images are left out.
    """
    found = find_photographs(paths)
    readable = [path for path, why_left_out in found.files.items() if why_left_out is None]
    if not readable:
        raise ClcaError(f"no usable images: {'; '.join(found.warnings)}")
    for line in found.warnings:
        warnings.warn(line, stacklevel=2)
    return readable


def _add_folder(found: Photographs, folder: Path, *, may_be_empty: bool = False) -> None:
    def failed(error: OSError) -> None:
        raise ClcaError(
            f"{error.filename}: this folder cannot be read ({reason(error)}): change its permissions, or omit it"
        )

    leftovers: list[Path] = []
    files = visible_files(folder, followlinks=True, on_error=failed, leftovers=leftovers)
    images = {path: why_left_out(path, folder) for path in sorted(filter(is_image, files))}
    unused = [path for path, why in images.items() if why is not None] + images_in_leftovers(leftovers)
    lines = describe_unused(folder, unused, of_a_set=False)
    if not images and not may_be_empty:
        raise ClcaError("; ".join([f"{folder}: no images in this folder", *lines]))
    found.add(images.items())
    found.warnings.extend([f"{folder}: {'; '.join(lines)}"] if lines else [])


def _add_pattern(found: Photographs, pattern: Path) -> None:
    """Add the files that match, and the images in folders that do; `**` matches what is in its folders by itself."""
    parts = pattern.parts
    top = Path(*parts[: next(place for place, part in enumerate(parts) if glob.has_magic(part))])
    before, leftovers = len(found.files), list[Path]()
    for match in _matches(pattern):
        is_folder = os.path.isdir(match)
        if leftover_above(match / "*" if is_folder else match, top) is not None:
            if is_folder and "**" not in parts:
                leftovers += images_in_leftovers([match])
            elif not is_folder and is_image(match) and not is_hidden(match.name):
                leftovers.append(match)
        elif not is_folder:
            found.add([(match, None)])  # a FIFO or a broken link too, which is refused when it is read
        elif "**" not in parts:
            _add_folder(found, match, may_be_empty=True)
    lines = describe_unused(top, leftovers, of_a_set=False)
    if len(found.files) == before:
        raise ClcaError("; ".join([f"{pattern}: no file matches this pattern", *lines]))
    found.warnings.extend([f"{pattern}: {'; '.join(lines)}"] if lines else [])


def _matches(pattern: Path) -> Iterator[Path]:
    """What matches a pattern, in order; what is reached on several ways, through links in a circle, only on one."""
    reached: dict[tuple[str, str], Path] = {}
    for match in sorted(map(Path, glob.glob(str(pattern), recursive=True)), key=lambda path: (len(path.parts), path)):
        reached.setdefault((os.path.realpath(match.parent), match.name), match)
    yield from sorted(reached.values())
