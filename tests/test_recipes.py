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
from conftest import QUICK, SMALL, read_curve, read_files, run, write_verses
from quatrains import RECIPES, Settings, tokenize

VERSE = RECIPES["verse"]
# What lets so small a model learn.
TINY = SMALL | {"gru_dim": 24, "learning_rate": 0.03, "epochs_per_run": 8}
MIXED = {"2017": {}, "verse": {"dropout": 0.1, "dense_dropout": 0.1, "phrase_len": 8}}


def test_what_is_given_wins_over_the_recipe_and_the_recipe_over_the_file():
    default = asdict(Settings())
    assert default == {name: field.default for name, field in Settings.__dataclass_fields__.items()}
    assert asdict(Settings(recipe="verse")) == default | VERSE | {"recipe": "verse"}
    given = {"phrase_len": 7, "weighted": True, "recipe": "verse"}
    assert asdict(Settings(**given)) == default | VERSE | given
    # Even where it says what the file says.
    settings = quatrains.read_command_line(["--recipe", "verse", "--phrase-len", "4"])
    assert asdict(settings) == default | VERSE | {"recipe": "verse", "phrase_len": 4}


def test_a_table_more_is_a_recipe_more(monkeypatch):
    monkeypatch.setitem(RECIPES, "mine", {"whole_quatrains": True, "dropout": 0})
    settings = Settings(recipe="mine")
    assert (settings.recipe, settings.whole_quatrains, settings.dropout) == ("mine", True, 0.0)
    assert type(settings.dropout) is float


MISTAKES = {
    "unknown": ({"padded": True}, "padded is no setting: take it out, --help lists all"),
    "type": ({"weighted": 1}, "weighted = 1 will not do: it must be bool"),
    "GloVe": ({"embedding_dim": 128}, "embedding_dim = 128 will not do for GloVe"),
    "no dict": ("padded", "recipe = 'mine' will not do: it must be one of 2017, verse, mine, each"),
    "a list": (["raw"], "recipe = 'mine' will not do: it must be one of 2017, verse, mine, each"),
}


@pytest.mark.parametrize(("table", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_recipe_is_one_line(table, told, verses, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "mine", table)
    assert run(recipe="mine", corpus=verses) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"quatrains: {told}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("value", ["Verse", "", 2017, ["verse"], None])
def test_an_unknown_recipe_is_told_which_there_are(value):
    with pytest.raises(quatrains.InputError, match="^recipe = .*: it must be one of 2017, verse"):
        Settings(recipe=value)


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
def test_the_settings_that_differ_are_printed_and_all_are_kept(trained, recipe):
    given, printed, prophet = trained[recipe]
    told = re.search(r"Settings other than the file's: (.*?)\.\n", printed, re.DOTALL)[1]
    expected, default = asdict(Settings(**given)), asdict(Settings())
    others = {name: repr(value) for name, value in expected.items() if value != default[name]}
    assert dict(each.split("=") for each in re.split(r",\s+", told)) == others
    with zipfile.ZipFile(prophet.folder / "checkpoint.keras") as archive:
        assert json.loads(archive.read("quatrains.json"))[2] == expected


def test_verse_adds_a_dropout_and_takes_the_penalty(trained):
    plain, verse = (prophet.model for _, _, prophet in trained.values())
    assert [layer.name for layer in plain.layers] == ["embedding", "GRU", "dense"]
    assert [layer.name for layer in verse.layers] == ["embedding", "GRU", "dropout", "dense"]
    assert verse.get_layer("dropout").rate == 0.1
    assert plain.get_layer("GRU").kernel_regularizer.l2 == pytest.approx(0.02)
    assert verse.get_layer("GRU").kernel_regularizer.l2 == 0


@pytest.mark.parametrize("recipe", MIXED)
def test_cross_entropy_is_that_of_the_tokens_kept_back(trained, recipe):
    _, printed, prophet = trained[recipe]
    _, (phrases, targets, _) = quatrains.make_samples(prophet.corpus, prophet.settings)
    predicted = prophet.model.predict(phrases, verbose=0)
    expected = -np.log(predicted[np.arange(len(targets)), targets[:, 0]]).mean()
    curve = read_curve(prophet.folder / "validation", "cross_entropy")
    assert [*curve] == [*range(1, 17)]
    assert curve[16] == pytest.approx(expected, rel=1e-4)
    shown = float(re.findall(r" val_loss: ([\d.]+)$", printed, re.MULTILINE)[-1])
    penalty = sum(map(float, prophet.model.losses))
    assert shown - penalty == pytest.approx(expected, abs=1e-3)
    assert (penalty > 0.01) == (recipe == "2017")


def test_writing_needs_no_recipe_and_verse_has_the_lines_that_were_drawn(trained, capsys):
    prophet = trained["verse"][2]
    rows = prophet.write(40, 1, max_quote=0)
    assert run(logs=prophet.folder, generate=40, seed=1, max_quote=0) == 0
    printed = capsys.readouterr()
    told = quatrains.report_quotes(rows, prophet.quoted)
    assert printed.err == f"\nFrom {prophet.folder / 'checkpoint.keras'}. {told}\n"
    written = [stanza.split("\n") for stanza in printed.out.strip("\n").split("\n\n")]
    for row, lines in zip(rows, written, strict=True):
        assert [tokenize(line) for line in lines] == quatrains.part_lines(row.tokens)
    # So small a corpus is learnt: four lines, and the end of a sentence. Drafts do the rest.
    assert prophet.form == (4, True)
    shares = [
        np.mean([quatrains.form_of(row.tokens) == (4, True) for row in each])
        for each in (prophet.write(40, 1, drafts=1, max_quote=0), rows)
    ]
    assert 0.4 < shares[0] < 0.9 < shares[1]
    assert max(len(row.tokens) for row in prophet.write(20, max_words=3)) == 3


def test_writing_from_2017_is_as_it_was_whatever_the_file_has(trained, monkeypatch, capsys):
    settings = {"logs": trained["2017"][2].folder, "generate": 5, "seed": 1}
    assert run(**settings) == 0
    plain = capsys.readouterr()
    for name, value in {"recipe": "verse", "gru_dim": 9, "corpus": "none"}.items():
        monkeypatch.setattr(Settings, name, value)
        monkeypatch.setattr(Settings.__dataclass_fields__[name], "default", value)
    assert Settings().drafts == VERSE["drafts"]
    assert run(**settings) == 0
    assert capsys.readouterr() == plain


@pytest.mark.parametrize("way", [{"generate": 3}, {"resume": True, "runs": 9}], ids=str)
def test_another_recipe_than_the_trained_one_is_one_line(trained, way, capsys):
    folder = trained["2017"][2].folder
    before = read_files(folder)
    assert run(logs=folder, recipe="verse", **way) == 2
    printed = capsys.readouterr()
    told = f"quatrains: {folder} was trained with recipe = '2017', not 'verse': leave that out, "
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith(told)
    assert read_files(folder) == before


def test_going_on_keeps_the_recipe_but_for_what_may_change_and_is_given(trained, monkeypatch):
    given, _, prophet = trained["verse"]
    new = {"resume": True, "runs": 3, "temperature": 2.0}
    path = prophet.folder / "checkpoint.keras"
    default, kept = asdict(Settings()), asdict(Settings(**given))
    changeable = {name: default[name] for name in quatrains.CHANGEABLE}
    resumed = quatrains.load_checkpoint(path, Settings(**new))
    assert asdict(resumed.settings) == kept | changeable | VERSE | MIXED["verse"] | new
    # It may have been renamed since.
    monkeypatch.delitem(RECIPES, "verse")
    resumed = quatrains.load_checkpoint(path, Settings(**new))
    assert asdict(resumed.settings) == kept | changeable | new
