"""Recipes: what they set, what their settings do, and a training of each as its users see it."""

import contextlib
import io
import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import quatrains
from conftest import SMALL, arguments, edited, read_curve, run_script, write_verses

VERSE = quatrains.RECIPES["verse"]
DEFAULTS = {name: getattr(quatrains, name) for name in quatrains.SETTINGS}
TINY = SMALL | {"gru_dim": 32, "learning_rate": 0.01, "epochs_per_run": 25, "batch_size": 32}
# What lets so small a model learn.
MIXED = {"dropout": 0.1, "dense_dropout": 0.1, "label_smoothing": 0.02}
STANZA = "One two,\nThree.\nFour five!\n\nSix\nSeven."


def settings_of(*arguments, **changes):
    """The settings that an edited file, its recipe and a command line give."""
    settings, given = quatrains.read_settings(DEFAULTS | changes, arguments)
    return quatrains.apply_recipe(settings, given, settings.recipe)


def corpus_of(text, line_tokens=True):
    return quatrains.index_corpus(quatrains.split_quatrains(text), line_tokens)


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_file():
    settings = settings_of("--phrase-len", "7", "--weighted", recipe="verse", phrase_len=5)
    assert (settings.phrase_len, settings.weighted) == (7, True)
    left = VERSE.keys() - {"phrase_len", "weighted"}
    assert {name: vars(settings)[name] for name in left} == {name: VERSE[name] for name in left}
    others = quatrains.SETTINGS.keys() - VERSE.keys() - {"recipe"}
    assert {name: vars(settings)[name] for name in others} == {n: DEFAULTS[n] for n in others}
    assert settings_of("--recipe", "verse").phrase_len == VERSE["phrase_len"]
    # Even where it says what the file says.
    assert settings_of("--recipe", "verse", "--phrase-len", "4").phrase_len == 4
    assert settings_of("--recipe", "2017", recipe="verse", phrase_len=5).phrase_len == 5
    assert vars(settings_of()) == DEFAULTS


def test_a_table_more_is_a_recipe_more(monkeypatch):
    monkeypatch.setitem(quatrains.RECIPES, "mine", {"padding": True, "dropout": 0})
    settings = settings_of("--recipe", "mine")
    assert (settings.recipe, settings.padding, settings.dropout) == ("mine", True, 0.0)
    assert type(settings.dropout) is float


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"padded": True}, "RECIPES has padded for 'mine', which is no setting: take it out"),
        ({"padding": 1}, "padding = 1 will not do: it must be True or False"),
        ({"embedding_dim": 128}, "embedding_dim = 128 will not do for GloVe"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(table, told, monkeypatch, capsys):
    monkeypatch.setitem(quatrains.RECIPES, "mine", table)
    assert quatrains.main(["--recipe", "mine"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"quatrains: {told}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("value", ["Verse", "", 2017])
def test_an_unknown_recipe_is_told_which_there_are(value):
    with pytest.raises(quatrains.InputError, match="it must be '2017' or 'verse'"):
        settings_of(recipe=value)


def test_ends_of_lines_are_tokens_by_their_number():
    tokens = quatrains.tokenize("One two,\nThree.\n\u2014\nFour five!", line_tokens=True)
    assert tokens == "one two , <LINE1> three . <LINE2> four five !".split()
    assert quatrains.tokenize("One two,\nThree.") == "one two , three .".split()
    assert quatrains.tokenize("<LINE1> a <BREAK>", line_tokens=True) == ["line1", "a", "break"]
    assert quatrains.tokenize("No lines, no ends.", line_tokens=True)[-1] == "."


def test_stanzas_of_any_form_have_their_own_ends():
    corpus = corpus_of(STANZA)
    assert corpus.tokens[1] == ["six", "<LINE1>", "seven", "."]
    assert {word for word in corpus.words if word[0] == "<"} == {"<BREAK>", "<LINE1>", "<LINE2>"}
    assert corpus.counts[corpus.words.index("<LINE1>")] == 2
    one_a_line = corpus_of("One two, three.\nFour five!")
    assert [word for word in one_a_line.words if word[0] == "<"] == ["<BREAK>"]


def test_padding_makes_a_sample_of_every_token_and_of_the_break():
    corpus = corpus_of("a b\n\nc", line_tokens=False)
    phrases, targets = quatrains.cut_phrases(corpus, 3, padding=True)
    assert phrases.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [0, 0, 0], [0, 0, 3]]
    assert targets.tolist() == [1, 2, 0, 3, 0]
    # What a quatrain is begun from when it is written.
    assert phrases[0].tolist() == [0] * 3


def test_samples_weigh_alike_unless_weighted():
    corpus = corpus_of("a a a a b b c\n\n" * 9, line_tokens=False)
    for weighted in (True, False):
        shape = settings_of(phrase_len=2, padding=True, weighted=weighted)
        train, check = quatrains.make_samples(corpus, shape, np.random.default_rng(1))
        for _, targets, weights in (train, check):
            assert weights.dtype == np.float32
            expected = np.sqrt(corpus.counts[targets]) if weighted else np.ones(len(targets))
            assert weights == pytest.approx(expected)
        # The same samples, in the same order.
        assert (
            train[1][:5].tolist()
            == quatrains.make_samples(
                corpus, settings_of(phrase_len=2, padding=True), np.random.default_rng(1)
            )[0][1][:5].tolist()
        )


def test_lines_are_those_drawn():
    tokens = "<LINE1> king , <LINE1> <LINE2> moon . sun <LINE3>".split()
    assert quatrains.part_lines(tokens) == [["king", ","], ["moon", ".", "sun"]]
    verse = quatrains.format_quatrain(quatrains.part_lines(tokens), {})
    assert verse == "King,\nMoon. Sun"
    # Punctuation starts no line.
    assert quatrains.part_lines(", king <LINE1> , . <LINE2> ! ? sun ,".split()) == [
        ["king"],
        ["sun", ","],
    ]
    assert quatrains.part_lines([]) == []
    assert quatrains.part_lines(["king"]) == [["king"]]


@pytest.fixture(scope="module")
def keras():
    quatrains.load_tensorflow(use_gpu=False)
    return quatrains.keras


def build(words, **changes):
    settings = settings_of("--recipe", "verse", gru_dim=6, **changes)
    quatrains.keras.utils.set_random_seed(2)
    embeddings = np.random.default_rng(2).normal(0, 1, (words, 5)).astype(np.float32)
    return quatrains.build_model(embeddings, settings.phrase_len, settings)


def test_the_recipe_adds_a_dropout_and_takes_the_penalty(keras):
    model = build(9)
    assert [layer.name for layer in model.layers] == ["embedding", "GRU", "dropout", "dense"]
    assert model.get_layer("dropout").rate == VERSE["dense_dropout"]
    assert model.get_layer("GRU").kernel_regularizer.l2 == 0


def test_label_smoothing_is_what_keras_has_for_one_hot_targets(keras, tmp_path):
    model = build(9)
    rng = np.random.default_rng(3)
    phrases, targets = rng.integers(0, 9, (20, VERSE["phrase_len"])), rng.integers(0, 9, (20, 1))
    predicted = model(phrases).numpy()
    keeps = 1 - VERSE["label_smoothing"]
    spread = np.full((20, 9), VERSE["label_smoothing"] / 9)
    spread[np.arange(20), targets[:, 0]] += keeps
    expected = -(spread * np.log(predicted)).sum(1).mean()
    assert float(model.compute_loss(None, targets, predicted)) == pytest.approx(expected, rel=1e-5)
    measured = model.evaluate(phrases, targets, verbose=0, return_dict=True)
    plain = -np.log(predicted[np.arange(20), targets[:, 0]]).mean()
    assert measured["cross_entropy"] == pytest.approx(plain, rel=1e-5)
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)
    # And is so after a checkpoint.
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss == quatrains.SmoothedCrossEntropy(VERSE["label_smoothing"])
    assert float(loaded.compute_loss(None, targets, predicted)) == pytest.approx(expected, rel=1e-5)


def test_what_label_smoothing_gives_to_every_word_is_not_drawn(keras):
    model = build(9)
    model.loss.share = 0.3
    dense = model.get_layer("dense")
    dense.set_weights([dense.get_weights()[0], np.linspace(-4, 2, 9)])
    predicted = model(np.zeros((1, VERSE["phrase_len"]), np.int32)).numpy()[0]
    expected = np.maximum(predicted - 0.3 / 9, 0)
    assert 2 <= (expected == 0).sum() <= 7
    draw = quatrains.build_sampler(model, VERSE["phrase_len"], max_words=1)
    rows = draw(30_000, np.random.default_rng(1))
    counts = np.bincount([row[0] if row else 0 for row in rows], minlength=9)
    assert counts / 30_000 == pytest.approx(expected / expected.sum(), abs=0.015)
    assert not counts[expected == 0].any()


def test_ends_of_lines_do_not_count_as_words(keras):
    corpus = corpus_of("king moon, sun\nstar star\nstar.\n\nstar\nsun king moon moon")
    model = build(len(corpus.words))
    ends = {corpus.words.index(f"<LINE{number}>") for number in (1, 2)}
    prophet = quatrains.Prophet(model, corpus, VERSE["phrase_len"], max_words=4)
    rows = prophet.draw(300, np.random.default_rng(1))
    counted = [sum(number not in ends for number in row) for row in rows]
    assert max(counted) == 4
    assert any(len(row) > 4 for row in rows)
    # As 2017's, a quatrain has no more words than it may, however long the opening.
    rows = prophet.draw(50, np.random.default_rng(1), [1, 2, min(ends), 3])
    assert {tuple(row[:4]) for row in rows} == {(1, 2, min(ends), 3)}
    assert max(sum(number not in ends for number in row) for row in rows) == 4
    # And hide no quote.
    star = corpus.words.index("star")
    assert prophet.describe([star, min(ends), star]).quote == ["star", "star"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a training of each recipe in `logs`, verse's first, and what they printed."""
    folder = tmp_path_factory.mktemp("recipes")
    write_verses(folder / "verses.txt", quatrains=40)
    printed = {}
    settings = TINY | {"corpus": folder / "verses.txt", "logs": folder / "logs"}
    for recipe, mixed in (("verse", MIXED), ("2017", {})):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert quatrains.main(arguments(**settings | mixed, recipe=recipe)) == 0
        printed[recipe] = out.getvalue()
    folders = sorted(folder.glob("logs/*-*"))
    return folder, dict(zip(("verse", "2017"), folders, strict=True)), printed


def verses(text):
    return [stanza.split("\n") for stanza in text.strip("\n").split("\n\n")]


def test_the_settings_in_force_are_printed_and_kept(trained):
    _, folders, printed = trained
    assert f"phrase_len = {VERSE['phrase_len']}," in printed["verse"]
    assert "recipe = 'verse'" in printed["verse"]
    assert "phrase_len = 4," in printed["2017"]
    for recipe, folder in folders.items():
        with zipfile.ZipFile(folder / "checkpoint.keras") as archive:
            kept = json.loads(archive.read("quatrains.json"))["settings"]
        assert kept["recipe"] == recipe
        assert kept["max_words"] == (VERSE["max_words"] if recipe == "verse" else 32)


def test_cross_entropy_is_that_of_the_held_out_tokens(trained):
    _, folders, printed = trained
    for recipe, logs in folders.items():
        checkpoint, corpus = quatrains.read_checkpoint(logs / "checkpoint.keras")
        settings = settings_of(**checkpoint.settings)
        model = quatrains.keras.models.load_model(logs / "checkpoint.keras")
        split = quatrains.make_samples(corpus, settings, np.random.default_rng(TINY["seed"]))
        phrases, targets, _ = split[1]
        predicted = model.predict(phrases, verbose=0)
        expected = -np.log(predicted[np.arange(len(targets)), targets]).mean()
        shown = re.findall(r" val_cross_entropy: ([\d.]+)$", printed[recipe], re.MULTILINE)
        assert float(shown[-1]) == pytest.approx(expected, abs=1e-4)
        curve = [*read_curve(logs / "validation", "cross_entropy").values()]
        assert curve[-1] == pytest.approx(expected, rel=1e-4)
        assert len(curve) == len(shown) == TINY["runs"] * TINY["epochs_per_run"]
        assert len(read_curve(logs / "train", "cross_entropy")) == len(curve)
        assert checkpoint.best["val_cross_entropy"] == pytest.approx(min(curve))


def test_writing_needs_no_recipe_and_verse_has_the_lines_that_were_drawn(trained):
    folder, folders, _ = trained
    done = run_script(folder, logs=folders["verse"], generate=40, seed=1, max_quote=0)
    assert done.returncode == 0, done.stderr
    raw = run_script(folder, logs=folders["verse"], generate=40, seed=1, max_quote=0, raw=True)
    rows = [line.split() for line in raw.stdout.splitlines()]
    written = verses(done.stdout)
    assert len(rows) == len(written) == 40
    for row, lines in zip(rows, written, strict=True):
        parts = quatrains.part_lines(row) or [[]]
        assert [quatrains.tokenize(line) for line in lines] == parts
    # So small a corpus is learnt: four lines of five words, and the end of a sentence.
    assert np.mean([len(lines) == 4 for lines in written]) > 0.6
    assert np.mean([lines[-1].endswith(".") for lines in written]) > 0.6
    # More words than 2017's quatrains may have, if asked for.
    short = run_script(folder, logs=folders["verse"], generate=9, seed=1, max_words=3, raw=True)
    for line in short.stdout.splitlines():
        assert len([word for word in line.split() if word[0] != "<"]) <= 3


def test_writing_from_2017_is_as_it_was_whatever_recipe_the_file_has(trained, tmp_path):
    folder, folders, _ = trained
    plain = run_script(folder, logs=folders["2017"], generate=5, seed=1)
    assert plain.returncode == 0, plain.stderr
    settings = {"recipe": "verse", "logs": str(folders["2017"]), "generate": 5, "seed": 1}
    script = tmp_path / "mine.py"
    script.write_text(edited(**settings), encoding="utf-8")
    command = [sys.executable, script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, plain.stdout)


@pytest.mark.parametrize("way", [{"generate": 3}, {"resume": True, "runs": 9}])
def test_another_recipe_than_the_trained_one_is_one_line(way, trained):
    folder, folders, _ = trained
    done = run_script(folder, logs=folders["2017"], recipe="verse", **way)
    assert (done.returncode, done.stdout) == (2, "")
    told = f"quatrains: what is in logs {folders['2017']} was trained with recipe '2017': leave"
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1


def test_resuming_keeps_the_recipe(trained):
    folder, folders, _ = trained
    changed = {"logs": folders["verse"], "resume": True, "runs": 3, "quatrains_per_run": 1}
    done = run_script(folder, **changed)
    assert done.returncode == 0, done.stderr
    assert "though here recipe was 'verse' and is '2017', gru_dim was 32 and is 128" in done.stdout
    assert "phrase_len was" not in done.stdout
    assert f"max_words = {VERSE['max_words']}," in done.stdout
    assert f"phrase_len = {VERSE['phrase_len']}," in done.stdout
    checkpoint, _ = quatrains.read_checkpoint(folders["verse"] / "checkpoint.keras")
    assert (checkpoint.runs, checkpoint.settings["recipe"]) == (3, "verse")
    figures = re.findall(r" val_cross_entropy: ([\d.]+)$", done.stdout, re.MULTILINE)
    curve = [*read_curve(folders["verse"] / "validation", "cross_entropy").values()]
    assert len(curve) == 75
    assert curve[-25:] == pytest.approx([float(figure) for figure in figures], abs=1e-4)


def test_a_checkpoint_from_before_there_were_recipes_is_one_of_2017(trained, tmp_path):
    _, folders, _ = trained
    old = tmp_path / "checkpoint.keras"
    path = folders["2017"] / "checkpoint.keras"
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(old, "w") as archive:
        for name in new.namelist():
            data = new.read(name)
            if name == "quatrains.json":
                fields = json.loads(data)
                for setting in quatrains.BEFORE_RECIPES:
                    del fields["settings"][setting]
                data = json.dumps(fields)
            archive.writestr(name, data)
    checkpoint, corpus = quatrains.read_checkpoint(old)
    assert checkpoint.settings["recipe"] == "2017"
    assert corpus.words == quatrains.read_checkpoint(path)[1].words
