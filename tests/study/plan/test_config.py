"""Study files: what is allowed in them, and one clear line for each mistake."""

import pytest
import yaml

from clca.errors import ClcaError
from clca.study.plan.config import StudyConfig, read_study, shipped, validated_study
from clca.study.plan.expand import plan

GOOD = {
    "name": "good",
    "base": {"model": "vit_tiny_patch16_224", "data": "leaves"},
    "axes": {"reduction": ["none", "evit"], "keep_rate": [1.0, 0.5]},
    "exclude": [{"reduction": "none", "keep_rate": {"not": 1.0}}],
    "seeds": [0, 1],
}

MISTAKES = [
    ({"axes": {"reduktion": ["evit"]}}, "no setting is called reduktion; did you mean reduction?"),
    ({"axes": {"arms": {"base": {"klc": False}}}}, "no setting is called klc; did you mean clc?"),
    ({"axes": {}}, "at least one setting"),
    ({"axes": {"reduction": []}}, "reduction has no values"),
    ({"axes": {"reduction": ["evit", "evit"]}}, "evit twice"),
    ({"axes": {"reduction": "evit"}}, "should have several values"),
    ({"axes": {"arm": {"base": False}}}, "should stand for settings"),
    ({"axes": {"seed": [0, 1]}}, "write seeds"),
    ({"base": {"seed": 3}}, "write seeds"),
    ({"base": {"out": "there"}}, "the study chooses it for each run"),
    ({"base": {"leaning": 1}}, "no setting is called leaning"),
    ({"axes": {"reduction": ["evit"], "arm": {"a": {"reduction": "tome"}}}}, "set by both reduction and arm"),
    ({"exclude": [{"backbone": "x"}]}, "there is no axis 'backbone'"),
    ({"exclude": [{"keep_rate": 0.3}]}, "keep_rate has no value 0.3; it has 1, 0.5"),
    ({"exclude": [{"keep_rate": {"above": 1}}]}, "{not: …}"),
    ({"exclude": [{}]}, "exclude everything"),
    ({"seeds": []}, "at least one"),
    ({"seeds": [0, 0]}, "twice"),
    ({"seeds": [-1]}, "of at least 0"),
    ({"name": "a/b"}, "names a folder"),
    ({"repeat": 3}, "no such setting"),
    ({"keep": "some"}, "keep"),
]


@pytest.mark.parametrize(("change", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_line_that_says_what(change, said):
    with pytest.raises(ClcaError) as caught:
        validated_study({**GOOD, **change}, "here.yaml")
    line = str(caught.value)
    assert line.startswith("here.yaml: ")
    assert said in line
    assert "\n" not in line


GRID_MISTAKES = [
    ({"exclude": []}, "the same run twice: keep_rate 1 and keep_rate 0.5 make no difference with none"),
    ({"exclude": [{"reduction": ["none", "evit"]}]}, "leave no run"),
    ({"base": {"data": "leaves"}}, "the model is missing"),
    ({"base": {"model": "vit_tiny_patch16_224"}}, "the images are missing"),
    ({"axes": {"keep_rate": [0.5, 1.5]}, "exclude": []}, "--keep-rate 1.5"),
    ({"axes": {"epochs": [52, 0]}, "exclude": []}, "--epochs 0"),
    ({"axes": {"lr": [1e-3, 1e-6]}, "exclude": []}, "min_lr"),
    ({"axes": {"img_size": {"a": {"img_size": [64, 32]}, "b": {"img_size": 64}}}, "exclude": []}, "64 32 is oblong"),
]


@pytest.mark.parametrize(("change", "said"), GRID_MISTAKES, ids=[said for _, said in GRID_MISTAKES])
def test_a_mistake_of_the_grid_is_one_line_that_says_where(change, said):
    with pytest.raises(ClcaError) as caught:
        plan(validated_study({**GOOD, **change}, "here.yaml"))
    assert said.replace("min_lr", "min-lr") in str(caught.value).replace("min_lr", "min-lr")
    assert "\n" not in str(caught.value)


def test_the_settings_that_differ_are_named_in_a_mistake_of_one_combination():
    with pytest.raises(ClcaError, match=r"in the run with keep_rate 1\.5"):
        plan(validated_study({**GOOD, "axes": {"keep_rate": [0.5, 1.5]}, "exclude": []}, "x"))


def test_yaml_and_python_files_say_the_same(tmp_path):
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "good.py").write_text(f"study = {GOOD!r}\n")
    (tmp_path / "made.py").write_text(
        f"from clca.study.plan.config import StudyConfig\ndef study():\n    return StudyConfig(**{GOOD!r})\n"
    )
    studies = [read_study(tmp_path / name) for name in ("good.yaml", "good.py", "made.py")]
    assert studies[0] == studies[1] == studies[2]
    assert [run.id for run in plan(studies[0]).runs] == [run.id for run in plan(studies[2]).runs]


def test_a_study_survives_being_written_and_read():
    study = StudyConfig.model_validate(GOOD)
    assert StudyConfig.model_validate(study.model_dump(mode="json")) == study


def test_numbers_that_are_near_one_another_have_labels_of_their_own():
    study = validated_study({**GOOD, "axes": {"lr": [0.1234567, 0.1234568, 1e-4, 0.25]}, "exclude": []}, "here")
    assert [value.label for value in study.axes["lr"]] == ["0.1234567", "0.1234568", "0.0001", "0.25"]


def test_a_mapping_can_be_merged_into_another(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text(
        "base: {model: deit_tiny_patch16_224, data: leaves}\n"
        "axes:\n  arm:\n    base: &plain {cla: false, clc: false, epochs: 60}\n"
        "    longer: {<<: *plain, epochs: 70}\n"
    )
    base, longer = read_study(path).axes["arm"]
    assert longer.settings == {**base.settings, "epochs": 70}


def test_the_name_is_that_of_the_file_where_none_is_given(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({key: GOOD[key] for key in ("base", "axes", "exclude")}))
    assert read_study(tmp_path / "mine.yaml").name == "mine"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", "axes: [", "cannot be read"),
        ("a.yaml", "- 1\n", "is not a study"),
        ("a.yaml", "name: a\nname: b\n", "name occurs twice"),
        ("a.py", "study = 3\n", "does not define a study"),
        ("a.py", "import nothing_of_that_name\n", "failed"),
        ("a.py", "study = dict(axes={})\n", "at least one setting"),
    ],
)
def test_a_file_that_is_no_study_is_refused_in_a_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ClcaError) as caught:
        read_study(tmp_path / name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_shipped_ones():
    with pytest.raises(ClcaError, match="paper"):
        read_study("no-such-study")


def test_a_file_here_goes_before_a_shipped_study_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").write_text(yaml.safe_dump(GOOD))
    assert read_study("paper").name == "good"


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_study_can_be_planned(name):
    planned = plan(read_study(name), "data-folder-of-no-one")
    assert planned.study.name == name
    assert len({run.id for run in planned.runs}) == len(planned.runs)
