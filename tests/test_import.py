"""What `import clca` loads, what it makes public, and when timm learns of `clca_vit`."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
from torch.utils.data import Dataset

import clca
import clca.models.cost

HEAVY = (
    *("torch", "torchvision", "timm", "accelerate", "safetensors", "huggingface_hub", "sklearn", "scipy", "pandas"),
    *("pyarrow", "matplotlib", "jinja2", "ray", "gradio", "onnx", "onnxruntime", "fastapi", "uvicorn"),
)
SOURCES = Path(clca.__file__).parents[1]


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


def test_import_loads_no_library_at_all() -> None:
    assert python("import clca.cli.main; print(clca.__version__)", "-S")  # there are none to be found


def test_settings_plans_data_sets_and_every_help_need_no_torch(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"not opened")
    program = f"""
import contextlib, io
import clca.models.config, clca.errors, clca.training.config, clca.training.settings, clca.training.run_folder
import clca.study.plan.config, clca.study.plan.identity, clca.study.plan.expand
import clca.plots.frontier, clca.plots.speedup, clca.data.checks.report, clca.data.cache.limits
from clca import cli, data
from clca.data.synthetic.leaves import DrawnLeaves
from clca.data.sources.folder_csv import read_listing

assert read_listing({str(tmp_path)!r}).classes == ["a", "b"]
assert clca.study.plan.identity.images_fingerprint({str(tmp_path)!r})
assert clca.study.plan.identity.images_fingerprint("leaves:cultivars=2,images=5")
assert DrawnLeaves.from_text("leaves:cultivars=3,images=5,size=32")[0][0].size == (32, 32)
assert data.is_leaves("leaves") and "Leaves" in dir(data) and "csv" in data.SOURCES
assert "evit" in clca.list_reductions() and clca.ModelConfig(backbone="x").reduction == "none"
with contextlib.redirect_stdout(io.StringIO()) as told:
    for words in ([], *([name] for name in cli.COMMANDS), *(["data", name] for name in ("check", "leaves", "cache"))):
        try:
            code = cli.main([*words, "--help"])
        except SystemExit as end:
            code = end.code
        assert code in (0, None), words
assert told.getvalue().count("--help") > len(cli.COMMANDS)
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
    assert set(clca._HOMES) | {"ClcaError", "WorkError", "data"} == set(clca.__all__)
    everything: dict[str, object] = {}
    exec("from clca import *", everything)
    assert {name: everything[name] for name in clca.__all__} == {name: getattr(clca, name) for name in clca.__all__}


def test_a_public_name_is_what_its_module_has() -> None:
    from clca import data, reductions, training
    from clca.models import backbones, config, factory, trace, weights
    from clca.models import pretrained as hub
    from clca.models import token_reduced_vit as model

    homes = [clca.models.cost, backbones, config, factory, hub, model, reductions, trace, training, weights]
    for home in homes:
        short = home.__name__.removeprefix("clca.")
        names = [name for name, where in clca._HOMES.items() if where == short]
        assert names
        assert all(getattr(clca, name) is getattr(home, name) for name in names)
    assert clca.data is data
    assert clca.data.Leaves is data.datasets.Leaves
    assert all(issubclass(kind, Dataset) for kind in (data.Leaves, data.ImageDataset))  # torch's own, for all that
    for module in (clca, data, reductions):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018


def test_cost_is_the_function_though_its_module_was_imported() -> None:
    from clca import cost

    assert clca.cost is cost is clca.models.cost.cost
    # Whatever else is imported: it would take the place of a name beside it.
    modules = {path.stem for path in SOURCES.joinpath("clca").iterdir()}
    assert modules & set(clca.__all__) == {"data"}


# -- timm learns of the model --------------------------------------------------------------------------------------


def test_import_registers_the_model_with_timm() -> None:
    assert timm.is_model("clca_vit")
    assert timm.list_models("clca*") == ["clca_vit"]
    assert timm.get_pretrained_cfg("clca_vit").input_size == (3, 224, 224)


def test_also_by_a_module_that_is_only_half_there_when_it_imports_timm() -> None:
    made = "create_model('clca_vit', backbone='deit_tiny_patch16_224', depth=4, embed_dim=24, img_size=32)"
    program = f"import clca.models.token_reduced_vit; from timm import create_model; print(type({made}).__name__)"
    assert python(program) == "TokenReducedViT"


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A timm that loads in no time, or takes as long as it is told, and knows which models were registered."""
    package = tmp_path / "timm"
    package.joinpath("data").mkdir(parents=True)
    package.joinpath("__init__.py").write_text(
        "import builtins, time\n"
        "getattr(builtins, 'begun', list)()\n"
        "time.sleep(getattr(builtins, 'takes', 0))\n"
        "if getattr(builtins, 'broken', False): raise OSError('broken')\n"
        "from timm.models import known\n"
    )
    package.joinpath("models.py").write_text(
        "known = []\ndef register_model(entry):\n    known.append(entry.__name__)\n    return entry\n"
    )
    package.joinpath("data", "__init__.py").touch()
    package.joinpath("data", "constants.py").write_text("IMAGENET_DEFAULT_MEAN = IMAGENET_DEFAULT_STD = (0, 0, 0)\n")
    return tmp_path


END = """
from importlib.machinery import SourceFileLoader
assert timm.known == ["clca_vit"], timm.known
assert type(timm.__loader__) is type(timm.__spec__.loader) is SourceFileLoader
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("clca")]
assert "torch" not in sys.modules and "clca.models.factory" not in sys.modules
"""

PROGRAMS = {
    "after": "import clca, timm",
    "before": "import timm, clca",
    "one model of it": "import clca; from timm.models import register_model; import timm",
    "in another thread": """
import clca, threading
thread = threading.Thread(target=__import__, args=("timm",))
thread.start(), thread.join()
import timm""",
    "in four threads at once": """
import builtins, clca, threading
builtins.takes = 0.2
threads = [threading.Thread(target=__import__, args=("timm",)) for _ in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
import timm""",
    "while another thread is at it": """
import builtins, threading
begun, builtins.takes = threading.Event(), 0.2
builtins.begun = begun.set
thread = threading.Thread(target=__import__, args=("timm",))
thread.start(), begun.wait()
import clca
assert sys.modules["timm"].known == ["clca_vit"]
thread.join()
import timm""",
    "looked for only": """
import clca, copy, importlib.util
spec = importlib.util.find_spec("timm")
assert spec.origin == spec.loader.get_filename("timm") and spec.loader.is_package("timm")
assert copy.copy(spec.loader).path == copy.deepcopy(spec).loader.path == spec.origin
assert "timm" not in sys.modules and importlib.util.find_spec("timm").origin == spec.origin
import timm
assert importlib.util.find_spec("timm") is timm.__spec__""",
    "from a spec": """
import clca, importlib.util
spec = importlib.util.find_spec("timm")
timm = sys.modules["timm"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(timm)""",
    "lazily": """
import clca, importlib.util
spec = importlib.util.find_spec("timm")
spec.loader = importlib.util.LazyLoader(spec.loader)
timm = sys.modules["timm"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(timm)
assert timm.known
assert "clca.timm" in sys.modules""",
    "loaded again": """
import clca, timm, importlib
importlib.reload(clca)
first = timm.known
importlib.reload(timm)
assert timm.known is first
importlib.invalidate_caches()""",
    "clca loaded again": "import clca, importlib; importlib.reload(clca), importlib.reload(clca); import timm",
    "at the second attempt": """
import builtins, clca
builtins.broken = True
for _ in range(2):
    try:
        import timm
    except OSError as error:
        assert str(error) == "broken" and "timm" not in sys.modules
builtins.broken = False
import timm""",
    "through another's hook": """
import importlib.util
class Hook:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if name != "timm" or self.busy:
            return None
        self.busy = True
        try:
            return importlib.util.find_spec(name)
        finally:
            self.busy = False
sys.meta_path.insert(0, Hook())
import clca
sys.meta_path.insert(0, Hook())
import timm""",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_model_is_registered_once_and_timm_is_left_as_it_would_be(fake: Path, program: str) -> None:
    assert python(program + END, "-S", path=(fake,)) == ""


def test_without_timm_nothing_happens() -> None:
    program = """
import clca, importlib.util
assert importlib.util.find_spec("timm") is None
for _ in range(2):
    try:
        import timm
    except ModuleNotFoundError as error:
        assert error.name == "timm"
    else:
        raise AssertionError
sys.modules["timm"] = None  # as one blocks a module
importlib.reload(clca)
assert clca.ClcaError
"""
    assert python(program, "-S") == ""


def test_a_folder_that_is_only_called_timm_is_no_timm(tmp_path: Path) -> None:
    tmp_path.joinpath("timm").mkdir()
    assert python("import clca, timm; print(timm.__file__)", "-S", path=(tmp_path,)) == "None"
