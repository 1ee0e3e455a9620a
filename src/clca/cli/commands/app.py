"""`clca app`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clca.app.settings import PageSettings
from clca.cli.arguments import Spelling, like
from clca.cli.parsing import parse
from clca.cli.serving import Serving, require_extra
from clca.system.paths import shown

_log = logging.getLogger(__name__)


class App(Serving):
    """Serve a web page that classifies the photographs dropped on it, until Ctrl-C or SIGTERM.

    Programs can query the same address as with `clca serve`.

    Examples:
      clca app runs/first
      clca app runs/first runs/second --examples photos
      openssl rand -hex 32 > token; clca app runs/first --host 0.0.0.0 --token-file token
    """

    runs: Annotated[tuple[str, ...], Spelling("RUN", positional=True)] = Field(
        description="Run folders, saved models' folders or hub ids; the page lets users choose among them."
    )
    examples: Path | None = like(PageSettings, "examples")
    show_examples: bool = like(PageSettings, "show_examples")
    words: Path | None = like(PageSettings, "words")
    batch_files: int = like(PageSettings, "batch_files")
    upload_mib: int = Field(1024, ge=1, description="Size of one upload, all of its files together, in MiB.")
    browser: bool = Field(True, description="Open the page in this machine's browser.")

    def page(self) -> PageSettings:
        """The limits of the page, and what it shows beside an answer."""
        names = self.__class__.model_fields.keys() & PageSettings.model_fields.keys()
        return PageSettings(**{name: getattr(self, name) for name in names}, upload_bytes=self.upload_mib << 20)


def run(argv: Sequence[str]) -> int:
    chosen = parse(App, "clca app", argv)
    require_extra("app")
    settings, page = chosen.settings(), chosen.page()

    from clca.serve.loading import answered_meanwhile, stopped_by_signals
    from clca.serve.server import listen, serve

    listening = listen(chosen.host, chosen.port)  # before torch is loaded, which takes seconds
    print("loading …", flush=True)
    with stopped_by_signals(), answered_meanwhile(listening, settings.root_path):
        from clca.app.page import create_app

        application = create_app(chosen.runs, settings, page)
    address = chosen.address(listening.getsockname()[1])

    def announce() -> None:
        print(
            f"the page of {shown(', '.join(application.state.service.models))} is at {address}; Ctrl-C ends it",
            flush=True,
        )
        if chosen.token_file is not None:
            print(f"  log in with any name and the content of {chosen.token_file} as the password", flush=True)
        if chosen.browser:
            _open(address)

    if chosen.warning:
        _log.warning(chosen.warning)
    serve(application, listening, announce)
    print("stopped", flush=True)
    return 0


def _open(address: str) -> None:
    """In a thread: a browser that starts may take its time, or write to the terminal."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
