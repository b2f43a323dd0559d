"""Settings: the block at the top of the file, the command line, and what is refused."""

import math
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from conftest import edited
from quatrains import Settings, UsageError, make_settings, read_command_line

DEFAULTS = {field.name: field.default for field in fields(Settings)}
# The lowest and highest values of numbers. All others are counts, from 1.
RANGES = {
    "dropout": (0, 0.99),
    "regularization": (0, 1e9),
    "dense_dropout": (0, 0.99),
    "learning_rate": (0, 1e9),
    "seed": (0, 2**32 - 1),
    "temperature": (0, 1e9),
    "top_p": (0, 1),
}


def test_defaults_are_those_of_the_published_system():
    published = dict(
        **dict(use_gpu=False, use_xla=True, recipe="2017", name="", resume=False, seed=None),
        **dict(embedding_dim=300, gru_dim=128, dropout=0.5, regularization=0.02, dense_dropout=0.0),
        **dict(phrase_len=4, whole_quatrains=False, class_weights=True, batch_size=512),
        **dict(learning_rate=0.003, runs=1000, epochs_per_run=5, quatrains_per_run=5),
        **dict(max_length=32, raw=False, temperature=1.0, top_p=1.0, prompt="", best_of=1),
        **dict(max_quote_len=8, generate=None, corpus="data/quatrains.txt", glove="auto"),
        log_dir="logs",
    )
    assert published == DEFAULTS
    assert make_settings(**read_command_line([])) == Settings() == Settings(**published)


def test_the_command_line_returns_what_it_overrides():
    line = "--use-gpu --no-raw --dropout 0 --seed 3 --log-dir= --top-p=.5"
    overrides = read_command_line(line.split())
    assert overrides == dict(use_gpu=True, raw=False, dropout=0, seed=3, log_dir="", top_p=0.5)
    assert type(overrides["dropout"]) is float


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_setting_refuses_other_types_and_values_out_of_range(name):
    default = DEFAULTS[name]
    optional = name in ("seed", "generate")
    bad = [object(), b"x", 1 if type(default) is str else "1", *[None] * (not optional)]
    if type(default) in (int, float) or optional:
        low, high = RANGES.get(name, (1, 10**9))
        assert [getattr(Settings(**{name: value}), name) for value in (low, high)] == [low, high]
        bad += [low - 1, math.nan, True, False, *[1.5] * (type(default) is not float)]
        bad += [high * 2] * (high < 1e9 or name == "seed")
    for value in bad:
        with pytest.raises(UsageError, match=f"^{name} = .* is invalid: expected .+$"):
            make_settings(**{name: value})


def run_edited(folder, command_line="", **changes):
    (folder / "mine.py").write_text(edited(**changes), encoding="utf-8")
    command = [sys.executable, "mine.py", *command_line.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def poisoned(tmp_path):
    """A folder in which none of the slow packages can be imported."""
    for name in ("numpy", "tensorflow", "keras", "tensorboard"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    return tmp_path


def test_help_shows_the_edited_block_of_settings_before_the_imports(poisoned):
    changes = {"log_dir": "50% off", "runs": 3}
    status, out, err = run_edited(poisoned, "--help", **changes)
    assert (status, err) == (0, "")
    block = re.search(r"class Settings:\n.*?(?=\n    def )", edited(**changes), re.DOTALL)[0]
    assert block.count("\n    # ") > len(DEFAULTS)
    assert block.rstrip() in out


RUNS = "runs = 0 is invalid: expected a whole number from 1 up"
MISTAKES = {
    "--gru 64": "unknown argument --gru (similar settings: gru_dim, runs)",
    "--nonsense 3": "unknown argument --nonsense (similar settings: seed)",
    "extra": "unknown argument extra (similar settings: use_xla, raw)",
    "--gru-dim x": "argument --gru-dim: invalid int value: 'x' (--help lists all settings)",
    "--gru-dim": "argument --gru-dim: expected one argument (--help lists all settings)",
    "--runs 0": RUNS,
    "--recipe Verse": "recipe = 'Verse' is invalid: expected 2017 or verse",
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.items())
def test_mistakes_on_the_command_line_are_one_line_before_the_imports(line, message, poisoned):
    assert run_edited(poisoned, line) == (2, "", f"quatrains: {message}\n")


def test_a_mistake_in_the_file_is_one_line_before_the_imports(poisoned):
    assert run_edited(poisoned, runs=0) == (2, "", f"quatrains: {RUNS}\n")
    assert run_edited(poisoned, runs=1) == (1, "", "imported\n")
