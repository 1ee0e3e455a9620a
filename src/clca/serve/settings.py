"""What an endpoint accepts, and how it batches; every limit of it in one place."""

import re
from dataclasses import dataclass, fields
from typing import Literal

from clca.errors import ClcaError

MIB = 1 << 20

# What addresses of the endpoint and of the page begin with: below a path of such a name nobody could tell whether a
# proxy has taken it away.
_OWN = ("v1", "health", "metrics", "docs", "openapi.json", "config", "gradio_api", "assets", "static", "svelte")


@dataclass(frozen=True)
class ServeSettings:
    """Limits and batching of an endpoint.

    Attributes:
        max_batch: Images the model takes at once, at most.
        wait_ms: How long an image waits for others to share its batch, in milliseconds.
        queue: Images that may be under way (uploaded, decoded, waiting, computed) before requests are refused (429).
        decoders: Processes that decode images. As many again are busy where images take longer than half a second.
        decode_seconds: Processor time that an image may take to decode; its process is ended then.
        threads: CPU threads of the model; None leaves torch's choice.
        device: "auto" or "cpu".
        precision: "auto", "no", "bf16" or "fp16".
        token: What clients have to show, or None.
        local: Whether requests have to call this machine localhost, 127.0.0.1 or the like. Where only this machine can
            reach the server, and needs no token, that keeps out the pages of other sites in a browser here, which get
            at it by a name that they made to lead here (DNS rebinding).
        root_path: Below which path a proxy shows the server, as "/cultivars"; requests come with it or without.
        files: Images a request.
        file_bytes: Bytes an image, as it is sent.
        request_bytes: Bytes a request.
        held_bytes: Bytes of all requests under way together, as they are sent.
        pixels: Width × height of an image; it takes about four bytes a pixel to decode.
        read_seconds: How long a client may send nothing in the middle of its request.
        upload_seconds: How long a request may take to arrive.
        answer_seconds: How long an answer may take once the request is here.
        grace_seconds: How long a server that is told to stop waits for what it has accepted.

    Raises:
        ClcaError: Where a number is not positive, the token is too short to keep anyone out, or `root_path` is none.
    """

    max_batch: int = 16
    wait_ms: float = 5.0
    queue: int = 128
    decoders: int = 2
    decode_seconds: float = 5.0
    threads: int | None = None
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    token: str | None = None
    local: bool = False
    root_path: str = ""
    files: int = 32
    file_bytes: int = 16 * MIB
    request_bytes: int = 64 * MIB
    held_bytes: int = 256 * MIB
    pixels: int = 50_000_000
    read_seconds: float = 10.0
    upload_seconds: float = 60.0
    answer_seconds: float = 30.0
    grace_seconds: float = 30.0

    @property
    def files_a_request(self) -> int:
        """`files`, or less where the queue would never have room for as many."""
        return min(self.files, self.queue)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) in (int, float) and not (value > 0 or (field.name == "wait_ms" and value == 0)):
                raise ClcaError(f"{field.name} = {value}: has to be above 0")
        if not re.fullmatch(r"(/[\w~-][\w.~-]*)*", self.root_path, re.ASCII):
            raise ClcaError(f"root_path {self.root_path!r}: write the path as /cultivars, of letters, digits and -._~")
        if self.root_path[1:].partition("/")[0] in _OWN:
            raise ClcaError(f"root_path {self.root_path!r}: the server itself has addresses there; choose another path")
        if self.token is not None and len(self.token) < 16:
            raise ClcaError("the token has fewer than 16 characters: make one with `openssl rand -hex 32`")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise ClcaError("the token is not plain ASCII without blanks: make one with `openssl rand -hex 32`")
