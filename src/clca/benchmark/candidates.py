"""The candidates of a benchmark: one model in one setting each, built and ready to be timed."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clca.errors import ClcaError
from clca.kernels.prepack import prepacked
from clca.models.backbones import resolve
from clca.models.compile import compiled_call
from clca.models.config import spelled
from clca.models.cost import cost
from clca.models.factory import create_model, reduce_tokens
from clca.models.pretrained import from_pretrained
from clca.models.token_reduced_vit import TokenReducedViT

DENSE, OWN_DENSE = "dense", "clca_dense"
"""In place of a reduction's name: timm's own model with its fused attention, and this library's model that reduces
nothing and has neither module, so that it differs from timm's by the kernels alone."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Candidate:
    """One model in one setting; the fields are those of `BenchmarkConfig`, with one value each.

    `label` is the model's name in tables, if it differs from `model`.
    """

    model: str
    img_size: int
    batch_size: int
    reduction: str
    keep_rate: float | tuple[float, ...]
    precision: str = "fp32"
    mode: str = "eager"
    training: bool = False
    cla: bool = True
    clc: bool = True
    device: str = "cpu"
    label: str = ""

    @property
    def title(self) -> str:
        """The model's name in tables."""
        return self.label or self.model

    @property
    def name(self) -> str:
        """Unique among the candidates of a benchmark."""
        return " ".join(str(value) for value in vars(self).values())

    @property
    def setting(self) -> str:
        """Reduction and keep rate."""
        return f"{self.shown_reduction} {spelled(self.keep_rate)}"

    @property
    def shown_reduction(self) -> str:
        """The reduction's name in tables."""
        return {DENSE: "timm dense", OWN_DENSE: "clca dense"}.get(self.reduction, self.reduction)

    @property
    def timm_dense(self) -> Candidate:
        """timm's dense model in the same setting."""
        return replace(self, reduction=DENSE, keep_rate=1.0)

    @property
    def own_dense(self) -> Candidate:
        """This library's dense model in the same setting."""
        return replace(self, reduction=OWN_DENSE, keep_rate=1.0)

    @property
    def is_dense(self) -> bool:
        """Whether it is one of the two baselines."""
        return self.reduction in (DENSE, OWN_DENSE)


def is_run(model: str) -> bool:
    """Whether a model is a run folder rather than the name of a timm model."""
    return Path(model).is_dir()


def share_weights(model: TokenReducedViT, keep_rate: float | tuple[float, ...]) -> TokenReducedViT:
    """A copy at another keep rate that shares the weights in memory; the statistics of its head are its own."""
    buffers = [buffer for name, buffer in model.named_buffers() if not name.startswith("cla_head.")]
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *buffers]}
    copied = copy.deepcopy(model, shared)
    copied.keep_rate = keep_rate
    return copied


@dataclass
class CandidateBuilder:
    """Builds candidates. They share the weights of the backbone, so that many fit into memory at once.

    Args:
        seed: Of weights and images.
        alone: Whether only one candidate is built, which then holds no weights but its own.
    """

    seed: int = 0
    alone: bool = False
    _vits: dict[tuple[str, int], nn.Module] = field(default_factory=dict)
    _images: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)
    _optimizers: dict[bool, torch.optim.Optimizer] = field(default_factory=dict)
    _graph_pool: Any = None
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _prepacked: ExitStack = field(default_factory=ExitStack)

    def model(self, candidate: Candidate) -> nn.Module:
        """The model, on its device, in the mode for its work."""
        torch.manual_seed(self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if candidate.reduction == DENSE:
                model = self._vit(candidate)
            elif candidate.reduction == OWN_DENSE:
                model = reduce_tokens(self._vit(candidate), cla=False, clc=False)
                model.bit_exact = False  # it is here for the kernels
            elif is_run(candidate.model):
                model = self._run(candidate)
            else:
                settings: dict[str, Any] = {n: getattr(candidate, n) for n in ("reduction", "keep_rate", "cla", "clc")}
                if self.alone:
                    model = create_model(candidate.model, img_size=candidate.img_size, **settings)
                else:
                    model = reduce_tokens(self._vit(candidate), **settings)
        return model.to(candidate.device).train(candidate.training)

    def _vit(self, candidate: Candidate) -> nn.Module:
        key = candidate.model, candidate.img_size
        if key not in self._vits:
            name, kwargs = candidate.model, {}
            if is_run(name):
                config = from_pretrained(name).config
                name, kwargs = config.backbone, {**config.backbone_kwargs, "num_classes": config.num_classes}
            architecture = resolve(name).architecture
            vit = timm.create_model(architecture, img_size=candidate.img_size, **kwargs)
            self._vits[key] = vit.to(candidate.device)
        return self._vits[key]

    def _run(self, candidate: Candidate) -> TokenReducedViT:
        key = f"{candidate.model}:own", candidate.img_size
        if key not in self._vits:
            self._vits[key] = from_pretrained(candidate.model).to(candidate.device)
        return share_weights(self._vits[key], candidate.keep_rate)  # type: ignore[arg-type]

    def images(self, candidate: Candidate) -> Tensor:
        """Noise, [B, 3, H, W] float32."""
        size, batch = candidate.img_size, candidate.batch_size
        key = candidate.device, size, batch
        if key not in self._images:
            generator = torch.Generator().manual_seed(self.seed)
            images = torch.randn(batch, 3, size, size, generator=generator)
            self._images[key] = images.to(candidate.device)
        return self._images[key]

    def work(self, candidate: Candidate, model: nn.Module | None = None) -> Callable[[], Any]:
        """The function to time: the forward pass of a batch, or a training step on it.

        Args:
            candidate: The setting.
            model: From `self.model`; built if omitted.

        Raises:
            ClcaError: The mode does not support this setting.
        """
        model = self.model(candidate) if model is None else model
        images = self.images(candidate)
        if candidate.mode == "onnx":
            return self._onnx(candidate, model, images)
        called: Callable[..., Tensor] = compiled_call(model) if candidate.mode == "compiled" else model
        if candidate.training:
            return self._as_graph(candidate, self._training_step(candidate, model, called, images))

        self._prepacked.enter_context(prepacked(model))  # for the lifetime of the builder, as in `clca predict`

        def infer() -> Tensor:
            with torch.no_grad(), _autocast(candidate):
                return called(images)

        return self._as_graph(candidate, infer)

    def _as_graph(self, candidate: Candidate, work: Callable[[], Any]) -> Callable[[], Any]:
        """The function itself, or in mode cudagraph the replay of its CUDA graph, without Python's overhead.

        A replay returns the tensor that the capture returned; it is valid until another graph is replayed.
        """
        if candidate.mode != "cudagraph":
            return work
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose kernels and the optimizer creates its state before capture
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # One graph is replayed at a time, so all can share memory.
        self._graph_pool = self._graph_pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._graph_pool):
            result = work()

        def replay(_: Callable[[], Any] = work) -> Any:  # keeps the tensors alive that the graph reads
            graph.replay()
            return result

        return replay

    def _onnx(self, candidate: Candidate, model: nn.Module, images: Tensor) -> Callable[[], Any]:
        if candidate.training or candidate.precision != "fp32":
            raise ClcaError("ONNX Runtime is measured in inference and in fp32 only")
        from clca.export import export_onnx
        from clca.export.load import load_exported

        if not isinstance(model, TokenReducedViT):  # timm's own: wrapped it computes the same bits
            model = reduce_tokens(model, cla=False, clc=False).eval()
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="clca-")
        path = Path(self._folder.name) / f"{abs(hash(candidate)):x}.onnx"
        session = load_exported(export_onnx(model, path), threads=torch.get_num_threads(), trusted=True)
        pixels = images.cpu()
        return lambda: session(pixels)

    def _training_step(
        self, candidate: Candidate, model: nn.Module, called: Callable[..., Tensor], images: Tensor
    ) -> Callable[[], Any]:
        """Forward, backward and AdamW's update, as in `clca train`."""
        # One optimizer for all, which skips parameters without a gradient: its state is shared like the weights. CUDA
        # graphs have another, whose step counts are on the GPU.
        in_graph = candidate.mode == "cudagraph"
        optimizer = self._optimizers.get(in_graph)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
        new = [parameter for parameter in model.parameters() if id(parameter) not in known]
        if optimizer is None:
            lr = torch.zeros((), device=images.device) if in_graph else 0.0  # does not change the weights
            optimizer = torch.optim.AdamW(new, lr=lr, capturable=in_graph)
            self._optimizers[in_graph] = optimizer
        elif new:
            optimizer.add_param_group({"params": new})
        labels = torch.arange(candidate.batch_size, device=images.device) % int(model.num_classes)  # type: ignore[arg-type]

        def step() -> None:
            with _autocast(candidate):
                loss = F.cross_entropy(called(images).float(), labels)
                if isinstance(model, TokenReducedViT):
                    loss = loss + model.auxiliary_loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


def _autocast(candidate: Candidate) -> AbstractContextManager[Any]:
    if candidate.precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(candidate.device).type, DTYPES[candidate.precision])


def run_alone(candidate: Candidate, seed: int) -> None:
    """Build a candidate and call it twice; its memory is measured by `timing.peak_memory`."""
    work = CandidateBuilder(seed, alone=True).work(candidate)
    for _ in range(2):
        work()


def counts(builder: CandidateBuilder, candidate: Candidate, model: nn.Module) -> dict[str, Any]:
    """Of one image: `patches`, and the forward pass's `gmacs` as published and `computed_gmacs` as computed here."""
    pads = isinstance(model, TokenReducedViT) and model.pads
    found = cost(model, images=builder.images(candidate)[:2] if pads else None)
    return {
        "patches": model.get_submodule("patch_embed").num_patches,
        "gmacs": found.gmacs,
        "computed_gmacs": found.computed_gmacs,
    }


def check(candidate: Candidate) -> None:
    """Validate model, size and setting before anything is measured.

    Raises:
        ClcaError: With the reason.
    """
    if is_run(candidate.model):
        return
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        create_model(
            candidate.model,
            img_size=candidate.img_size,
            reduction="none" if candidate.is_dense else candidate.reduction,
            keep_rate=candidate.keep_rate,
            cla=candidate.cla,
            clc=candidate.clc,
        )
