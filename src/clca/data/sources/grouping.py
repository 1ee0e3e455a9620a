"""Groups of images that stay together: photographs of one plant, pot or session are on one side of every split."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clca.data.sources.folder_csv import csv_in, read_columns
from clca.data.sources.listing import Grouping, Listing
from clca.data.sources.splits import Samples, take_every_fifth
from clca.errors import ClcaError
from clca.system.paths import shown


def grouped(listing: Listing, grouping: Grouping) -> Listing:
    """A set with its groups, divided so that no group is on two sides of a split.

    Splits that the set has itself are kept, and a group that is in two of them becomes a problem; those that were made
    by rule are made again.

    Raises:
        ClcaError: There is no such column, the pattern is not found in a path, or there are too few images or groups.
    """
    groups = _groups(listing, grouping)
    splits = dict(listing.splits)
    everything = [sample for name in ("train", "val", "test") for sample in splits.get(name, [])]
    if grouping.folds is not None and grouping.fold is not None:
        rest, test = take_fold(everything, grouping.folds, grouping.fold, groups)
        train, val = _hold_out(rest, groups)
        splits = {"train": train, "val": val, "test": test}
    elif groups is not None and listing.made_splits:
        rest, test = _hold_out(everything, groups)
        train, val = _hold_out(rest, groups)
        splits = {"train": train, "val": val, "test": test}
    elif groups is not None and listing.made_val:
        train, val = _hold_out(splits.get("train", []) + splits.get("val", []), groups)
        splits |= {"train": train, "val": val}
    problems = list(listing.problems)
    if groups is not None and (across := split_groups(splits, groups)):
        name, found = next(iter(across.items()))
        problems.append(
            f"{listing.root}: {len(across)} groups are in more than one split, such as {shown(name)} in "
            f"{' and '.join(found)}: move all photographs of a group into one"
        )
    return replace(listing, splits=splits, problems=problems, groups=groups)


def _groups(listing: Listing, grouping: Grouping) -> dict[Path, str] | None:
    paths = [path for samples in listing.splits.values() for path, _ in samples]
    if grouping.column is not None:
        file = csv_in(listing.root) if listing.root.is_dir() else listing.root
        if listing.source != "csv" or file is None:
            raise ClcaError(f"--group {grouping.column}: {listing.root} is no CSV file with columns; use --group-by")
        rows = read_columns(file, ("path", grouping.column))
        return {Path(row["path"]): row[grouping.column] for row in rows}
    if grouping.pattern is not None:
        return group_names(paths, listing.root if listing.root.is_dir() else listing.root.parent, grouping.pattern)
    return None


def _hold_out(samples: Samples, groups: Mapping[Path, str] | None) -> tuple[Samples, Samples]:
    return take_every_fifth(samples) if groups is None else hold_out_groups(samples, groups)


def group_names(paths: Sequence[Path], root: Path, pattern: str) -> dict[Path, str]:
    """The group of each image, from its path below `root`.

    Args:
        paths: The images.
        root: Folder that the pattern is applied below.
        pattern: A regular expression, searched for in the path with / between folders. A group is what its parentheses
            match, or the whole match without any.

    Raises:
        ClcaError: It is not a regular expression, or there are images in which it is not found.
    """
    found, without = {}, []
    for path in paths:
        name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
        found[path] = group_of_path(name, pattern, "--group-by")
        if not found[path]:
            without.append(name)
    if without:
        raise ClcaError(
            f"--group-by {pattern!r}: is not found in {len(without)} of {len(paths)} file names, such as {without[0]}"
        )
    return found


def group_of_path(name: str, pattern: str, flag: str) -> str:
    """What the parentheses of a regular expression match in a path, or all that it matches; "" if that is nothing.

    Raises:
        ClcaError: `pattern`, which was given by `flag`, is not a regular expression.
    """
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise ClcaError(f"{flag} {pattern!r}: is not a regular expression ({error})") from None
    if match is None:
        return ""
    parts = tuple(part or "" for part in match.groups()) or (match[0],)
    return " ".join(parts) if any(parts) else ""


def hold_out_groups(samples: Samples, groups: Mapping[Path, str]) -> tuple[Samples, Samples]:
    """Hold out whole groups with about one in five images of each class, the first ones by the hash of their name.

    A group whose absence would leave one of its classes without images is kept, so the rest has all classes.

    Returns:
        The remaining images and those held out, each in the given order.
    """
    members: dict[str, Counter[int]] = defaultdict(Counter)
    for path, label in samples:
        members[groups[path]][label] += 1
    left = Counter(label for _, label in samples)
    wanted = {label: max(1, round(count / 5)) for label, count in left.items()}
    held: set[str] = set()
    for name in sorted(members, key=_digest):
        counts = members[name]
        # It brings more of what is still wanted than of what is not.
        useful = sum(min(count, max(0, wanted[label])) for label, count in counts.items())
        if 2 * useful > sum(counts.values()) and all(left[label] > count for label, count in counts.items()):
            held.add(name)
            left -= counts
            for label, count in counts.items():
                wanted[label] -= count
    rest = [sample for sample in samples if groups[sample[0]] not in held]
    return rest, [sample for sample in samples if groups[sample[0]] in held]


def take_fold(
    samples: Samples, folds: int, fold: int, groups: Mapping[Path, str] | None = None
) -> tuple[Samples, Samples]:
    """Hold out one of several equal parts, with the classes in the same proportions in each.

    The parts depend on the names of files (or groups) and the classes alone. With groups they are those of
    scikit-learn's `StratifiedGroupKFold`, without of `StratifiedKFold`.

    Args:
        samples: All images.
        folds: Number of parts.
        fold: Which is held out, 1 … folds.
        groups: The group of each image, if groups have to stay together.

    Returns:
        The remaining images and those held out, each in the given order.

    Raises:
        ClcaError: A class has fewer images or groups than there are parts.
    """
    import numpy as np  # late: settings, which import this, need no arrays
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names = [groups[path] if groups is not None else path.name for path, _ in samples]
    each: dict[int, set[str]] = defaultdict(set)
    for place, (_, label) in enumerate(samples):
        each[label].add(names[place] if groups is not None else str(place))
    fewest = min(map(len, each.values()))
    if fewest < folds:
        what = "groups" if groups is not None else "images"
        raise ClcaError(f"--folds {folds}: a class has only {fewest} {what}, and each part needs one")
    order = sorted(range(len(samples)), key=lambda place: (_digest(names[place]), samples[place][0].as_posix()))
    labels = np.array([samples[place][1] for place in order])
    keys = [names[place] for place in order] if groups is not None else None
    splitter = StratifiedKFold(folds) if groups is None else StratifiedGroupKFold(folds)
    _, held = list(splitter.split(np.zeros(len(labels)), labels, keys))[fold - 1]
    chosen = {order[place] for place in held}
    rest = [sample for place, sample in enumerate(samples) if place not in chosen]
    return rest, [sample for place, sample in enumerate(samples) if place in chosen]


def split_groups(splits: Mapping[str, Samples], groups: Mapping[Path, str]) -> dict[str, list[str]]:
    """The groups that are in more than one split, with these splits."""
    where: dict[str, set[str]] = defaultdict(set)
    for split, samples in splits.items():
        for path, _ in samples:
            where[groups[path]].add(split)
    return {name: sorted(found) for name, found in sorted(where.items()) if len(found) > 1}


def suspected_groups(splits: Mapping[str, Samples]) -> list[str]:
    """Parts of file names that look like plants with several photographs, and are in more than one split.

    A name is taken for a group and a number, as in `plant12_3` or `A-07b`, if most names of the class end in such a
    number, and have at least two photographs for each group.
    """
    stems: dict[tuple[int, str], set[str]] = defaultdict(set)
    counts: Counter[tuple[int, str]] = Counter()
    for split, samples in splits.items():
        for path, label in samples:
            match = _NUMBERED.fullmatch(path.stem)
            if match is not None:
                stems[label, match[1]].add(split)
                counts[label, match[1]] += 1
    total = sum(map(len, splits.values()))
    several = {key: found for key, found in stems.items() if counts[key] > 1}
    groups_of_class = Counter(label for label, _ in several)
    # One group a class is a running number of the class, not a plant.
    across = [name for (label, name), found in several.items() if len(found) > 1 and groups_of_class[label] > 1]
    return sorted(across) if 2 * sum(counts[key] for key in several) > total else []


_NUMBERED = re.compile(r"(.*[0-9])(?:[-_ .(]+[0-9]{1,3}|[-_ .(]*[a-z])\)?", re.IGNORECASE)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()
