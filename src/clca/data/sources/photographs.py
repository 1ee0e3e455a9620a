"""The photographs that somebody wants to have classified: in files, folders and those that match patterns."""

import fnmatch
import glob
import os
import warnings
from collections.abc import Iterable, Sequence
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
    read, without an extension, or in a cloud only, and those in folders that a system or program made. Unlike there,
    folders whose names begin with _ are searched. Linked folders are searched too, each once. A file or pattern is
    taken at its word: what it names is read whatever its name.

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
    leftovers: list[Path] = []
    files = visible_files(folder, followlinks=True, on_error=_refuse_unreadable, leftovers=leftovers)
    images = {path: why_left_out(path, folder) for path in sorted(filter(is_image, files))}
    unused = [path for path, why in images.items() if why is not None] + images_in_leftovers(leftovers)
    lines = describe_unused(folder, unused, of_a_set=False)
    if not images and not may_be_empty:
        raise ClcaError("; ".join([f"{folder}: no images in this folder", *lines]))
    found.add(images.items())
    found.warnings.extend([f"{folder}: {'; '.join(lines)}"] if lines else [])


def _add_pattern(found: Photographs, pattern: Path) -> None:
    parts = pattern.parts
    top = Path(*parts[: next(place for place, part in enumerate(parts) if glob.has_magic(part))])
    matching = Photographs()
    left_out = (_match_below if "**" in parts else _match_names)(matching, pattern, top)
    lines = describe_unused(top, left_out, of_a_set=False)
    if not matching.files:
        raise ClcaError("; ".join([f"{pattern}: no file matches this pattern", *lines]))
    found.add(matching.files.items())
    found.warnings.extend([*matching.warnings, *([f"{pattern}: {'; '.join(lines)}"] if lines else [])])


def _match_names(matching: Photographs, pattern: Path, top: Path) -> list[Path]:
    """Add the files that match and the images in folders that do, as if the shell had expanded the pattern.

    Returns:
        The images that are left out because they are in a folder that a system made.
    """
    left_out: list[Path] = []
    for match in sorted(map(Path, glob.glob(str(pattern)))):
        if not os.path.isdir(match):
            if leftover_above(match, top) is None:
                matching.add([(match, None)])  # a FIFO or a broken link too, which is refused when it is read
            elif is_image(match):
                left_out.append(match)
        elif leftover_above(match / "*", top) is None:
            _add_folder(matching, match, may_be_empty=True)
        else:
            left_out += images_in_leftovers([match])
    return left_out


def _match_below(matching: Photographs, pattern: Path, top: Path) -> list[Path]:
    """As `_match_names`, for a pattern with `**`. Python's `glob` goes round and round where links lead back."""
    start = pattern.parts.index("**")
    wanted = pattern.parts[start:]
    left_out: list[Path] = []
    heads = map(Path, glob.glob(str(Path(*pattern.parts[:start])))) if start else [Path()]
    for head in sorted(filter(os.path.isdir, heads)):
        leftovers: list[Path] = []
        if leftover_above(head / "*", top) is None:
            files = visible_files(head, followlinks=True, on_error=_refuse_unreadable, leftovers=leftovers)
            visible = (path for path in files if not is_hidden(path.name))  # no placeholder of a cloud
            fitting = (path for path in visible if _fits(path.relative_to(head).parts, wanted))
            matching.add((path, None) for path in sorted(fitting))
        else:
            leftovers.append(head)
        folders = {*leftovers}  # which stand for more of them than were counted
        images = images_in_leftovers(leftovers)
        left_out += [path for path in images if path in folders or _fits(path.relative_to(head).parts, wanted)]
    return left_out


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the names of folders and of a file match the parts of a pattern, of which `**` stands for any number."""
    if not names or not parts:
        return not names and all(part == "**" for part in parts)
    if parts[0] == "**":
        return _fits(names, parts[1:]) or _fits(names[1:], parts)
    return fnmatch.fnmatch(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _refuse_unreadable(error: OSError) -> None:
    raise ClcaError(
        f"{error.filename}: this folder cannot be read ({reason(error)}): change its permissions, or omit it"
    )
