"""Edits of `build_model`, made in the text of the script as its users make them, and run."""

import contextlib
import importlib.util
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import quatrains
from conftest import ROOT, SMALL, arguments, write_verses

# The verses give 38 batches to train on and 2 to validate with. A last one of another size, and
# longer phrases, would be more to compile.
VERSES = 35
TRAINING = {"corpus": "verses.txt", "epochs_per_run": 1, "phrase_len": 2, "batch_size": 20}
TRAINING = SMALL | TRAINING

GRU, GRU_END = "keras.layers.GRU(", 'name="GRU",\n        ),'
EMBEDDING = 'keras.layers.Embedding(words, dim, name="embedding"),'
DENSE = 'keras.layers.Dense(words, activation="softmax", name="dense"),'
SEQUENTIAL = 'model = keras.Sequential(layers, name="quatrains")'
OPTIMIZER = "keras.optimizers.RMSprop(settings.learning_rate)"
FIGURES = ("loss", "acc", "cross_entropy")
LOSS = 'loss=SmoothedCrossEntropy(share) if share else "sparse_categorical_crossentropy"'
# What is written for what stands there.
EDITS = {
    "an LSTM": {GRU: "keras.layers.LSTM("},
    "a second GRU": {GRU_END: f"return_sequences=True,\n {GRU_END}\n keras.layers.GRU(8),"},
    "a dropout": {DENSE: f"keras.layers.Dropout(0.3),\n {DENSE}"},
    "no bias": {'name="dense"': 'name="dense", use_bias=False'},
    "no recurrent dropout": {"recurrent_dropout=settings.dropout": "recurrent_dropout=0"},
    "another loss": {LOSS: 'loss="mse"'},
    "one more metric": {
        'name="acc"),': 'name="acc"), keras.metrics.SparseTopKCategoricalAccuracy(5, "top5"),'
    },
    "another activation": {'name="GRU"': 'name="GRU", activation="relu"'},
    "both directions": {GRU: f"keras.layers.Bidirectional({GRU}", GRU_END: GRU_END[:-1] + "),"},
    "a functional model": {
        SEQUENTIAL: "outputs = layers[0]\n"
        "    for layer in layers[1:]:\n"
        "        outputs = layer(outputs)\n"
        "    model = keras.Model(layers[0], outputs)"
    },
    "another initializer": {'name="GRU"': 'name="GRU", kernel_initializer="he_normal"'},
    "a loop": {"unroll=phrase_len <= 8": "unroll=False"},
    "a spatial dropout": {EMBEDDING: f"{EMBEDDING}\n keras.layers.SpatialDropout1D(0.3),"},
    "AdamW with a schedule": {
        OPTIMIZER: "keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.01, 60))"
    },
}
# Tried only with --long, for each takes half a minute.
RARER = ("both directions", "a functional model", "another initializer", "a loop")
RARER += ("a spatial dropout", "AdamW with a schedule")
# Edits after which the figures are what they were.
SAME = ("one more metric", "a functional model", "a loop")


def write_edit(folder, edits):
    """Write the script with edits into a folder."""
    text = (ROOT / "quatrains.py").read_text(encoding="utf-8")
    for old, new in edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "edited.py"
    path.write_text(text, encoding="utf-8")
    return path


def load_edit(path, number=itertools.count()):  # noqa: B008
    """Load a script as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"edited_{next(number)}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_edit(module, folder, **settings):
    """Run the main function of an edit in a folder; return its status and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = module.main(arguments(**settings))
    finally:
        os.chdir(before)
    return status, out.getvalue(), err.getvalue()


def run_process(path, **settings):
    """Run an edit as its user does; return its status and what it printed."""
    command = [sys.executable, path, *arguments(**settings)]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def read_figures(printed):
    """Read the figures of the epochs that were printed."""
    lines = re.findall(r"^Epoch 1/1 - [\d.]+s - (.*)$", printed, re.MULTILINE)
    return [
        {name: float(value) for name, value in (item.split(": ") for item in line.split(" - "))}
        for line in lines
    ]


def check_validation(figures, checkpoint, **custom_objects):
    """See that plain Keras finds the figures of validation with the model of a checkpoint."""
    model = quatrains.keras.models.load_model(checkpoint, custom_objects)
    model.jit_compile = False
    verses = checkpoint.parents[1] / "verses.txt"
    corpus = quatrains.index_corpus(quatrains.read_corpus(verses))
    rng = np.random.default_rng(TRAINING["seed"])
    shape = SimpleNamespace(phrase_len=TRAINING["phrase_len"], padding=False, weighted=True)
    phrases, targets, _ = quatrains.make_samples(corpus, shape, rng)[1]
    evaluated = model.evaluate(phrases, targets[:, None], 20, verbose=0, return_dict=True)
    assert len(targets) == 40
    validated = {name[4:]: value for name, value in figures.items() if name.startswith("val_")}
    assert validated == pytest.approx(evaluated, rel=1e-5, abs=6e-5)
    return model


def check_curves(figures, folder):
    """See that TensorBoard has the figures of all epochs, one curve each."""
    for part, prefix in (("train", ""), ("validation", "val_")):
        events = EventAccumulator(str(folder / part)).Reload()
        names = {name for name in figures[0] if name.startswith("val_") == bool(prefix)}
        assert {prefix + tag for tag in events.Tags()["tensors"]} == names
        for tag in events.Tags()["tensors"]:
            curve = [quatrains.tf.make_ndarray(each.tensor_proto) for each in events.Tensors(tag)]
            assert [each.step for each in events.Tensors(tag)] == [*range(len(figures))]
            assert curve == pytest.approx([each[prefix + tag] for each in figures], 1e-6, 6e-5)


def train_edit(folder, edits):
    """Train two runs with an edit; `cut` in the folder is the training as it was after the first.

    Returns the edit as a module, and the figures of both epochs.
    """
    write_verses(folder / "verses.txt", VERSES)
    module = load_edit(write_edit(folder, edits))
    save = module.save_checkpoint

    def save_and_copy(path, *what):
        save(path, *what)
        if not (folder / "cut").exists():
            shutil.copytree(folder / path.parent, folder / "cut")

    module.save_checkpoint = save_and_copy
    status, printed, err = run_edit(module, folder, **TRAINING)
    assert (status, err) == (0, "")
    return module, read_figures(printed)


@pytest.fixture(scope="module")
def unedited(tmp_path_factory):
    """The figures of the script as it is."""
    quatrains.load_tensorflow(use_gpu=False)
    return train_edit(tmp_path_factory.mktemp("unedited"), {})[1]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name in RARER)) for name in EDITS],
)
def test_an_edit_is_trained_validated_resumed_and_written_with(unedited, tmp_path, name):
    module, (first, second) = train_edit(tmp_path, EDITS[name])
    if name in SAME:
        shared = [{key: epoch[key] for key in unedited[0]} for epoch in (first, second)]
        for ours, theirs in zip(shared, unedited, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-4)
    else:
        assert all(first[key] != unedited[0][key] for key in ("loss", "val_loss"))
    new = {"top5", "val_top5"} if name == "one more metric" else set()
    assert first.keys() == {*FIGURES, *(f"val_{name}" for name in FIGURES)} | new

    cut = tmp_path / "cut"
    check_validation(first, cut / "checkpoint.keras")
    status, printed, err = run_edit(module, tmp_path, resume=True, runs=2, logs="cut")
    assert (status, err) == (0, "")
    assert read_figures(printed) == [second]
    model = check_validation(second, cut / "checkpoint.keras")
    check_curves([first, second], cut)
    drawn = [tag for tag in EventAccumulator(str(cut)).Reload().Tags()["tensors"] if "weig" in tag]
    assert len(drawn) == len(model.trainable_weights)
    how = {"generate": 2, "logs": "cut", "raw": True, "opening": "king"}
    status, printed, err = run_edit(module, tmp_path, **how)
    assert status == 0
    assert [line.split()[0] for line in printed.splitlines()] == ["king", "king"]


OWN = {
    "def build_model(": """import keras


class Blend(keras.layers.Layer):
    def __init__(self, share=0.5, **kwargs):
        super().__init__(**kwargs)
        self.share = share

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, vectors):
        return self.share * vectors + (1 - self.share) * self.scale

    def get_config(self):
        return super().get_config() | {"share": self.share}


def surprise(targets, predicted):
    losses = keras.losses.sparse_categorical_crossentropy(targets, predicted)
    return 2 * losses


def certainty(targets, predicted):
    return keras.ops.max(predicted, -1)


def build_model(""",
    DENSE: f"Blend(0.7),\n {DENSE}",
    LOSS: "loss=surprise",
    'name="acc"),': 'name="acc"), certainty,',
}


def test_layers_losses_and_metrics_of_ones_own_go_on_in_another_process(unedited, tmp_path):
    path = write_edit(tmp_path, OWN)
    write_verses(tmp_path / "verses.txt", VERSES)
    status, printed, _ = run_process(path, **TRAINING | {"runs": 1})
    assert status == 0
    figures = read_figures(printed)
    assert figures[0]["val_loss"] > 1.5 * unedited[0]["val_loss"]
    assert 0 < figures[0]["certainty"] < 1
    (checkpoint,) = tmp_path.glob("logs/*/checkpoint.keras")
    (tmp_path / "cut").mkdir()
    shutil.copy(checkpoint, tmp_path / "cut")
    module = load_edit(path)
    own = {name: getattr(module, name) for name in ("Blend", "surprise", "certainty")}
    check_validation(figures[0], tmp_path / "cut" / "checkpoint.keras", **own)

    status, printed, _ = run_process(path, resume=True, runs=2)
    assert status == 0
    figures += read_figures(printed)
    shutil.copy(checkpoint, tmp_path / "cut")
    model = check_validation(figures[1], tmp_path / "cut" / "checkpoint.keras", **own)
    assert [layer.share for layer in model.layers if type(layer) is module.Blend] == [0.7]
    check_curves(figures, checkpoint.parent)
    status, printed, _ = run_process(path, generate=2, raw=True)
    assert (status, len(printed.splitlines())) == (0, 2)


WRONG = {
    "too many words": ({"Dense(words,": "Dense(words + 1,"}, r"\(2, 30\)"),
    "sequences": ({'name="GRU"': 'name="GRU", return_sequences=True'}, r"\(2, 2, 29\)"),
    "no softmax": ({'activation="softmax", ': ""}, "from -"),
    "another loss": ({LOSS: 'loss="categorical_crossentropy"'}, "same shape"),
    "not compiled": ({"model.compile(": "dict("}, "compile"),
    # Keras saves it, and then refuses to load it, for it is code.
    "a lambda": ({DENSE: f"keras.layers.Lambda(lambda x: 2 * x),\n {DENSE}"}, "Lambda"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("unedited")
def test_a_model_of_another_kind_is_refused_in_a_line_before_anything_is_made(tmp_path, name):
    edits, reason = WRONG[name]
    write_verses(tmp_path / "verses.txt", VERSES)
    path = write_edit(tmp_path, edits)
    if name == "sequences":
        status, _, err = run_process(path, **TRAINING)
    else:
        status, _, err = run_edit(load_edit(path), tmp_path, **TRAINING)
    assert status == 2
    assert re.fullmatch(
        rf"quatrains: build_model does not return what it should \(.*{reason}.*\): see its .*\n",
        err,
    )
    assert not (tmp_path / "logs").exists()
