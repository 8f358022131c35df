"""The shell blocks of every document do the same when pasted into an interactive zsh as in sh.

An interactive zsh reads ``#`` as a command, an apostrophe after it as an open quote, and expands ``!`` and ``?``.
No command is really run: stubs record how they were called, and both shells must have made the same calls.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "deploy/**/*.md") for path in ROOT.glob(pattern)
)
SHELL_BLOCK = re.compile(r"^ *```(?:sh|bash|shell|zsh|console)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
PLAIN_BLOCK = re.compile(r"^```\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMANDS = (
    *(
        "certbot",
        "cp",
        "curl",
        "docker",
        "git",
        "helm",
        "install",
        "kill",
        "kubectl",
        "make",
        "openssl",
        "pip",
        "plusofon-verify",
        "python",
        "python3",
    ),
    *("redis-cli", "sleep", "systemctl", "useradd", "date"),
)
ANSWER = '{"verification_id":"vrf_00","heard":"123456","token":"eyJ","dial":"+78005550100"}'
STAND_IN = f"""#!/bin/sh
{{ printf '%s' "${{0##*/}} REDIS_URL=$REDIS_URL"; for word; do printf ' <%s>' "$word"; done; echo; }} >> "$CALLED"
case "${{0##*/}} $*" in
  "curl "*/metrics) echo plusofon_verify_store_up 1 ;;
  "curl "*) printf '%s' '{ANSWER}' ;;
  "date "*) echo 1767225600 ;;
  "git clone "*) mkdir -p plusofon-verify && ln -s "$HOME/home/.venv" plusofon-verify/.venv ;;
esac
"""


def blocks(document: Path) -> list[str]:
    return SHELL_BLOCK.findall(document.read_text(encoding="utf-8"))


WITH_BLOCKS = [document for document in DOCUMENTS if blocks(document)]


def paste(text: str, folder: Path, shell: list[str]) -> tuple[str, str, list[str]]:
    """Paste ``text`` into a shell whose commands are stubs; return its output, its errors and the recorded calls."""
    for name in (
        "bin",
        "etc/default",
        "etc/plusofon-verify",
        "etc/systemd/system",
        "opt/plusofon-verify/bin",
        "home/deploy/prometheus",
        "home/.venv/bin",
    ):
        (folder / name).mkdir(parents=True)
    for name in COMMANDS:
        for place in ("bin", "opt/plusofon-verify/bin", "home/.venv/bin"):
            (folder / place / name).write_text(STAND_IN)
            (folder / place / name).chmod(0o755)
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder), "CALLED": str(folder / "called")}
    done = subprocess.run(
        shell,
        input=re.sub(r"(?<![\w.:])/(?=(?:etc|opt)/)", f"{folder}/", text) + "\necho pasted to the end\n",
        cwd=folder / "home",
        env=environment | {"KEY": "a-key", "VERIFY_URL": "http://localhost:8000"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    called = (folder / "called").read_text() if (folder / "called").exists() else ""
    return done.stdout, done.stderr, called.replace(str(folder), "").splitlines()


@pytest.mark.parametrize("document", WITH_BLOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_blocks_of_a_document_can_be_pasted_into_zsh(document: Path, tmp_path: Path) -> None:
    text = "".join(blocks(document))

    _, _, of_sh = paste(text, tmp_path / "sh", ["sh", "-s"])
    shown, errors, of_zsh = paste(text, tmp_path / "zsh", ["zsh", "-f", "-i", "-s"])

    assert "zsh:" not in errors
    assert shown.endswith("pasted to the end\n")
    assert of_zsh == of_sh
    assert of_zsh or document.name == "webhooks.md"
    assert "}{" not in shown, "an answer does not end with a newline"
    assert "}pasted" not in shown, "the last answer does not end with a newline"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_in_code_blocks_marked_as_shell(document: Path) -> None:
    plain = "\n".join(PLAIN_BLOCK.findall(document.read_text(encoding="utf-8")))
    assert not re.search(rf"^(?:\$ |(?:{'|'.join(COMMANDS)}) )", plain, re.MULTILINE)


def test_the_first_screen_of_each_readme_begins_with_git_clone() -> None:
    for name in ("README.md", "README.ru.md"):
        first, *_ = blocks(ROOT / name)
        assert [line.split()[0] for line in first.splitlines()] == ["git", "cd", "make"]
        assert first.startswith("git clone ")


@pytest.mark.parametrize(
    "pasted",
    [
        "make run    # the sandbox\n",
        "# what the person's phone heard\nmake test\n",
        "curl http://localhost:8000/verify/vrf_00?x=1\n",
        'curl -d "Hello!verify"\n',
        "$ make run\n",
        "make 'run\n",
    ],
)
def test_a_block_that_zsh_reads_differently_is_detected(pasted: str, tmp_path: Path) -> None:
    _, _, of_sh = paste(pasted, tmp_path / "sh", ["sh", "-s"])
    shown, errors, of_zsh = paste(pasted, tmp_path / "zsh", ["zsh", "-f", "-i", "-s"])

    assert "zsh:" in errors or of_zsh != of_sh or not shown.endswith("pasted to the end\n")
