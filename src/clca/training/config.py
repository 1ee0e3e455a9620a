"""The settings of a training run: model, data and recipe, checked before anything starts.

The defaults are the published recipe for ultra-fine-grained sets (Rios et al., ICASSP 2025): AdamW at 1e-4, weight
decay 0.05 on matrices only, batches of 32, cross-entropy, random crop and flip.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from clca.data.sources.listing import Grouping
from clca.models.config import ModelConfig, Name, spelled
from clca.models.stored_model import check_storable
from clca.system.settings import Settings
from clca.training.recipes import with_recipe

PUBLISHED_WARMUP, PUBLISHED_COSINE, PUBLISHED_COOLDOWN = 2, 45, 5
PUBLISHED_EPOCHS = PUBLISHED_WARMUP + PUBLISHED_COSINE + PUBLISHED_COOLDOWN

# Upper limits far beyond practical use, so that typing errors and untrusted files are rejected before work begins.
MOST = 1_000_000_000
Positive = Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]


class DataConfig(Settings):
    """Which images to train and validate on."""

    root: Name = Field(
        description="Folder with train/, val/, test/ and one folder per class in each (or one folder per class, "
        "split by rule), a CSV file, an Ultra-FGVC set, or leaves:cultivars=20,images=30,size=224 for "
        "synthetic leaves."
    )
    source: Name | None = Field(
        None, description="Layout of the data: folder, csv, cotton80 and so on. If omitted: detected."
    )
    train_split: Literal["train", "train_val"] = Field(
        "train",
        description="Images to train on; train_val is what published numbers use, and leaves none to validate on.",
    )
    val_split: Literal["auto", "val", "test", "none"] = Field(
        "auto",
        description="Images to validate on after every epoch. auto: val, unless it is trained on. The weights kept are "
        "the best on val; with test or none, the last ones.",
    )

    group: Name | None = Field(
        None,
        description="Column of the CSV file that names the plant, pot or session: its images stay on one side of every "
        "split.",
    )
    group_by: Name | None = Field(
        None,
        description="The same by file name: a regular expression, such as 'plant([0-9]+)'; images in whose path below "
        "DATA its parentheses match the same stay together.",
    )
    folds: Annotated[int, Field(ge=2, le=100)] | None = Field(
        None,
        description="Cross-validation: divide all images into this many parts, whatever split they are in; train and "
        "test once for each.",
    )
    fold: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="Only the run that is tested on this part of `folds`. If omitted: all of them."
    )

    @model_validator(mode="after")
    def _is_a_fold(self) -> "DataConfig":
        if self.group is not None and self.group_by is not None:
            raise ValueError("group: give either a column (group) or a pattern (group_by)")
        if self.fold is not None and (self.folds is None or self.fold > self.folds):
            raise ValueError(f"fold: {self.fold} is not one of the folds: {self.folds or 'set folds too'}")
        return self

    @property
    def grouping(self) -> Grouping:
        """Which images stay together, and the part that is tested on."""
        return Grouping(self.group, self.group_by, self.folds, self.fold)

    @field_validator("root", mode="before")
    @classmethod
    def _path_as_text(cls, root: object) -> object:
        return str(root) if isinstance(root, Path) else root


class TrainConfig(Settings):
    """The settings of one training run. Two runs with equal settings on one CPU give equal weights, bit for bit."""

    model: ModelConfig = Field(description="The model to train.")
    data: DataConfig = Field(description="The images to train and validate on.")
    pretrained: bool = Field(True, description="Start from the published weights of the model, else from random ones.")
    weights: Name | None = Field(
        None,
        description="Start from this file instead (safetensors or .pth; parameter names of timm, clca or the "
        "published code).",
    )
    start_from: Name | None = Field(
        None,
        description="Start from the weights of this run, with its model settings; classes that it does not know are "
        "added. quick and best fit the head anew, to images of all classes; published keeps the rows of known "
        "classes, also of those without images.",
    )
    out: Path | None = Field(
        None, description="Run folder. If omitted: runs/ and a name made from data, model and settings."
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="Seed of the new weights, the order of the images and their augmentation."
    )

    recipe: Literal["published", "quick", "best"] = Field(
        "published",
        description="Defaults of the other settings; each can still be given. published: the paper's; quick: a linear "
        "head on the frozen model; best: quick, then the blocks from the first reduction on. If omitted, clca train "
        "takes quick, or published with --config or random weights.",
    )
    probe: Literal["none", "only", "first"] = Field(
        "none",
        description="Fit a linear head to the features of the frozen model, by logistic regression: only, in place of "
        "training; or first, as the start of it.",
    )
    probe_views: Annotated[int, Field(ge=1, le=8)] | None = Field(
        None,
        description="Views of each photograph that the probe reads at most: 1, 2 with its mirror image, 4 with both "
        "upside down, 8 with these four mirrored at the diagonal; cross-validation chooses 1, 2 or all. If omitted: 4, "
        "or 8 before training, for up to 2000 photographs; 2 for up to 5000; else 1.",
    )
    epochs: int = Field(
        PUBLISHED_EPOCHS,
        ge=1,
        le=1_000_000,
        description="Passes over the images: 2 of warm-up, 45 of cosine, 5 of cooldown.",
    )
    warmup_epochs: NotNegative | None = Field(
        None,
        description="Epochs of linear warm-up from `warmup_lr`, part of `epochs`. If omitted: 2, or less with "
        "`epochs` below 52.",
    )
    cooldown_epochs: NotNegative | None = Field(
        None,
        description="Last epochs at `min_lr`, part of `epochs`. If omitted: 5, or less with `epochs` below 52.",
    )
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1e-4, description="Highest learning rate; not scaled by the batch size."
    )
    warmup_lr: NotNegative = Field(1e-6, description="Learning rate at the first step.")
    min_lr: NotNegative = Field(1e-5, description="Learning rate at the end of the cosine and after it.")
    weight_decay: NotNegative = Field(
        0.05, description="AdamW's; none on biases, norms, position embedding, CLS and CLR."
    )
    batch_size: int = Field(32, ge=1, le=1_000_000, description="Images per update of the weights, over all processes.")
    grad_accum: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="Split each batch into this many parts, computed one after the other, to save memory.",
    )
    clip_grad: Positive | None = Field(None, description="Largest norm of the gradient. If omitted: no clipping.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Multiply the learning rate by this for every layer further from the head (0.65 to 0.9 are usual).",
    )
    head_lr_scale: Positive = Field(1.0, description="Multiply the learning rate of the classification head by this.")
    freeze_backbone: bool = Field(False, description="Train only what is new: head, carrier tokens, reduction modules.")
    freeze_blocks: Annotated[int, Field(ge=0, le=MOST)] | Literal["unreduced"] | None = Field(
        None,
        description="Keep the embedding and this many first blocks as they are, which saves their backward pass; "
        "unreduced: those before the first reduction. If omitted: none.",
    )

    augmentation: Literal["none", "medium", "strong"] = Field(
        "none",
        description="none: random crop and flip, as published. medium: TrivialAugment, random resized crop, erasing.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Label smoothing. If omitted: 0.1 with medium and strong augmentation, else 0."
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Stochastic depth. If omitted: 0.1 with medium and strong augmentation, else 0."
    )
    mixup: NotNegative = Field(0.0, description="Mixup's alpha (0: off; 0.8 is usual).")
    cutmix: NotNegative = Field(0.0, description="CutMix' alpha (0: off; 1 is usual).")
    balance: Literal["none", "loss", "sampler"] = Field(
        "none",
        description="For classes with different numbers of images. loss: weight each image so that all classes count "
        "the same; sampler: draw each class equally often, with repetition. The probe weights its images with both.",
    )
    watch: Literal["auto", "top1", "macro", "loss"] = Field(
        "auto",
        description="What is best on val, which decides on the weights kept: top-1, its mean over classes, or the "
        "loss. auto: macro if the largest class has over three times the training images of the smallest, else top1.",
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Use a moving average of the weights with this decay (0.999 suits a few thousand steps).",
    )
    patience: Annotated[int, Field(ge=1, le=MOST)] | None = Field(
        None, description="Stop after this many epochs that are not better on val (`watch`). If omitted: never."
    )

    precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto",
        description="Mixed precision. auto: bf16 where the device computes it fast, else none; a resumed run "
        "keeps its own.",
    )
    device: Literal["auto", "cpu"] = Field("auto", description="auto: the GPU if there is one. cpu: not even then.")
    channels_last: bool = Field(False, description="Use channels-last memory format.")
    grad_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass, which needs far less memory."
    )

    compile: bool = Field(
        False, description="Compile the model: minutes at the start, then faster steps. Needs a C++ compiler."
    )

    workers: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        None, description="Processes that read images, for each training process. If omitted: one per core, at most 8."
    )
    cache: bool = Field(
        True,
        description="Keep the resized images on disk, so that later epochs and runs need not decode them again (clca "
        "data cache lists them). Medium and strong augmentation crop the originals, so there it serves the validation "
        "images only.",
    )
    cache_gb: NotNegative | None = Field(
        None, description="Gigabytes that all resized images may take. If omitted: $CLCA_CACHE_GB, else 20."
    )
    log_every: int = Field(1, ge=1, le=MOST, description="Steps between two lines of metrics.jsonl.")
    checkpoint_minutes: Positive = Field(10.0, description="Save last.ckpt at least this often, and after every epoch.")
    checkpoint_steps: Annotated[int, Field(ge=1, le=MOST)] | None = Field(
        None, description="Save last.ckpt every this many steps as well."
    )
    track: Literal["none", "tensorboard", "wandb", "mlflow"] = Field(
        "none", description="Report the metrics to this service too."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, given: Any) -> Any:
        return with_recipe(given) if isinstance(given, dict) and given.get("recipe") else given

    @field_validator("precision", mode="before")
    @classmethod
    def _no_in_yaml(cls, precision: object) -> object:
        return "no" if precision is False else precision  # YAML reads a bare no as false

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        check_storable(self.model, "settings")  # settings come in files too, and the model is to be saved
        size = self.model.img_size
        if isinstance(size, tuple) and size[0] != size[1]:  # reported before a study is planned or a model built
            raise ValueError(
                f"img_size: {size[0]} {size[1]} is oblong, and training uses square images: give one number"
            )
        if self.start_from is not None and self.weights is not None:
            raise ValueError("weights: a run that starts from another one has its weights; leave one of the two out")
        _check_rate_in_use(self.model)
        if self.warmup + self.cooldown >= self.epochs:
            raise ValueError(
                f"epochs: {self.epochs} leaves none for the cosine after {self.warmup:g} of warm-up and "
                f"{self.cooldown:g} of cooldown"
            )
        if self.batch_size % self.grad_accum:
            raise ValueError(f"grad_accum: {self.grad_accum} does not divide batch_size {self.batch_size}")
        if (self.mixup or self.cutmix) and (self.batch_size // self.grad_accum) % 2:
            raise ValueError(
                f"batch_size: mixup and cutmix need an even number of images in each part of a batch, not "
                f"{self.batch_size // self.grad_accum}"
            )
        if self.probe != "none" and self.model.cla and self.model.cla_head != "linear":
            raise ValueError(
                f"probe: {self.probe} fits a linear head: choose cla_head linear, or no aggregation head (no cla)"
            )
        if self.probe == "only" and self.epochs != 1:
            raise ValueError(
                f"epochs: {self.epochs} are trained by the recipes published and best; probe only (recipe quick) "
                "passes the images through the frozen model once"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: {self.min_lr:g} is above lr {self.lr:g}")
        if self.patience is not None and self.watched_split != "val":
            raise ValueError("patience: stopping early needs the val split, which is trained on or switched off")
        return self

    @property
    def warmup(self) -> float:
        """Epochs of warm-up: as set, or reduced in proportion for a run shorter than the published one."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return PUBLISHED_WARMUP * min(1.0, self.epochs / PUBLISHED_EPOCHS)

    @property
    def cooldown(self) -> float:
        """Epochs at the lowest learning rate: as set, or reduced in proportion for a shorter run."""
        if self.cooldown_epochs is not None:
            return self.cooldown_epochs
        return PUBLISHED_COOLDOWN * min(1.0, self.epochs / PUBLISHED_EPOCHS)

    @property
    def watched_split(self) -> Literal["val", "test", "none"]:
        """The split evaluated after every epoch."""
        if self.data.val_split == "auto":
            return "val" if self.data.train_split == "train" else "none"
        return self.data.val_split

    @property
    def smoothing(self) -> float:
        if self.label_smoothing is not None:
            return self.label_smoothing
        return 0.0 if self.augmentation == "none" else 0.1

    @property
    def drop_path_rate(self) -> float:
        if self.drop_path is not None:
            return self.drop_path
        return 0.0 if self.augmentation == "none" else 0.1


def _check_rate_in_use(model: ModelConfig) -> None:
    """Refuse a keep rate that the model is not trained for."""
    if model.keep_rates is None:
        return
    least, *_, most = model.keep_rates
    rates = model.keep_rate if isinstance(model.keep_rate, tuple) else (model.keep_rate,)
    if any(not least <= rate <= most for rate in rates):
        raise ValueError(
            f"keep_rate: {spelled(rates)} is outside of the keep_rates that the model is trained for, {least:g} to "
            f"{most:g}: choose one of them, or leave it out for {least:g}"
        )


# Settings that may differ when a run is resumed: none of them changes the weights.
NOT_PART_OF_A_RUN = frozenset(
    {
        "recipe",
        "out",
        "workers",
        "cache",
        "cache_gb",
        "log_every",
        "checkpoint_minutes",
        "checkpoint_steps",
        "track",
        "device",
    }
)


# Settings that earlier versions did not have, with the value that they had without knowing: left out of an identity
# where they have it, so that a run of an earlier version is still found and continued.
_LATER: dict[str, object] = {
    "probe": "none",
    "start_from": None,
    "freeze_blocks": None,
    "data.group": None,
    "data.group_by": None,
    "data.folds": None,
    "data.fold": None,
    "balance": "none",
    "watch": "auto",
    "model.cla_head": "convolution",
    "model.cla_average": False,
    "model.keep_rates": None,
}


def identity(config: TrainConfig) -> dict[str, object]:
    """The settings that identify a run, flat: `{"lr": 0.0001, "model.reduction": "evit", …}`."""
    flat: dict[str, object] = {}
    left_out = {name: True for name in NOT_PART_OF_A_RUN} | {"model": {"num_classes"}}  # follows from the data
    for name, value in config.model_dump(mode="json", exclude=left_out).items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": nested for inner, nested in value.items()})
        else:
            flat[name] = value
    return {name: value for name, value in flat.items() if name not in _LATER or value != _LATER[name]}


def default_run_folder(config: TrainConfig) -> Path:
    """`runs/<data>-<model>-<reduction>-<digest>`: the same for equal settings, different for different ones."""
    import hashlib
    import json
    import re

    model = config.model
    parts = [Path(config.data.root.split(":")[0]).resolve().name, model.backbone.split(".")[0], model.reduction]
    if model.reduction != "none":
        rates = model.keep_rates or model.keep_rate
        rates = rates if isinstance(rates, (list, tuple)) else (rates,)
        parts.append("-".join(f"{rate:g}" for rate in rates))
    parts.append(f"s{config.seed}")
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.+-]+", "_", "-".join([*parts, digest]))
    return Path("runs") / name
