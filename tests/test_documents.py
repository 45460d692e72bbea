"""The documents are there, point at things that exist, and no file names one machine or one registry."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")

# Folders that exist on one machine only. `../shared` is relative and therefore fine.
MACHINE_PATH = re.compile(r"(?<![\w.~*)\]}-])/(?:work|root|home|Users|mnt|farm)\b(?!-)")
# Hosts that packages come from: pip knows which one to ask. Put together here, so that this file passes its own test.
HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("deb", "debian", "org"),
        ("ghcr", "io"),
        ("docker", "io"),
    )
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED_FILE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:md|py|toml|cfg))`|`((?:scripts|\.ci)/\w+)`")


def repository_files() -> list[Path]:
    """What git tracks, and what it would track once added."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()})


def text_of(path: Path) -> str | None:
    """The text of a file, or None for a binary one."""
    content = path.read_bytes()
    return None if b"\0" in content else content.decode("utf-8")


FILES = repository_files()
PAGES = [path for path in FILES if path.suffix == ".md"]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def machine_paths(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if MACHINE_PATH.search(line)]


def package_hosts(text: str) -> list[str]:
    return [host for host in HOSTS if host in text.lower()]


def missing_targets(page: Path) -> list[str]:
    """Files that ``page`` links to or names in backquotes and that are neither beside it nor under the root."""
    text = page.read_text(encoding="utf-8")
    linked = [target.split("#")[0] for target in LINK.findall(text) if "://" not in target]
    named = [first or second for first, second in NAMED_FILE.findall(text)]
    return [
        name
        for name in dict.fromkeys([*linked, *named])
        if name and not ((page.parent / name).exists() or (ROOT / name).exists() or (ROOT / "edgedi" / name).exists())
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_there_and_says_something(name: str):
    assert len((ROOT / name).read_text(encoding="utf-8").split()) > 50


def test_the_license_is_apache_2_in_full():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("page", PAGES, ids=[relative(page) for page in PAGES])
def test_what_a_page_names_exists(page: Path):
    assert missing_targets(page) == []


def test_no_file_names_a_folder_of_one_machine():
    found = {relative(path): machine_paths(text) for path in FILES if (text := text_of(path)) is not None}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_file_names_a_package_host():
    found = {relative(path): package_hosts(text) for path in FILES if (text := text_of(path)) is not None}
    assert {name: hosts for name, hosts in found.items() if hosts} == {}


@pytest.mark.parametrize("folder", ["work", "root", "home", "Users"])
@pytest.mark.parametrize("template", ["cd /{}/x", 'open("/{}/x")', "PATH=/{}/x:/bin", "see /{}"])
def test_a_folder_of_one_machine_is_found(folder: str, template: str):
    line = template.format(folder)
    assert machine_paths(f"before\n{line}\nafter") == [line]


@pytest.mark.parametrize(
    "line", ["../shared/data", "a/work/b", "~/.edgedi/me.key", "$HOME/x", "/workers", "/proc/self/status", "ms/rooted"]
)
def test_other_text_is_no_folder_of_one_machine(line: str):
    assert machine_paths(line) == []


@pytest.mark.parametrize("host", HOSTS)
def test_a_package_host_is_found(host: str):
    assert package_hosts(f"pip install --index-url https://{host}/simple x") == [host]


def test_a_page_that_names_a_missing_file_is_found(tmp_path: Path):
    (tmp_path / "there.md").write_text("x")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md#part) [b](gone.md) [c](https://example.org/x.md) `lost.py` `LICENSE`")
    assert missing_targets(page) == ["gone.md", "lost.py"]
