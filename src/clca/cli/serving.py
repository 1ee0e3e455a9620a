"""What `clca serve` and `clca app` have in common: their flags, settings, token and address."""

from __future__ import annotations

from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from clca.cli.arguments import Arguments, like
from clca.errors import ClcaError
from clca.serve.settings import MIB, ServeSettings

_PACKAGES = {
    "serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
    "app": ("gradio", "fastapi", "uvicorn", "python_multipart", "prometheus_client"),
}


def _without_brackets(host: object) -> object:
    """`::1` from `[::1]`, as a URL writes an address of IPv6."""
    return host[1:-1] if isinstance(host, str) and host.startswith("[") and host.endswith("]") else host


class Serving(Arguments):
    """Flags of a command that listens."""

    host: Annotated[str, BeforeValidator(_without_brackets)] = Field(
        "127.0.0.1",
        description="Address to listen on. 127.0.0.1: this machine only; 0.0.0.0: every machine that can reach it.",
    )
    port: int = Field(8000, description="Port to listen on; 0 takes a free one.")
    token_file: Path | None = Field(
        None, description="File with the token that clients send as a bearer token, and browsers as the password."
    )
    root_path: str = like(ServeSettings, "root_path")
    max_batch: int = like(ServeSettings, "max_batch")
    wait_ms: float = like(ServeSettings, "wait_ms")
    queue: int = like(ServeSettings, "queue")
    files: int = like(ServeSettings, "files")
    file_mib: float = Field(16.0, gt=0, allow_inf_nan=False, description="Largest size of an image file, in MiB.")
    megapixels: float = Field(
        50.0, gt=0, allow_inf_nan=False, description="Largest width × height of an image, in millions of pixels."
    )
    timeout: float = like(ServeSettings, "answer_seconds")
    decoders: int = like(ServeSettings, "decoders")
    decode_seconds: float = like(ServeSettings, "decode_seconds")
    threads: int | None = like(ServeSettings, "threads")
    device: Literal["auto", "cpu"] = like(ServeSettings, "device")
    precision: Literal["auto", "no", "bf16", "fp16"] = like(ServeSettings, "precision")

    def settings(self) -> ServeSettings:
        """As the endpoint takes them, the token read from its file."""
        names = self.__class__.model_fields.keys() & ServeSettings.model_fields.keys()
        file_bytes = int(self.file_mib * MIB)
        return ServeSettings(
            **{name: getattr(self, name) for name in names},
            token=_read_token(self.token_file),
            file_bytes=file_bytes,
            request_bytes=max(ServeSettings().request_bytes, file_bytes + MIB),
            held_bytes=max(ServeSettings().held_bytes, 4 * file_bytes),
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
        """A line for users who let other machines in without a token."""
        if self.token_file is not None or self.is_local:
            return None
        return f"anyone who can reach {self.host} can query this server; set --token-file or drop --host"

    @property
    def header(self) -> str:
        """The option that gives curl the token."""
        return "" if self.token_file is None else f' -H "Authorization: Bearer $(cat {quote(str(self.token_file))})"'

    def address(self, port: int) -> str:
        """The URL of the server from this machine."""
        host = self.host
        name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{name}:{port}"


def require_extra(extra: Literal["serve", "app"]) -> None:
    """Refuse to start without the packages of an extra."""
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
