"""Settings: the block at the top of the file, the command line, and what is refused."""

import inspect
import os
import re
import subprocess
import sys

import pytest

import quatrains
from conftest import QUICK, ROOT, edited, write_verses

DEFAULTS = {name: getattr(quatrains, name) for name in quatrains.SETTINGS}


def read(*arguments, **settings):
    """The settings that an edited file, its recipe and a command line give."""
    settings, given = quatrains.read_settings(DEFAULTS | settings, arguments)
    return quatrains.apply_recipe(settings, given, settings.recipe)


def run(script, *arguments):
    """Run a script as a command in its own folder, its help not wrapped."""
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=script.parent,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "1000"},
    )


def comment_above(name):
    """The lines of comment right above a setting, as one line."""
    lines = (ROOT / "quatrains.py").read_text(encoding="utf-8").splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
    comment = []
    while lines[place - 1].startswith("# ") and not lines[place - 1].startswith("# --"):
        place -= 1
        comment.insert(0, lines[place][2:])
    return " ".join(comment)


def test_defaults_are_those_of_the_published_system():
    assert DEFAULTS == {
        "use_gpu": False,
        "recipe": "2017",
        "embedding_dim": 300,
        "gru_dim": 128,
        "dropout": 0.5,
        "regularization": 0.02,
        "dense_dropout": 0.0,
        "label_smoothing": 0.0,
        "phrase_len": 4,
        "padding": False,
        "line_tokens": False,
        "weighted": True,
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
        "corpus": "data/quatrains.txt",
        "glove": "auto",
        "logs": "logs",
    }


def test_settings_are_plain_assignments_near_the_top():
    top = inspect.getsource(quatrains).partition("class ")[0]
    for name, value in DEFAULTS.items():
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        assert f"\n{name} = {shown}\n" in top


def test_command_line_overrides_the_file_and_is_told_apart():
    line = "--gru-dim 64 --use-gpu --dropout 0 --seed 3 --raw --logs elsewhere --glove none"
    settings, given = quatrains.read_settings(DEFAULTS | {"runs": 3}, line.split())
    changed = {name: value for name, value in vars(settings).items() if value != DEFAULTS[name]}
    expected = {
        "gru_dim": 64,
        "use_gpu": True,
        "dropout": 0.0,
        "seed": 3,
        "raw": True,
        "logs": "elsewhere",
        "glove": "none",
    }
    assert changed == expected | {"runs": 3}
    assert type(settings.dropout) is float
    assert sorted(given) == sorted(expected)


def test_seed_and_flags_can_be_taken_back():
    settings = read("--seed", "none", "--no-use-gpu", seed=3, use_gpu=True)
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
        "--epochs-per-run 0",
        "--quatrains-per-run 0",
        "--generate -1",
        "--generate many",
        "--temperature 0",
        "--top-k -1",
        "--max-quote 1.5",
        "--embedding-dim 1000000000000",
        "--max-words 10000000000",
        "--batch-size 1000000000000",
        "--generate 3000000000",
    ],
)
def test_illegal_values_are_one_line_that_names_the_setting(option, capsys):
    assert quatrains.main(option.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    name = option.split()[0][2:].replace("-", "_")
    assert printed.err.startswith(f"quatrains: {name} = ")


@pytest.mark.parametrize("option", ["--unknown 3", "--gru 64", "--gru-dim", "--output x", "stray"])
def test_unknown_options_are_one_line(option, capsys):
    assert quatrains.main(option.split()) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "--help" in printed


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_setting_refuses_another_type_and_what_is_out_of_range(name):
    kind, least, most = quatrains.SETTINGS[name]
    bad = [object(), [1], b"x", 1 if kind in (bool, str) else "1"]
    if kind in (int, float):
        bad += [kind(least) - 1, kind(most) * 2, float("nan"), float("inf"), True]
    if kind is str:
        bad += ["nul\0", "x" * (most + 1), None, *[""] * least]
    for value in bad:
        with pytest.raises(quatrains.InputError, match=f"^{name} = .* will not do: it must be "):
            read(**{"glove": "none", name: value})


def test_no_range_goes_beyond_what_memory_holds():
    sizes = {"embedding_dim": 10**12, "max_words": 10**10, "batch_size": 10**12}
    for name, value in (sizes | {"generate": 3 * 10**9}).items():
        _, _, most = quatrains.SETTINGS[name]
        assert most < value / 1000
        assert getattr(read(glove="none", **{name: most}), name) == most


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_setting_that_is_gone_from_the_file_is_named(name):
    left = {other: value for other, value in DEFAULTS.items() if other != name}
    with pytest.raises(quatrains.InputError, match=f"^{name} is not set at the top of the file"):
        quatrains.read_settings(left, [])


def test_glove_none_allows_any_size():
    assert read("--embedding-dim", "128", "--glove", "none").embedding_dim == 128


def test_settings_in_force_are_all_described():
    described = quatrains.describe_settings(read("--gru-dim", "9"))
    assert all(f"{name} = " in described for name in quatrains.SETTINGS)
    assert "gru_dim = 9" in described


def check_help(script, defaults):
    """The help tells of each setting what the comment above it says, and the script's default."""
    shown = " ".join(run(script, "--help").stdout.split())
    for name, value in defaults.items():
        option = re.escape(f"--{name.replace('_', '-')} ") + r"(VALUE )?"
        if isinstance(value, bool):
            option = rf"--no-{name.replace('_', '-')} "
        told = re.escape(comment_above(name)) + r" \([^()]*; default: "
        recipes = {recipe: table.get(name) for recipe, table in quatrains.RECIPES.items()}
        also = "".join(
            f"; {recipe}: {other}" for recipe, other in recipes.items() if other is not None
        )
        assert re.search(option + told + re.escape(f"{value}{also})"), shown), name


def test_help_shows_the_comment_above_each_setting_and_its_default():
    assert comment_above("batch_size") == "Samples a training step."
    assert len(comment_above("glove")) > 100
    check_help(ROOT / "quatrains.py", DEFAULTS)


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


def test_a_copy_with_other_settings_is_a_program_of_its_own(tmp_path):
    write_verses(tmp_path / "verses.txt")
    settings = QUICK | {"runs": 1, "logs": "50% off"}
    script = tmp_path / "mine.py"
    script.write_text(edited(**settings), encoding="utf-8")
    check_help(script, DEFAULTS | settings)
    done = run(script, "--gru-dim", "9", "--opening", "king")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gru_dim = 9" in done.stdout
    assert done.stdout.count("\n\nKing") == 3
    assert [*tmp_path.glob("50% off/*/checkpoint.keras")]


def test_a_copy_without_a_setting_is_one_line(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(edited().replace("\ngru_dim = ", "\n# gru_dim = "), encoding="utf-8")
    for arguments in ([], ["--help"], ["--gru-dim", "9"]):
        done = run(script, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        told = "quatrains: gru_dim is not set at the top of the file: put `gru_dim = ...` back\n"
        assert done.stderr == told
