"""Settings: the block at the top of the file, the command line, and what is refused."""

import re
import subprocess
import sys
from dataclasses import asdict, fields

import pytest

from conftest import QUICK, arguments, edited, write_verses
from quatrains import InputError, Settings, read_command_line

DEFAULTS = {field.name: field.default for field in fields(Settings)}
HIGH = 2**32 - 1
# The least and the most that numbers may be; the others are counts, from 1.
RANGES = {
    "dropout": (0, 0.99),
    "regularization": (0, HIGH),
    "dense_dropout": (0, 0.99),
    "learning_rate": (0, HIGH),
    "seed": (0, HIGH),
    "temperature": (1e-6, HIGH),
    "top_p": (1e-6, 1),
    "generate": (0, HIGH),
}


def test_defaults_are_those_of_the_published_system():
    published = (
        "Settings(use_gpu=False, recipe='2017', name='', embedding_dim=300, gru_dim=128, "
        "dropout=0.5, regularization=0.02, dense_dropout=0.0, phrase_len=4, "
        "whole_quatrains=False, weighted=True, batch_size=512, learning_rate=0.003, runs=1000, "
        "epochs_per_run=5, resume=False, seed=None, quatrains_per_run=5, max_words=32, raw=False, "
        "temperature=1.0, top_p=1.0, opening='', drafts=1, max_quote=8, generate=0, "
        "corpus='data/quatrains.txt', glove='auto', logs='logs')"
    )
    assert repr(Settings()) == repr(read_command_line([])) == published


def test_command_line_overrides_the_file_and_is_told_apart():
    settings = read_command_line("--use-gpu --no-weighted --dropout 0 --seed 3 --logs=".split())
    given = {"use_gpu": True, "weighted": False, "dropout": 0.0, "seed": 3, "logs": ""}
    assert (settings.given, asdict(settings)) == (given, DEFAULTS | given)
    assert type(settings.dropout) is float


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_setting_refuses_another_type_and_what_is_out_of_range(name):
    default = DEFAULTS[name]
    bad = [object(), b"x", 1 if type(default) is str else "1", *[None] * (name != "seed")]
    if type(default) in (int, float) or name == "seed":
        low, high = RANGES.get(name, (1, HIGH))
        assert [getattr(Settings(**{name: value}), name) for value in (low, high)] == [low, high]
        bad += [low - 1, high * 2, float("nan"), 10**400, *[1.5] * (type(default) is not float)]
    for value in bad:
        with pytest.raises(InputError, match=f"^{name} = .* will not do: it must be .+$"):
            Settings(**{name: value})


NONE_SUCH = [("gru_dim", 0.5), ("temperature", False), ("top_k", 3)]


@pytest.mark.parametrize(("name", "value"), NONE_SUCH)
def test_what_is_no_number_or_no_setting_is_named(name, value):
    with pytest.raises(InputError, match=f"^{name} (= {value} will not do|is no setting)"):
        Settings(**{name: value})


def run_edited(folder, given=(), **changes):
    (folder / "mine.py").write_text(edited(**changes), encoding="utf-8")
    command = [sys.executable, "mine.py", *given]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def poisoned(tmp_path):
    """A folder in which nothing that takes seconds can be imported."""
    for name in ("numpy", "tensorflow", "keras", "tensorboard"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    return tmp_path


def test_help_shows_the_block_of_settings_as_it_stands_before_the_imports(poisoned):
    changes = {"logs": "50% off", "runs": 3}
    status, out, err = run_edited(poisoned, ["--help"], **changes)
    assert (status, err) == (0, "")
    block = re.search(r"class Settings:\n.*?(?=\n    def )", edited(**changes), re.DOTALL)[0]
    assert block.count("\n    # ") > block.count(": ") / 2 > len(DEFAULTS) / 2
    assert block.rstrip() in out
    assert out.startswith("usage: quatrains.py ")


OUT_OF_RANGE = f" = 0 will not do: it must be int from 1 to {HIGH}"
MISTAKES = {
    "--gru-dim big": "error: argument --gru-dim: invalid int value: 'big'",
    "--gru-dim": "error: argument --gru-dim: expected one argument",
    "--top-k stray": "error: unrecognized arguments: --top-k stray",
    "--gru-dim 0": f"quatrains: gru_dim{OUT_OF_RANGE}",
    "--recipe Verse": "quatrains: recipe = 'Verse' will not do: it must be one of 2017, verse",
}


@pytest.mark.parametrize(("line", "told"), MISTAKES.items())
def test_mistakes_on_the_command_line_are_told_before_the_imports(line, told, poisoned):
    status, out, err = run_edited(poisoned, line.split())
    assert (status, out) == (2, "")
    assert err.endswith(f"{told}\n")
    assert err.startswith(("quatrains: ", "usage: quatrains.py "))


def test_a_mistake_in_the_file_is_one_line_before_the_imports(poisoned):
    assert run_edited(poisoned, runs=0) == (2, "", f"quatrains: runs{OUT_OF_RANGE}\n")
    assert run_edited(poisoned, runs=1) == (1, "", "imported\n")


def test_a_copy_with_other_settings_is_a_program_of_its_own(tmp_path):
    write_verses(tmp_path / "verses.txt")
    settings = QUICK | {"runs": 1, "logs": "50% off", "name": "mine"}
    given = {"gru_dim": 9, "opening": "king"}
    status, out, err = run_edited(tmp_path, arguments(**given), **settings)
    assert (status, err) == (0, "")
    assert out.startswith(f"{Settings(**settings | given)}\n")
    assert out.count("\n\nKing") == 3
    assert len([*tmp_path.glob("50% off/*-mine/checkpoint.keras")]) == 1
