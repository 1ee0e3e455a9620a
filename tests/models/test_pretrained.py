"""Models in folders and on the hub: written whole or not at all, and read back bit for bit."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import clca
import clca.models.saving
from clca.models import factory
from clca.models.backbones import PAPER_BACKBONES, Backbone

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}
CLASSES = ["Merlot", "Pinot noir", "Riesling", "Syrah", "Tannat"]
DEIT = "deit_tiny_patch16_224"
URL = "https://weights.example.invalid/tiny-linear.pth.tar"


def make(**settings: Any) -> clca.TokenReducedViT:
    return clca.create_model(settings.pop("name", DEIT), **{**TINY, "num_classes": 5, **settings}).eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# -- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", clca.list_reductions())
@pytest.mark.parametrize(
    "settings", [{}, {"cla": False}, {"clc": False, "cla": False}, {"num_clr": 3, "clc_gap": False, "cla_width": 1}]
)
def test_round_trip(reduction: str, settings: dict[str, Any], tmp_path: Path) -> None:
    rate = 1.0 if reduction == "none" else (0.9, 0.5)
    model = make(reduction=reduction, keep_rate=rate, locations=[1, 2], in_chans=1, **settings)
    model.classes, model.preprocess = CLASSES, {"img_size": 16, "mean": (0.5,)}
    model.save_pretrained(tmp_path / "new" / "folder")
    again = clca.from_pretrained(tmp_path / "new" / "folder")
    images = torch.randn(3, 1, 16, 16)
    assert torch.equal(again(images), model(images))
    assert not again.training
    assert again.config == model.config
    assert (again.classes, again.preprocess) == (CLASSES, {"img_size": 16, "mean": [0.5]})


@pytest.mark.parametrize("name", ["device", "dtype", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_where_and_how_another_machine_made_a_model_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["model"]["backbone_kwargs"] |= {name: "meta"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(clca.ClcaError, match=f"config.json: backbone_kwargs has '{name}'"):
        clca.from_pretrained(tmp_path)


def test_what_else_the_config_says_is_kept(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"data": {"root": "leaves"}, "model": {"old": 1}, "seed": 3}))
    make().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["data"] == {"root": "leaves"}
    assert content["seed"] == 3
    assert content["model"]["backbone"] == DEIT
    assert oct((tmp_path / "model.safetensors").stat().st_mode)[-3:] == "644"


@pytest.mark.parametrize("part", ["save_file", "write_text", "dumps"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_the_old_files(
    part: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(reduction="evit", keep_rate=0.5).save_pretrained(tmp_path)
    before = contents(tmp_path)

    def fail(*args: Any, **kwargs: Any) -> None:
        if part == "save_file":
            Path(args[1]).write_bytes(b"half")
        raise error

    target = {"save_file": clca.models.saving, "write_text": Path, "dumps": json}[part]
    monkeypatch.setattr(target, part, fail)
    with pytest.raises((clca.WorkError, KeyboardInterrupt, OSError)) as stopped:
        make(reduction="tome", keep_rate=0.2).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    if isinstance(stopped.value, clca.WorkError):
        assert "no space left" in str(stopped.value)


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(clca.ClcaError, match="cannot be written"):
        make().save_pretrained(tmp_path / "file")
    with pytest.raises(clca.ClcaError, match="cannot be written"):
        make().save_pretrained(tmp_path / "file" / "below")
    (tmp_path / "config.json").write_text("not { json")
    with pytest.raises(clca.ClcaError, match=r"config\.json is not a JSON file"):
        make().save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "not { json"


def _drop(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _write(text: str) -> Any:
    return lambda folder: (folder / "config.json").write_text(text)


def _name(classes: Any) -> Any:
    return lambda folder: (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"classes": classes})
    )


def _edit(**fields: Any) -> Any:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        content["model"] |= fields
        (folder / "config.json").write_text(json.dumps(content))

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_drop("config.json"), "has no config.json"),
        (_drop("model.safetensors"), "has no model.safetensors"),
        (_write("}{"), "is not a JSON file"),
        (_write("[" * 100_000), "is not a JSON file"),
        (_write("\udcff".encode(errors="surrogateescape").decode("latin1")), "is not a JSON file"),
        (_write("[1, 2]"), "does not hold settings by name"),
        (_write("{}"), "does not describe a clca model"),
        (_write('{"model": 3}'), "does not describe a clca model"),
        (_write('{"model": {}}'), "backbone"),
        (_edit(backbone="resnet18"), "resnet18 does not fit"),
        (_edit(backbone="nothing"), "unknown model 'nothing'"),
        (_edit(reduction="nothing"), "unknown reduction 'nothing'"),
        (_edit(keep_rate=7), "keep_rate 7: a keep rate is a share"),
        (_edit(colour="red"), "colour: no such setting"),
        (_edit(num_classes=10**12), "num_classes 1000000000000"),
        (_edit(backbone_kwargs={"patch_size": 0}), "backbone_kwargs: patch_size = 0: a stored model takes"),
        (_edit(num_classes=9), "model.safetensors is of another model: of another shape: cla_head.classifier"),
        (_edit(cla=False), "model.safetensors is of another model: missing: norm.weight"),
        (_edit(reduction="sit", keep_rate=0.5), "model.safetensors is of another model: missing: reductions.0"),
        (_name(CLASSES[1:]), "config.json: classes has 4 names and the model 5 outputs"),
        (_name([*CLASSES, "Viognier"]), "config.json: classes has 6 names and the model 5 outputs"),
        (_name("fives"), "config.json: classes must be a list of names, not 'fives'"),
        (_name([1, 2, 3, 4, 5]), "config.json: classes must be a list of names"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "not a readable weight file"),
    ],
)
def test_damaged_folders(damage: Any, words: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(clca.ClcaError, match=words) as refused:
        clca.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(os.name == "nt", reason="there is no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_saved_model_is_read_by_whom_the_user_lets_read(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        make().save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "config.json": mode,
        "model.safetensors": mode,
    }


def test_classes_that_do_not_fit_are_not_saved(tmp_path: Path) -> None:
    model = make()
    model.classes = CLASSES[1:]
    with pytest.raises(clca.ClcaError, match="the model: classes has 4 names and the model 5 outputs"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cla", [True, False])
def test_a_model_for_features_names_no_classes(cla: bool, tmp_path: Path) -> None:
    model = make(num_classes=0, cla=cla)
    model.save_pretrained(tmp_path)
    again, images = clca.from_pretrained(tmp_path), torch.randn(2, 3, 16, 16)
    assert again.classes is None
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("where", ["/no/such/folder", "runs/no/such", "no such", ""])
def test_no_folder_at_all(where: str) -> None:
    with pytest.raises(clca.ClcaError) as refused:
        clca.from_pretrained(where)
    assert "\n" not in str(refused.value)


def test_a_wrapped_model_is_saved_if_it_can_be_made_again(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 16, 16)
    vit = timm.create_model(DEIT, **TINY, num_classes=7, init_values=0.1, qk_norm=True)
    model = clca.reduce_tokens(vit, reduction="topk", keep_rate=0.5, cla=False).eval()
    model.save_pretrained(tmp_path)
    assert torch.equal(clca.from_pretrained(tmp_path)(images), model(images))
    unnamed = timm.create_model(DEIT, **TINY, norm_layer=nn.LayerNorm)
    with pytest.raises(clca.ClcaError, match="settings cannot be saved as JSON"):
        clca.reduce_tokens(unnamed, num_classes=3).save_pretrained(tmp_path / "a")
    by_hand = timm.models.VisionTransformer(**TINY)
    with pytest.raises(clca.ClcaError, match=r"VisionTransformer was not created by timm.create_model"):
        clca.reduce_tokens(by_hand, num_classes=3).save_pretrained(tmp_path / "b")
    model.preprocess = {"mean": torch.zeros(3)}
    with pytest.raises(clca.ClcaError, match="preprocess cannot be saved as JSON"):
        model.save_pretrained(tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda vit: vit.prune_intermediate_layers([2], prune_head=False), "missing: blocks.3.norm1.weight"),
        (lambda vit: setattr(vit, "head", nn.Sequential(nn.Linear(24, 5))), "missing: head.weight, head.bias; not in"),
        (lambda vit: prune.random_unstructured(vit.blocks[0].mlp.fc1, "weight", 0.3), "weight_orig"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(change: Any, words: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    before = contents(tmp_path)
    vit = timm.create_model(DEIT, **TINY, num_classes=5)
    change(vit)
    model = clca.reduce_tokens(vit, cla=False, locations=[1])
    drawn = torch.get_rng_state()
    with pytest.raises(clca.ClcaError, match="no longer matches its settings") as refused:
        model.save_pretrained(tmp_path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert contents(tmp_path) == before
    assert torch.equal(torch.get_rng_state(), drawn)


def test_saving_draws_nothing(tmp_path: Path) -> None:
    for reduction in clca.list_reductions():
        model = make(reduction=reduction, keep_rate=1.0 if reduction == "none" else 0.5)
        drawn = torch.get_rng_state()
        model.save_pretrained(tmp_path)
        assert torch.equal(torch.get_rng_state(), drawn)


def test_what_belongs_to_this_machine_is_not_saved(tmp_path: Path) -> None:
    where = {"cache_dir": str(tmp_path), "device": "cpu", "dtype": torch.float64}
    model = make(reduction="evit", keep_rate=0.5, qk_norm=True, **where)
    assert model.clr.dtype == torch.float64
    model.save_pretrained(tmp_path)
    kwargs = clca.from_pretrained(tmp_path).config.backbone_kwargs
    assert kwargs == {name: TINY[name] for name in ("patch_size", "embed_dim", "num_heads", "depth")} | {
        "qk_norm": True
    }


def test_layers_that_share_parameters(tmp_path: Path) -> None:
    model = make(reduction="evit", keep_rate=0.5)
    model.blocks[1].mlp = model.blocks[0].mlp
    model.blocks[3].attn.qkv.weight = model.blocks[2].attn.qkv.weight
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(clca.from_pretrained(tmp_path)(images), model(images))


def test_push_to_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls["token"] = token

        def create_repo(self, repo_id: str, **kwargs: Any) -> None:
            calls["repo"] = (repo_id, kwargs)

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            for file in Path(folder_path).iterdir():
                (tmp_path / file.name).write_bytes(file.read_bytes())
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = make(reduction="ats", keep_rate=0.5)
    assert model.push_to_hub("me/leaves", private=True) == "https://hub/me/leaves"
    assert calls["repo"] == ("me/leaves", {"private": True, "exist_ok": True})
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(clca.from_pretrained(tmp_path)(images), model(images))


def test_a_revision_from_the_hub_cache(tmp_path: Path) -> None:
    """Two versions of one model, as huggingface_hub keeps them, and no network."""
    images = torch.randn(2, 3, 16, 16)
    logits = []
    root = tmp_path / "cache" / "models--me--leaves"
    (root / "refs").mkdir(parents=True)
    for commit, branch in ("0" * 40, "main"), ("1" * 40, "v1"):
        model = make(reduction="evit", keep_rate=0.5)
        model.save_pretrained(root / "snapshots" / commit)
        (root / "refs" / branch).write_text(commit)
        logits.append(model(images))
    torch.save((images, *logits), tmp_path / "expected.pt")
    code = (
        "import sys, torch, clca\n"
        "images, main, first = torch.load(sys.argv[1])\n"
        "assert torch.equal(clca.from_pretrained('me/leaves')(images), main)\n"
        "for revision in 'v1', '1' * 40:\n"
        "    assert torch.equal(clca.from_pretrained('me/leaves', revision=revision)(images), first)\n"
        "try: clca.from_pretrained('me/leaves', revision='v2')\n"
        "except clca.ClcaError as error: print(error)"
    )
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("me/leaves (revision v2) is neither a local folder nor a model that the hub returned")
    assert done.stdout.count("\n") == 1


def test_the_token_reaches_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().save_pretrained(tmp_path)
    asked: dict[str, Any] = {}

    def download(repo_id: str, **kwargs: Any) -> str:
        asked.update(kwargs, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    clca.from_pretrained("me/leaves", revision="v1", token="secret")
    assert (asked["repo_id"], asked["revision"], asked["token"]) == ("me/leaves", "v1", "secret")


def test_a_private_model_asks_for_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(huggingface_hub.errors.RepositoryNotFoundError):
        def __init__(self) -> None:
            OSError.__init__(self, "401")

    def download(*args: Any, **kwargs: Any) -> str:
        raise Refused

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(clca.ClcaError, match=r"check the path, or for a private model the token$"):
        clca.from_pretrained("me/leaves")


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(clca.ClcaError, match="is a local folder, which has no revision 'v1': omit the revision"):
        clca.from_pretrained(tmp_path, revision="v1")


def test_the_home_folder_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    model = make()
    model.save_pretrained("~/leaves")
    assert (tmp_path / "home" / "leaves" / "config.json").is_file()
    assert not (tmp_path / "~").exists()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(clca.from_pretrained("~/leaves")(images), model(images))
    started = make(weights="~/leaves/model.safetensors")
    assert torch.equal(started(images), model(images))
    with pytest.raises(clca.ClcaError, match="no run or saved model at ~/none"):
        clca.from_pretrained("~/none")


# -- pretrained weights ---------------------------------------------------------------------------------------------


def hub_cache(cache: Path, repo: str, files: dict[str, Any]) -> None:
    """What huggingface_hub leaves after a download."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for name, write in files.items():
        write(snapshot / name)


def test_weights_come_from_the_hub_cache_offline(tmp_path: Path) -> None:
    vit = timm.create_model(DEIT)
    nn.init.normal_(vit.cls_token)
    hub_cache(tmp_path, f"timm/{DEIT}.fb_in1k", {"model.safetensors": lambda f: save_file(vit.state_dict(), f)})
    code = (
        "import torch, clca\n"
        f"a = clca.create_model('{DEIT}.fb_in1k', pretrained=True, num_classes=7, reduction='evit', keep_rate=0.5)\n"
        f"b = clca.create_model('{DEIT}', pretrained=True, img_size=32, cla=False, clc=False)\n"
        "assert torch.equal(a.clr, a.cls_token) and a.pretrained_cfg['mean']\n"
        "print(a.cls_token.sum().item(), b.cls_token.sum().item(), b.head.weight.sum().item())"
    )
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=env)
    assert done.returncode == 0, done.stderr
    cls, head = vit.cls_token.sum().item(), vit.head.weight.sum().item()
    assert [float(n) for n in done.stdout.split()] == pytest.approx([cls, cls, head])


def test_where_the_nine_are() -> None:
    for name in clca.list_backbones():
        source = PAPER_BACKBONES[name]
        if source.url is None:
            cfg = timm.get_pretrained_cfg(source.architecture)
            assert factory._hub_id(cfg, source) == f"timm/{name}"
        else:
            assert source.url == "https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/linear-vit-b-300ep.pth.tar"


@pytest.fixture
def url_backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A small backbone whose weights timm does not have, as MoCo v3's."""
    monkeypatch.setitem(PAPER_BACKBONES, "tiny.url", Backbone("tiny.url", DEIT, URL, "nowhere"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return "tiny.url"


def test_weights_that_timm_does_not_carry(url_backbone: str, tmp_path: Path) -> None:
    vit = timm.create_model(DEIT, **TINY)
    nn.init.normal_(vit.cls_token)
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    state = {f"module.{name}": value for name, value in vit.state_dict().items()}
    content = {"epoch": 90, "arch": "vit_base", "state_dict": state, "best_acc1": torch.tensor(76.5)}
    torch.save(content, tmp_path / "torch" / "checkpoints" / "tiny-linear.pth.tar")
    model = make(name=url_backbone, pretrained=True)
    assert torch.equal(model.clr, vit.cls_token)
    assert torch.equal(model.blocks[3].mlp.fc2.weight, vit.blocks[3].mlp.fc2.weight)
    assert model.default_cfg["url"] == URL
    assert model.default_cfg["mean"]
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(clca.from_pretrained(tmp_path / "saved").clr, vit.cls_token)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(factory.urllib.request, "getproxies", dict)


@pytest.mark.usefixtures("no_network", "url_backbone")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        (
            "vit_base_patch16_224.mae",
            "https://huggingface.co/timm/vit_base_patch16_224.mae/resolve/main/model.safetensors",
        ),
        ("vit_base_patch16_224.mocov3", "linear-vit-b-300ep.pth.tar"),
        ("tiny.url", URL),
    ],
)
def test_out_of_reach_is_one_quick_sentence(name: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "try_to_load_from_cache", lambda *args: None)
    start = time.perf_counter()
    with pytest.raises(clca.ClcaError) as refused:
        clca.create_model(name, pretrained=True)
    assert time.perf_counter() - start < 15
    message = str(refused.value)
    assert file in message
    assert "weights=FILE" in message
    assert "--weights FILE" in message
    assert "\n" not in message


def test_no_weights_to_be_had_is_said() -> None:
    with pytest.raises(
        clca.ClcaError, match="vit_small_patch16_18x2_224 has no pretrained weights in timm: pass a file"
    ):
        clca.create_model("vit_small_patch16_18x2_224", pretrained=True)


def test_weights_that_do_not_fit_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Error(s) in loading state_dict for VisionTransformer:\n\tsize mismatch for cls_token")

    monkeypatch.setattr(factory, "_check_reachable", lambda source: None)
    monkeypatch.setattr(factory.timm, "create_model", fail)
    monkeypatch.setattr(factory, "check_architecture", lambda source: None)
    monkeypatch.setattr(factory, "may_be_large", lambda config: False)
    with pytest.raises(clca.ClcaError, match=r"pretrained weights of .* do not fit the settings"):
        clca.create_model(f"{DEIT}.fb_in1k", pretrained=True, depth=3)
