"""What a child process does with run folders and caches of resized images that others have left."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bounded import run_clca

from clca.data.cache.row_file import read_row_file, row_bytes
from clca.errors import ClcaError, WorkError
from clca.training.checkpoints import load_checkpoint


def read_all(path: str) -> Any:
    """Read every row of a file; for a child process. None if the file is refused."""
    found = read_row_file(Path(path))
    if found is None:
        return None
    reader = found.reader()
    rows = [reader.read(row) for row in range(found.count)]
    return [None if row is None else [int(value) for value in np.unique(row)] for row in rows]


def cut_while_read(path: str) -> Any:
    """Read rows of a file that gets shorter meanwhile; for a child process, which a read beyond its end would kill."""
    found = read_row_file(Path(path))
    assert found is not None
    reader = found.reader()
    os.truncate(path, row_bytes(found.side))
    return [row is None for row in map(reader.read, range(found.count))]


def one_thread(*arguments: str) -> tuple[int, str, str]:
    """The command line with one thread, whose memory is limited; for a child process."""
    torch.set_num_threads(1)
    return run_clca(*arguments)


def read_checkpoints(contents: list[bytes]) -> list[str]:
    """Read checkpoints one after the other; for a child process. `WorkError` is how one that is damaged is refused.

    Returns:
        For each the message with which it was refused; "" for one that was read.
    """
    found = []
    for number, content in enumerate(contents):
        file = Path(f"{number}.ckpt")
        file.write_bytes(content)
        try:
            load_checkpoint(file)
        except (ClcaError, WorkError) as refusal:
            found.append(str(refusal))
        else:
            found.append("")
    return found
