"""What an endpoint accepts, and how it batches; every limit of it in one place."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from clca.system.settings import StrictSettings

MIB = 1 << 20

# What addresses of the endpoint and of the page begin with: below a path of such a name it could not be detected
# whether a proxy has taken it away.
_OWN = ("v1", "health", "metrics", "docs", "openapi.json", "config", "gradio_api", "assets", "static", "svelte")

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServeSettings(StrictSettings):
    """Limits and batching of an endpoint.

    Raises:
        ClcaError: A number is not positive, the token is too short to keep anyone out, or `root_path` is no path.
    """

    max_batch: int = Field(16, ge=1, description="Largest batch of images for the model.")
    wait_ms: float = Field(
        5.0, ge=0, allow_inf_nan=False, description="Milliseconds that an image waits for others to share its batch."
    )
    queue: int = Field(
        128,
        ge=1,
        description="Images in progress (uploaded, decoded, waiting, computed) before requests are refused with 429.",
    )
    decoders: int = Field(2, ge=1, description="Processes that decode images; twice as many while images are slow.")
    decode_seconds: Seconds = Field(
        5.0, description="Processor time that decoding an image may take; its process is ended then."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of the model. If omitted: PyTorch's choice.")
    device: Literal["auto", "cpu"] = Field("auto", description="auto: the GPU if there is one. cpu: not even then.")
    precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto", description="Mixed precision. auto: bf16 where the device computes it fast, else none."
    )
    token: str | None = Field(None, repr=False, description="Bearer token that clients have to send. None: no token.")
    local: bool = Field(
        False,
        description="Accept only requests addressed to localhost, 127.0.0.1 or the like. Where only this machine can "
        "reach the server and no token is needed, this keeps out pages of other sites in a browser here that reach it "
        "by a name of theirs (DNS rebinding).",
    )
    root_path: str = Field(
        "",
        description="Path under which a proxy serves it, such as /cultivars; requests may come with it or without. If "
        "empty: at the top.",
    )
    files: int = Field(32, ge=1, description="Images per request, at most.")
    file_bytes: int = Field(16 * MIB, ge=1, description="Bytes per image file, as uploaded.")
    request_bytes: int = Field(64 * MIB, ge=1, description="Bytes per request.")
    held_bytes: int = Field(256 * MIB, ge=1, description="Bytes of all requests in progress together, as uploaded.")
    pixels: int = Field(
        50_000_000, ge=1, description="Width × height of an image; decoding takes about four bytes per pixel."
    )
    read_seconds: Seconds = Field(10.0, description="How long a client may pause in the middle of its request.")
    upload_seconds: Seconds = Field(60.0, description="How long a request may take to arrive.")
    answer_seconds: Seconds = Field(30.0, description="Seconds an answer may take once the request has arrived.")
    grace_seconds: Seconds = Field(30.0, description="How long a stopping server waits for the requests it accepted.")

    @property
    def files_a_request(self) -> int:
        """`files`, or fewer where the queue could never hold as many."""
        return min(self.files, self.queue)

    @model_validator(mode="after")
    def _path_and_token(self) -> "ServeSettings":
        if not re.fullmatch(r"(/[\w~-][\w.~-]*)*", self.root_path, re.ASCII):
            raise ValueError(
                f"root_path: {self.root_path!r} is no path: write the path as /cultivars, of letters, digits and -._~"
            )
        if self.root_path[1:].partition("/")[0] in _OWN:
            raise ValueError(f"root_path: {self.root_path!r}: the server has addresses there; choose another path")
        if self.token is not None and len(self.token) < 16:
            raise ValueError("token: has fewer than 16 characters: make one with `openssl rand -hex 32`")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise ValueError("token: is not plain ASCII without blanks: make one with `openssl rand -hex 32`")
        return self
