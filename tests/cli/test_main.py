"""The command as a whole, and serve's flags."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer.main

from remote_vae.cli.main import app
from remote_vae.models.families import MODELS
from remote_vae.server.settings import Settings

COMMANDS = ("serve", "encode", "decode", "models", "demo", "verify")


def test_version_and_help(command: Any) -> None:
    """--version is the package's; without arguments, and with --help, every command is listed."""
    assert command("--version").out == version("remote-vae") + "\n"
    shown = command("--help")
    assert shown.code == 0
    assert all(re.search(rf"│ {name} ", shown.out) for name in COMMANDS)
    assert all(name in command().text for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (("--version",), ("torch", "starlette", "pydantic", "numpy", "httpx2", "PIL")),
        (("models", "--known"), ("torch", "diffusers", "starlette", "av")),
        (("serve", "--help"), ("torch", "diffusers", "numpy", "httpx2", "PIL")),
    ],
)
def test_a_command_imports_what_it_needs(words: tuple[str, ...], absent: tuple[str, ...]) -> None:
    """A command starts without the packages of the others, in a fresh interpreter."""
    code = (
        f"import sys; sys.argv = ['remote-vae', *{words!r}]\n"
        "from remote_vae.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print(sorted({set(absent)!r} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "[]"


def test_completion_of_the_shell() -> None:
    """A shell that asks gets the commands that begin with what was typed."""
    asked = {"_REMOTE_VAE_COMPLETE": "complete_bash", "COMP_WORDS": "remote-vae de", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "remote_vae.cli.main"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **asked})
    assert said.stdout.split() == ["decode", "demo"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_sentence(name: str) -> None:
    """What an option is can be read without its name: no help is missing, and none begins in the middle."""
    group: Any = typer.main.get_command(app)
    for item in group.get_command(None, name).params:
        assert re.fullmatch(r"[A-Z*.](?!f |or |ith )[^\n]{12,}[.]", item.help or ""), (item.name, item.help)


def test_the_known_models(command: Any) -> None:
    """models --known has every model of the registry, and asks no server."""
    known = json.loads(command("models", "--known", "--json", "--url", "http://127.0.0.1:9").out)
    assert [card["name"] for card in known] == list(MODELS)
    assert "flux1" in command("models", "--known").out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(name: str, command: Any) -> None:
    """Each command has a help that tells its defaults, also those that are no values."""
    shown = command(name, "--help")
    assert shown.code == 0
    assert "[default: " in shown.text


def test_serve_has_a_flag_for_every_setting(command: Any) -> None:
    """Every field of Settings is a flag of serve; models is --model."""
    shown = command("serve", "--help").text
    flags = {name.replace("_", "-") for name in Settings.model_fields} - {"models"} | {"model"}
    assert sorted(flag for flag in flags if f"--{flag}" not in shown) == []


def test_every_flag_of_serve_says_what_it_is(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The help of serve has each setting's own description and default, in its panel."""
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(command("serve", "--help").text.replace("│", " ").split())
    for name, field in Settings.model_fields.items():
        if name != "keys":
            assert str(field.description) in shown, name
    assert "The time for a request's body to arrive. [default: (60.0)]" in shown
    assert shown.index("--log-requests") < shown.index("─ Access ─") < shown.index("--keys-file")
    assert shown.index("─ Limits ─") < shown.index("--max-side") < shown.index("─ Ray Serve ─")


WRONG = {
    "a port out of range": (["--port", "70000"], "port: Input should be less than or equal to 65535"),
    "an unknown model": (["--model", "nonsense"], "model 'nonsense' is not in the registry"),
    "an unknown recipe": (["--model", "mine=./x,recipe=nonsense"], "recipe 'nonsense' is not known; known are allegro"),
    "an unknown key": (["--model", "sd1,colour=red"], "'colour=red' in model 'sd1,colour=red' is not key=value"),
    "an unknown dtype": (["--dtype", "int8"], "dtype: Input should be 'float32', 'float16' or 'bfloat16'"),
    "no amount of memory": (["--memory-budget", "12G"], "memory_budget: Value error, '12G' is not an amount of memory"),
    "more than all memory": (["--weights-budget", "101%"], "it must be at least 1 byte, and at most 100%"),
    "one name twice": (["--model", "sd1", "--model", "sd1"], "model name 'sd1' is given twice"),
    "a reserved name": (["--model", "models=./x,recipe=sd1"], "model name 'models' cannot be a route"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_sentence(name: str, command: Any) -> None:
    """What serve cannot do is one sentence and exit code 1, before anything is loaded."""
    words, sentence = WRONG[name]
    said = command("serve", "--port", 0, *words)
    assert (said.code, said.out) == (1, "")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_missing_weights_end_the_server(command: Any, tmp_path: Path) -> None:
    """A folder without weights ends serve with the loader's sentence and exit code 1."""
    said = command("serve", "--port", 0, "--model", f"mine={tmp_path},recipe=sd1")
    assert said.code == 1
    assert "there is no config.json in folder" in said.err
    assert said.err.count("\n") == 1
