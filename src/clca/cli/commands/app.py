"""`clca app`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from clca.cli.parsing import parse
from clca.cli.serving import Serving, need
from clca.system.paths import shown


def run(argv: Sequence[str]) -> int:
    import tyro

    def app(
        runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN …", help_behavior_hint="")],
        serving: Annotated[Serving, tyro.conf.arg(name="")] = Serving(),  # noqa: B008 (frozen)
        *,
        examples: Path | None = None,
        show_examples: bool = True,
        words: Path | None = None,
        batch_files: int = 2000,
        upload_mib: int = 1024,
        browser: bool = True,
    ) -> tuple[tuple[str, ...], Serving, dict[str, Any], bool]:
        """Show a web page on which photographs are dropped and answered, until Ctrl-C or SIGTERM.

        The same address answers programs, as `clca serve` does.

        Examples:
          clca app runs/first
          clca app runs/first runs/second --examples photos
          openssl rand -hex 32 > token; clca app runs/first --host 0.0.0.0 --token-file token

        Args:
            runs: Run folders, saved models' folders or hub ids; the page lets choose among them.
            serving: Address, limits and batching.
            examples: Folder or CSV file with example images of each class. If omitted: the run's training images, where
                they are on this machine.
            show_examples: Show example images beside the answers.
            words: Folder with translations of the page: de.json, fr.json …
            batch_files: Photographs of a batch, in zips or not.
            upload_mib: Size of one upload, all its files together, in MiB.
            browser: Open the page in this machine's browser.
        """
        page: dict[str, Any] = dict(
            examples=examples, show_examples=show_examples, words=words, batch_files=batch_files,
            upload_bytes=upload_mib << 20,
        )  # fmt: skip
        return runs, serving, page, browser

    runs, serving, page, browser = parse(app, "clca app", argv)
    need("app", runs)
    settings = serving.settings()

    from clca.app.settings import PageSettings
    from clca.serve.loading import answered_meanwhile, stopped_by_signals
    from clca.serve.server import listen, serve

    page_settings = PageSettings(**page)
    listening = listen(serving.host, serving.port)  # before torch is loaded, which takes seconds
    print("loading …", flush=True)
    with stopped_by_signals(), answered_meanwhile(listening, settings.root_path):
        from clca.app.page import create_app

        application = create_app(runs, settings, page_settings)
    address = serving.address(listening.getsockname()[1])

    def tell() -> None:
        print(
            f"the page of {shown(', '.join(application.state.service.models))} is at {address}; Ctrl-C ends it",
            flush=True,
        )
        if serving.token_file is not None:
            print(f"  it asks for a name (any) and a password: what is in {serving.token_file}", flush=True)
        if browser:
            _open(address)

    if serving.warning:
        print(serving.warning, file=sys.stderr)
    serve(application, listening, tell)
    print("stopped", flush=True)
    return 0


def _open(address: str) -> None:
    """In a thread: a browser that starts may take its time, or write to the terminal."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
