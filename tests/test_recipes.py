"""Recipes: what they set, what their settings do, and a training of each as its users see it."""

import contextlib
import io
import json
import re
import zipfile
from dataclasses import asdict

import numpy as np
import pytest

import quatrains
from conftest import QUICK, SMALL, read_curve, run, write_verses
from quatrains import RECIPES, Settings, tokenize

VERSE = RECIPES["verse"]
# What lets so small a model learn.
TINY = SMALL | {"gru_dim": 24, "learning_rate": 0.03, "epochs_per_run": 8}
MIXED = {"2017": {}, "verse": {"dropout": 0.1, "dense_dropout": 0.1, "phrase_len": 8}}


def test_what_is_given_wins_over_the_recipe_and_the_recipe_over_the_file(monkeypatch):
    default = asdict(Settings())
    assert default == {name: getattr(Settings, name) for name in Settings.__annotations__}
    assert asdict(Settings(recipe="verse")) == default | VERSE | {"recipe": "verse"}
    # Even where it says what the file says.
    settings = quatrains.read_command_line(["--recipe", "verse", "--phrase-len", "4"])
    assert asdict(settings) == default | VERSE | {"recipe": "verse", "phrase_len": 4}
    # A table more is a recipe more.
    mine = {"whole_quatrains": True, "dropout": 0}
    monkeypatch.setitem(RECIPES, "mine", mine)
    assert asdict(Settings(recipe="mine")) == default | mine | {"recipe": "mine"}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"padded": True}, "padded is no setting: take it out, --help lists all"),
        ({"weighted": 1}, "weighted = 1 will not do: it must be bool"),
        ({"embedding_dim": 128}, "GloVe needs an embedding_dim among (50, 100, 200, 300)"),
    ],
    ids=str,
)
def test_a_mistake_in_a_recipe_is_one_line(table, told, verses, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "mine", table)
    assert run(recipe="mine", corpus=verses) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"quatrains: {told}")


def test_a_recipe_may_resume_and_be_written_with_when_it_has_all_its_runs(
    verses, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "mine", {"resume": True})
    assert run(**QUICK, recipe="mine") == 2
    assert capsys.readouterr().err.startswith("quatrains: logs has no checkpoint")
    monkeypatch.setitem(RECIPES, "mine", {})
    assert run(**QUICK, recipe="mine") == 0
    monkeypatch.setitem(RECIPES, "mine", {"resume": True, "runs": 3})
    assert run(recipe="mine") == 0
    assert "Going on after run 1 " in capsys.readouterr().out
    assert run(recipe="mine") == 2
    assert "has its 3 runs already: set runs higher" in capsys.readouterr().err
    assert run(generate=1) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By recipe: what a training was given and printed, and what loads from it."""
    folder = tmp_path_factory.mktemp("recipes")
    corpus = str(write_verses(folder / "verses.txt", quatrains=40))
    found = {}
    for recipe, mixed in MIXED.items():
        given = TINY | mixed | {"corpus": corpus, "recipe": recipe, "logs": str(folder / recipe)}
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert run(**given) == 0
        (path,) = folder.glob(f"{recipe}/*-{recipe}/checkpoint.keras")
        found[recipe] = given, out.getvalue(), quatrains.load_checkpoint(path, Settings())
    return found


@pytest.mark.parametrize("recipe", MIXED)
def test_all_settings_are_printed_and_kept(trained, recipe):
    given, printed, prophet = trained[recipe]
    expected = asdict(Settings(**given))
    told = re.search(r"^Settings\(.*\)$", printed, re.MULTILINE)[0]
    assert eval(told, {"Settings": dict}) == expected
    with zipfile.ZipFile(prophet.folder / "checkpoint.keras") as archive:
        assert json.loads(archive.read("quatrains.json"))[2] == expected


@pytest.mark.parametrize(("recipe", "rates", "l2"), [("2017", [], 0.02), ("verse", [0.1], 0)])
def test_cross_entropy_is_that_of_the_tokens_kept_back(trained, recipe, rates, l2):
    _, printed, prophet = trained[recipe]
    _, gru, *dropouts, _ = prophet.model.layers
    assert [layer.rate for layer in dropouts] == rates
    assert gru.kernel_regularizer.l2 == pytest.approx(l2)
    _, (phrases, targets, _) = quatrains.make_samples(prophet.corpus, prophet.settings)
    predicted = prophet.model.predict(phrases, verbose=0)
    expected = -np.log(predicted[np.arange(len(targets)), targets[:, 0]]).mean()
    curve = read_curve(prophet.folder / "validation", "cross_entropy")
    assert [*curve] == [*range(1, 17)]
    assert curve[16] == pytest.approx(expected, rel=1e-4)
    shown = float(re.findall(r" val_loss: ([\d.]+)$", printed, re.MULTILINE)[-1])
    penalty = sum(map(float, prophet.model.losses))
    assert shown - penalty == pytest.approx(expected, abs=1e-3)
    assert (penalty > 0.01) == (l2 > 0)


def test_writing_needs_no_recipe_and_verse_has_the_lines_that_were_drawn(trained, capsys):
    prophet = trained["verse"][2]
    rows = prophet.write(40, 1, max_quote=99)
    assert run(logs=prophet.folder, generate=40, seed=1, max_quote=99) == 0
    out, err = capsys.readouterr()
    told = quatrains.report_quotes(rows)
    assert err == f"\nFrom {prophet.folder / 'checkpoint.keras'}. {told}\n"
    for row, verse in zip(rows, out.strip("\n").split("\n\n"), strict=True):
        drawn = [tokenize(" ".join(line)) for line in quatrains.part_lines(row.tokens, {})]
        assert [*map(tokenize, verse.split("\n"))] == drawn
    # So small a corpus is learnt: four lines, and the end of a sentence. Drafts do the rest.
    assert prophet.form == (4, True)
    forms = [quatrains.form_of(row.tokens) for row in rows]
    plain = [quatrains.form_of(row.tokens) for row in prophet.write(40, 1, drafts=1, max_quote=99)]
    assert 16 < plain.count((4, True)) < 36 < forms.count((4, True))
    assert max(len(row.tokens) for row in prophet.write(20, max_words=3)) == 3


def test_writing_from_2017_is_as_it_was_whatever_the_file_has(trained, monkeypatch, capsys):
    settings = {"logs": trained["2017"][2].folder, "generate": 5, "seed": 1}
    assert run(**settings) == 0
    plain = capsys.readouterr()
    for name, value in {"recipe": "verse", "gru_dim": 9, "corpus": "none"}.items():
        monkeypatch.setattr(Settings, name, value)
    assert Settings().drafts == VERSE["drafts"]
    assert run(**settings) == 0
    assert capsys.readouterr() == plain


def test_going_on_keeps_the_recipe_but_for_what_may_change_and_is_given(trained):
    given, _, prophet = trained["verse"]
    new = {"resume": True, "runs": 3, "temperature": 2.0}
    default, kept = asdict(Settings()), asdict(Settings(**given))
    changeable = {name: default[name] for name in quatrains.CHANGEABLE}
    resumed = quatrains.load_checkpoint(prophet.folder / "checkpoint.keras", Settings(**new))
    assert asdict(resumed.settings) == kept | changeable | VERSE | MIXED["verse"] | new
