"""`clca data leaves`."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from clca.cli.arguments import Arguments, Spelling
from clca.cli.parsing import parse


class Leaves(Arguments):
    """Draw leaves of made-up cultivars that differ in fine detail only, as a folder to train on.

    Examples:
      clca data leaves leaves
      clca data leaves leaves --cultivars 50 --images 40 --size 448 --difficulty 0.8
    """

    out: Annotated[str, Spelling("FOLDER", positional=True)] = Field(description="Folder to create.")
    cultivars: int = Field(20, description="Number of classes.")
    images: Annotated[int, Spelling("N")] = Field(30, description="Leaves per class, over train, val and test.")
    size: int = Field(224, description="Side of the images in pixels.")
    seed: int = Field(0, description="The same seed draws the same leaves.")
    difficulty: float = Field(0.5, description="From 0 (cultivars differ clearly) to 1 (they hardly differ).")


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Leaves, "clca data leaves", argv))
    from clca.data.synthetic.leaves import write_leaves

    write_leaves(**chosen)
    print(f"written to {chosen['out']}; next: clca train {chosen['out']} --model vit_tiny_patch16_224 --no-pretrained")
    return 0
