"""What `clca serve` and `clca app` have in common: their flags, settings, token and address."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from clca.errors import ClcaError

if TYPE_CHECKING:
    from clca.serve.settings import ServeSettings

_PACKAGES = {
    "serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
    "app": ("gradio", "fastapi", "uvicorn", "python_multipart", "prometheus_client"),
}


@dataclass(frozen=True)
class Serving:
    """Flags of a command that listens.

    Args:
        host: Address to listen on; 127.0.0.1 lets only this machine in, 0.0.0.0 all that reach it.
        port: Port to listen on; 0 takes a free one.
        token_file: File whose content clients have to show as a bearer token, and browsers as the password.
        root_path: Path below which a proxy shows the server, such as /cultivars; nothing where it is at the top.
        max_batch: Images the model takes at once, at most.
        wait_ms: How long an image waits for others to share its batch, in milliseconds.
        queue: Images that may be under way before requests are refused with 429.
        files: Images a request.
        file_mib: Size of an image file, in MiB.
        megapixels: Width × height of an image, in millions.
        timeout: Seconds an answer may take.
        decoders: Processes that decode images.
        decode_seconds: Processor time an image may take to decode.
        threads: CPU threads of the model; torch's choice without it.
        device: auto takes the GPU if there is one.
        precision: auto takes bf16 where the device computes it fast.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    root_path: str = ""
    max_batch: int = 16
    wait_ms: float = 5.0
    queue: int = 128
    files: int = 32
    file_mib: float = 16.0
    megapixels: float = 50.0
    timeout: float = 30.0
    decoders: int = 2
    decode_seconds: float = 5.0
    threads: int | None = None
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"

    def __post_init__(self) -> None:
        if self.host.startswith("[") and self.host.endswith("]"):  # as a URL has it
            object.__setattr__(self, "host", self.host[1:-1])

    def settings(self) -> ServeSettings:
        """As the endpoint takes them, the token read from its file."""
        from clca.serve.settings import MIB, ServeSettings

        names = (
            *("root_path", "max_batch", "wait_ms", "queue", "files", "decoders", "decode_seconds", "threads", "device"),
            "precision",
        )
        for name in ("file_mib", "megapixels", "decode_seconds"):
            if not math.isfinite(getattr(self, name)):
                flag = f"--{name.replace('_', '-')}"
                raise ClcaError(
                    f"{flag} {getattr(self, name)}: has to be a finite number, such as {getattr(Serving, name):g}"
                )
        file_bytes = int(self.file_mib * MIB)
        return ServeSettings(
            **{name: getattr(self, name) for name in names},
            token=_read_token(self.token_file),
            file_bytes=file_bytes,
            request_bytes=max(ServeSettings.request_bytes, file_bytes + MIB),
            held_bytes=max(ServeSettings.held_bytes, 4 * file_bytes),
            pixels=int(self.megapixels * 1e6),
            answer_seconds=self.timeout,
            local=self.is_local and self.token_file is None,
        )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def warning(self) -> str | None:
        """What to tell who lets others in without a token."""
        if self.token_file is not None or self.is_local:
            return None
        return f"clca: warning: whoever reaches {self.host} can ask: set --token-file, or leave --host out"

    @property
    def header(self) -> str:
        """What curl needs to show the token."""
        return "" if self.token_file is None else f' -H "Authorization: Bearer $(cat {quote(str(self.token_file))})"'

    def address(self, port: int) -> str:
        """Where to ask, from this machine."""
        host = self.host
        name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{name}:{port}"


def need(extra: Literal["serve", "app"], runs: tuple[str, ...]) -> None:
    """Refuse to begin without runs, or without the packages of an extra."""
    if not runs:
        raise ClcaError("no model to serve: name a run folder")
    missing = [name for name in _PACKAGES[extra] if find_spec(name) is None]
    if missing:
        raise ClcaError(f"clca {extra} needs {', '.join(missing)}: pip install 'clca[{extra}]'")


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
