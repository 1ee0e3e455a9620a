"""Study files and settings from anybody: accepted, or refused in one line that names the file, within little memory."""

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from bounded import bounded, refused, refused_by_command_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clca.errors import ClcaError
from clca.study.plan.config import StudyConfig, read_study
from clca.study.plan.expand import MOST_RUNS, plan
from clca.system import yaml as yaml_files
from clca.system.yaml import MOST_BYTES, MOST_DEPTH, MOST_NODES, read_yaml
from clca.training.config import TrainConfig
from clca.training.settings import by_part, read_file

pytestmark = pytest.mark.slow

LIMITS: dict[str, Any] = {"memory_mib": 512, "cpu_seconds": 10}
BASE = 'base: {model: vit_tiny_patch16_224, data: "leaves:cultivars=3,images=5"}\n'
GOOD = f"{BASE}axes: {{reduction: [evit, tome], arm: {{plain: {{cla: false}}, full: &full {{clc: true}}}}}}\nseeds: 2\n"


def _bomb(tens: int, form: str = "[{}]") -> str:
    """Each line repeats the one before ten times."""
    lines = ["a0: &a0 " + form.format(", ".join(["x"] * 10))]
    lines += [f"a{n}: &a{n} " + form.format(", ".join([f"*a{n - 1}"] * 10)) for n in range(1, tens)]
    return "\n".join(lines) + "\n"


def _merge_bomb(tens: int) -> str:
    lines = ["a0: &a0 {k: 1}"]
    return "\n".join(lines + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, tens)])


STUDIES = {
    "a billion seeds": f"{BASE}axes: {{reduction: [evit]}}\nseeds: 1000000000\n",
    "seeds beyond all integers": f"{BASE}axes: {{reduction: [evit]}}\nseeds: {'9' * 5000}\n",
    "a seed beyond the generators": f"{BASE}axes: {{reduction: [evit]}}\nseeds: [99999999999]\n",
    "runs by seeds": f"{BASE}axes: {{lr: [{', '.join(f'1e-{n}' for n in range(1, 30))}]}}\nseeds: 90000\n",
    "axes that multiply": BASE
    + "axes:\n"
    + "".join(f"  {name}: [{', '.join(map(str, range(1, 300)))}]\n" for name in ("epochs", "batch_size", "patience")),
    "axes without end": BASE + "axes:\n" + "".join(f"  x{n}: {{a: {{}}, b: {{}}}}\n" for n in range(5000)),
    "values without end": f"{BASE}axes: {{log_every: [{', '.join(map(str, range(1, 90000)))}]}}\n",
    "exclusions without end": f"{BASE}axes: {{reduction: [evit, tome]}}\nexclude: [{'{reduction: evit}, ' * 20000}]\n",
    "stages without end": f"{BASE}axes: {{reduction: [evit]}}\npretraining: [{'{epochs: 1}, ' * 20000}]\n",
    "lists without end": "[" * 20000,
    "lists within lists": "[" * 200 + "]" * 200,
    "mappings without end": "{a: " * 20000,
    "dashes without end": "- " * 20000,
    "an alias bomb": _bomb(12),
    "an alias bomb of mappings": _bomb(12).replace("[", "{k: [").replace("]", "]}"),
    "a bomb of merges": _merge_bomb(12),
    "an alias within itself": "a: &a [*a]",
    "a mapping within itself": "&a a: &b {c: *b}",
    "a long text": f"name: {'x' * 500_000}",
    "texts by alias": f"a: &a {'x' * 60_000}\nb: [{'*a, ' * 1000}]",
    "a large file": "# " + "x" * (MOST_BYTES + 1),
    "python objects": "name: !!python/object/apply:os.system [touch was-here]",
    "a tag of another program": "name: !vault secret",
    "a set": "name: !!set {a, b}",
    "a list for a key": "? [a, b]\n: 1",
    "a key twice": "name: a\nname: b",
    "two documents": "name: a\n---\nname: b",
    "a null byte": 'name: "a\\0b"',
    "an escape sequence": 'about: "\\e[2J\\e[31m"',
    "a raw escape sequence": "about: \x1b[2J",
    "half a character": 'about: "\\ud800"',
    "an infinite rate": f"{BASE}axes: {{keep_rate: [.inf]}}",
    "no number": f"{BASE}axes: {{keep_rate: [.nan]}}",
    "a number that overflows": f"{BASE}axes: {{lr: [1e999]}}",
    "an octal": f"{BASE}axes: {{reduction: [evit]}}\nseeds: [010]",
    "a grouped number": f"{BASE}axes: {{reduction: [evit]}}\nseeds: 1_000",
    "a sexagesimal": f"{BASE}axes: {{epochs: [1:30]}}",
    "a hexadecimal": f"{BASE}axes: {{epochs: [0x1F]}}",
    "a word for a switch of timm": GOOD.replace("data:", "backbone_kwargs: {qkv_bias: no}, data:"),
    "a model of a million blocks": GOOD.replace("data:", "backbone_kwargs: {depth: 1000000}, data:"),
    "a large image": GOOD.replace("data:", "img_size: 1000000000, data:"),
    "a large batch": GOOD.replace("data:", "batch_size: 100000000000, data:"),
    "a large epoch": GOOD.replace("data:", "epochs: 100000000000, data:"),
    "leaves without end": GOOD.replace("images=5", "images=99999999999"),
    "an unknown setting": f"{BASE}axes: {{{'y' * 5000}: [1]}}",
    "names that are lists": "{[a]: {[b]: c}}",
    "nothing": "",
    "a number alone": "5",
    "bytes": "\ufffe\x01",
}
CONFIGS = [
    name
    for name in STUDIES
    # An empty file of settings changes none of them.
    if name != "nothing" and "seeds" not in name and not STUDIES[name].startswith("base:")
]


def _plan(path: str) -> int:
    return len(plan(read_study(path)).runs)


def _written(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "theirs.yaml"
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_refused_in_a_line_that_names_the_file(name: str, tmp_path: Path) -> None:
    path = _written(tmp_path, STUDIES[name])
    message = refused(_plan, path, **LIMITS)
    assert "theirs" in message
    assert len(message) < 1500
    assert message.isprintable()


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("name", ["a billion seeds", "an alias bomb", "lists without end", "an escape sequence"])
def test_the_command_line_refuses_it_too(name: str, command: str, tmp_path: Path) -> None:
    line = refused_by_command_line("study", command, _written(tmp_path, STUDIES[name]), **LIMITS)
    assert "theirs" in line
    assert "\n" not in line


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_of_train_are_refused_in_the_same_way(name: str, tmp_path: Path) -> None:
    assert "theirs.yaml" in refused(read_file, _written(tmp_path, STUDIES[name]), **LIMITS)


@pytest.mark.parametrize("name", ["an alias bomb", "lists without end", "python objects"])
def test_train_refuses_them_at_the_command_line(name: str, tmp_path: Path) -> None:
    assert "theirs.yaml" in refused_by_command_line("train", "--config", _written(tmp_path, STUDIES[name]), **LIMITS)


LARGE_MODELS = {
    "wide": "embed_dim: 99840, num_heads: 3, depth: 256, mlp_ratio: 1000",
    "many patches": "patch_size: 1, img_size: 16384",
    "many channels": "in_chans: 1000, patch_size: 1000, embed_dim: 99840",
}


def _make(path: str) -> None:
    from clca.models.config import ModelConfig
    from clca.models.factory import build

    build(ModelConfig.model_validate(by_part(read_file(path))[0]))


@pytest.mark.parametrize("name", LARGE_MODELS)
def test_a_model_beyond_the_memory_is_refused_before_it_is_taken(name: str, tmp_path: Path) -> None:
    content = f"model: vit_tiny_patch16_224\nbackbone_kwargs: {{{LARGE_MODELS[name]}}}\n"
    message = refused(_make, _written(tmp_path, content), memory_mib=512, cpu_seconds=60)
    assert "GiB of memory" in message


@pytest.mark.parametrize("settings", ["cla_width: 1024, num_classes: 1000000", "img_size: 16384, cla_width: 1024"])
def test_so_is_one_whose_own_parts_are_large(settings: str, tmp_path: Path) -> None:
    path = _written(tmp_path, f"{{model: vit_giant_patch14_reg4_dinov2, {settings}}}")
    assert refused(_make, path, memory_mib=512, cpu_seconds=60)


def test_a_path_that_is_not_utf_8_is_accepted() -> None:
    odd = os.fsdecode(b"images-\xf1")
    made = TrainConfig.model_validate({"model": {"backbone": "vit_tiny_patch16_224"}, "data": {"root": odd}})
    assert made.data.root == odd
    study = StudyConfig.model_validate(
        {"name": "s", "base": {"data": odd}, "axes": {"keep_rate": [0.5]}, "data_folder": odd}
    )
    assert study.data_folder == odd


def test_nothing_was_run_by_a_tag(tmp_path: Path) -> None:
    path = _written(tmp_path, f"name: !!python/object/apply:os.system [touch {tmp_path}/was-here]")
    refused(_plan, path, **LIMITS)
    assert not (tmp_path / "was-here").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="devices of Unix")
def test_a_device_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    assert "larger than" in refused(read_yaml, "/dev/zero", **LIMITS)
    weights = f"{BASE}axes: {{weights: [/dev/zero, null]}}\n"
    assert "/dev/zero" in refused(_plan, _written(tmp_path, weights), **LIMITS)


def test_a_hundred_thousand_runs_can_still_be_planned(tmp_path: Path) -> None:
    rates = ", ".join(f"{n / 1000:g}" for n in range(1, 1001))
    path = _written(tmp_path, f"{BASE}axes: {{lr: [0.01, 0.02], keep_rate: [{rates}], reduction: [evit]}}\nseeds: 50\n")
    outcome = bounded(_plan, path, memory_mib=500, cpu_seconds=30)
    assert outcome.value == 100_000, outcome.trace


def test_more_runs_than_the_limit_are_refused_before_they_are_written_out(tmp_path: Path) -> None:
    path = _written(tmp_path, f"{BASE}axes: {{lr: [{', '.join(f'{n}e-9' for n in range(1, 10001))}]}}\nseeds: 1000\n")
    outcome = bounded(_plan, path, **LIMITS)
    assert f"{MOST_RUNS:,}" in outcome.message
    assert outcome.memory_mib < 200


def test_plain_words_and_numbers_are_read_as_they_look(tmp_path: Path) -> None:
    content = (
        "{a: [no, yes, on, off, 2024-01-01, '010', \"1_0\", 1.2.3, ''], b: [1e-4, 5, -3, .5, 1., +2], c: [true, null]}"
    )
    assert read_yaml(_written(tmp_path, content)) == {
        "a": ["no", "yes", "on", "off", "2024-01-01", "010", "1_0", "1.2.3", ""],
        "b": [0.0001, 5, -3, 0.5, 1.0, 2],
        "c": [True, None],
    }


def test_the_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClcaError, match=r"theirs\.yaml: line 3: 010 is no plain number"):
        read_yaml(_written(tmp_path, "a: 1\nb: 2\nc: 010\n"))


def test_the_limits_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    assert read_yaml(_written(tmp_path, "[" * MOST_DEPTH + "]" * MOST_DEPTH))
    assert len(read_yaml(_written(tmp_path, f"[{'1, ' * (MOST_NODES - 1)}]"))) == MOST_NODES - 1
    with pytest.raises(ClcaError, match="more than"):
        read_yaml(_written(tmp_path, f"[{'1, ' * MOST_NODES}]"))


@pytest.fixture
def without_libyaml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """PyYAML as it is where it was built from its Python sources alone."""
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    monkeypatch.setattr(yaml_files, "_loader", functools.cache(yaml_files._loader.__wrapped__))


@pytest.mark.usefixtures("without_libyaml")
@pytest.mark.parametrize(
    "name",
    ["an alias bomb", "a bomb of merges", "lists within lists", "an octal", "python objects", "half a character"],
)
def test_the_limits_hold_for_the_other_parser_too(name: str, tmp_path: Path) -> None:
    with pytest.raises(ClcaError, match="theirs"):
        read_yaml(_written(tmp_path, STUDIES[name]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(
        st.tuples(
            st.integers(0, len(GOOD)),
            st.integers(0, 6),
            st.sampled_from(["", "[", "{", "&a ", "*full", "<<: ", "!!x ", "\t", "'", "0x1", "1_0", "\n  ", ": "])
            | st.text(max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_study_is_accepted_or_refused_in_a_line(cuts: list[tuple[int, int, str]], tmp_path: Path) -> None:
    content = GOOD
    for place, length, inserted in cuts:
        content = content[:place] + inserted + content[place + length :]
    path = _written(tmp_path, content)
    message = ""
    try:
        plan(read_study(path))
    except ClcaError as error:
        message = str(error)
    assert "\n" not in message
