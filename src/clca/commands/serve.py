"""`clca serve`."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

from clca.commands.parsing import parse
from clca.errors import ClcaError

_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def run(argv: Sequence[str]) -> int:
    import tyro

    def serve(
        runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN …")],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        token_file: Path | None = None,
        max_batch: int = 16,
        wait_ms: float = 5.0,
        queue: int = 128,
        files: int = 32,
        file_mib: float = 16.0,
        megapixels: float = 50.0,
        timeout: float = 30.0,
        decoders: int = 2,
        threads: int | None = None,
        device: Literal["auto", "cpu"] = "auto",
        precision: Literal["auto", "no", "bf16", "fp16"] = "auto",
    ) -> dict[str, Any]:
        """Answer over HTTP what is in photographs, until Ctrl-C or SIGTERM; what was accepted is answered first.

        Examples:
          clca serve runs/first
          clca serve runs/first runs/second --port 9000 --max-batch 32
          openssl rand -hex 32 > token; clca serve runs/first --host 0.0.0.0 --token-file token

        Args:
            runs: Run folders, saved models' folders or hub ids; the first answers requests that name none.
            host: Address to listen on; 127.0.0.1 lets only this machine in, 0.0.0.0 all that reach it.
            port: Port to listen on; 0 takes a free one.
            token_file: File whose content clients have to show as a bearer token.
            max_batch: Images the model takes at once, at most.
            wait_ms: How long an image waits for others to share its batch, in milliseconds.
            queue: Images that may be under way before requests are refused with 429.
            files: Images a request.
            file_mib: Size of an image file, in MiB.
            megapixels: Width × height of an image, in millions.
            timeout: Seconds an answer may take.
            decoders: Threads that decode images.
            threads: CPU threads of the model; torch's choice without it.
            device: auto takes the GPU if there is one.
            precision: auto takes bf16 where the device computes it fast.
        """
        return dict(locals())

    chosen = parse(serve, "clca serve", argv)
    if not chosen["runs"]:
        raise ClcaError("no model to serve: name a run folder")
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ClcaError(f"clca serve needs {', '.join(missing)}: pip install 'clca[serve]'")
    token = _read_token(chosen["token_file"])

    from clca.serve.settings import MIB, ServeSettings

    names = ("max_batch", "wait_ms", "queue", "files", "decoders", "threads", "device", "precision")
    file_bytes = int(chosen["file_mib"] * MIB)
    settings = ServeSettings(
        **{name: chosen[name] for name in names},
        token=token,
        file_bytes=file_bytes,
        request_bytes=max(ServeSettings.request_bytes, file_bytes + MIB),
        held_bytes=max(ServeSettings.held_bytes, 4 * file_bytes),
        pixels=int(chosen["megapixels"] * 1e6),
        answer_seconds=chosen["timeout"],
    )

    from clca.serve.server import listen
    from clca.serve.server import serve as run_server

    listening = listen(chosen["host"], chosen["port"])  # before torch is loaded, which takes seconds

    from clca.serve.application import create_app

    app = create_app(chosen["runs"], settings)
    address = _address(chosen["host"], listening.getsockname()[1])

    def tell() -> None:
        auth = "" if token is None else f' -H "Authorization: Bearer $(cat {quote(str(chosen["token_file"]))})"'
        print(f"serving {', '.join(app.state.service.models)} at {address}; how to ask is at {address}/docs")
        print(f"  curl{auth} -F images=@leaf.jpg '{address}/v1/predict?top_k=3'", flush=True)

    if token is None and not _is_local(chosen["host"]):
        print(
            f"clca: warning: whoever reaches {chosen['host']} can ask: set --token-file, or leave --host out",
            file=sys.stderr,
        )
    run_server(app, listening, tell)
    print("stopped", flush=True)
    return 0


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text().strip()
    except UnicodeDecodeError:
        raise ClcaError(f"{file} is not text: make a token with `openssl rand -hex 32`") from None
    if not token:
        raise ClcaError(f"{file} is empty: make a token with `openssl rand -hex 32`")
    return token


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(host: str, port: int) -> str:
    """Where to ask, from this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"
