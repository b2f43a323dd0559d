"""Settings: the block at the top of the file, the command line, and what is refused."""

import math
import re
import subprocess
import sys
from dataclasses import asdict, fields

import numpy as np
import pytest

from conftest import edited
from quatrains import Session, Settings, UsageError, make_settings, read_command_line

DEFAULTS = {field.name: field.default for field in fields(Settings)}
# The lowest and highest values of numbers. All others are counts, from 1 to a billion.
RANGES = {"dropout": (0, 0.99), "dense_dropout": (0, 0.99), "seed": (0, 2**32 - 1), "top_p": (0, 1)}
RANGES |= {"temperature": (0, 100), "regularization": (0, 10**9), "learning_rate": (0, 10**9)}
# The defaults train as published in 2017.
SESSION = (
    "use_gpu=False, name='', log_dir='logs', seed=None, runs=1000, resume=False, generate=None, "
    "quatrains_per_run=5, max_length=32, raw=False, temperature=1.0, top_p=1.0, prompt='', "
    "best_of=1, max_quote_len=8"
)
EXPERIMENT = (
    "recipe='2017', corpus='data/quatrains.txt', glove='auto', embedding_dim=300, gru_dim=128, "
    "dropout=0.5, regularization=0.02, dense_dropout=0.0, phrase_len=4, whole_quatrains=False, "
    "class_weights=True, use_xla=True, batch_size=512, learning_rate=0.003, epochs_per_run=5"
)


def test_defaults_are_those_of_the_published_system():
    assert repr(Session()) == f"Session({SESSION})"
    settings = make_settings(**read_command_line([]))
    assert repr(settings) == repr(Settings()) == f"Settings({SESSION}, {EXPERIMENT})"


def test_the_command_line_returns_what_it_overrides():
    line = "--use-gpu --no-raw --dropout 0 --seed 3 --log-dir= --top-p=.5"
    overrides = read_command_line(line.split())
    assert overrides == dict(use_gpu=True, raw=False, dropout=0, seed=3, log_dir="", top_p=0.5)
    assert type(overrides["dropout"]) is float


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_setting_refuses_other_types_and_values_out_of_range(name):
    default = DEFAULTS[name]
    optional = name in ("seed", "generate")
    expected = "None or int" if optional else type(default).__name__
    bad = [object(), b"x", 1 if type(default) is str else "1", *[None] * (not optional)]
    if type(default) in (int, float) or optional:
        low, high = RANGES.get(name, (1, 10**9))
        assert [getattr(Settings(**{name: value}), name) for value in (low, high)] == [low, high]
        bad += [low - 1, high * 2, math.nan, math.inf, True, False, np.bool_(True)]
        bad += [1.5] * (type(default) is not float)
        expected += f" from {low:,} to {high:,}"
    if name == "recipe":
        expected = "2017 or verse"
    for value in bad:
        error = f"^{name} = .* is invalid: expected {re.escape(expected)}$"
        with pytest.raises(UsageError, match=error):
            make_settings(**{name: value})


def test_numbers_of_numpy_become_those_of_python():
    given = dict(gru_dim=np.int64(16), seed=np.uint32(3), dropout=np.float32(0.5), raw=np.True_)
    settings = asdict(make_settings(**given))
    assert {name: settings[name] for name in given} == given
    assert [type(settings[name]) for name in given] == [int, int, float, bool]


def run_edited(folder, command_line="", tool="", **changes):
    (folder / "mine.py").write_text(edited(**changes), encoding="utf-8")
    command = f"{sys.executable} {tool} mine.py {command_line}".split()
    done = subprocess.run(command, cwd=folder, input="", capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def poisoned(tmp_path):
    """A folder in which none of the slow packages can be imported."""
    for name in ("numpy", "tensorflow", "keras", "tensorboard"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    return tmp_path


def test_help_shows_every_option_with_its_comment_before_the_imports(poisoned, monkeypatch):
    monkeypatch.setenv("COLUMNS", "9999")
    changes = {"log_dir": "50% off", "runs": 3}
    status, out, err = run_edited(poisoned, "--help", **changes)
    assert (status, err) == (0, "")
    assert out.startswith("usage: quatrains.py [--gru-dim 256] [--no-use-xla] ...\n")
    shown = " ".join(out.split())
    comments = re.findall(r"\n((?:    # .*\n)+)    (\w+): ", edited(**changes))
    assert [name for _, name in comments] == list(DEFAULTS)
    for comment, name in comments:
        default = (DEFAULTS | changes)[name]
        option = "--" + name.replace("_", "-")
        kind = f", --no-{option[2:]}" if type(default) is bool else f" {name.upper()}"
        text = " ".join(comment.replace("#", "").split())
        assert f" {option}{kind} {text} Default: {default!r}. " in f"{shown} "


HINT = "(write options like --gru-dim 256; --help lists them)"
RUNS = "runs = 0 is invalid: expected int from 1 to 1,000,000,000"
MISTAKES = {
    "--gru_dim 64": f"unrecognized arguments: --gru_dim 64 {HINT}",
    "--gru 64": f"unrecognized arguments: --gru 64 {HINT}",
    "extra": f"unrecognized arguments: extra {HINT}",
    "--gru-dim x": f"argument --gru-dim: invalid int value: 'x' {HINT}",
    "--runs 0": RUNS,
    "--recipe Verse": "recipe = 'Verse' is invalid: expected 2017 or verse",
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.items())
def test_mistakes_on_the_command_line_are_one_line_before_the_imports(line, message, poisoned):
    assert run_edited(poisoned, line) == (2, "", f"quatrains: {message}\n")


def test_a_mistake_in_the_file_is_one_line_before_the_imports(poisoned):
    assert run_edited(poisoned, runs=0) == (2, "", f"quatrains: {RUNS}\n")
    assert run_edited(poisoned, runs=1) == (1, "", "imported\n")


def test_ctrl_c_during_the_imports_is_one_line(poisoned):
    (poisoned / "keras.py").write_text("import signal; signal.raise_signal(2)")
    assert run_edited(poisoned) == (130, "", "quatrains: stopped\n")


@pytest.mark.parametrize("tool", ["cProfile", "trace --count --coverdir=.", "pdb -c continue"])
def test_it_runs_under_the_tools_of_python(tool, poisoned):
    assert run_edited(poisoned, "--runs 0", f"-m {tool}")[2] == f"quatrains: {RUNS}\n"
