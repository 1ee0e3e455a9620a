"""`clca demo`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clca.cli.arguments import Arguments, Spelling
from clca.cli.parsing import parse


class Demo(Arguments):
    """See it work in two minutes, without downloads: one small encoder, four ways, on synthetic leaves.

    It fits a head to the same frozen encoder dense, with EViT, with EViT and CLCA, and with ToMe and CLCA at a keep
    rate of 10 %, prints one table, and draws one picture of the tokens that survive.

    Examples:
      clca demo
      clca demo leaves-demo --seed 1
    """

    out: Annotated[str, Spelling("FOLDER", positional=True)] = Field(
        "clca-demo", description="Folder for the runs and the picture."
    )
    seed: int = Field(0, description="Another seed gives other cultivars.")


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Demo, "clca demo", argv))
    from rich.console import Console

    from clca.demo import run as demo

    result = demo.run(Path(chosen["out"]), seed=chosen["seed"])
    result.render(Console())
    return 0
