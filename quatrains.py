# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "tensorflow>=2.21,<2.22",
#     "keras>=3.12,<3.16",
#     "numpy>=2.0,<3",
#     "tensorboard>=2.21,<2.22",
# ]
# ///
"""Learn to write new prophecies in the manner of Nostradamus.

    python quatrains.py                          train, and write five quatrains after every run
    python quatrains.py --resume                 go on where the last training was stopped
    python quatrains.py --generate 20            write twenty, without training
    python quatrains.py --help                   every setting, with its default
    tensorboard --port 8080 --logdir=logs        watch it

A port to TensorFlow and Keras 3 of a system published in 2017, told in the order in which things
happen. To change the model, edit `build_model`.
"""

import argparse
import contextlib
import copy
import functools
import importlib.util
import inspect
import io
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

# ==== Settings: edit them and run again, or give them on the command line (--gru-dim 256) ====
# --help shows this block as it stands. The layers of the model stand in `build_model`.


@dataclass(init=False)
class Settings:
    """The settings of a training and of what it writes."""

    # True trains on /gpu:0, False on /cpu:0.
    use_gpu: bool = False
    # "2017" trains as published. "verse" learns whole quatrains: what RECIPES in quatrains.py has
    # for it wins over the settings here, and the command line wins over both.
    recipe: str = "2017"
    # What the training's folder in `logs` is called, after its date; empty: like its recipe.
    name: str = ""

    # Numbers in the vector of a word. GloVe has 50, 100, 200 and 300; without it, any size does.
    embedding_dim: int = 300
    # Units of the GRU. More of them learn faster, and quote the corpus sooner.
    gru_dim: int = 128
    # Part of the GRU's inputs and state that a step hides, or it soon knows the corpus by heart.
    dropout: float = 0.5
    # L2 penalty on the GRU's weights, which the losses include. More makes the output tamer.
    regularization: float = 0.02
    # Part of the GRU's output that a step hides from the dense layer.
    dense_dropout: float = 0.0
    # Tokens that the model sees before it guesses the next one.
    phrase_len: int = 4
    # True learns quatrains whole, with their openings and the ends of their lines; False learns
    # only what follows a whole phrase, as published, and guesses lines afterwards.
    whole_quatrains: bool = False
    # True weighs a sample by the square root of its target's count, False weighs all alike.
    weighted: bool = True

    # Samples a training step.
    batch_size: int = 512
    # Step size of RMSprop. High, because the model is small and somebody is watching.
    learning_rate: float = 0.003
    # Runs of a training: some epochs each, and then some quatrains. Stop it any time.
    runs: int = 1000
    # Epochs a run.
    epochs_per_run: int = 5
    # True goes on with the training in `logs` that was saved last.
    resume: bool = False
    # None, or a number that makes the training repeat exactly on the same machine.
    seed: int | None = None

    # Quatrains written after each run.
    quatrains_per_run: int = 5
    # Most words of a quatrain. Punctuation counts, and so do the ends of lines.
    max_words: int = 32
    # True prints the bare tokens, a quatrain a line; False restores lines, capitals and spacing.
    raw: bool = False
    # Below 1 the likely words get likelier and the verse tamer, above 1 it gets wilder.
    temperature: float = 1.0
    # Draws only from the likeliest words that have this share of all probability; 1 from all.
    top_p: float = 1.0
    # Words that every quatrain begins with.
    opening: str = ""
    # Quatrains drawn for each that is written; the best is kept.
    drafts: int = 1
    # Longest run of words that a quatrain may quote from the corpus before others are preferred.
    max_quote: int = 8
    # 0 trains. Any other number writes so many quatrains with the training saved last instead.
    generate: int = 0

    # Text to learn from: quatrains parted by blank lines or, in a file without them, one a line.
    corpus: str = "data/quatrains.txt"
    # Word vectors to start from: "none" starts every word at random; "auto" takes glove.6B.zip or
    # glove.6B.<embedding_dim>d.txt in data/, or else fetches the zip; or the path of such a file.
    glove: str = "auto"
    # The folder that TensorBoard reads; each training has its own in it, with its checkpoint. To
    # resume an earlier training, or to write with it, name that one.
    logs: str = "logs"

    def __init__(self, **given: Any) -> None:
        """Take the file's values, then the recipe's, then those given; InputError if illegal."""
        self.given = given
        recipe = check_setting("recipe", given.get("recipe", self.recipe))
        values = {field.name: field.default for field in fields(self)}
        for name, value in (values | RECIPES[recipe] | given | {"recipe": recipe}).items():
            setattr(self, name, check_setting(name, value))

    def changed(self, **changes: Any) -> "Settings":
        """Return a copy with other values, each checked."""
        other = copy.copy(self)
        for name, value in changes.items():
            setattr(other, name, check_setting(name, value))
        return other


# What a recipe sets. An entry more is a recipe more.
RECIPES = {
    "2017": {},
    "verse": {
        "regularization": 0.0,
        "dense_dropout": 0.5,
        "phrase_len": 16,
        "whole_quatrains": True,
        "weighted": False,
        "max_words": 64,
        "temperature": 0.8,
        "drafts": 16,
    },
}
COUNTS = ("embedding_dim", "gru_dim", "phrase_len", "batch_size", "runs", "epochs_per_run")
COUNTS += ("quatrains_per_run", "max_words", "drafts")
LIMITS = {  # Least and most.
    **dict.fromkeys(COUNTS, (1, 2**31 - 1)),
    **dict.fromkeys(("generate", "max_quote"), (0, 2**31 - 1)),
    **dict.fromkeys(("dropout", "dense_dropout"), (0, 0.99)),
    **dict.fromkeys(("learning_rate", "temperature"), (1e-9, 1e9)),
    "regularization": (0, 1e9),
    "top_p": (1e-9, 1),
    "seed": (0, 2**32 - 1),
}
# What may change when a training is resumed. All else is what makes it the training that it is.
CHANGEABLE = ("use_gpu", "name", "runs", "resume", "quatrains_per_run", "max_words", "raw")
CHANGEABLE += ("temperature", "top_p", "opening", "drafts", "max_quote", "generate", "logs")


class InputError(Exception):
    """A mistake that the user can mend; its text names the setting or file and the way out."""

    def _render_traceback_(self) -> list[str]:  # What IPython shows of it.
        return [f"quatrains: {self}"]


def check_setting(name: str, value: Any) -> Any:
    """Return a legal value in its setting's type; InputError says what another must be."""
    kinds = {field.name: field.type for field in fields(Settings)}
    if name not in kinds:
        raise InputError(f"{name} is no setting: take it out, --help lists all")
    kind = kinds[name]
    if kind is float and type(value) is int:
        value = float(str(value))  # Infinite where it is too large.
    legal = type(value) in (get_args(kind) or [kind])
    meaning = getattr(kind, "__name__", kind)
    if name in LIMITS:
        low, high = LIMITS[name]
        legal = legal and (value is None or low <= value <= high)
        meaning = f"{meaning} from {low} to {high}"
    elif name == "recipe":
        legal = legal and type(RECIPES.get(value)) is dict
        meaning = f"one of {', '.join(RECIPES)}, each a dict"
    elif legal and kind is str:
        # Half a letter is how Python holds a file name that is not UTF-8.
        legal = not re.search("[\0\ud800-\udfff]", value) and (name != "name" or "/" not in value)
    if not legal:
        raise InputError(f"{name} = {value!r} will not do: it must be {meaning}")
    return value


# ==== Command line: read before the imports, which take seconds ====

IN_SESSION = "ipykernel" in sys.modules  # In a notebook and its like.


def read_command_line(arguments: Sequence[str]) -> Settings:
    """Read settings such as `--gru-dim 256`; InputError says what is illegal."""

    def refuse(message):
        raise InputError(f"{message}; --help lists all settings")

    parser = argparse.ArgumentParser(
        usage="quatrains.py [--gru-dim 256] [--use-gpu] [--no-weighted] and so on",
        description="Learn to write new prophecies in the manner of Nostradamus.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.error = refuse
    if {"-h", "--help"} & {*arguments}:
        parser.epilog = inspect.getsource(Settings).partition("    def ")[0]
    for field in fields(Settings):
        kind = (get_args(field.type) or [field.type])[0]
        how = {"type": kind}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=argparse.SUPPRESS, **how)
    return Settings(**vars(parser.parse_args(arguments)))


@contextlib.contextmanager
def plain_endings() -> Iterator[None]:
    """End the command in one line and with an exit status where a mistake, Ctrl-C or the system
    ends it; in a session, show that line and stay."""
    try:
        yield
        return
    except KeyboardInterrupt:
        message, status = "stopped", 128 + signal.SIGINT
    except InputError as error:
        message, status = error, 2
    except Exception as error:
        # A full disk, no memory, no rights: TensorFlow has errors of its own for these.
        ours = not isinstance(error, OSError | MemoryError)
        if ours and "tensorflow" not in type(error).__module__:
            raise
        reason = str(error).partition("\n")[0]
        message, status = f"broke off ({reason}): make room, or mend what else it names", 2
    if IN_SESSION:
        raise InputError(message) from None
    print(f"quatrains: {message}", file=sys.stderr)
    sys.stdout = None  # What it still holds may be what could not be written.
    sys.exit(status)


def require_packages(use_gpu: bool) -> None:
    """See that the packages are there; a session installs them, elsewhere InputError says how."""
    needed = ("numpy", "tensorflow", "keras", "tensorboard")
    missing = ", ".join(name for name in needed if not importlib.util.find_spec(name))
    if not missing:
        return
    command = [sys.executable, "-m", "pip", "install", "-r", "requirements.txt"]
    if use_gpu:
        command.append("tensorflow[and-cuda]")
    way_out = f"type `{' '.join(command)}` in the script's folder"
    if IN_SESSION:
        print(f"{missing} not installed: installing requirements.txt, which takes minutes.")
        subprocess.run(command, check=False)
        importlib.invalidate_caches()
    if not all(map(importlib.util.find_spec, needed)):
        raise InputError(f"{missing} not installed: {way_out}")


if __name__ == "__main__":
    if not IN_SESSION:
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # During the imports, without a traceback.
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # A reader may have read enough.
        # Where they were closed, or the next file would have their number.
        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
        sys.stdout.reconfigure(errors="replace")  # Letters that a terminal lacks.
    with plain_endings():
        # In a notebook's cell sys.argv is the kernel's own; %run, like a shell, gives a file its.
        SETTINGS = read_command_line(sys.argv[1:] if "__file__" in globals() else [])
        require_packages(SETTINGS.use_gpu)

# ==== TensorFlow and its device ====

say = functools.partial(print, flush=True)  # At once, also into a pipe or a file.


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what TensorFlow writes to standard error while it is imported, past its own settings."""
    before = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
with quiet_stderr():
    import keras
    import numpy as np
    import tensorflow as tf
    from numpy.random import Generator
    from tensorboard.plugins import projector
    from tensorboard.plugins.hparams import api as hparams

    GPUS = tf.config.list_physical_devices("GPU")
tf.get_logger().setLevel("ERROR")  # In a session it warns of each new training's graphs.


def prepare_device(settings: Settings) -> str:
    """Return the device to train on, made ready; InputError where a GPU is wanted and not seen."""
    keras.config.set_floatx("float32")  # Whatever ~/.keras says.
    if not settings.use_gpu:
        return "/cpu:0"
    if not GPUS:
        way_out = 'install its driver and "tensorflow[and-cuda]", or set use_gpu = False'
        raise InputError(f"use_gpu = True, but TensorFlow sees no GPU: {way_out}")
    for gpu in GPUS:
        # Or TensorFlow takes the whole card. It refuses once the card is in use: then it is set.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    if settings.seed is not None:  # A CPU needs no telling.
        tf.config.experimental.enable_op_determinism()
    return "/gpu:0"


# ==== Corpus: quatrains, tokens, vocabulary ====

BREAK = "<BREAK>"
LINE_END = "<LINE{}>"  # Of the line of this number. Words cannot look like that: see DROPPED.
PUNCTUATION = ".,;!?"
SENTENCE_ENDS = ".!?"
# What the tokenizer of 2017 dropped, and typeset texts' quotation marks, dashes and dots.
DROPPED = '"#$%&()*+/:<=>@[\\]^_{|}~`\xab\xbb\u2018\u201a\u201c\u201d\u201e\u2013\u2014\u2026'
TOKEN = re.compile(rf"[{PUNCTUATION}]|[^\s{re.escape(PUNCTUATION + DROPPED)}]+")
WORD = re.compile(f"[^<{PUNCTUATION}]")  # Matches no token that is punctuation or ends a line.
COMMENT = re.compile(r"^#.*\n?", re.MULTILINE)
HEADING = re.compile(r"^#.*\b([IVXLCDM]+|\d+)$", re.MULTILINE)  # Starts a new count.


class Corpus(NamedTuple):
    """The quatrains of a corpus: numbers, texts, tokens; its words by index, and their counts."""

    numbers: list[str]
    texts: list[str]
    tokens: list[list[str]]
    words: list[str]
    counts: np.ndarray


def read_corpus(path: Path) -> list[tuple[str, str]]:
    """Read the quatrains of a UTF-8 text file, each with its number; InputError if it has none."""
    quatrains, reason = [], "is no text with words in it"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" not in text:
            quatrains = split_quatrains(clean(text))
    except OSError as error:
        reason = f"cannot be read ({error.strerror}), seen from {Path.cwd()}"
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (see byte {error.start}; iconv converts it)"
    if not quatrains:
        raise InputError(f"corpus {path} {reason}: set corpus to a text file in UTF-8")
    return quatrains


def clean(text: str) -> str:
    """Bring a text to one spelling, NFC, and drop what cannot be seen. A U+2019 between letters is
    an apostrophe, elsewhere a quotation mark; a zero-width space (U+200B) parts words."""
    text = re.sub(r"[^\S\n]|\u200b", " ", text)
    # The joiners cannot be seen either, but some scripts are spelt with them.
    text = "".join(c for c in text if c.isprintable() or c in "\n\u200c\u200d")
    return re.sub(r"(?<!\w)\u2019|\u2019(?!\w)", "", unicodedata.normalize("NFC", text))


def split_quatrains(text: str) -> list[tuple[str, str]]:
    """Part a cleaned text into its stanzas, or lines if none is blank, each with its number."""
    text = "\n".join(line.strip() for line in text.split("\n"))
    gap = "\n\n" if "\n\n" in COMMENT.sub("", text).strip() else "\n"
    # What stands before the first heading has none.
    pieces = ["", *HEADING.split(text)]
    quatrains = []
    for heading, piece in zip(pieces[::2], pieces[1::2], strict=True):
        stanzas = [stanza.strip() for stanza in COMMENT.sub("", piece).split(gap)]
        for number, stanza in enumerate(filter(tokenize, stanzas), 1):
            quatrains.append((f"{heading}.{number}".lstrip("."), stanza))
    return quatrains


def tokenize(text: str, line_ends: bool = False) -> list[str]:
    """Split a cleaned text into lower-case tokens, `. , ; ! ?` being tokens of their own, and with
    `line_ends` also the ends of all lines but the last, by their number."""
    tokens, ended = [], 0
    for line in text.split("\n"):
        words = [word.lower() for word in TOKEN.findall(line)]
        if words and tokens and line_ends:
            ended += 1
            tokens.append(LINE_END.format(ended))
        tokens += words
    return tokens


def index_corpus(quatrains: Iterable[Sequence[str]], line_ends: bool = False) -> Corpus:
    """Number the words by falling frequency, from 1; 0 is the break, which counts once (int64)."""
    numbers, texts = map(list, zip(*quatrains, strict=True))
    tokens = [tokenize(text, line_ends) for text in texts]
    ranked = Counter(word for row in tokens for word in row).most_common()
    words, counts = zip((BREAK, 1), *ranked, strict=True)
    return Corpus(numbers, texts, tokens, list(words), np.array(counts))


# ==== Samples: what the model is shown, and what it should answer ====


Samples = tuple[np.ndarray, np.ndarray, np.ndarray]


def cut_phrases(corpus: Corpus, phrase_len: int, whole: bool) -> np.ndarray:
    """Cut every window of `phrase_len` tokens and the one after them out of each quatrain (int32,
    samples x phrase_len + 1). With a break before and after it, n tokens give n + 2 - phrase_len
    windows; `whole` puts a phrase of breaks before it, so that they give n + 1. The windows come
    in an order at random, in which each target has its place by the corpus alone."""
    index = {word: number for number, word in enumerate(corpus.words)}
    breaks = [0] * phrase_len
    row = [*breaks]
    for tokens in corpus.tokens:
        row += [index[token] for token in tokens] + breaks
    windows = np.lib.stride_tricks.sliding_window_view(np.array(row, np.int32), phrase_len + 1)
    # Of the breaks after a quatrain the first is a target.
    windows = windows[(windows[:, -1] > 0) | (windows[:, -2] > 0)]
    places = np.random.default_rng(0).random(len(windows))
    if not whole:
        one_break = (windows[:, :-1] == 0).sum(1) < 2
        windows, places = windows[one_break], places[one_break]
    return windows[np.argsort(places)]


def make_samples(corpus: Corpus, settings: Settings) -> list[Samples]:
    """Cut a corpus into samples, 95 % to train on and 5 % to validate with: each phrases (int32,
    samples x phrase_len), targets (int32, samples x 1) and weights (float32, samples): the square
    root of the target's count, or 1. InputError when 5 % would be less than one."""
    windows = cut_phrases(corpus, settings.phrase_len, settings.whole_quatrains)
    if len(windows) < 20:
        problem = f"the corpus gives {len(windows)} samples, too few to keep 5 % for validation"
        raise InputError(f"{problem}: set corpus to a longer text, or lower phrase_len")
    phrases, targets = windows[:, :-1], windows[:, -1:]
    weights = np.ones(len(windows), np.float32)
    if settings.weighted:
        weights = np.sqrt(corpus.counts[targets[:, 0]]).astype(np.float32)
    size = int(0.95 * len(windows))
    return [(phrases[i], targets[i], weights[i]) for i in (slice(size), slice(size, None))]


# ==== The model: all of it stands here; edit it, and everything follows ====


def build_model(embeddings: np.ndarray, phrase_len: int, settings: Settings) -> keras.Model:
    """Build and compile the model of 2017, Embedding -> GRU -> Dense softmax, and what recipes add.
    Takes the embedding to start from (words x dim). Any Keras model will do that maps phrases
    (int32, batch x phrase_len) to the probabilities of the next word (float, batch x words); its
    loss and metrics are given targets as numbers of words (int32, batch x 1)."""
    words, dim = embeddings.shape
    penalty = keras.regularizers.L2(settings.regularization)
    model = keras.Sequential(name="quatrains")
    model.add(keras.Input((phrase_len,), dtype="int32", name="words"))
    embedding = keras.layers.Embedding(words, dim)
    model.add(embedding)
    model.add(
        keras.layers.GRU(
            settings.gru_dim,
            dropout=settings.dropout,
            recurrent_dropout=settings.dropout,
            kernel_regularizer=penalty,
            recurrent_regularizer=penalty,
            bias_regularizer=penalty,
            # A loop over a few words costs more than the words; over many, unrolling does.
            unroll=phrase_len <= 8,
            use_cudnn=False,  # It knows no recurrent dropout, and XLA does not know it.
            name="GRU",
        )
    )
    if settings.dense_dropout:
        model.add(keras.layers.Dropout(settings.dense_dropout))
    model.add(keras.layers.Dense(words, activation="softmax"))
    embedding.set_weights([embeddings])
    model.compile(
        optimizer=keras.optimizers.RMSprop(settings.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=[
            keras.metrics.MeanMetricWrapper(sparse_categorical_accuracy, name="acc"),
        ],
        jit_compile=True,  # By itself Keras leaves XLA out on a CPU.
    )
    return model


def make_callbacks(settings: Settings) -> list[keras.callbacks.Callback]:  # noqa: ARG001
    """Return callbacks of Keras's, which act as under `fit`; epochs count through all runs."""
    return []


def sparse_categorical_accuracy(targets: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
    """How often the likeliest word is the right one. Keras's own takes an argmax, slow in XLA; of
    the same name, so that plain Keras loads a checkpoint with its own."""
    chosen = tf.gather(predicted, targets, batch_dims=1)
    return tf.cast(chosen[:, 0] >= tf.reduce_max(predicted, -1), tf.float32)


def check_model(model: keras.Model, words: int, phrase_len: int) -> None:
    """Try a model on two phrases; InputError when it is not what `build_model` promises."""
    # A checkpoint of what Keras cannot make anew, such as a Lambda, could be written but not read.
    with keras.saving.custom_object_scope(own_objects()):
        type(model).from_config(model.get_config())
    if not model.compiled:
        raise InputError("build_model: compile the model before it is returned")
    phrases = np.zeros((2, phrase_len), np.int32)
    predicted = tf.cast(model(phrases, training=False), tf.float32).numpy()
    sums = predicted.sum(-1)
    if predicted.shape != (2, words) or predicted.min() < 0 or not np.abs(sums - 1).max() < 0.02:
        found = (
            f"{predicted.shape} numbers from {predicted.min():.3g} with the sum {sums.max():.3g}"
        )
        wanted = f"(2, {words}) probabilities, none negative, each row with the sum 1"
        raise InputError(f"build_model: two phrases must give {wanted}, and give {found}")
    model.test_step((phrases, phrases[:, :1], np.ones(2, np.float32)))  # Builds what it measures.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def own_objects() -> dict[str, Callable]:
    """Name the layers, losses and the like that stand in this file, for Keras to load."""
    return {name: value for name, value in globals().items() if callable(value)}


def describe_model(model: keras.Model) -> str:
    """Name its layers and the number of its parameters: `Embedding GRU Dense, 2,184,000`."""
    kinds = [type(layer).__name__ for layer in model.layers]
    return f"{' '.join(kind for kind in kinds if kind != 'InputLayer')}, {model.count_params():,}"


# ==== Training: runs of some epochs, and some quatrains after each ====


def train(settings: Settings) -> "Prophet":
    """Train and write as the settings say, to the end or, in a session, to an interrupt. Returns
    what writes quatrains with the model. InputError for what the settings cannot have."""
    with tf.device(prepare_device(settings)), contextlib.ExitStack() as stack:
        if settings.resume:
            path = find_checkpoint(Path(settings.logs))
            stack.enter_context(locked(path.parent))
            prophet = load_checkpoint(path, settings)
            stack.callback(report_end, prophet.folder)
            say(f"Going on after run {prophet.runs - 1} with the model saved in {path}.")
        else:
            prophet = begin_training(settings)
            stack.callback(report_end, prophet.folder)
            stack.enter_context(locked(prophet.folder))
        with contextlib.suppress(KeyboardInterrupt) if IN_SESSION else contextlib.nullcontext():
            train_runs(prophet)
        return prophet


def begin_training(settings: Settings) -> "Prophet":
    """Read the corpus, build the model and, where nothing is amiss, make a folder."""
    corpus = index_corpus(read_corpus(Path(settings.corpus)), settings.whole_quatrains)
    # What these two make is made again where it is used; here they say what is wrong in time.
    make_samples(corpus, settings)
    look_up(settings.opening, corpus.words, settings.max_words)
    seed = settings.seed
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
    embeddings = start_embeddings(corpus.words, settings, np.random.default_rng(seed))
    keras.utils.clear_session()  # Or a session's second model would have an `embedding_1`.
    keras.utils.set_random_seed(seed)
    model = build_model(embeddings, settings.phrase_len, settings)
    check_model(model, len(corpus.words), settings.phrase_len)
    folder = make_folder(Path(settings.logs), settings.name or settings.recipe)
    return Prophet(settings, corpus, model, folder, seed)


def describe_training(prophet: "Prophet") -> None:
    """Print what is trained on what, and what a run is."""
    settings, corpus = prophet.settings, prophet.corpus
    others = [
        f"{name}={value!r}"
        for name, value in asdict(settings).items()
        if value != getattr(Settings, name)
    ]
    text = f"Settings other than the file's: {', '.join(others) or 'none'}."
    say(textwrap.fill(text, 80, break_on_hyphens=False, break_long_words=False))
    quatrains, tokens, words = len(corpus.texts), corpus.counts[1:].sum(), len(corpus.words) - 1
    counts = f"{quatrains:,} quatrains, {tokens:,} tokens, {words:,} distinct words"
    say(f"Corpus: {settings.corpus} has {counts}.")
    say(f"Model: {describe_model(prophet.model)} parameters.")
    say(f"A run is {settings.epochs_per_run} epochs, then {settings.quatrains_per_run} quatrains.")
    say("Runs count from 0, epochs from 1 through all runs; the first takes some seconds more.")


def report_end(folder: Path) -> None:
    """Say what is kept of a training when it ends; a folder without a checkpoint is removed."""
    path = folder / "checkpoint.keras"
    if path.exists():
        say(f"\n{path} holds the training up to its last whole run.")
        say("Go on with resume = True (--resume), write with generate = 20 (--generate 20).")
    else:
        shutil.rmtree(folder)
        say("\nNothing is kept, for the first run had not ended.")


def train_runs(prophet: "Prophet") -> None:
    """Train from the run that a prophet is at; write after each, log it and save it."""
    settings, model, epochs = prophet.settings, prophet.model, prophet.settings.epochs_per_run
    train, validation = make_samples(prophet.corpus, settings)
    describe_training(prophet)
    with contextlib.closing(Logs(prophet.folder)) as logs:
        callbacks = keras.callbacks.CallbackList(
            [logs, *make_callbacks(settings)],
            add_history=True,
            add_progbar=True,
            model=model,
            verbose=1 if IN_SESSION or os.isatty(1) else 2,  # Bars where they can move.
            epochs=settings.runs * epochs,
            steps=math.ceil(len(train[1]) / settings.batch_size),
        )
        if prophet.runs == 0:
            logs.log_training(settings)
        train_epoch = build_epoch(model, train, validation, settings.batch_size, callbacks)
        model.stop_training = False
        callbacks.on_train_begin()
        while prophet.runs < settings.runs and not model.stop_training:
            say(f"\nRun {prophet.runs}\nTrain on {len(train[1])} samples,", end=" ")
            say(f"validate on {len(validation[1])} samples")
            first = prophet.runs * epochs
            for epoch in range(first, first + epochs):
                figures = train_epoch(epoch, np.random.default_rng([prophet.seed, epoch]))
                if model.stop_training:
                    break
            prophet.runs += 1
            if model.stop_training or prophet.runs == settings.runs:
                callbacks.on_train_end(figures)  # Here EarlyStopping puts the best weights back.
            written = prophet.write(settings.quatrains_per_run, seed=[prophet.seed, epoch, 1])
            say()
            show_quatrains(written, settings.raw)
            say(f"\n{report_quotes(written, prophet.quoted)}")
            logs.log_run(epoch + 1, written, prophet)
            save_checkpoint(prophet)


# ==== An epoch: Keras's own steps, some to a call of the compiled graph ====

STEPS_PER_CALL = 8  # Each call copies the weights; more save nothing.
# AutoGraph is off in all graphs: it reads the source again, which may have been edited meanwhile.


def build_epoch(
    model: keras.Model,
    train: Samples,
    validation: Samples,
    batch_size: int,
    callbacks: keras.callbacks.CallbackList,
) -> Callable[[int, Generator], dict[str, float]]:
    """Compile an epoch. Returns a function that shows the model every training sample once, in an
    order and with dropouts drawn from its generator, validates it, and tells the callbacks."""
    train_on = compile_training(model, train, batch_size)
    test_step = tf.function(
        model.test_step, jit_compile=model.jit_compile, reduce_retracing=True, autograph=False
    )

    def train_epoch(epoch, rng):
        seed_dropouts(model, rng)
        order = rng.permutation(len(train[1])).astype(np.int32)
        callbacks.on_epoch_begin(epoch)
        model.reset_metrics()
        for begin in range(0, len(order), STEPS_PER_CALL * batch_size):
            numbers = order[begin:][: STEPS_PER_CALL * batch_size]
            callbacks.on_train_batch_begin(begin // batch_size)
            train_on(numbers)
            figures = read_metrics(model)
            callbacks.on_train_batch_end((begin + len(numbers) - 1) // batch_size, figures)
            if model.stop_training:
                break
        callbacks.on_test_begin()
        model.reset_metrics()
        for begin in range(0, len(validation[1]), batch_size):
            batch = slice(begin, begin + batch_size)
            test_step((validation[0][batch], validation[1][batch]))
        validated = read_metrics(model)
        callbacks.on_test_end(validated)
        figures |= {f"val_{name}": value for name, value in validated.items()}
        callbacks.on_epoch_end(epoch, figures)
        check_finite(figures, model)
        return figures

    return train_epoch


def read_metrics(model: keras.Model) -> dict[str, float]:
    """Read what a model has measured, flat where a metric measures several things, as in `fit`."""
    figures = {}
    for name, value in model.get_metrics_result().items():
        figures |= value if isinstance(value, dict) else {name: value}
    return {name: float(value) for name, value in figures.items()}


def seed_dropouts(model: keras.Model, rng: Generator) -> None:
    """Draw anew what the masks of Keras's dropouts hang on, so that an epoch repeats exactly."""
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            variable.assign(rng.integers(2**32, size=2, dtype=np.uint32))


def compile_training(model: keras.Model, train: Samples, batch_size: int) -> Callable:
    """Compile training steps, with XLA where the model's `compile` lets it. Returns a function that
    trains on the samples of these numbers (int32), at most STEPS_PER_CALL batches of them."""
    data = [tf.constant(array) for array in train]

    def train_step(numbers):
        with hashed_dropouts(), dense_gradients(model.optimizer):
            model.train_step(tuple(tf.gather(array, numbers) for array in data))

    @tf.function(jit_compile=model.jit_compile, autograph=False)
    def train_steps(batches, steps):
        def advance(step):
            train_step(batches[step])
            return step + 1

        tf.while_loop(lambda step: step < steps, advance, [0])

    train_rest = tf.function(train_step, autograph=False)  # Smaller than a batch, once an epoch.

    def train_on(numbers):
        steps, rest = divmod(len(numbers), batch_size)
        if steps:
            # Of one shape, so that it is compiled once; only so many steps of it are taken.
            train_steps(np.resize(numbers, (STEPS_PER_CALL, batch_size)), np.int32(steps))
        if rest:
            train_rest(numbers[-rest:])

    return train_on


def check_finite(figures: dict[str, float], model: keras.Model) -> None:
    """Raise InputError where the loss or a weight is no number any more, before it is saved."""
    loss = figures.get("loss", 0)
    if not np.isfinite(loss) or not all(np.isfinite(each).all() for each in model.get_weights()):
        optimizer = model.optimizer
        now = f"{type(optimizer).__name__}, now {float(optimizer.learning_rate):g}"
        problem = f"the loss ({loss}) or a weight has become infinite or no number"
        raise InputError(f"{problem}: lower the learning rate of {now}, and train again")


# ==== Verse: four lines, capitals, punctuation closed up ====


def learn_capitals(quatrains: Iterable[str]) -> dict[str, str]:
    """Learn from texts how each word is usually written. A capital means something only where a
    word starts neither a line nor a sentence."""
    forms = Counter()
    for line in "\n".join(quatrains).split("\n"):
        words = TOKEN.findall(line)
        forms.update(word for before, word in pairwise(words) if before not in SENTENCE_ENDS)
    # The most frequent form of a word comes last, and stays.
    return {form.lower(): form for form, _ in reversed(forms.most_common())}


def part_lines(tokens: Iterable[str]) -> list[list[str]]:
    """Part tokens into the lines whose ends are among them. Punctuation starts none, and of several
    marks in a row the last stands."""
    lines = [[]]
    for token in tokens:
        line = lines[-1]
        if token.startswith("<"):
            lines.append([])
        elif line and token in PUNCTUATION and line[-1] in PUNCTUATION:
            line[-1] = token
        elif line or token not in PUNCTUATION:
            line.append(token)
    return [line for line in lines if line]


def format_verse(tokens: Iterable[str], capitals: dict[str, str]) -> str:
    """Restore tokens to verse: spacing, capitals of names, sentences and lines. Where no ends of
    lines are among them, four lines of like length are guessed."""
    lines, starts_sentence = [], True
    for words in part_lines(tokens):
        line = ""
        for token in words:
            word = capitals.get(token, token)
            if starts_sentence:
                word = capitalize(word)
            line += word if token in PUNCTUATION or not line else f" {word}"
            starts_sentence = token in SENTENCE_ENDS
        lines.append(line)
    if len(lines) == 1:
        lines = break_lines(line.split(" "))
    return "\n".join(map(capitalize, lines))


def break_lines(words: Sequence[str]) -> list[str]:
    """Part words, with their punctuation, into four lines of like length, or fewer where there are
    fewer words. In letters: a pause at its end makes up for two words of imbalance."""
    letters = [0, *accumulate(len(word) + 1 for word in words)]
    cuts = [0]
    for quarter in (1, 2, 3):
        rated = []
        for place in range(cuts[-1] + 1, len(words) - 3 + quarter):
            imbalance = abs(letters[place] - letters[-1] * quarter / 4)
            pause = 10 if words[place - 1][-1] in PUNCTUATION else 0
            rated.append((imbalance - pause, place))
        if rated:
            cuts.append(min(rated)[1])
    return [" ".join(words[start:end]) for start, end in pairwise([*cuts, len(words)])]


def capitalize(word: str) -> str:
    """Put the first letter in title case, which some letters have beside upper case."""
    return word[:1].title() + word[1:]


# ==== Writing: what a trained model is good for ====

ATTEMPTS = 10  # At quatrains that are empty or quote too much.
AT_ONCE = 1000  # Quatrains drawn at once, for memory's sake.


class Quatrain(NamedTuple):
    """A new quatrain, its score, and the longest quote from the corpus in it, from `source`."""

    tokens: list[str]
    verse: str
    quote: list[str]
    source: str
    slor: float

    def __str__(self) -> str:
        """Give the verse, for print."""
        return self.verse


def draw_words(chances: np.ndarray, temperature: float, top_p: float, rng: Generator) -> np.ndarray:
    """Draw a word for each row of probabilities (float32, rows x words): at a temperature, and from
    the likeliest only that together have the share `top_p` (nucleus sampling, Holtzman et al.
    2020). Returns the numbers of the words (int64, rows)."""
    chances = chances.astype(np.float64)
    chances = (chances / chances.max(1, keepdims=True)) ** (1 / temperature)
    chances /= chances.sum(1, keepdims=True)
    if top_p < 1:
        ranked = -np.sort(-chances, 1)
        needed = ranked.cumsum(1) - ranked < top_p
        least = np.where(needed, ranked, 1).min(1, keepdims=True)
        chances[chances < least] = 0
    sums = chances.cumsum(1)
    return (sums <= rng.random((len(sums), 1)) * sums[:, -1:]).sum(1)


def longest_quote(words: list[str], source: str) -> list[str]:
    """Find the longest run of words that stands in a source; ` a b \\n c ` is one of two texts."""
    quote, start = [], 0
    for end in range(1, len(words) + 1):
        while start < end and f" {' '.join(words[start:end])} " not in source:
            start += 1
        quote = max(quote, words[start:end], key=len)
    return quote


def look_up(opening: str, words: Sequence[str], max_words: int) -> list[int]:
    """Turn opening words into numbers; InputError names those that the corpus has not."""
    tokens = tokenize(clean(opening))
    for token in tokens:
        if token not in words:
            near = ", ".join(get_close_matches(token, words, 3, 0.5)) or "nothing"
            raise InputError(f"opening has {token!r}, which the corpus lacks (near it: {near})")
    if len(tokens) >= max_words:
        raise InputError(f"opening has {len(tokens)} words: set max_words to more, or cut it")
    return [words.index(token) for token in tokens]


def form_of(tokens: Sequence[str]) -> tuple[int, bool]:
    """How many lines a quatrain has, and whether it ends a sentence."""
    return len(part_lines(tokens)), bool(tokens) and tokens[-1] in SENTENCE_ENDS


@dataclass(eq=False)
class Prophet:
    """A trained model that writes quatrains, and all that its training needs to go on: its folder,
    its seed, and how many runs it has."""

    settings: Settings
    corpus: Corpus
    model: keras.Model
    folder: Path
    seed: int
    runs: int = 0
    quoted: int = 0  # Words in the longest quote of what was drafted last.

    def __post_init__(self) -> None:
        """Learn from the corpus what writing needs, and compile the model's predictions."""
        corpus, model = self.corpus, self.model
        self.capitals = learn_capitals(corpus.texts)
        self.form = Counter(map(form_of, corpus.tokens)).most_common(1)[0][0]
        self.log_frequencies = np.log(corpus.counts / corpus.counts.sum())
        # For quotes, which are such whatever punctuation stands between their words.
        rows = [" ".join(filter(WORD.match, tokens)) for tokens in corpus.tokens]
        self.source = "\n".join(f" {row} " for row in rows)

        @tf.function(reduce_retracing=True, autograph=False)
        def predict(phrases):
            return tf.cast(model(phrases, training=False), tf.float32)

        self.predict = predict

    @property
    def history(self) -> keras.callbacks.History | None:
        """Keras's own history of a training, as `fit` returns it."""
        return getattr(self.model, "history", None)

    def write(self, count: int = 5, seed: Any = None, **changes: Any) -> list[Quatrain]:
        """Write quatrains as the settings say, or with changes to them, such as `temperature`,
        `top_p`, `drafts`, `opening` and `max_quote`; a `seed` repeats them exactly. Each is the
        best of its drafts. What is empty or quotes too much is drafted again; after ATTEMPTS a
        quatrain, what is empty is left out, and a quote is let pass."""
        settings = self.settings.changed(**changes)
        start = look_up(settings.opening, self.corpus.words, settings.max_words)
        rng = np.random.default_rng(seed)
        limit = settings.max_quote or math.inf
        written, rejected, self.quoted = [], 0, 0
        while len(written) < count:
            some = min(count - len(written), max(1, AT_ONCE // settings.drafts))
            drafts = self.draw(some * settings.drafts, start, settings, rng)
            for number in range(some):
                quatrain = self.choose(drafts[number::some], limit)
                if 0 < len(quatrain.quote) <= limit or rejected == ATTEMPTS * count:
                    written.append(quatrain)
                else:
                    rejected += 1
        return [quatrain for quatrain in written if quatrain.verse]

    def draw(
        self, count: int, start: list[int], settings: Settings, rng: Generator
    ) -> list[tuple[list[str], float]]:
        """Draw quatrains: an all-break phrase and a start, then words, to a break or `max_words`.
        Returns their tokens, and their SLOR: the mean of log p(token | phrase) - log p(token), at
        temperature 1 (Pauls & Klein 2012; Lau, Clark & Lappin 2017)."""
        length = settings.phrase_len
        rows = np.zeros((count, length + settings.max_words), np.int32)
        rows[:, length : length + len(start)] = start
        gains, going = np.zeros(rows.shape), np.arange(count)
        for place in range(length + len(start), rows.shape[1]):
            chances = self.predict(rows[going, place - length : place]).numpy()
            drawn = draw_words(chances, settings.temperature, settings.top_p, rng)
            likelihood = np.log(chances[np.arange(len(going)), drawn])
            rows[going, place] = drawn
            gains[going, place] = likelihood - self.log_frequencies[drawn]
            going = going[drawn > 0]
            if not len(going):
                break
        drafts = []
        for row, gain in zip(rows, gains, strict=True):
            tokens = [self.corpus.words[word] for word in row if word]
            drafts.append((tokens, gain[row > 0].sum() / max(1, len(tokens) - len(start))))
        return drafts

    def choose(self, drafts: list[tuple[list[str], float]], limit: float) -> Quatrain:
        """Choose the best draft that quotes no more words than the limit: those in the corpus's
        form come first, then those of a higher SLOR."""
        ranked = sorted(drafts, key=lambda draft: (form_of(draft[0]) == self.form, draft[1]))
        best = quatrain = self.describe(*ranked.pop())
        while ranked and len(quatrain.quote) > limit:
            quatrain = self.describe(*ranked.pop())
        return quatrain if len(quatrain.quote) <= limit else best

    def describe(self, tokens: list[str], slor: float) -> Quatrain:
        """Make a quatrain of its tokens and its score."""
        quote = longest_quote(list(filter(WORD.match, tokens)), self.source)
        self.quoted = max(self.quoted, len(quote))
        before = self.source.partition(f" {' '.join(quote)} ")[0]
        source = self.corpus.numbers[before.count("\n")] if quote else ""
        return Quatrain(tokens, format_verse(tokens, self.capitals), quote, source, slor)


def show_quatrains(written: Sequence[Quatrain], raw: bool) -> None:
    """Print quatrains, parted by blank lines, or their bare tokens, a quatrain a line."""
    if raw:
        say(*[" ".join(quatrain.tokens) for quatrain in written], sep="\n")
    else:
        say(*written, sep="\n\n")


def report_quotes(written: Sequence[Quatrain], quoted: int) -> str:
    """Say in a line which quote is the longest, and how long one was that was passed over."""
    longest = max(written, key=lambda quatrain: len(quatrain.quote), default=None)
    if not longest:
        return "All that was drawn is empty."
    size, quote = len(longest.quote), " ".join(longest.quote)
    line = f'Longest quote: {size} words, "{quote}" ({longest.source}).'
    if quoted > size:
        line += f" A draft that quoted {quoted} was passed over."
    return line


def generate(settings: Settings) -> Prophet:
    """Write with the training saved last, without training; say on standard error which that is.
    Returns what wrote."""
    path = find_checkpoint(Path(settings.logs))
    with tf.device(prepare_device(settings)):
        prophet = load_checkpoint(path, settings)
        written = prophet.write(settings.generate, settings.seed)
    show_quatrains(written, settings.raw)
    quotes = report_quotes(written, prophet.quoted)
    print(f"\nFrom {path}. {quotes}", file=sys.stderr)
    return prophet


# ==== GloVe: vectors that already know something of the words ====

GLOVE_DIMS = (50, 100, 200, 300)
GLOVE_URL = "https://nlp.stanford.edu/data/glove.6B.zip"
GLOVE_SHA256 = "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"
GLOVE_TIMEOUT = 20  # Seconds without a byte after which the download is given up.
WITHOUT_GLOVE = 'to go without, set glove = "none" (--glove none)'


def start_embeddings(words: Sequence[str], settings: Settings, rng: Generator) -> np.ndarray:
    """Make the embedding that training starts from (float32, words x dim), and say how: GloVe's own
    vectors of the words that the setting's file knows, and normal ones with GloVe's spread."""
    dim = settings.embedding_dim
    embeddings = rng.normal(0, 0.4, (len(words), dim)).astype(np.float32)
    path = Path(settings.glove)
    if settings.glove == "none":
        return embeddings
    if settings.glove == "auto":
        path = find_glove(dim)
        if not path:
            return embeddings
    vectors = read_glove(path, words, dim)
    for index, vector in vectors.items():
        embeddings[index] = vector
    unknown = len(words) - 1 - len(vectors)
    say(f"GloVe: {path} knows {len(vectors):,} words; {unknown:,} and the break start random.")
    return embeddings


def find_glove(dim: int) -> Path | None:
    """Find vectors in data/, or fetch them, once; say so and return None if they cannot be had."""
    if dim not in GLOVE_DIMS:
        problem = f"embedding_dim = {dim} will not do for GloVe"
        raise InputError(f"{problem}: choose one of {GLOVE_DIMS}, or {WITHOUT_GLOVE}")
    for path in (Path(f"data/glove.6B.{dim}d.txt"), Path("data/glove.6B.zip")):
        if path.exists():
            return path
    say(f"GloVe: out of Keras's cache, or else fetched, 862 MB, this once; {WITHOUT_GLOVE}.")
    socket.setdefaulttimeout(GLOVE_TIMEOUT)  # Keras sets none of its own.
    try:
        # Keras checks the hash of the whole file each time, so that none cut short is ever read.
        return Path(keras.utils.get_file("glove.6B.zip", GLOVE_URL, file_hash=GLOVE_SHA256))
    except Exception as error:  # Keras raises bare ones.
        say(f"\nGloVe: not to be had ({error}), so all words start random; {WITHOUT_GLOVE}.")
        return None
    finally:
        socket.setdefaulttimeout(None)


def read_glove(path: Path, words: Sequence[str], dim: int) -> dict[int, np.ndarray]:
    """Read the vectors (float32, dim) of words out of a GloVe file, by the index of the word: a
    text, or a zip with one for `dim` dimensions, whose lines are a word and `dim` numbers with
    single spaces between. Raises InputError when what is looked at is not that."""
    wanted = {word.encode(): index for index, word in enumerate(words)}
    vectors = {}
    try:
        with open_glove(path, dim) as lines:
            for number, line in enumerate(lines, 1):
                word, _, numbers = line.partition(b" ")
                index = wanted.get(word.removeprefix(b"\xef\xbb\xbf"))  # A byte order mark.
                if index is not None or number == 1:
                    vector = np.array(numbers.split(), np.float32)
                    if len(vector) != dim or not np.isfinite(vector).all():
                        raise ValueError(f"line {number} has not {dim} numbers")
                    vectors[index] = vector
    except Exception as error:  # Files that are not what they are taken for raise most of them.
        problem = f"GloVe file {path} cannot be used ({error})"
        raise InputError(f"{problem}: set glove to another, or {WITHOUT_GLOVE}") from None
    vectors.pop(None, None)
    return vectors


def open_glove(path: Path, dim: int) -> io.BufferedIOBase:
    """Open a text of vectors, or the one for `dim` dimensions in a zip."""
    if path.suffix.lower() != ".zip":
        return path.open("rb")
    # Buffered, because a zip member hands out lines three times as slowly by itself.
    return io.BufferedReader(zipfile.ZipFile(path).open(f"glove.6B.{dim}d.txt"), 2**18)


# ==== Logs: one folder a training, and what TensorBoard shows of it ====


def make_folder(logs: Path, name: str) -> Path:
    """Make the folder of a new training, named after its start; InputError where it cannot be."""
    while True:
        folder = logs / f"{time.strftime('%y%m%d-%H%M%S')}-{name}"
        try:
            folder.mkdir(parents=True)
            return folder
        except OSError as error:
            if not folder.exists():  # Or else another one started in this second.
                problem = f"the folder {logs} cannot be written ({error.strerror})"
                raise InputError(f"{problem}: set logs to another folder") from None
            time.sleep(0.1)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a training's folder; raise InputError if one is at it."""
    with (folder / "lock").open("w") as file:
        # The lock is the system's own, so it is gone when its holder is. Windows has none such.
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                problem = f"a training is going on in {folder}"
                raise InputError(f"{problem}: wait for its end, or start a new one") from None
        yield


class Logs(keras.callbacks.Callback):
    """Writes what TensorBoard shows of a training, with one writer a folder: two files of the same
    second would be read out of order."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        places = ("", "train", "validation")
        self.writers = {
            place: tf.summary.create_file_writer(str(folder / place)) for place in places
        }

    def close(self) -> None:
        """Write what is still to be written."""
        for writer in self.writers.values():
            writer.close()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write the figures of an epoch, by its number as it is printed, from 1."""
        figures = logs | {"learning_rate": float(self.model.optimizer.learning_rate)}
        if "val_loss" in figures:
            # What recipes compare by: the loss without the penalties on weights.
            figures["val_cross_entropy"] = figures["val_loss"] - float(sum(self.model.losses))
        for name, value in figures.items():
            place = "validation" if name.startswith("val_") else "train"
            with self.writers[place].as_default(epoch + 1):
                tf.summary.scalar(name.removeprefix("val_"), value)

    def log_training(self, settings: Settings) -> None:
        """Write the graph, layer by layer, and the settings as a row of HParams."""
        model = self.model

        @tf.function(autograph=False)
        def layers(words):
            # Other models than a chain of layers are traced whole.
            for layer in model.layers if isinstance(model, keras.Sequential) else [model]:
                with tf.name_scope(layer.name):
                    words = layer(tf.identity(words))  # So that one edge enters a layer.
            return words

        # TensorBoard sorts by key, capitals first, and shows five.
        row = {"Model": describe_model(model), "Name": settings.name or settings.recipe}
        for name, value in asdict(settings).items():
            if name not in CHANGEABLE:
                row[name] = "None" if value is None else value
        with self.writers[""].as_default(0):
            # A batch of known size, or the edges would carry arithmetic on its size, too.
            words = tf.TensorSpec((settings.batch_size, settings.phrase_len), tf.int32, "words")
            tf.summary.graph(layers.get_concrete_function(words).graph)
            hparams.hparams(row, trial_id=self.folder.name)

    def log_run(self, epoch: int, written: Sequence[Quatrain], prophet: Prophet) -> None:
        """Write where a run ended: weights, embedding, quatrains and how much they quote."""
        with self.writers[""].as_default(epoch):
            for layer in self.model.layers:
                for number, weight in enumerate(layer.trainable_weights):
                    # Of a large weight a sample shows the same shape in a tenth of the time.
                    values = weight.numpy().ravel()
                    values = values[:: values.size // 50_000 + 1]
                    tf.summary.histogram(f"weights/{layer.name}/{number}_{weight.name}", values)
            verses = [quatrain.verse for quatrain in written]
            tf.summary.text("quatrains", "\n\n".join([f"Run {prophet.runs - 1}", *verses]))
            tf.summary.scalar("quote", prophet.quoted)
            if written:
                tf.summary.scalar("slor", np.mean([quatrain.slor for quatrain in written]))
        log_embedding(self.folder, self.model, prophet.corpus.words)
        for writer in self.writers.values():
            writer.flush()


def log_embedding(folder: Path, model: keras.Model, words: Sequence[str]) -> None:
    """Write the matrices that have a row for each word, and the words, for the projector."""
    (folder / "words.tsv").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = projector.ProjectorConfig()
    for number, weight in enumerate(model.trainable_weights):
        if len(weight.shape) == 2 and weight.shape[0] == len(words):
            path = folder / f"embedding{number}.bytes"
            # The first byte, or TensorBoard may take the numbers for text.
            path.write_bytes(b"\xff" + weight.numpy().astype(np.float32).tobytes()[1:])
            config.embeddings.add(
                tensor_name=path.stem,
                tensor_shape=weight.shape,
                tensor_path=path.name,
                metadata_path="words.tsv",
            )
    projector.visualize_embeddings(str(folder), config)


# ==== Checkpoint: all that a training needs to go on, in one file ====


def save_checkpoint(prophet: Prophet) -> None:
    """Write what Keras saves, and what it lacks, so that no crash leaves a checkpoint in parts."""
    path = prophet.folder / "checkpoint.keras"
    new = path.with_name("unfinished.keras")
    quatrains = list(zip(prophet.corpus.numbers, prophet.corpus.texts, strict=True))
    beside = [prophet.runs, prophet.seed, asdict(prophet.settings), quatrains]
    try:
        prophet.model.save(new)
        with zipfile.ZipFile(new, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("quatrains.json", json.dumps(beside))
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    if os.name == "posix":  # Elsewhere a folder cannot be opened, nor need be.
        os.fsync(folder := os.open(path.parent, os.O_RDONLY))
        os.close(folder)


def find_checkpoint(logs: Path) -> Path:
    """Find the checkpoint of the training that `logs` names, or the last that was saved in it."""
    digits = "[0-9]" * 6
    found = [*logs.glob("checkpoint.keras"), *logs.glob(f"{digits}-{digits}-*/checkpoint.keras")]
    if not found:
        problem = f"{logs} has no checkpoint, which comes after a first run"
        raise InputError(f"{problem}: train first, or set logs to a training's own folder")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def load_checkpoint(path: Path, settings: Settings) -> Prophet:
    """Load a training; InputError where it cannot be read or settings would make it another one."""
    try:
        with zipfile.ZipFile(path) as archive:
            runs, seed, began, quatrains = json.loads(archive.read("quatrains.json"))
        corpus = index_corpus(quatrains, began["whole_quatrains"])
        settings = keep_settings(settings, began, path.parent)
        if not settings.generate and runs >= settings.runs:
            raise InputError(f"{path.parent} has its {runs} runs already: set runs higher")
        look_up(settings.opening, corpus.words, settings.max_words)
        model = keras.models.load_model(path, own_objects())
        check_model(model, len(corpus.words), settings.phrase_len)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        fault, way_out = (
            "is broken, or none of this script",
            "set logs to another training's folder",
        )
        if isinstance(error, OSError) and error.errno:  # HDF5 gives damage no number.
            fault, way_out = "cannot be read", "mend that"
        reason = str(error).partition("\n")[0]
        raise InputError(f"checkpoint {path} {fault} ({reason}): {way_out}") from None
    return Prophet(settings, corpus, model, path.parent, seed, runs)


def keep_settings(settings: Settings, began: dict[str, Any], folder: Path) -> Settings:
    """Put what a training began with in the place of the file's settings; InputError where the
    command line says otherwise."""
    fixed = {name: value for name, value in began.items() if name not in CHANGEABLE}
    if settings.generate:
        del fixed["seed"]  # Then it is that of the writing.
    for name, value in settings.given.items():
        if fixed.get(name, value) != value:
            problem = f"{folder} was trained with {name} = {fixed[name]!r}, not {value!r}"
            raise InputError(f"{problem}: leave that out, or set logs to another training's folder")
    if began["recipe"] in RECIPES:  # It may have been renamed since.
        settings = Settings(**settings.given | {"recipe": began["recipe"]})
    vars(settings).update(fixed)
    return settings


# ==== Dropout: Keras's masks, drawn as XLA can draw them fast; gradients as in 2017 ====


def mix(bits: tf.Tensor) -> tf.Tensor:
    """Hash 32-bit numbers: Chris Wellons's lowbias32."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits ^= tf.bitwise.right_shift(bits, np.uint32(shift))
        bits *= np.uint32(factor)
    return bits


def hash_dropout(values: tf.Tensor, rate: float, seed: Any, noise_shape: Any = None) -> tf.Tensor:
    """Do what tf.nn.experimental.stateless_dropout does, with other random bits. Every element has
    16 bits of a hash of its number and the seed (two ints), and is 0 where they are below `rate`.
    The bits have a test of their own."""
    sides = noise_shape if isinstance(noise_shape, list) else values.shape
    shape = [tf.get_static_value(n) or size for n, size in zip(sides, values.shape, strict=True)]
    size = math.prod(shape)
    seed = tf.cast(seed, tf.uint32)
    key = mix(seed[0] ^ mix(seed[1] + np.uint32(0x9E3779B9)))
    index = tf.cast(tf.range((size + 1) // 2), tf.uint32)
    bits = mix(index * np.uint32(0x9E3779B1) ^ key)
    halves = tf.reshape(tf.reshape(tf.bitcast(bits, tf.uint16), [-1])[:size], shape)
    squares = tf.where(tf.cast(halves, tf.int32) < round(rate * 2**16), 0.0, (1 - rate) ** -2)
    # The root, because XLA keeps what takes it long; a cheap mask it would hash anew at each use.
    return values * tf.cast(tf.sqrt(squares), values.dtype)


@contextlib.contextmanager
def hashed_dropouts() -> Iterator[None]:
    """Have Keras's dropouts, which all call this one function, draw their masks by `hash_dropout`:
    XLA draws TensorFlow's random numbers so slowly that an epoch would take three times as long."""
    theirs = tf.nn.experimental.stateless_dropout
    tf.nn.experimental.stateless_dropout = hash_dropout
    try:
        yield
    finally:
        tf.nn.experimental.stateless_dropout = theirs


@contextlib.contextmanager
def dense_gradients(optimizer: keras.Optimizer) -> Iterator[None]:
    """Give the optimizer dense gradients, as in 2017: of the embedding's sparse ones Keras 3 would
    square apart the parts of a word that a batch has twice."""
    apply_gradients = optimizer.apply_gradients

    def apply_dense(pairs):
        apply_gradients([(g if g is None else tf.convert_to_tensor(g), v) for g, v in pairs])

    optimizer.apply_gradients = apply_dense
    try:
        yield
    finally:
        del optimizer.apply_gradients


# ==== Main ====

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with plain_endings():
        prophet = (generate if SETTINGS.generate else train)(SETTINGS)
