"""Recipes: what they set, what their settings do, and an experiment with each."""

import contextlib
import io
import re
from dataclasses import asdict

import numpy as np
import pytest

import quatrains
from conftest import SMALL, arguments, read_curve, run, write_verses
from quatrains import RECIPES, Settings, make_settings, only_words, tokenize

VERSE = RECIPES["verse"]
# Settings with which so small a model learns.
TINY = SMALL | {"gru_dim": 24, "learning_rate": 0.03, "epochs_per_run": 8}


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """For each recipe: the output of an experiment, and the loaded checkpoint."""
    corpus = write_verses(tmp_path_factory.mktemp("corpus") / "verses.txt", quatrains=40)
    found = {}
    verse = {"dropout": 0.1, "dense_dropout": 0.1, "phrase_len": 8}
    for recipe, overrides in (("2017", {}), ("verse", verse)):
        log_dir = str(tmp_path_factory.mktemp(recipe))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert run(**TINY | overrides, corpus=corpus, recipe=recipe, log_dir=log_dir) == 0
        lm = quatrains.load_checkpoint(quatrains.find_checkpoint(log_dir), {})
        found[recipe] = out.getvalue(), lm
    return found


@pytest.mark.parametrize(("recipe", "rates", "l2"), [("2017", [], 0.02), ("verse", [0.1], 0)])
def test_val_cross_entropy_is_that_of_the_held_out_tokens(trained, recipe, rates, l2):
    printed, lm = trained[recipe]
    _, gru, *dropouts, _ = lm.model.layers
    assert [layer.rate for layer in dropouts] == rates
    assert gru.kernel_regularizer.l2 == pytest.approx(l2)
    phrases, targets, _ = quatrains.make_samples(lm.corpus, lm.settings)[1]
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
    lm = trained["verse"][1]
    rows = lm.generate(40, 1, best_of=best_of)
    assert run(log_dir=lm.folder, generate=40, seed=1, best_of=best_of) == 0
    out, err = capsys.readouterr()
    assert err == f"\nFrom {lm.folder / 'checkpoint.keras'}. {quatrains.report_quotes(rows)}\n"
    for row, verse in zip(rows, out.strip("\n").split("\n\n"), strict=True):
        lines = re.split("<LINE[123]>", " ".join(row.tokens))
        assert len(lines) == 4
        words = [only_words(line.split()) for line in lines]
        assert [only_words(tokenize(line)) for line in verse.split("\n")] == words
