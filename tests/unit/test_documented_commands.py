"""Every command line that the documentation shows is one that riskstream takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from jobs.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = re.compile(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?riskstream (.*)$")
INLINE = re.compile(r"`riskstream ([^`]+)`")


def shown() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        inside = False
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.lstrip().startswith("```"):
                inside = not inside
                continue
            found = SHOWN.match(line) if inside or line.startswith("    ") else None
            if found:
                text = re.split(r"\s{2,}|#| \| | > | ; | && |\\$", found.group(1))[0]
                yield page.name, text.strip()
            elif not inside:
                for command in INLINE.findall(line):
                    yield page.name, command.strip()


def words_of(text: str) -> list[str]:
    # A page may show a choice (`up | down`), a placeholder or an ellipsis; those end the command.
    words = []
    for word in shlex.split(text.replace("...", "")):
        if word in {"|", "&&", ";", "…"} or word.startswith("["):
            break
        words.append(word)
    return words


@pytest.mark.parametrize(("page", "text"), sorted(set(shown())))
def test_a_command_that_a_page_shows_exists_with_those_options(page: str, text: str) -> None:
    command: click.Command = cli
    context = click.Context(cli, info_name="riskstream")
    words = words_of(text)
    options: list[str] = []
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            options.append(word.split("=")[0])
            known = {
                name: one for one in command.params for name in (*one.opts, *one.secondary_opts)
            }
            known |= {"--help": None, "-h": None}  # type: ignore[dict-item]
            assert options[-1] in known, f"{page}: `riskstream {text}`: {sorted(known)}"
            parameter = known[options[-1]]
            takes_value = isinstance(parameter, click.Option) and not (
                parameter.is_flag or parameter.count
            )
            if takes_value and "=" not in word and words:
                words.pop(0)
        elif isinstance(command, click.Group):
            # `features explain, build` names two verbs of a group; the last one goes on.
            found = command.get_command(context, word.rstrip(","))
            assert found is not None, f"{page}: `riskstream {text}` has no verb {word!r}"
            if word.endswith(","):
                continue
            command = found
            context = click.Context(command, info_name=word, parent=context)


def test_the_pages_show_commands() -> None:
    assert len(set(shown())) > 30
