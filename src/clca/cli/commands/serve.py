"""`clca serve`."""

import logging
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from clca.cli.arguments import Spelling
from clca.cli.parsing import parse
from clca.cli.serving import Serving, require_extra
from clca.system.paths import shown

_log = logging.getLogger(__name__)


class Serve(Serving):
    """Classify photographs over HTTP, until Ctrl-C or SIGTERM; requests that were accepted are answered first.

    Examples:
      clca serve runs/first
      clca serve runs/first runs/second --port 9000 --max-batch 32
      openssl rand -hex 32 > token; clca serve runs/first --host 0.0.0.0 --token-file token
    """

    runs: Annotated[tuple[str, ...], Spelling("RUN", positional=True)] = Field(
        description="Run folders, saved models' folders or hub ids; the first answers requests that name no model."
    )


def run(argv: Sequence[str]) -> int:
    chosen = parse(Serve, "clca serve", argv)
    require_extra("serve")
    settings = chosen.settings()

    from clca.serve.loading import answered_meanwhile, stopped_by_signals
    from clca.serve.server import listen
    from clca.serve.server import serve as run_server

    listening = listen(chosen.host, chosen.port)  # before torch is loaded, which takes seconds
    with stopped_by_signals(), answered_meanwhile(listening, settings.root_path):
        from clca.serve.application import create_app

        app = create_app(chosen.runs, settings)
    address = chosen.address(listening.getsockname()[1])

    def announce() -> None:
        print(f"serving {shown(', '.join(app.state.service.models))} at {address}; documentation at {address}/docs")
        print(f"  curl{chosen.header} -F images=@leaf.jpg '{address}/v1/predict?top_k=3'", flush=True)

    if chosen.warning:
        _log.warning(chosen.warning)
    run_server(app, listening, announce)
    print("stopped", flush=True)
    return 0
