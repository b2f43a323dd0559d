"""Recipes: what they set, what their settings do, and an experiment with each."""

import contextlib
import io
import json
import re
import zipfile
from dataclasses import asdict

import numpy as np
import pytest

import quatrains
from conftest import SMALL, arguments, read_curve, run, write_verses
from quatrains import RECIPES, Session, Settings, make_settings, tokenize

VERSE = RECIPES["verse"]
# Settings with which so small a model learns.
TINY = SMALL | {"gru_dim": 24, "learning_rate": 0.03, "epochs_per_run": 8}
OVERRIDES = {"2017": {}, "verse": {"dropout": 0.1, "dense_dropout": 0.1, "phrase_len": 8}}


def test_overrides_precede_the_recipe_and_the_recipe_precedes_the_file(monkeypatch):
    default = asdict(Settings())
    assert asdict(make_settings(recipe="verse")) == default | VERSE | {"recipe": "verse"}
    # An override counts even if its value is that of the file.
    overrides = {"recipe": "verse", "phrase_len": default["phrase_len"]}
    assert quatrains.read_command_line(arguments(**overrides)) == overrides
    assert asdict(make_settings(**overrides)) == default | VERSE | overrides
    mine = {"whole_quatrains": True, "dropout": 0}
    monkeypatch.setitem(RECIPES, "mine", mine)
    assert asdict(make_settings(recipe="mine")) == default | mine | {"recipe": "mine"}


def test_a_mistake_in_a_recipe_is_one_line(verses, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "mine", {"class_weights": 1})
    assert run(recipe="mine", corpus=verses) == 2
    assert capsys.readouterr().err == "quatrains: class_weights = 1 is invalid: expected bool\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """For each recipe: the overrides of an experiment, its output, and the loaded checkpoint."""
    corpus = str(write_verses(tmp_path_factory.mktemp("corpus") / "verses.txt", quatrains=40))
    found = {}
    for recipe, overrides in OVERRIDES.items():
        log_dir = str(tmp_path_factory.mktemp(recipe))
        overrides = TINY | overrides | {"corpus": corpus, "recipe": recipe, "log_dir": log_dir}
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert run(**overrides) == 0
        lm = quatrains.load_checkpoint(quatrains.find_checkpoint(log_dir), {})
        found[recipe] = overrides, out.getvalue(), lm
    return found


@pytest.mark.parametrize("recipe", OVERRIDES)
def test_all_settings_are_printed_and_saved(trained, recipe):
    overrides, printed, lm = trained[recipe]
    expected = make_settings(**overrides)
    assert printed.startswith(f"{expected}\n")
    assert lm.folder.name.endswith(f"-{recipe}")
    with zipfile.ZipFile(lm.folder / "checkpoint.keras") as archive:
        assert json.loads(archive.read("quatrains.json"))["settings"] == asdict(expected)


@pytest.mark.parametrize(("recipe", "rates", "l2"), [("2017", [], 0.02), ("verse", [0.1], 0)])
def test_val_cross_entropy_is_that_of_the_held_out_tokens(trained, recipe, rates, l2):
    _, printed, lm = trained[recipe]
    _, gru, *dropouts, _ = lm.model.layers
    assert [layer.rate for layer in dropouts] == rates
    assert gru.kernel_regularizer.l2 == pytest.approx(l2)
    _, (phrases, targets, _) = quatrains.make_samples(lm.corpus, lm.settings)
    predicted = lm.model.predict(phrases, verbose=0)
    expected = -np.log(predicted[np.arange(len(targets)), targets[:, 0]]).mean()
    curve = read_curve(lm.folder / "validation", "cross_entropy")
    assert [*curve] == [*range(1, 17)]
    assert curve[16] == pytest.approx(expected, rel=1e-4)
    shown = float(re.findall(r" val_loss: ([\d.]+)$", printed, re.MULTILINE)[-1])
    penalty = sum(map(float, lm.model.losses))
    assert shown - penalty == pytest.approx(expected, abs=1e-3)
    assert (penalty > 0.01) == (l2 > 0)


@pytest.mark.parametrize("best_of", [1, 40])
def test_generating_needs_no_recipe_and_verse_has_four_lines(trained, capsys, best_of):
    lm = trained["verse"][2]
    overrides = {"best_of": best_of, "max_quote_len": 99}
    rows = lm.generate(40, 1, **overrides)
    assert run(log_dir=lm.folder, generate=40, seed=1, **overrides) == 0
    out, err = capsys.readouterr()
    assert err == f"\nFrom {lm.folder / 'checkpoint.keras'}. {quatrains.report_quotes(rows)}\n"
    for row, verse in zip(rows, out.strip("\n").split("\n\n"), strict=True):
        ends = [token for token in row.tokens if token[0] == "<"]
        assert ends == ["<LINE1>", "<LINE2>", "<LINE3>"]
        lines = re.split("<LINE.>", " ".join(row.tokens))
        assert [*map(tokenize, verse.split("\n"))] == [line.split() for line in lines]


def test_resuming_keeps_the_recipe_and_all_but_overrides_of_what_may_change(trained):
    overrides, _, lm = trained["verse"]
    default, saved = asdict(Settings()), asdict(make_settings(**overrides))
    changeable = Session.__annotations__
    expected = {name: (default | VERSE if name in changeable else saved)[name] for name in saved}
    new = {"resume": True, "runs": 3, "temperature": 2.0}
    resumed = quatrains.load_checkpoint(lm.folder / "checkpoint.keras", new)
    assert asdict(resumed.settings) == expected | {"seed": overrides["seed"]} | new
