"""What `import clca` loads, and what it makes public."""

import subprocess
import sys

import timm

import clca

HEAVY = ("ray", "gradio", "matplotlib", "onnx", "onnxruntime", "accelerate", "sklearn", "pandas", "tyro")


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, clca; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""  # and it says nothing


def test_every_public_name_is_there_and_described() -> None:
    for name in clca.__all__:
        assert getattr(clca, name).__doc__, name


def test_import_registers_the_model_with_timm() -> None:
    assert timm.is_model("clca_vit")
    assert timm.list_models("clca*") == ["clca_vit"]
    assert timm.get_pretrained_cfg("clca_vit").input_size == (3, 224, 224)
