"""The built manual: no warnings, nothing loaded from elsewhere, every page reached, every command in its reference."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from manual_blocks import ROOT

from clca.cli import main as cli

sys.path.insert(0, str(ROOT / "docs"))
from hooks import as_markdown

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


def test_the_names_of_the_package_are_in_the_reference(site: Path) -> None:
    import clca

    found = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    missing = [name for name in clca.__all__ if f'id="clca.{name}' not in found and name != "data"]
    assert missing == []


HELP = """usage: clca x [-h] A

What it does, with a_name and <b>.

Examples:
  clca x photos

╭─ positional arguments ─────────────────╮
│ A                  The first. (default: None) │
╰────────────────────────────────────────╯
╭─ other options ────────────────────────╮
│ All of them are rare.                  │
│ ────────────────────────────────────── │
│ -h, --help         show this           │
│ --b, --no-b        Long text that goes │
│                    on. (default: True) │
│ --a-very-long-name {None}|INT          │
│                    After its name.     │
╰────────────────────────────────────────╯
"""


def test_help_becomes_lists() -> None:
    text = as_markdown(HELP)
    assert "```text\nclca x [-h] A\n```" in text
    assert "```sh\nclca x photos\n```" in text
    assert r"a\_name and \<b>" in text
    assert "`A`\n:   The first.\n" in text
    assert "All of them are rare." in text
    assert "`--b, --no-b`\n:   Long text that goes on. (default: True)" in text
    assert "`--a-very-long-name INT`\n:   After its name." in text
    assert "--help" not in text
    assert "─" not in text


def test_what_is_no_help_is_refused() -> None:
    with pytest.raises(ValueError, match="no help"):
        as_markdown("clca: no command 'x'")
