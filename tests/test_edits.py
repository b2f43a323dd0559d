"""Edits of `build_model`, made in the text of the script as its users make them, and run."""

import importlib.util
import itertools
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector import ProjectorConfig

import quatrains
from conftest import ROOT, SMALL, arguments, read_curve, write_verses
from quatrains import keras

# The verses give 19 batches to train on and one to validate with. A last one of another size, and
# longer phrases, would be more to compile.
VERSES = {"quatrains": 17, "seed": 56}
TRAINING = {"corpus": "verses.txt", "epochs_per_run": 1, "phrase_len": 2, "batch_size": 20}
TRAINING = SMALL | TRAINING | {"quatrains_per_run": 1, "max_words": 8}

TEXT = (ROOT / "quatrains.py").read_text(encoding="utf-8")
GRU, GRU_END = "keras.layers.GRU(", 'name="GRU",\n        )\n    )\n'
WHOLE_GRU = re.search(
    r"    model\.add\(\n        keras\.layers\.GRU\(.*?\n    \)\n", TEXT, re.DOTALL
)[0]
ADD_EMBEDDING = "    model.add(embedding)\n"
DENSE = '    model.add(keras.layers.Dense(words, activation="softmax"))\n'
COMPILE = "    model.compile(\n"
OPTIMIZER = "keras.optimizers.RMSprop(settings.learning_rate)"
LOSS = 'loss="sparse_categorical_crossentropy"'
METRICS = "metrics=["
ONE_MORE = {METRICS: 'metrics=[keras.metrics.SparseTopKCategoricalAccuracy(k=5, name="top5"), '}
LSTMS = """\
    model.add(keras.layers.LSTM(8, dropout=0.3, unroll=True, return_sequences=True))
    model.add(keras.layers.LSTM(8, dropout=0.3, unroll=True))
    model.add(keras.layers.Dropout(0.3))
"""
TWO_EMBEDDINGS = """\
    phrases = keras.Input((phrase_len,), dtype="int32")
    vectors = embedding(phrases) + keras.layers.Embedding(3, dim)(phrases % 3)
    for layer in model.layers[1:]:
        vectors = layer(vectors)
    model = keras.Model(phrases, vectors)
"""
# What is written for what stands there, beside what XLA is turned off by.
EDITS = {
    "the README's": {WHOLE_GRU: LSTMS} | ONE_MORE,
    "a dropout": {DENSE: f"    model.add(keras.layers.Dropout(0.3))\n{DENSE}"},
    "a dense layer": {DENSE: f'    model.add(keras.layers.Dense(64, activation="relu"))\n{DENSE}'},
    "another loss": {LOSS: 'loss="mse"'},
    "one more metric": ONE_MORE,
    "an embedding inside": {ADD_EMBEDDING: "    model.add(keras.Sequential([embedding]))\n"},
    "two embeddings": {COMPILE: TWO_EMBEDDINGS + COMPILE},
    "loss scaling": {OPTIMIZER: f"keras.optimizers.LossScaleOptimizer({OPTIMIZER}, 1024.0, 3)"},
    "no bias": {'activation="softmax"': 'activation="softmax", use_bias=False'},
    "no recurrent dropout": {"recurrent_dropout=settings.dropout": "recurrent_dropout=0"},
    "another activation": {'name="GRU"': 'name="GRU", activation="relu"'},
    "both directions": {
        GRU: f"keras.layers.Bidirectional({GRU}",
        GRU_END: GRU_END.replace("        )", "        ))"),
    },
    "a functional model": {
        COMPILE: f"    model = keras.Model(model.inputs[0], model.outputs[0])\n{COMPILE}"
    },
    "another initializer": {'name="GRU"': 'name="GRU", kernel_initializer="he_normal"'},
    "a loop": {"unroll=phrase_len <= 8": "unroll=False"},
    "a spatial dropout": {
        ADD_EMBEDDING: f"{ADD_EMBEDDING}    model.add(keras.layers.SpatialDropout1D(0.3))\n"
    },
    "AdamW with a schedule": {
        OPTIMIZER: "keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.01, 60))"
    },
    "outputs in bfloat16": {'activation="softmax"': 'activation="softmax", dtype="bfloat16"'},
}
CASES = [(name, "2017") for name in EDITS if name != "a dropout"]
CASES += [("the README's", "verse"), ("a dropout", "verse")]
# The others are tried only with --long, for each takes some seconds.
USUAL = ("the README's", "a dense layer", "another loss", "two embeddings", "loss scaling")
USUAL = [("a dropout", "verse"), *((name, "2017") for name in USUAL)]
# Edits after which the figures are what they were.
SAME = ("one more metric", "loss scaling", "a functional model", "a loop", "an embedding inside")


def load_edit(folder, edits, number=itertools.count()):  # noqa: B008
    """Write the script with edits into a folder, and load it as a module of its own."""
    text = TEXT
    for old, new in (edits | {"jit_compile=True": "jit_compile=False"}).items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / f"edited_{next(number)}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def train_edit(folder, edits, **settings):
    """Train two runs with an edit; `cut` in the folder is the training as the first left it."""
    write_verses(folder / "verses.txt", **VERSES)
    module = load_edit(folder, edits)
    save = module.save_checkpoint

    def save_and_copy(prophet):
        save(prophet)
        if prophet.runs == 1:
            shutil.copytree(prophet.folder, folder / "cut")

    module.save_checkpoint = save_and_copy
    return module, module.train(module.Settings(**TRAINING | settings))


def check_validation(prophet, epoch, path, **custom_objects):
    """See that plain Keras finds the figures of an epoch with the model of a checkpoint."""
    model = keras.models.load_model(path, custom_objects)
    model.run_eagerly = True
    phrases, targets, _ = quatrains.make_samples(prophet.corpus, prophet.settings)[1]
    evaluated = model.evaluate(phrases, targets, 20, verbose=0, return_dict=True)
    figures = prophet.history.history
    validated = {name[4:]: figures[name][epoch] for name in figures if name.startswith("val_")}
    assert validated == pytest.approx(evaluated, rel=1e-4)
    return model


def check_curves(figures, folder):
    """See that TensorBoard has the figures of all epochs, one curve each."""
    for name, values in figures.items():
        place = "validation" if name.startswith("val_") else "train"
        curve = read_curve(folder / place, name.removeprefix("val_"))
        assert curve == pytest.approx(dict(enumerate(values, 1)), rel=1e-6)


def check_projector(folder, words):
    """See that the projector has matrices with a row for each word, and no others."""
    config = (folder / "projector_config.pbtxt").read_text()
    (shown,) = text_format.Parse(config, ProjectorConfig()).embeddings
    assert [*shown.tensor_shape] == [words, 8]
    assert (folder / shown.tensor_path).stat().st_size == words * 8 * 4


@pytest.fixture(scope="module")
def unedited(tmp_path_factory):
    """The figures of the script as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("unedited"))
        return train_edit(folder, {})[1].history.history


@pytest.mark.parametrize(
    ("name", "recipe"),
    [pytest.param(*case, marks=[pytest.mark.long] * (case not in USUAL)) for case in CASES],
)
def test_an_edit_acts_in_training_validation_resuming_and_writing(
    unedited, tmp_path, monkeypatch, capsys, name, recipe
):
    monkeypatch.chdir(tmp_path)
    module, prophet = train_edit(tmp_path, EDITS[name], recipe=recipe)
    figures = prophet.history.history
    names = {*unedited, *(["top5", "val_top5"] if METRICS in EDITS[name] else [])}
    assert figures.keys() == names
    for key in ("loss", "acc", "val_loss", "val_acc"):
        if name in SAME:
            assert figures[key] == pytest.approx(unedited[key], rel=1e-4)
        elif "loss" in key:
            assert figures[key] != pytest.approx(unedited[key], rel=1e-4)

    cut = tmp_path / "cut"
    check_validation(prophet, 0, cut / "checkpoint.keras")
    resumed = module.train(module.Settings(resume=True, runs=2, logs="cut"))
    assert resumed.history.history == {key: values[1:] for key, values in figures.items()}
    model = check_validation(prophet, 1, cut / "checkpoint.keras")
    states = [each.optimizer.variables for each in (prophet.model, model)]
    for whole, parted in zip(*states, strict=True):
        assert np.array_equal(whole, parted)
    check_curves(figures, cut)
    check_projector(cut, len(prophet.corpus.words))
    drawn = [tag for tag in EventAccumulator(str(cut)).Reload().Tags()["tensors"] if "weig" in tag]
    assert len(drawn) == len(model.trainable_weights)
    capsys.readouterr()
    module.generate(module.Settings(generate=2, logs="cut", raw=True, opening="king"))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["king", "king"]


OWN = {
    "def build_model(": """\
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


class Halved(keras.Sequential):
    def train_step(self, data):
        phrases, targets, weights = data
        return super().train_step((phrases, targets, weights / 2))


def surprise(targets, predicted):
    losses = keras.losses.sparse_categorical_crossentropy(targets, predicted)
    return 2 * losses


def certainty(targets, predicted):
    return keras.ops.max(predicted, -1)


def build_model(""",
    "model = keras.Sequential(": "model = Halved(",
    DENSE: f"    model.add(Blend(0.7))\n{DENSE}",
    LOSS: "loss=surprise",
    METRICS: "metrics=[certainty, ",
}


def test_layers_steps_losses_and_metrics_of_ones_own_go_on_in_another_process(
    unedited, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    module, prophet = train_edit(tmp_path, OWN)
    figures = prophet.history.history
    assert figures["val_loss"][0] > 1.5 * unedited["val_loss"][0]
    assert figures["loss"][0] < 1.2 * unedited["loss"][0]
    assert 0 < figures["certainty"][0] < 1
    given = arguments(resume=True, runs=2, logs="cut")
    command = [sys.executable, module.__file__, *given]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    names = ("Blend", "Halved", "surprise", "certainty")
    own = {name: getattr(module, name) for name in names}
    model = check_validation(prophet, 1, tmp_path / "cut" / "checkpoint.keras", **own)
    assert type(model) is module.Halved
    assert [layer.share for layer in model.layers if type(layer) is module.Blend] == [0.7]
    check_curves(figures, tmp_path / "cut")


WRONG = {
    "too many words": ({"Dense(words,": "Dense(words + 1,"}, r"\(2, 30\)"),
    "sequences": ({GRU_END: f"return_sequences=True,\n{GRU_END}"}, r"\(2, 2, 29\)"),
    "no activation": ({', activation="softmax"': ""}, "from -"),
    "relu": ({'activation="softmax"': 'activation="relu"'}, "from 0 with the sum"),
    "sigmoid": ({'activation="softmax"': 'activation="sigmoid"'}, "with the sum 1[0-9]"),
}


@pytest.mark.parametrize(("edits", "found"), WRONG.values(), ids=WRONG)
def test_a_model_whose_output_is_no_distribution_is_refused_in_a_line(
    tmp_path, monkeypatch, edits, found
):
    monkeypatch.chdir(tmp_path)
    wanted = r"\(2, 29\) probabilities, none negative, each row with the sum 1"
    told = rf"build_model: two phrases must give {wanted}, and give .*{found}.*"
    with pytest.raises(Exception, match=rf"^{told}$") as raised:
        train_edit(tmp_path, edits)
    assert raised.typename == "InputError"
    assert not (tmp_path / "logs").exists()


def test_a_model_that_is_not_compiled_is_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=r"^build_model: compile the model .*$") as raised:
        train_edit(tmp_path, {"model.compile(": "dict("})
    assert raised.typename == "InputError"
    assert not (tmp_path / "logs").exists()


BROKEN = {
    "a name that Keras lacks": ({'activation="softmax"': 'activation="softest"'}, "softest"),
    "a loss of other targets": ({LOSS: 'loss="categorical_crossentropy"'}, "same shape"),
    # Keras saves it, and then refuses to load it, for it is code.
    "a lambda": (
        {DENSE: f"    model.add(keras.layers.Lambda(lambda x: 2 * x))\n{DENSE}"},
        "Lambda",
    ),
}


@pytest.mark.parametrize(("edits", "found"), BROKEN.values(), ids=BROKEN)
def test_what_keras_raises_keeps_its_traceback_and_nothing_is_made(
    tmp_path, monkeypatch, edits, found
):
    monkeypatch.chdir(tmp_path)
    module = load_edit(tmp_path, edits)
    write_verses(tmp_path / "verses.txt", **VERSES)
    with pytest.raises(Exception, match=found) as raised, module.plain_endings():
        module.train(module.Settings(**TRAINING))
    assert raised.typename in ("ValueError", "TypeError")
    assert {"build_model", "check_model"} & {entry.name for entry in raised.traceback}
    assert not (tmp_path / "logs").exists()
