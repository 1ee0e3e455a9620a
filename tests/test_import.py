"""What `import clca` loads, what it makes public, and what registers `clca_vit` with timm."""

import shutil
import subprocess
import sys
from pathlib import Path

import lazy_loader
import pytest
from torch.utils.data import Dataset

import clca
import clca.models.cost

pytestmark = pytest.mark.slow

HEAVY = (
    *("torch", "torchvision", "timm", "accelerate", "safetensors", "huggingface_hub", "sklearn", "scipy", "pandas"),
    *("pyarrow", "matplotlib", "jinja2", "ray", "gradio", "onnx", "onnxruntime", "fastapi", "uvicorn"),
)
SOURCES = Path(clca.__file__).parents[1]
LAZY_LOADER = Path(lazy_loader.__file__).parents[1]


def python(program: str, *options: str, path: tuple[Path, ...] = ()) -> str:
    """What a program prints in an interpreter of its own; it fails with what that says, on stderr too."""
    found = f"import sys; sys.path[:0] = {[str(folder) for folder in (*path, SOURCES)]}\n"
    done = subprocess.run(
        [sys.executable, *options, "-c", found + program], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


# -- what is loaded ------------------------------------------------------------------------------------------------


def test_import_loads_nothing_but_the_lazy_loader(tmp_path: Path) -> None:
    shutil.copytree(LAZY_LOADER / "lazy_loader", tmp_path / "lazy_loader")
    assert python(
        "import clca.cli.main; print(clca.__version__)", "-S", path=(tmp_path,)
    )  # -S: no other is to be found


def test_settings_plans_data_sets_and_every_help_need_no_torch(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"not opened")
    program = f"""
import contextlib, io
import clca.models.config, clca.errors, clca.training.config, clca.training.settings, clca.training.run_folder
import clca.study.plan.config, clca.study.plan.identity, clca.study.plan.expand
import clca.plots.frontier, clca.plots.speedup, clca.data.checks.report, clca.data.cache.limits
from clca import data
from clca.cli import main as cli
from clca.data.synthetic.leaves import DrawnLeaves
from clca.data.sources.folder_csv import read_listing

assert read_listing({str(tmp_path)!r}).classes == ["a", "b"]
assert clca.study.plan.identity.images_fingerprint({str(tmp_path)!r})
assert clca.study.plan.identity.images_fingerprint("leaves:cultivars=2,images=5")
assert DrawnLeaves.from_text("leaves:cultivars=3,images=5,size=32")[0][0].size == (32, 32)
assert data.is_leaves("leaves") and "Leaves" in dir(data) and "csv" in data.SOURCES
assert "evit" in clca.list_reductions() and clca.ModelConfig(backbone="x").reduction == "none"
with contextlib.redirect_stdout(io.StringIO()) as printed:
    for words in ([], *([name] for name in cli.COMMANDS), *(["data", name] for name in ("check", "leaves", "cache"))):
        try:
            code = cli.main([*words, "--help"])
        except SystemExit as end:
            code = end.code
        assert code in (0, None), words
assert printed.getvalue().count("usage:") > len(cli.COMMANDS)
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert python(program) == "[]"


# -- what is public ------------------------------------------------------------------------------------------------


def test_its_types_are_public() -> None:
    """Without the marker a type checker takes everything of an installed package for Any."""
    assert (Path(clca.__file__).parent / "py.typed").is_file()


def test_every_public_name_is_there_and_described() -> None:
    for name in clca.__all__:
        assert getattr(clca, name).__doc__, name
        assert name in dir(clca)
    everything: dict[str, object] = {}
    exec("from clca import *", everything)
    assert {name: everything[name] for name in clca.__all__} == {name: getattr(clca, name) for name in clca.__all__}


def test_a_public_name_is_what_its_module_has() -> None:
    from clca import data, reductions
    from clca.evaluation import cross_validation, evaluator, predictor
    from clca.kernels import dispatch, prepack
    from clca.models import backbones, config, factory, pretrained, token_reduced_vit, trace, weights
    from clca.training import trainer

    homes = {
        clca.models.cost: ("Cost", "cost"),
        backbones: ("list_backbones",),
        config: ("ModelConfig",),
        cross_validation: ("cross_validate",),
        dispatch: ("fast_kernels",),
        evaluator: ("evaluate",),
        factory: ("create_model", "reduce_tokens"),
        predictor: ("predict",),
        prepack: ("prepacked",),
        pretrained: ("from_pretrained",),
        reductions: ("Reduction", "list_reductions", "register_reduction"),
        token_reduced_vit: ("TokenReducedViT",),
        trace: ("Trace",),
        trainer: ("train",),
        weights: ("load_published",),
    }
    assert {name for names in homes.values() for name in names} | {"ClcaError", "WorkError", "data"} == set(
        clca.__all__
    )
    for home, names in homes.items():
        assert all(getattr(clca, name) is getattr(home, name) for name in names)
    assert clca.data is data
    assert clca.data.Leaves is data.datasets.Leaves
    assert all(issubclass(kind, Dataset) for kind in (data.Leaves, data.ImageDataset))  # torch's own, for all that
    for module in (clca, data, reductions):
        with pytest.raises(AttributeError, match="nothing"):
            module.nothing  # noqa: B018


def test_cost_is_the_function_though_its_module_was_imported() -> None:
    from clca import cost

    assert clca.cost is cost is clca.models.cost.cost
    # Whatever else is imported: it would take the place of a name beside it.
    modules = {path.stem for path in SOURCES.joinpath("clca").iterdir()}
    assert modules & set(clca.__all__) == {"data"}


# -- registering the model with timm ------------------------------------------------------------------------------

MADE = "timm.create_model('clca_vit', backbone='deit_tiny_patch16_224', depth=4, embed_dim=24, img_size=32)"


def test_clca_timm_registers_the_model() -> None:
    program = f"import clca.timm, timm; print(type({MADE}).__name__, timm.list_models('clca*'))"
    assert python(program) == "TokenReducedViT ['clca_leaf_tiny', 'clca_vit']"
    program = "import clca.timm, timm; print(timm.get_pretrained_cfg('clca_vit').input_size)"
    assert python(program) == "(3, 224, 224)"


def test_so_does_clca_once_timm_is_imported() -> None:
    assert python("import timm, clca; print(timm.is_model('clca_vit'))") == "True"


def test_clca_alone_neither_imports_timm_nor_watches_its_import() -> None:
    program = """
import clca
assert "timm" not in sys.modules
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("clca")]
import timm
print(timm.is_model("clca_vit"))
"""
    assert python(program) == "False"


def test_clca_imports_where_timm_is_blocked() -> None:
    assert python("sys.modules['timm'] = None; import clca; print(clca.ClcaError.__name__)") == "ClcaError"
