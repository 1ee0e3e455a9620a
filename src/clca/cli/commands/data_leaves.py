"""`clca data leaves`."""

from collections.abc import Sequence
from typing import Annotated, Any

from clca.cli.parsing import parse


def run(argv: Sequence[str]) -> int:
    import tyro

    def leaves(
        out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
        *,
        cultivars: int = 20,
        images: int = 30,
        size: int = 224,
        seed: int = 0,
        difficulty: float = 0.5,
    ) -> dict[str, Any]:
        """Draw leaves of made-up cultivars that differ in fine detail only, as a folder to train on.

        Examples:
          clca data leaves leaves
          clca data leaves leaves --cultivars 50 --images 40 --size 448 --difficulty 0.8

        Args:
            out: Folder to make.
            cultivars: Classes.
            images: Leaves of each, over train, val and test.
            size: Side of the images in pixels.
            seed: The same seed draws the same leaves.
            difficulty: 0 (cultivars far apart) to 1 (hardly to be told apart).
        """
        return dict(locals())

    chosen = parse(leaves, "clca data leaves", argv)
    from clca.data.synthetic.leaves import write_leaves

    write_leaves(**chosen)
    print(f"written to {chosen['out']}; next: clca train {chosen['out']} --model vit_tiny_patch16_224 --no-pretrained")
    return 0
