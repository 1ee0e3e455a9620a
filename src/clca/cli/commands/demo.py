"""`clca demo`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from clca.cli.parsing import parse


def run(argv: Sequence[str]) -> int:
    import tyro

    def demo(
        out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[FOLDER]")] = "clca-demo", *, seed: int = 0
    ) -> dict[str, Any]:
        """See it work in a few minutes, without downloads: one small ViT, four ways, on synthetic leaves.

        Trains the same model dense, with EViT, with EViT and CLCA, and with ToMe and CLCA at a keep rate of 25 %,
        prints one table, and draws one picture of the tokens that survive.

        Examples:
          clca demo
          clca demo leaves-demo --seed 1

        Args:
            out: Folder for the runs and the picture.
            seed: Another seed gives other leaves and other weights.
        """
        return dict(locals())

    chosen = parse(demo, "clca demo", argv)
    from clca.demo import run as demonstration

    demonstration.run(Path(chosen["out"]), seed=chosen["seed"])
    return 0
