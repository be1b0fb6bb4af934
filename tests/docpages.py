"""What is in a page of documentation: its code blocks, and the hidden comments that set them up.

Hidden comments, each of them invisible to readers:

- ``<!-- setup ... -->``: code that runs before the blocks after it, as if it stood there;
- ``<!-- file: shop.py ... -->``: a module that the blocks may import;
- ``<!-- blocks: sandbox -->``: the page's blocks run in a sandbox, not beside a running worker;
- ``<!-- not run: because ... -->``: before a block that can't be run here, and why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"])

_PART = re.compile(
    r"^<!-- (?P<word>setup|file: (?P<file>\S+)|blocks: (?P<mode>\w+)|not run: [^\n]+?)"
    r"(?:\n(?P<hidden>.*?))?\s*-->$"
    r"|^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One code block."""

    language: str
    code: str
    line: int
    """On which line of the page its code begins, from 1."""
    setup: str = ""
    """Hidden code to run before it."""


@dataclass
class Page:
    """One page, taken apart."""

    path: Path
    text: str
    files: dict[str, str] = field(default_factory=dict[str, str])
    mode: str = "worker"
    blocks: list[Block] = field(default_factory=list[Block])

    def of(self, *languages: str) -> list[Block]:
        """The blocks in these languages."""
        return [block for block in self.blocks if block.language in languages]


def name_of(path: Path) -> str:
    """The page's path from the root, for test ids."""
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> Page:
    """Take a page apart."""
    text = path.read_text(encoding="utf-8")
    page = Page(path, text)
    setup, skip = "", False
    for part in _PART.finditer(text):
        word, hidden = part["word"] or "", part["hidden"] or ""
        if part["file"]:
            page.files[part["file"]] = hidden
        elif part["mode"]:
            page.mode = part["mode"]
        elif word == "setup":
            setup += f"{hidden}\n"
        elif word:
            skip = True
        elif skip:
            skip = False
        else:
            line = text.count("\n", 0, part.start("code")) + 1
            code = re.sub(f"^{part['indent']}", "", part["code"], flags=re.MULTILINE)
            page.blocks.append(Block(part["language"], code, line, setup))
            setup = ""
    return page


def commands(page: Page) -> Iterator[tuple[int, str]]:
    """Line and text of each command in the page's shell blocks: what follows a ``$``."""
    for block in page.of("console", "sh", "bash", "shell"):
        lines = block.code.splitlines()
        prompts = block.language == "console"
        for i, line in enumerate(lines):
            if prompts and not line.startswith("$ "):
                continue
            whole = line.removeprefix("$ ")
            while whole.endswith("\\"):
                i += 1  # noqa: PLW2901 - the rest of the same command
                whole = f"{whole[:-1]} {lines[i].strip()}"
            command = re.split(r"\s#\s", whole)[0].strip()
            if command and not command.startswith("#"):
                yield block.line + i, command
