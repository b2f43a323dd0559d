"""Settings: the block at the top of the file, the command line, and what is refused."""

import inspect
import math
import subprocess
import sys

import pytest

import quatrains
from conftest import ROOT

DEFAULTS = {name: getattr(quatrains, name) for name in quatrains.SETTINGS}


def test_defaults_are_those_of_the_published_system():
    assert DEFAULTS == {
        "use_gpu": False,
        "embedding_dim": 300,
        "gru_dim": 128,
        "dropout": 0.5,
        "regularization": 0.02,
        "phrase_len": 4,
        "batch_size": 512,
        "learning_rate": 0.003,
        "runs": 1000,
        "epochs_per_run": 5,
        "resume": False,
        "seed": None,
        "quatrains_per_run": 5,
        "max_words": 32,
        "raw": False,
        "temperature": 1.0,
        "top_k": 0,
        "opening": "",
        "max_quote": 8,
        "generate": 0,
        "output": "-",
        "corpus": "data/quatrains.txt",
        "glove": "auto",
        "logs": "logs",
    }


def test_settings_are_plain_assignments_near_the_top():
    top = inspect.getsource(quatrains).partition("class ")[0]
    for name, value in DEFAULTS.items():
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        assert f"\n{name} = {shown}\n" in top


def test_command_line_overrides_the_file():
    given = "--gru-dim 64 --use-gpu --dropout 0 --seed 3 --raw --logs elsewhere --glove none"
    settings = vars(quatrains.read_settings(DEFAULTS, given.split()))
    changed = {name: value for name, value in settings.items() if value != DEFAULTS[name]}
    assert changed == {
        "gru_dim": 64,
        "use_gpu": True,
        "dropout": 0.0,
        "seed": 3,
        "raw": True,
        "logs": "elsewhere",
        "glove": "none",
    }
    assert type(settings["dropout"]) is float


def test_seed_and_flags_can_be_taken_back():
    edited = DEFAULTS | {"seed": 3, "use_gpu": True}
    settings = quatrains.read_settings(edited, ["--seed", "none", "--no-use-gpu"])
    assert settings.seed is None
    assert settings.use_gpu is False


@pytest.mark.parametrize(
    "option",
    [
        "--gru-dim big",
        "--gru-dim 0",
        "--gru-dim 1.5",
        "--dropout 1",
        "--dropout -0.1",
        "--regularization -1",
        "--regularization inf",
        "--learning-rate 0",
        "--learning-rate nan",
        "--runs -1",
        "--seed -1",
        "--seed 4294967296",
        "--embedding-dim 128",
        "--phrase-len 0",
        "--max-words 0",
        "--batch-size 0",
        "--epochs-per-run 0",
        "--quatrains-per-run 0",
        "--generate -1",
        "--generate many",
        "--temperature 0",
        "--top-k -1",
        "--max-quote 1.5",
    ],
)
def test_illegal_values_are_one_line_that_names_the_setting(option, capsys):
    assert quatrains.main(option.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    name = option.split()[0][2:].replace("-", "_")
    assert printed.err.startswith(f"quatrains: {name} = ")


@pytest.mark.parametrize("option", ["--unknown 3", "--gru 64", "--gru-dim", "stray"])
def test_unknown_options_are_one_line(option, capsys):
    assert quatrains.main(option.split()) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "--help" in printed


@pytest.mark.parametrize(
    ("name", "value"),
    [("gru_dim", "128"), ("gru_dim", True), ("use_gpu", 1), ("logs", ""), ("corpus", None)],
)
def test_mistakes_made_in_the_file_are_refused_too(name, value):
    with pytest.raises(quatrains.InputError, match=f"^{name} = "):
        quatrains.read_settings(DEFAULTS | {name: value}, [])


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_setting_refuses_another_type_and_what_is_out_of_range(name):
    setting = quatrains.SETTINGS[name]
    bad = [object(), [1], b"x", 1 if setting.kind in (bool, str) else "1"]
    if setting.kind in (int, float):
        bad += [setting.kind(setting.low) - 1, float("nan"), True]
        bad += [setting.high * 2] if setting.high < math.inf else [math.inf]
    if setting.kind is str and setting.low:
        bad.append("")
    for value in bad:
        with pytest.raises(quatrains.InputError, match=f"^{name} = .* will not do: it must be "):
            quatrains.read_settings(DEFAULTS | {name: value}, [])


def test_glove_none_allows_any_size():
    settings = quatrains.read_settings(DEFAULTS, "--embedding-dim 128 --glove none".split())
    assert settings.embedding_dim == 128


def test_settings_in_force_are_all_described():
    described = quatrains.describe_settings(quatrains.read_settings(DEFAULTS, ["--gru-dim", "9"]))
    assert all(f"{name} = " in described for name in quatrains.SETTINGS)
    assert "gru_dim = 9" in described


def test_help_and_mistakes_answer_before_tensorflow_is_imported():
    code = (
        "import sys, quatrains\n"
        "try: status = quatrains.main(sys.argv[1:])\n"
        "except SystemExit as left: status = left.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "sys.exit(status)"
    )
    for option, status in (("--help", 0), ("--nonsense", 2), ("--gru-dim=x", 2)):
        done = subprocess.run(
            [sys.executable, "-c", code, option], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
    listed = subprocess.run(
        [sys.executable, "quatrains.py", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    flat = " ".join(listed.split())
    for name, value in DEFAULTS.items():
        assert "--" + name.replace("_", "-") in flat
        assert f"(default: {value})" in flat
