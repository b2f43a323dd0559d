"""Edits of `build_model`, made in the text of the script as users make them."""

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

SETTINGS = SMALL | {"corpus": "verses.txt", "epochs_per_run": 1, "phrase_len": 2, "batch_size": 20}
CUT = Path("cut")
TEXT = (ROOT / "quatrains.py").read_text(encoding="utf-8")
WHOLE_GRU = re.search(r"    model\.add\(\n *keras\.layers\.GRU\(.*?\n    \)\n", TEXT, re.DOTALL)[0]
INPUT = re.search(r"    model\.add\(keras\.Input\(.*\n", TEXT)[0]
DENSE = '    model.add(keras.layers.Dense(vocab_size, activation="softmax", name="Dense"))\n'
COMPILE = "    model.compile(\n"
OPTIMIZER = "keras.optimizers.RMSprop(settings.learning_rate)"
LOSS = 'loss="sparse_categorical_crossentropy"'
METRICS = "metrics=["
TOP5 = 'metrics=[keras.metrics.SparseTopKCategoricalAccuracy(k=5, name="top5"), '
BEFORE = "def build_model("
FUNCTIONAL = "    model = keras.Model(model.inputs[0], model.outputs[0])\n"
LSTMS = """\
    model.add(keras.layers.LSTM(8, dropout=0.3, unroll=True, return_sequences=True))
    model.add(keras.layers.LSTM(8, dropout=0.3, unroll=True))
    model.add(keras.layers.Dropout(0.3))
"""
NO_XLA = {
    BEFORE: f"""\
class Noted(keras.layers.Layer):
    def call(self, vectors):
        note = tf.numpy_function(lambda: np.float32(0), [], tf.float32)
        return vectors + tf.ensure_shape(note, ())


{BEFORE}""",
    DENSE: f"    model.add(Noted())\n{DENSE}",
}
OWN = {
    BEFORE: f"""\
class Plain(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.vectors = keras.layers.Embedding(29, 8)
        self.dense = keras.layers.Dense(29, activation="softmax")

    def call(self, words):
        vectors = self.vectors(words)
        self.add_loss(keras.ops.mean(keras.ops.abs(vectors)))
        return self.dense(keras.ops.sum(vectors, 1))

    def train_step(self, data):
        super().train_step(data)
        return super().train_step(data)


def surprise(targets, predicted):
    return 2 * keras.losses.sparse_categorical_crossentropy(targets, predicted)


{BEFORE}""",
    COMPILE: f"    model = Plain()\n{COMPILE}",
    LOSS: "loss=surprise",
}
# Replacements in the text of the script.
EDITS = {
    "the README's": {WHOLE_GRU: LSTMS, METRICS: TOP5},
    "a dropout": {DENSE: f"    model.add(keras.layers.Dropout(0.3))\n{DENSE}"},
    "another loss, a frozen embedding": {
        LOSS: 'loss="mse"',
        "weights=embeddings": "weights=embeddings, trainable=False",
    },
    "a functional model": {COMPILE: FUNCTIONAL + COMPILE},
    "loss scaling": {OPTIMIZER: f"keras.optimizers.LossScaleOptimizer({OPTIMIZER}, 1024.0, 3)"},
    "small floats": {
        'name="GRU"': 'name="GRU", dtype="mixed_float16"',
        'activation="softmax"': 'activation="softmax", dtype="bfloat16"',
    },
    "a layer without XLA": NO_XLA,
    "own model, step and losses": OWN,
    "no Input": {INPUT: ""},
    "eagerly": {LOSS: f"{LOSS}, run_eagerly=True"},
    "an activity regularizer": {'name="GRU"': 'name="GRU", activity_regularizer="l2"'},
}
# Edits that leave the metrics as they were.
SAME = ("loss scaling", "a functional model", "a layer without XLA", "no Input", "eagerly")
# These are compiled by XLA, as by default.
XLA = ("the README's", "small floats", "own model, step and losses", "no Input", "eagerly")
# The others need --long, because each takes some seconds.
USUAL = ("another loss, a frozen embedding", "own model, step and losses")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load_edit(edits, number=itertools.count()):  # noqa: B008
    """Write the script with edits, and load it as a module of its own."""
    text = TEXT
    for old, new in edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = Path(f"edited_{next(number)}.py")
    path.write_text(text, encoding="utf-8")
    # A single batch to validate on: another size would be more to compile.
    write_verses(Path("verses.txt"), quatrains=17, seed=56)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def train_edit(edits, **settings):
    """Train two runs with an edit; `cut` is the experiment's folder as the first left it."""
    module = load_edit(edits)
    log_run = module.log_run

    def log_and_copy(writers, lm, *args):
        log_run(writers, lm, *args)
        if lm.completed_runs == 1:
            shutil.copytree(lm.folder, CUT)

    module.log_run = log_and_copy
    return module, module.train(**SETTINGS | settings)


def check_validation(lm, epoch, custom_objects):
    """Check that plain Keras computes the same metrics with the checkpoint's model."""
    model = keras.models.load_model(CUT / "checkpoint.keras", custom_objects)
    phrases, targets, _ = quatrains.make_samples(lm.corpus, lm.settings)[1]
    evaluated = model.evaluate(phrases, targets, 20, verbose=0, return_dict=True)
    metrics = lm.model.history.history
    validated = {name[4:]: metrics[name][epoch] for name in metrics if name.startswith("val_")}
    assert validated == pytest.approx(evaluated, rel=1e-4)
    return model


def check_tensorboard(lm):
    """Check that it has all metrics, all weights, the one matrix with a row per word, and the cross
    entropy of a loss that is one."""
    for name, values in lm.model.history.history.items():
        half = "validation" if name.startswith("val_") else "train"
        curve = read_curve(CUT / half, name.removeprefix("val_"))
        assert curve == pytest.approx(dict(enumerate(values, 1)), rel=1e-6)
    entropies = read_curve(CUT / "validation", "cross_entropy")
    if lm.model.loss == "sparse_categorical_crossentropy":
        assert [*entropies] == [1, 2]
        losses = np.array(lm.model.history.history["val_loss"])
        assert (np.array([*entropies.values()]) < losses + 1e-6).all()
    else:
        assert not entropies
    logged = EventAccumulator(str(CUT)).Reload().Tags()["tensors"]
    for weight in lm.model.trainable_weights:
        assert f"weights/{weight.path.removeprefix(f'{lm.model.name}/')}" in logged
    config = (CUT / "projector_config.pbtxt").read_text()
    (shown,) = text_format.Parse(config, ProjectorConfig()).embeddings
    assert [*shown.tensor_shape] == [len(lm.corpus.vocabulary), 8]


@pytest.fixture(scope="module")
def unedited(tmp_path_factory):
    """The metrics of the script as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("unedited"))
        return train_edit({})[1].model.history.history


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in USUAL)) for name in EDITS]
)
def test_an_edit_holds_in_training_validation_resume_and_generation(unedited, capsys, name):
    xla = {"use_xla": name in XLA}
    recipe = "verse" if name == "a dropout" else "2017"
    module, lm = train_edit(EDITS[name], recipe=recipe, **xla)
    metrics = lm.model.history.history
    assert metrics.keys() == {*unedited, *(["top5", "val_top5"] if METRICS in EDITS[name] else [])}
    for key in ("loss", "acc", "val_loss", "val_acc"):
        if name in SAME:
            assert metrics[key] == pytest.approx(unedited[key], rel=1e-4)
        elif "loss" in key:
            assert metrics[key] != pytest.approx(unedited[key], rel=1e-4)

    check_validation(lm, 0, vars(module))
    resumed = module.train(resume=True, runs=2, log_dir="cut", **xla)
    assert resumed.model.history.history == {key: values[1:] for key, values in metrics.items()}
    model = check_validation(lm, 1, vars(module))
    states = zip(lm.model.optimizer.variables, model.optimizer.variables, strict=True)
    assert all(map(np.array_equal, *zip(*states, strict=True)))
    check_tensorboard(lm)
    capsys.readouterr()
    module.generate_from_checkpoint(generate=2, log_dir="cut", raw=True, prompt="king")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["king", "king"]


def test_training_resumes_exactly_under_a_dtype_policy_and_never_partially(request):
    request.addfinalizer(lambda: keras.config.set_dtype_policy("float32"))
    keras.config.set_dtype_policy("mixed_float16")
    module, lm = train_edit({})
    resumed = module.train(resume=True, runs=2, log_dir="cut")
    assert keras.config.dtype_policy().name == "mixed_float16"
    assert lm.model.layers[-1].compute_dtype == resumed.model.layers[-1].compute_dtype == "float16"
    assert lm.model.optimizer.name == "loss_scale_optimizer"
    for ours, theirs in ((lm.model, resumed.model), (lm.model.optimizer, resumed.model.optimizer)):
        pairs = zip(ours.variables, theirs.variables, strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)
    keras.config.set_dtype_policy("float32")
    with pytest.raises(module.UsageError, match="cannot be loaded") as raised:
        module.train(resume=True, runs=3, log_dir="cut")
    assert "\n" not in str(raised.value)


NUMBERS = r"^build_model must turn 2 phrases into probabilities of shape \(2, 29\), .*; got shape"
LAMBDA = "lambda targets, predicted: predicted[:, 0]"
INSIDE = f"    def sharp(targets, predicted):\n        return predicted[:, 0]\n\n{COMPILE}"
NO_CONFIG = f"""\
class Sharp(keras.losses.MeanSquaredError):
    def __init__(self, power):
        super().__init__()


{BEFORE}"""
WRONG = {
    "too many words": ({"Dense(vocab_size,": "Dense(vocab_size + 1,"}, rf"{NUMBERS} \(2, 30\)"),
    "sequences": ({'name="GRU"': 'name="GRU", return_sequences=True'}, rf"{NUMBERS} \(2, 2, 29\)"),
    "no activation": ({', activation="softmax"': ""}, rf"{NUMBERS} \(2, 29\), row sum -?[0-9]"),
    # Keras's own errors.
    "a name that Keras lacks": ({'activation="softmax"': 'activation="softest"'}, "softest"),
    # Keras saves these, but cannot load them.
    "a lambda as loss": ({LOSS: f"loss={LAMBDA}"}, "lambda"),
    "a lambda as metric": ({METRICS: f"metrics=[{LAMBDA}, "}, "lambda"),
    "a loss in build_model": ({COMPILE: INSIDE, LOSS: "loss=sharp"}, "locate function 'sharp'"),
    "no get_config": ({BEFORE: NO_CONFIG, LOSS: "loss=Sharp(2)"}, r"Sharp.__init__\(\)"),
}


@pytest.mark.parametrize(("edits", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_model_is_reported_before_anything_is_made(edits, message):
    module = load_edit(edits)
    keras.utils.set_random_seed(1)
    module.INTERACTIVE = True  # Otherwise the line is printed, and the exit status is 2.
    with pytest.raises(Exception, match=message) as raised, module.one_line_errors():
        module.train(**SETTINGS)
    if message.startswith(NUMBERS):
        assert raised.typename == "UsageError"
    else:
        assert raised.typename in ("ValueError", "TypeError")
        assert {"build_model", "check_model"} & {entry.name for entry in raised.traceback}
    assert not Path("logs").exists()


def test_an_error_in_training_keeps_its_traceback():
    module = load_edit(NO_XLA)
    command = [sys.executable, module.__file__, *arguments(**SETTINGS | {"use_xla": True})]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert f'{module.__file__}", line' in done.stderr
    assert re.search(r"^tensorflow\..*InvalidArgumentError: .*XLA", done.stderr, re.MULTILINE)
    assert done.stdout.endswith("\nNo checkpoint was saved: the first run was not completed.\n")
