"""`clca serve`."""

import sys
from collections.abc import Sequence
from typing import Annotated

from clca.cli.parsing import parse
from clca.cli.serving import Serving, need
from clca.system.paths import shown


def run(argv: Sequence[str]) -> int:
    import tyro

    def serve(
        runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN …", help_behavior_hint="")],
        serving: Annotated[Serving, tyro.conf.arg(name="")] = Serving(),  # noqa: B008 (frozen)
    ) -> tuple[tuple[str, ...], Serving]:
        """Answer over HTTP what is in photographs, until Ctrl-C or SIGTERM; what was accepted is answered first.

        Examples:
          clca serve runs/first
          clca serve runs/first runs/second --port 9000 --max-batch 32
          openssl rand -hex 32 > token; clca serve runs/first --host 0.0.0.0 --token-file token

        Args:
            runs: Run folders, saved models' folders or hub ids; the first answers requests that name none.
            serving: Address, limits and batching.
        """
        return runs, serving

    runs, serving = parse(serve, "clca serve", argv)
    need("serve", runs)
    settings = serving.settings()

    from clca.serve.loading import answered_meanwhile, stopped_by_signals
    from clca.serve.server import listen
    from clca.serve.server import serve as run_server

    listening = listen(serving.host, serving.port)  # before torch is loaded, which takes seconds
    with stopped_by_signals(), answered_meanwhile(listening, settings.root_path):
        from clca.serve.application import create_app

        app = create_app(runs, settings)
    address = serving.address(listening.getsockname()[1])

    def tell() -> None:
        print(f"serving {shown(', '.join(app.state.service.models))} at {address}; how to ask is at {address}/docs")
        print(f"  curl{serving.header} -F images=@leaf.jpg '{address}/v1/predict?top_k=3'", flush=True)

    if serving.warning:
        print(serving.warning, file=sys.stderr)
    run_server(app, listening, tell)
    print("stopped", flush=True)
    return 0
