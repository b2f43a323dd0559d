"""Settings: the block at the top of the file, the command line, and what is refused."""

import os
import re
import subprocess
import sys
from dataclasses import asdict, fields
from typing import get_args

import pytest

import quatrains
from conftest import QUICK, ROOT, arguments, edited, write_verses
from quatrains import InputError, Settings, read_command_line

DEFAULTS = {field.name: field.default for field in fields(Settings)}


def refused(told, *given, **settings):
    """Match the one line that refuses a command line, or settings."""
    with pytest.raises(InputError) as error:
        read_command_line(given) if given else Settings(**settings)
    assert re.match(told, str(error.value))
    assert "\n" not in str(error.value)


def test_defaults_are_those_of_the_published_system():
    assert repr(Settings()) == (
        "Settings(use_gpu=False, recipe='2017', name='', embedding_dim=300, gru_dim=128, "
        "dropout=0.5, regularization=0.02, dense_dropout=0.0, phrase_len=4, "
        "whole_quatrains=False, weighted=True, batch_size=512, learning_rate=0.003, runs=1000, "
        "epochs_per_run=5, resume=False, seed=None, quatrains_per_run=5, max_words=32, raw=False, "
        "temperature=1.0, top_p=1.0, opening='', drafts=1, max_quote=8, generate=0, "
        "corpus='data/quatrains.txt', glove='auto', logs='logs')"
    )
    assert asdict(Settings()) == asdict(read_command_line([])) == DEFAULTS


def test_command_line_overrides_the_file_and_is_told_apart():
    line = "--gru-dim 64 --use-gpu --no-weighted --dropout 0 --seed 3 --logs=elsewhere --opening="
    settings = read_command_line(line.split())
    given = {"gru_dim": 64, "use_gpu": True, "weighted": False, "dropout": 0.0, "seed": 3}
    given |= {"logs": "elsewhere", "opening": ""}
    assert settings.given == given
    assert asdict(settings) == DEFAULTS | given
    assert type(settings.dropout) is float


BOUNDS = {
    "gru_dim": [0, 2**31, 1.5, True],
    "dropout": [1, 0.995, -0.1],
    "regularization": [-1, float("inf"), 10**400],
    "learning_rate": [0, float("nan"), float("inf")],
    "runs": [0, 10**400, -(10**400)],
    "seed": [-1, 2**32, 1.0],
    "temperature": [0, 1e10],
    "top_p": [0, 1.1],
    "max_quote": [-1],
    "generate": [-1],
    "name": ["a/b", "\0"],
    "corpus": ["nul\0", "not UTF-8 \udce9.txt"],
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_setting_refuses_another_type_and_what_is_out_of_range(name):
    kind = next(field.type for field in fields(Settings) if field.name == name)
    other = "1" if kind is not str else 1
    bad = [object(), [1], b"x", {}, other, *BOUNDS.get(name, [])]
    if type(None) not in get_args(kind):
        bad.append(None)
    if name in quatrains.LIMITS:
        low, high = quatrains.LIMITS[name]
        assert [getattr(Settings(**{name: value}), name) for value in (low, high)] == [low, high]
        bad += [low - 1, high * 2, True]
    for value in bad:
        refused(rf"{name} = .* will not do: it must be ", **{name: value})
        with pytest.raises(InputError, match=f"^{name} = "):
            Settings().changed(**{name: value})


def test_a_setting_that_there_is_not_is_named():
    refused("top_k is no setting: take it out, --help lists all$", top_k=3)


BAD_OPTIONS = {
    "--gru-dim big": "argument --gru-dim: invalid int value: 'big'; --help lists",
    "--gru-dim 1.5": "argument --gru-dim: invalid int",
    "--dropout x": "argument --dropout: invalid float",
    "--gru-dim 0": "gru_dim = 0 will not do: it must be int from 1 to 2147483647$",
    "--dropout 1": "dropout = 1.0 will not do: it must be float from 0 to 0.99$",
    "--learning-rate nan": "learning_rate = nan will not do",
    "--runs=--": ".*runs",
    "--seed=--": ".*seed",
    "--resume=--": ".*--resume",
    "--unknown 3": "unrecognized arguments: --unknown 3; --help lists",
    "--gru 64": "unrecognized arguments: --gru 64; --help lists",
    "--gru-dim": "argument --gru-dim: expected one argument; --help lists",
    "stray": "unrecognized arguments: stray; --help lists",
    "--recipe Verse": "recipe = 'Verse' will not do: it must be one of 2017, verse",
    "--corpus \udce9.txt": r"corpus = '\\udce9.txt' will not do",
}


@pytest.mark.parametrize(("option", "told"), BAD_OPTIONS.items())
def test_illegal_options_are_one_line_that_names_them(option, told):
    refused(told, *option.split())


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """An environment in which nothing that takes seconds can be imported."""
    folder = tmp_path_factory.mktemp("poisoned")
    for name in ("numpy", "tensorflow", "keras", "tensorboard"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported')\n")
    return os.environ | {"PYTHONPATH": str(folder)}


def run_script(script, environment, *given):
    done = subprocess.run(
        [sys.executable, script, *given],
        cwd=script.parent,
        capture_output=True,
        env=environment,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_shows_the_block_of_settings_as_it_stands_before_the_imports(
    option, poisoned, tmp_path
):
    changed = {"logs": "50% off", "runs": 3}
    (tmp_path / "mine.py").write_text(edited(**changed), encoding="utf-8")
    status, out, err = run_script(tmp_path / "mine.py", poisoned, option)
    assert (status, err) == (0, "")
    block = re.search(r"class Settings:\n.*?(?=\n    def )", edited(**changed), re.DOTALL)[0]
    assert block.count("\n    # ") > block.count(": ") / 2 > len(DEFAULTS) / 2
    assert block.rstrip() in out
    assert out.startswith("usage: quatrains.py ")


MISTAKES = [["--nonsense"], ["--gru-dim=x"], ["--runs", "0"], [b"--corpus=\xe9.txt"]]


@pytest.mark.parametrize("given", MISTAKES, ids=str)
def test_mistakes_are_one_line_before_the_imports(given, poisoned):
    status, out, err = run_script(ROOT / "quatrains.py", poisoned, *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("quatrains: ")
    assert run_script(ROOT / "quatrains.py", poisoned) == (1, "", "imported\n")


@pytest.mark.parametrize("value", [10**400, "x", True], ids=["huge", "text", "flag"])
def test_a_mistake_in_the_file_is_one_line(value, poisoned, tmp_path):
    (tmp_path / "mine.py").write_text(edited(runs=value), encoding="utf-8")
    status, out, err = run_script(tmp_path / "mine.py", poisoned)
    told = f"quatrains: runs = {value!r} will not do: it must be int from 1 to 2147483647\n"
    assert (status, out, err) == (2, "", told)


def test_a_copy_with_other_settings_is_a_program_of_its_own(tmp_path):
    write_verses(tmp_path / "verses.txt")
    settings = QUICK | {"runs": 1, "logs": "50% off", "name": "mine"}
    (tmp_path / "mine.py").write_text(edited(**settings), encoding="utf-8")
    given = arguments(gru_dim=9, opening="king")
    status, out, err = run_script(tmp_path / "mine.py", os.environ, *given)
    assert (status, err) == (0, "")
    assert "\nSettings other than the file's: gru_dim=9, opening='king'.\n" in f"\n{out}"
    assert out.count("\n\nKing") == 3
    assert len([*tmp_path.glob("50% off/*-mine/checkpoint.keras")]) == 1
