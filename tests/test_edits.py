"""Edits of `build_model`, made in the text of the script as its users make them, and run."""

import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector import ProjectorConfig

import quatrains
from conftest import ROOT, SMALL, arguments, read_curve, write_verses
from quatrains import keras

# The verses give 19 batches of 20 to train on and one to validate with. A last one of another size,
# and longer phrases, would be more to compile.
VERSES = {"quatrains": 17, "seed": 56}
TRAINING = SMALL | {"corpus": "verses.txt", "epochs_per_run": 1, "phrase_len": 2, "batch_size": 20}

CUT = Path("cut")
TEXT = (ROOT / "quatrains.py").read_text(encoding="utf-8")
GRU, GRU_END = "keras.layers.GRU(", 'name="GRU",\n        )\n    )\n'
WHOLE_GRU = re.search(r"    model\.add\(\n *keras\.layers\.GRU\(.*?\n    \)\n", TEXT, re.DOTALL)[0]
ADD_EMBEDDING = "    model.add(embedding)\n"
DENSE = '    model.add(keras.layers.Dense(words, activation="softmax"))\n'
COMPILE = "    model.compile(\n"
OPTIMIZER = "keras.optimizers.RMSprop(settings.learning_rate)"
SCHEDULE = "keras.optimizers.schedules.CosineDecay(0.01, 60)"
LOSS = 'loss="sparse_categorical_crossentropy"'
METRICS = "metrics=["
ONE_MORE = {METRICS: 'metrics=[keras.metrics.SparseTopKCategoricalAccuracy(k=5, name="top5"), '}
FUNCTIONAL = "    model = keras.Model(model.inputs[0], model.outputs[0])\n"
LSTMS = """\
    model.add(keras.layers.LSTM(8, dropout=0.3, unroll=True, return_sequences=True))
    model.add(keras.layers.LSTM(8, dropout=0.3, unroll=True))
    model.add(keras.layers.Dropout(0.3))
"""
# What is written for what stands there, beside what XLA is turned off by.
EDITS = {
    "the README's": {WHOLE_GRU: LSTMS} | ONE_MORE,
    "a dropout": {DENSE: f"    model.add(keras.layers.Dropout(0.3))\n{DENSE}"},
    "a dense layer": {DENSE: f'    model.add(keras.layers.Dense(64, activation="relu"))\n{DENSE}'},
    "another loss": {LOSS: 'loss="mse"'},
    "an embedding inside": {ADD_EMBEDDING: "    model.add(keras.Sequential([embedding]))\n"},
    "a functional model": {COMPILE: FUNCTIONAL + COMPILE},
    "loss scaling": {OPTIMIZER: f"keras.optimizers.LossScaleOptimizer({OPTIMIZER}, 1024.0, 3)"},
    "in bfloat16": {'activation="softmax"': 'activation="softmax", dtype="bfloat16"'},
    "another GRU": {
        "recurrent_dropout=settings.dropout": "recurrent_dropout=0",
        'name="GRU"': 'name="GRU", activation="relu", kernel_initializer="he_normal"',
    },
    "both directions": {
        GRU: f"keras.layers.Bidirectional({GRU}",
        GRU_END: GRU_END.replace("        )", "        ))"),
    },
    "a loop": {"unroll=settings.phrase_len <= 8": "unroll=False"},
    "a schedule": {OPTIMIZER: f"keras.optimizers.AdamW({SCHEDULE})"},
}
# Edits after which the figures are what they were.
SAME = ("loss scaling", "a functional model", "a loop", "an embedding inside")
# The others are tried only with --long, for each takes some seconds.
USUAL = ("the README's", "a dropout", "another loss", "a functional model", "loss scaling")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load_edit(edits, number=itertools.count()):  # noqa: B008
    """Write the script with edits, and load it as a module of its own."""
    text = TEXT
    for old, new in (edits | {"jit_compile=True": "jit_compile=False"}).items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = Path(f"edited_{next(number)}.py")
    path.write_text(text, encoding="utf-8")
    write_verses(Path("verses.txt"), **VERSES)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def train_edit(edits, **settings):
    """Train two runs with an edit; `cut` is the training's folder as the first left it."""
    module = load_edit(edits)
    save = module.save_checkpoint

    def save_and_copy(prophet):
        save(prophet)
        if prophet.runs == 1:
            shutil.copytree(prophet.folder, CUT)

    module.save_checkpoint = save_and_copy
    return module, module.train(module.Settings(**TRAINING | settings))


def check_validation(prophet, epoch, **custom_objects):
    """See that plain Keras finds the figures of an epoch with the model in the checkpoint."""
    model = keras.models.load_model(CUT / "checkpoint.keras", custom_objects)
    model.run_eagerly = True
    phrases, targets, _ = quatrains.make_samples(prophet.corpus, prophet.settings)[1]
    evaluated = model.evaluate(phrases, targets, 20, verbose=0, return_dict=True)
    figures = prophet.history.history
    validated = {name[4:]: figures[name][epoch] for name in figures if name.startswith("val_")}
    coarse = model.layers[-1].compute_dtype == "bfloat16"  # Which has 8 bits, graph or eager.
    assert validated == pytest.approx(evaluated, rel=1e-3 if coarse else 1e-4)
    return model


def check_tensorboard(prophet):
    """See that it has all figures, all weights, and the one matrix with a row for each word."""
    for name, values in prophet.history.history.items():
        place = "validation" if name.startswith("val_") else "train"
        curve = read_curve(CUT / place, name.removeprefix("val_"))
        assert curve == pytest.approx(dict(enumerate(values, 1)), rel=1e-6)
    drawn = EventAccumulator(str(CUT)).Reload().Tags()["tensors"]
    paths = [weight.path.partition("/")[2] for weight in prophet.model.trainable_weights]
    assert {f"weights/{path}" for path in paths} < {*drawn}
    config = (CUT / "projector_config.pbtxt").read_text()
    (shown,) = text_format.Parse(config, ProjectorConfig()).embeddings
    words = len(prophet.corpus.words)
    assert [*shown.tensor_shape] == [words, 8]
    assert (CUT / shown.tensor_path).stat().st_size == words * 8 * 4


@pytest.fixture(scope="module")
def unedited(tmp_path_factory):
    """The figures of the script as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("unedited"))
        return train_edit({})[1].history.history


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in USUAL)) for name in EDITS]
)
def test_an_edit_acts_in_training_validation_resuming_and_writing(unedited, capsys, name):
    recipe = "verse" if name == "a dropout" else "2017"
    module, prophet = train_edit(EDITS[name], recipe=recipe)
    figures = prophet.history.history
    assert figures.keys() == {*unedited, *(["top5", "val_top5"] if METRICS in EDITS[name] else [])}
    for key in ("loss", "acc", "val_loss", "val_acc"):
        if name in SAME:
            assert figures[key] == pytest.approx(unedited[key], rel=1e-4)
        elif "loss" in key:
            assert figures[key] != pytest.approx(unedited[key], rel=1e-4)

    check_validation(prophet, 0)
    resumed = module.train(module.Settings(resume=True, runs=2, logs="cut"))
    assert resumed.history.history == {key: values[1:] for key, values in figures.items()}
    model = check_validation(prophet, 1)
    states = zip(prophet.model.optimizer.variables, model.optimizer.variables, strict=True)
    assert all(np.array_equal(whole, parted) for whole, parted in states)
    check_tensorboard(prophet)
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
        return super().train_step((*data[:2], data[2] / 2))


def surprise(targets, predicted):
    return 2 * keras.losses.sparse_categorical_crossentropy(targets, predicted)


def certainty(targets, predicted):
    return keras.ops.max(predicted, -1)


def build_model(""",
    "model = keras.Sequential(": "model = Halved(",
    DENSE: f"    model.add(Blend(0.7))\n{DENSE}",
    LOSS: "loss=surprise",
    METRICS: "metrics=[certainty, ",
}


def test_layers_steps_losses_and_metrics_of_ones_own_go_on_in_another_process(unedited):
    module, prophet = train_edit(OWN)
    figures = prophet.history.history
    assert figures["val_loss"][0] > 1.5 * unedited["val_loss"][0]
    assert figures["loss"][0] < 1.2 * unedited["loss"][0]
    assert 0 < figures["certainty"][0] < 1
    command = [sys.executable, module.__file__, *arguments(resume=True, runs=2, logs="cut")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    own = {name: getattr(module, name) for name in ("Blend", "Halved", "surprise", "certainty")}
    model = check_validation(prophet, 1, **own)
    assert type(model) is module.Halved
    assert [layer.share for layer in model.layers if type(layer) is module.Blend] == [0.7]
    check_tensorboard(prophet)


GIVES = r"^build_model: two phrases must give \(2, 29\) probabilities, each row with the sum 1, and"
WRONG = {
    "too many words": ({"Dense(words,": "Dense(words + 1,"}, rf"{GIVES} give \(2, 30\) from"),
    "sequences": ({GRU_END: f"return_sequences=True,\n{GRU_END}"}, rf"{GIVES} give \(2, 2, 29\)"),
    "no activation": ({', activation="softmax"': ""}, f"{GIVES} give .* from -"),
    "relu": ({'activation="softmax"': 'activation="relu"'}, f"{GIVES} give .* from 0 with the sum"),
    "sigmoid": ({'activation="softmax"': 'activation="sigmoid"'}, f"{GIVES} .* the sum 1[0-9]"),
    # And what Keras raises, as it is.
    "a name that Keras lacks": ({'activation="softmax"': 'activation="softest"'}, "softest"),
    "a loss of other targets": ({LOSS: 'loss="categorical_crossentropy"'}, "same shape"),
    # Keras saves it, and then refuses to load it, for it is code.
    "a lambda": ({DENSE: f"    model.add(keras.layers.Lambda(abs))\n{DENSE}"}, "Lambda"),
}


@pytest.mark.parametrize(("edits", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_model_is_told_before_anything_is_made(edits, told):
    module = load_edit(edits)
    module.IN_SESSION = True  # Or the line would be printed, and the exit status 2.
    with pytest.raises(Exception, match=told) as raised, module.plain_endings():
        module.train(module.Settings(**TRAINING))
    if told.startswith(GIVES):
        assert raised.typename == "InputError"
    else:
        assert raised.typename in ("ValueError", "TypeError")
        assert {"build_model", "check_model"} & {entry.name for entry in raised.traceback}
    assert not Path("logs").exists()
