"""The built manual: no warnings, nothing loaded from elsewhere, every page reached, every command in its reference."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from manual_blocks import ROOT
from pydantic import Field

from clca.cli import main as cli
from clca.cli.arguments import Arguments, Spelling, arguments_of

sys.path.insert(0, str(ROOT / "docs"))
from hooks import Help, as_markdown, help_of

pytestmark = pytest.mark.slow

sys.path.remove(str(ROOT / "docs"))


ELSEWHERE = "(?:https?:)?//"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    built = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    return out


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", text
        )
        assert loaded == [], f"{page.name} loads {loaded}"
    for style in site.rglob("*.css"):
        assert not re.findall(rf"url\([\"']?{ELSEWHERE}|@import", style.read_text(encoding="utf-8")), style


def test_every_picture_is_there_and_has_words(site: Path) -> None:
    for page in [path for path in site.rglob("*.html") if path.parent.name != "leaves-mini"]:
        for tag in re.findall(r"<img\b[^>]*>", page.read_text(encoding="utf-8")):
            source = re.search(r'src="?([^" >]+)', tag)
            assert source is not None
            if not source[1].startswith("data:"):
                assert (page.parent / source[1]).is_file(), f"{page.name}: {source[1]}"
            assert re.search(r'alt="[^"]{10,}"', tag), f"{page.name}: {tag}"


def test_every_page_is_in_the_menu(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    sources = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    assert [
        path.as_posix() for path in sources if f'href="{path.as_posix()}"' not in start and path.stem != "index"
    ] == []


def test_every_command_has_its_place_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    for name in cli.COMMANDS:
        assert f'id="clca-{name}"' in text
    assert "--keep-rate RATE" in text
    assert "<!-- every" not in text


def test_the_descriptions_of_settings_are_in_the_reference(site: Path) -> None:
    from clca.serve import ServeSettings
    from clca.training import TrainConfig

    for page, settings in (("training", TrainConfig), ("serve", ServeSettings)):
        text = " ".join(re.sub(r"<[^>]+>", "", (site / "reference" / f"{page}.html").read_text("utf-8")).split())
        for name in ("device", "threads", "epochs", "queue"):
            if name in settings.model_fields:
                description = html.escape(settings.model_fields[name].description or "", quote=False)
                assert description.replace("`", "") in text, name


def test_the_names_of_the_package_are_in_the_reference(site: Path) -> None:
    import clca

    found = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    missing = [name for name in clca.__all__ if f'id="clca.{name}' not in found and name != "data"]
    assert missing == []


class Example(Arguments):
    """What it does, with a_name and <b>.

    Examples:
      clca x photos
    """

    a: Annotated[str | None, Spelling("A", positional=True)] = Field(None, description="The first.")
    b: bool = Field(True, description="Longer than `a_very_long_name`.")
    a_very_long_name: int | None = Field(None, description="After its name.")


def test_help_becomes_lists() -> None:
    text = as_markdown(Help(arguments_of(Example), "clca x", Example.__doc__ or "", {"options": "All are rare."}))
    assert "```text\nclca x [OPTIONS] [A]\n```" in text
    assert "```sh\nclca x photos\n```" in text
    assert r"a\_name and \<b>" in text
    assert "`[A]`\n:   The first.\n" in text
    assert "**Options**\n\nAll are rare." in text
    assert "`--b, --no-b`\n:   Longer than --a-very-long-name. (default: on)" in text
    assert "`--a-very-long-name N`\n:   After its name." in text


def test_a_group_of_commands_has_no_help() -> None:
    with pytest.raises(ValueError, match="clca study has no help"):
        help_of("study")
