"""`clca data cache`."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import Field

from clca.cli.arguments import Arguments, Switch
from clca.cli.parsing import parse


class Cache(Arguments):
    """List the resized images and the features of frozen models that are kept on disk, or remove them.

    They are in $CLCA_CACHE, else ~/.cache/clca, in the folders resized and features, each of which may take
    $CLCA_CACHE_GB gigabytes (20 if that is not set); the least recently used are removed for new ones. Removing them
    costs time only: the next run writes them again.

    Examples:
      clca data cache
      clca data cache --clear
    """

    clear: Switch = Field(False, description="Remove them all.")


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Cache, "clca data cache", argv))
    from rich.console import Console

    from clca.data.cache.limits import cache_folder, cache_limit, cached_sets, clear_cache, feature_folders
    from clca.system.paths import shown
    from clca.system.tables import Column, Table, words

    if chosen["clear"]:
        print(f"removed {_size(clear_cache())} from {shown(cache_folder().parent)}")
        return 0
    sets = cached_sets()
    if sets:
        rows = []
        for one in sets:
            used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
            rows.append([shown(one.root), f"{one.side} × {one.side}", str(one.images), _size(one.bytes), used])
        Table([words("data set"), *map(Column, ("pixels", "images", "size", "last used"))], rows).render(Console())
    total = sum(one.bytes for one in sets)
    limit = cache_limit()
    most = "any size" if limit == float("inf") else f"at most {_size(int(limit))}"
    print(f"{_size(total)} of {most} in {shown(cache_folder())}")
    features = feature_folders()
    if features:
        size = _size(sum(each for _, each, _ in features))
        print(f"{size} of features of frozen models in {shown(features[0][0].parent)}")
    return 0


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.0f} kB"
