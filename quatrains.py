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

from __future__ import annotations

import contextlib
import signal
import sys

IN_SESSION = "ipykernel" in sys.modules  # In a notebook and its like.
if __name__ == "__main__" and not IN_SESSION and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Until `main` knows better: imports take a while.

import argparse
import ctypes.util
import functools
import importlib.util
import io
import itertools
import json
import os
import re
import socket
import subprocess
import textwrap
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace as Settings
from typing import Any, NamedTuple, NoReturn
from unicodedata import normalize

with contextlib.suppress(ModuleNotFoundError):  # `require_packages` binds it, or says what to do.
    import numpy as np
    from numpy.random import Generator

# ==== Settings: edit them and run again, or give them on the command line (--gru-dim 256) ====
# What stands above a setting is what --help says of it. The model's layers stand in `build_model`.

# True trains on /gpu:0, False on /cpu:0.
use_gpu = False
# "2017" trains as published. "verse" also learns how quatrains open, where their lines end and how
# long they are: what RECIPES, below, has for it stands in the place of settings here.
recipe = "2017"

# Numbers in the vector of a word. GloVe comes in 50, 100, 200 and 300; without it, any size does.
embedding_dim = 300
# Units of the GRU. More of them learn faster, and quote the corpus sooner.
gru_dim = 128
# Part of the GRU's inputs and state that a step hides, or the model soon knows the corpus by heart.
dropout = 0.5
# L2 penalty on the GRU's weights, which the losses include. More makes the output tamer.
regularization = 0.02
# Part of the GRU's output that a step hides from the dense layer.
dense_dropout = 0.0
# Part of each target that training spreads over all words, against overfitting; writing undoes it.
label_smoothing = 0.0
# Tokens that the model sees before it guesses the next one.
phrase_len = 4
# True fills phrases up with breaks, so that a quatrain's first words are learnt as well.
padding = False
# True makes the ends of a quatrain's first, second, ... line tokens, so that lines are learnt.
line_tokens = False
# True weighs a sample by the square root of its target's count, False all alike.
weighted = True

# Samples a training step.
batch_size = 512
# Step size of RMSprop. High, because the model is small and somebody is watching.
learning_rate = 0.003
# Runs of a training, each some epochs and then some quatrains. Stop any time.
runs = 1000
# Epochs a run.
epochs_per_run = 5
# True goes on with the training in `logs` from the checkpoint after its last run.
resume = False
# None, or a number that makes the training repeat exactly on the same machine.
seed = None

# Quatrains written after each run.
quatrains_per_run = 5
# Most words of a quatrain; punctuation counts, ends of lines do not.
max_words = 32
# True prints the bare tokens, a quatrain a line; False restores lines, capitals and spacing.
raw = False
# Below 1 the likely words get likelier and the verse tamer, above 1 it gets wilder.
temperature = 1.0
# Draws only from so many of the likeliest words; 0 draws from all.
top_k = 0
# Words that every quatrain begins with.
opening = ""
# A quatrain that quotes a longer run of words from the corpus is drawn again; 0 lets all pass.
max_quote = 8
# 0 trains. Any other number writes so many quatrains from the checkpoint in `logs` instead.
generate = 0

# Text to learn from: quatrains parted by blank lines, or, in a file without them, one a line.
corpus = "data/quatrains.txt"
# Where word vectors come from: "none" starts every word at random, "auto" takes glove.6B.zip or
# glove.6B.<embedding_dim>d.txt in data/, or else fetches the zip; or the path of such a file.
glove = "auto"
# The folder that TensorBoard reads, in which each training has one, with its checkpoint. To resume
# an earlier training, or write from it, name its own.
logs = "logs"

# What a recipe sets; only the command line wins over it. A table more is a recipe more.
RECIPES = {
    "2017": {},
    "verse": {
        "regularization": 0.0,
        "dense_dropout": 0.5,
        "label_smoothing": 0.1,
        "phrase_len": 16,
        "padding": True,
        "line_tokens": True,
        "weighted": False,
        "max_words": 64,
    },
}

# Type, least and most (where no memory would do, or no sense is left); of texts, their letters.
SETTINGS = {
    **dict.fromkeys(("use_gpu", "resume", "raw"), (bool, 0, 1)),
    **dict.fromkeys(("padding", "line_tokens", "weighted"), (bool, 0, 1)),
    **dict.fromkeys(("embedding_dim", "gru_dim", "quatrains_per_run"), (int, 1, 10_000)),
    **dict.fromkeys(("phrase_len", "max_words"), (int, 1, 1_000)),
    **dict.fromkeys(("batch_size", "runs", "epochs_per_run"), (int, 1, 1_000_000)),
    **dict.fromkeys(("top_k", "max_quote", "generate"), (int, 0, 1_000_000)),
    **dict.fromkeys(("dropout", "dense_dropout", "label_smoothing"), (float, 0, 0.99)),
    **dict.fromkeys(("recipe", "corpus", "glove", "logs"), (str, 1, 1_000)),
    "opening": (str, 0, 10_000),
    "seed": (int, 0, 2**32 - 1),
    "regularization": (float, 0, 1e9),
    "learning_rate": (float, 1e-9, 1e9),
    "temperature": (float, 0.01, 100),
}
FIXED = (  # What makes a training what it is, and stays as it is when it is resumed.
    *("recipe", "gru_dim", "learning_rate", "dropout", "regularization", "phrase_len"),
    *("dense_dropout", "label_smoothing", "padding", "line_tokens", "weighted", "embedding_dim"),
    *("batch_size", "epochs_per_run", "seed", "glove", "corpus"),
)
WRITING = ("temperature", "top_k", "opening", "seed", "max_quote")  # What `Prophet.write` takes.
say = functools.partial(print, flush=True)  # At once, also into a pipe or a file.


class InputError(Exception):
    """A mistake that the user can mend; its text names the setting or file and the way out."""


# ==== Command line ====


def read_settings(defaults: Mapping[str, Any], arguments: list[str]) -> tuple[Settings, dict]:
    """Merge the file's settings with the command line's; InputError says what is illegal. Returns
    them, for `apply_recipe`, and those that the command line gave."""

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists all settings")

    for name in SETTINGS.keys() - defaults.keys():
        raise InputError(f"{name} is not set at the top of the file: put `{name} = ...` back")
    values = {name: value for name, value in defaults.items() if name in SETTINGS}
    title = "Learn to write new prophecies in the manner of Nostradamus."
    parser = argparse.ArgumentParser("quatrains.py", description=title, allow_abbrev=False)
    parser.error = refuse  # In one line, like all errors here.
    text = Path(__file__).read_text(encoding="utf-8") if arguments else ""
    comments = re.findall(r"((?:^# .*\n)+)^(\w+) = ", text, re.MULTILINE)
    meanings = {name: re.sub(r"\s*^# ", " ", told, flags=re.M) for told, name in comments}
    for name, value in values.items():
        ways = (f"; {recipe}: {table[name]}" for recipe, table in RECIPES.items() if name in table)
        told = f"{meanings.get(name)} ({describe_legal(name)}; default: {value}{''.join(ways)})"
        how = {"help": told.replace("%", "%%"), "default": None, "metavar": "VALUE"}
        if SETTINGS[name][0] is bool:
            how |= {"action": argparse.BooleanOptionalAction, "metavar": None}
        parser.add_argument("--" + name.replace("_", "-"), **how)
    parsed = vars(parser.parse_args(arguments))
    given = {name: text for name, text in parsed.items() if text is not None}
    for name, text in given.items():
        values[name] = text
        with contextlib.suppress(ValueError):  # What is no number is refused below.
            values[name] = SETTINGS[name][0](text)
    settings = Settings(**{name: check_setting(name, values[name]) for name in values})
    return settings, {name: vars(settings)[name] for name in given}


def apply_recipe(settings: Settings, given: Mapping[str, Any], recipe: str) -> Settings:
    """Put a recipe's settings in the place of the file's, but not of those given otherwise."""
    if given.get("recipe", recipe) != recipe:
        told = f"what is in logs {settings.logs} was trained with recipe {recipe!r}"
        raise InputError(f"{told}: leave recipe out, or set logs to another training's own folder")
    for name in RECIPES[recipe].keys() - SETTINGS.keys():
        raise InputError(f"RECIPES has {name} for {recipe!r}, which is no setting: take it out")
    table = {name: check_setting(name, value) for name, value in RECIPES[recipe].items()}
    settings = Settings(**{**vars(settings), **table, **given, "recipe": recipe})
    if settings.glove == "auto" and settings.embedding_dim not in GLOVE_DIMS:
        told = f"embedding_dim = {settings.embedding_dim} will not do for GloVe"
        raise InputError(f'{told}: choose one of {GLOVE_DIMS}, or set glove = "none"')
    return settings


def describe_legal(name: str) -> str:
    """Say what a setting may be."""
    kind, low, high = SETTINGS[name]
    if name == "recipe":
        return " or ".join(map(repr, RECIPES))
    if kind in (bool, str):
        return "True or False" if kind is bool else "a text" + " of at least one letter" * low
    return f"a {'whole ' * (kind is int)}number from {low} to {high}"


def check_setting(name: str, value: Any) -> Any:
    """Return a legal value in its setting's type; raise InputError for any other."""
    kind, low, high = SETTINGS[name]
    if name == "seed" and value in (None, "none", "None"):
        return None
    if kind is float and type(value) is int:
        value = float(value)
    size = len(value) if type(value) is str else value
    legal = name != "recipe" or value in [*RECIPES]
    if legal and type(value) is kind and low <= size <= high and "\0" not in str(value):
        return value
    raise InputError(f"{name} = {value!r} will not do: it must be {describe_legal(name)}")


def describe_settings(settings: Settings) -> str:
    """Put the settings in force into a paragraph, each on one line of it."""
    items = ", ".join(f"{name}\xa0=\xa0{value!r}" for name, value in vars(settings).items())
    return "\n  ".join(["Settings:", *textwrap.wrap(items, 86)]).replace("\xa0", " ")


# ==== Packages: what a session lacks, it installs ====


def require_packages(use_gpu: bool) -> None:
    """See that the packages are there; a session installs them, elsewhere InputError says how."""
    global np
    needed = ("numpy", "tensorflow", "keras", "tensorboard")
    missing = ", ".join(name for name in needed if importlib.util.find_spec(name) is None)
    if not missing:
        return
    packages = ["-r", "requirements.txt", *["tensorflow[and-cuda]"] * use_gpu]
    command = [sys.executable, "-m", "pip", "install", *packages]
    told = f"{missing} not installed"
    if not IN_SESSION or not Path("requirements.txt").exists():
        raise InputError(f"{told}: type `{' '.join(command)}` in the script's folder")
    say(f"{told}: installing {' '.join(packages)}. That takes a few minutes.")
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{told}, and pip cannot: {done.stderr.strip()}")
    importlib.invalidate_caches()
    import numpy as np


# ==== Corpus: quatrains, tokens, vocabulary ====

BREAK = "<BREAK>"
LINE_END = "<LINE{}>"  # Of the line of this number. Words cannot look like that: see DROPPED.
PUNCTUATION = ".,;!?"
SENTENCE_ENDS = ".!?"
# What the tokenizer of 2017 dropped, and typeset texts' quotation marks, dashes and dots.
DROPPED = '"#$%&()*+/:<=>@[\\]^_{|}~`\xab\xbb\u2018\u201a\u201c\u201d\u201e\u2013\u2014\u2026'
WORD = re.compile(f"[^<{PUNCTUATION}]")  # Matches no token that is punctuation or ends a line.
TOKEN = re.compile(rf"[{PUNCTUATION}]|[^\s{re.escape(PUNCTUATION + DROPPED)}]+")
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
    try:
        text = path.read_bytes().decode("utf-8-sig")
        quatrains = [] if "\0" in text else split_quatrains(clean(text))
        reason = "is no text with words in it"
    except OSError as error:
        quatrains, reason = [], f"cannot be read ({error.strerror}), seen from {Path.cwd()}"
    except UnicodeDecodeError as error:
        quatrains, reason = [], f"is not UTF-8 (see byte {error.start}; iconv converts it)"
    if not quatrains:
        raise InputError(f"corpus {path} {reason}: set corpus to a text file in UTF-8")
    return quatrains


def clean(text: str) -> str:
    """Bring a text to one spelling, NFC, and drop what cannot be seen. A U+2019 between letters is
    an apostrophe, elsewhere a quotation mark."""
    text = re.sub(r"[^\S\n]", " ", text.replace("\r\n", "\n").replace("\r", "\n"))
    # The joiners cannot be seen either, but some scripts are spelt with them.
    text = "".join(c for c in text if c.isprintable() or c in "\n\u200c\u200d")
    return re.sub(r"(?<!\w)\u2019|\u2019(?!\w)", "", normalize("NFC", text))


def split_quatrains(text: str) -> list[tuple[str, str]]:
    """Part a cleaned text into its stanzas, or lines if none is blank, each with its number."""
    text = "\n".join(map(str.strip, text.split("\n")))
    gap = "\n\n" if "\n\n" in COMMENT.sub("", text).strip() else "\n"
    parts = ["", *HEADING.split(text)]
    quatrains = []
    for heading, part in zip(parts[::2], parts[1::2], strict=True):
        stanzas = (stanza.strip() for stanza in COMMENT.sub("", part).split(gap))
        for number, stanza in enumerate(filter(tokenize, stanzas), 1):
            quatrains.append((f"{heading}.{number}".lstrip("."), stanza))
    return quatrains


def tokenize(text: str, line_tokens: bool = False) -> list[str]:
    """Split a cleaned text into lower-case tokens, `. , ; ! ?` being tokens of their own, and with
    `line_tokens` also the ends of all lines but the last, by their number."""
    lines = [[word.lower() for word in TOKEN.findall(line)] for line in text.split("\n")]
    lines = [*filter(None, lines)]
    for number, line in enumerate(lines[:-1] if line_tokens else [], 1):
        line.append(LINE_END.format(number))
    return [*itertools.chain.from_iterable(lines)]


def index_corpus(quatrains: Iterable[tuple[str, str]], line_tokens: bool = False) -> Corpus:
    """Number the words by falling frequency, from 1; 0 is the break, which counts once (int64)."""
    numbers, texts = map(list, zip(*quatrains, strict=True))
    tokens = [tokenize(text, line_tokens) for text in texts]
    ranked = Counter(itertools.chain.from_iterable(tokens)).most_common()
    words, counts = zip((BREAK, 1), *ranked, strict=True)
    return Corpus(numbers, texts, tokens, list(words), np.array(counts))


# ==== Samples: what the model is shown, and what it should answer ====


def cut_phrases(corpus: Corpus, phrase_len: int, padding: bool = False) -> tuple[np.ndarray, ...]:
    """Cut every window of `phrase_len` tokens that has a token after it, of each quatrain.
    A break stands before and after it, so that n tokens give n + 2 - phrase_len windows; with
    `padding` a phrase of breaks stands before it, so that they give n + 1. Returns the windows
    (int32, samples x phrase_len) and the tokens after them (int32, samples)."""
    index = {word: number for number, word in enumerate(corpus.words)}
    windows = [np.empty((0, phrase_len + 1), np.int32)]
    for tokens in corpus.tokens:
        before = [0] * (phrase_len if padding else 1)
        row = np.array([*before, *map(index.__getitem__, tokens), 0], np.int32)
        if len(row) > phrase_len:
            windows.append(np.lib.stride_tricks.sliding_window_view(row, phrase_len + 1))
    joined = np.concatenate(windows)
    return joined[:, :-1], joined[:, -1]


def make_samples(corpus: Corpus, settings: Settings, rng: Generator) -> list[tuple]:
    """Cut a corpus into samples, shuffle them, and part 95 % to train on from 5 % to validate with.
    Returns phrases (int32, samples x phrase_len), targets (int32) and weights (float32, the square
    root of the target's count, or 1) of both; InputError when 5 % would be less than one."""
    phrases, targets = cut_phrases(corpus, settings.phrase_len, settings.padding)
    if len(targets) < 20:
        told = f"the corpus gives {len(targets)} samples, too few to keep 5 % for validation"
        raise InputError(f"{told}: set corpus to a longer text, or lower phrase_len")
    counts = corpus.counts[targets] if settings.weighted else np.ones(len(targets))
    weights = np.sqrt(counts).astype(np.float32)
    parts = np.split(rng.permutation(len(targets)), [int(0.95 * len(targets))])
    return [(phrases[part], targets[part], weights[part]) for part in parts]


# ==== GloVe: vectors that already know something of the words ====

GLOVE_DIMS = (50, 100, 200, 300)
GLOVE_URL = "https://nlp.stanford.edu/data/glove.6B.zip"
GLOVE_SHA256 = "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"
GLOVE_TIMEOUT = 20  # Seconds without a byte after which the download is given up.
# What files raise that are not what they are taken for: not text, cut, encrypted, damaged.
DAMAGED = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def start_embeddings(words: Sequence[str], dim: int, setting: str, rng: Generator) -> np.ndarray:
    """Make the embedding that training starts from (float32, words x dim), and say how: GloVe's own
    vectors of the words that the setting's file knows, and normal ones with GloVe's spread."""
    embeddings = rng.normal(0, 0.4, (len(words), dim)).astype(np.float32)
    path = Path(setting)
    if setting == "auto":
        bundled = (Path(f"data/glove.6B.{dim}d.txt"), Path("data/glove.6B.zip"))
        path = next((file for file in bundled if file.exists()), None) or fetch_glove()
    if setting != "none" and path:
        found = read_glove(path, words, dim)
        embeddings[[*found]] = np.array([*found.values()]).reshape(-1, dim)
        unknown = len(words) - 1 - len(found)
        say(f"GloVe: {path} knows {len(found):,} words; {unknown:,} and the break start random.")
    return embeddings


def fetch_glove() -> Path | None:
    """Fetch GloVe's zip into Keras's cache, once; say so and return None if it is not to be had."""
    # Keras checks the hash of the whole file each time, so that none cut short is ever read.
    cache = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    path, skip = cache / "datasets/glove.6B.zip", 'to go without, set glove = "none"'
    if not zipfile.is_zipfile(path):
        say(f"GloVe: fetching {GLOVE_URL} to {path.parent}, 862 MB, this once; {skip}.")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(GLOVE_TIMEOUT)  # Keras sets none of its own.
    try:
        checked = {"file_hash": GLOVE_SHA256, "hash_algorithm": "sha256"}
        return Path(keras.utils.get_file(path.name, GLOVE_URL, cache_dir=cache, **checked))
    except Exception as error:  # Keras raises bare ones.
        path.unlink(missing_ok=True)
        say(f"GloVe: not to be had ({error}), so all words start random; {skip}.")
        return None
    finally:
        socket.setdefaulttimeout(before)


def read_glove(path: Path, words: Sequence[str], dim: int) -> dict[int, np.ndarray]:
    """Read the vectors (float32, dim) of words out of a GloVe file, by the index of the word: a
    text, or a zip with one for `dim` dimensions, whose lines are a word and `dim` numbers with
    single spaces between. Raises InputError when what is looked at is not that."""
    wanted = {word.encode(): index for index, word in enumerate(words)}
    found = {}
    try:
        with contextlib.ExitStack() as stack:
            if path.suffix.lower() == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                member = stack.enter_context(archive.open(f"glove.6B.{dim}d.txt"))
                # Buffered, because a zip member hands out lines three times as slowly by itself.
                lines = stack.enter_context(io.BufferedReader(member, 2**18))
            else:
                lines = stack.enter_context(path.open("rb"))
            for number, line in enumerate(lines, 1):
                word, _, numbers = line.partition(b" ")
                index = wanted.get(word.removeprefix(b"\xef\xbb\xbf"))  # A byte order mark.
                if index is not None or number == 1:
                    vector = np.array(numbers.split(), np.float32)
                    if len(vector) != dim or not np.isfinite(vector).all():
                        raise ValueError(f"line {number} has not {dim} numbers")
                    found[index] = vector
    except DAMAGED as error:
        told = f"GloVe file {path} cannot be used ({error})"
        raise InputError(f'{told}: set glove to another file or "none", or embedding_dim') from None
    return {index: vector for index, vector in found.items() if index is not None}


# ==== TensorFlow and its device ====


def load_tensorflow(use_gpu: bool) -> str:
    """Import TensorFlow and Keras for all that follows, which takes seconds, and return the device,
    made ready. Raises InputError when a GPU is wanted and TensorFlow sees none."""
    global keras, tf
    silent = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "3"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with quiet_stderr() if silent else contextlib.nullcontext():
        import keras
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    tf.get_logger().setLevel("ERROR" if silent else "INFO")
    keras.config.set_floatx("float32")  # Whatever ~/.keras says.
    if not (IN_SESSION or os.isatty(1)):
        keras.config.disable_interactive_logging()  # Keras's progress bars would fill a file.
    if use_gpu and not gpus:
        lacks = 'libraries: pip install "tensorflow[and-cuda]"'
        lacks = lacks if ctypes.util.find_library("cuda") else "NVIDIA's driver"
        lacks = lacks if tf.test.is_built_with_cuda() else "CUDA, as tensorflow-cpu does"
        told = f"use_gpu = True, but TensorFlow sees no GPU, for it lacks {lacks}"
        raise InputError(f"{told}; mend that, or set use_gpu = False")
    for gpu in gpus:
        # Or TensorFlow takes the whole card. It refuses once the card is in use: then it is set.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    # For loading: layers, losses and the like that a user has written stand in this file.
    ours = {name: value for name, value in globals().items() if callable(value)}
    keras.saving.get_custom_objects().update(ours)
    return "/gpu:0" if use_gpu else "/cpu:0"


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what TensorFlow writes to standard error while imported, which no setting silences."""
    before = os.dup(2)
    with Path(os.devnull).open("w") as void:
        os.dup2(void.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


# ==== The model: all of it stands here; edit it, and everything follows ====


def build_model(embeddings: np.ndarray, phrase_len: int, settings: Settings) -> keras.Model:
    """Build and compile the model of 2017, Embedding -> GRU -> Dense softmax, and what recipes add.
    Takes the embedding to start from (words x dim). Any Keras model will do that maps phrases
    (int32, batch x phrase_len) to the probabilities of the next word (float32, batch x words); its
    loss and metrics are given targets as numbers of words (int32, batch x 1)."""
    words, dim = embeddings.shape
    penalty = keras.regularizers.L2(settings.regularization)
    layers = [
        keras.Input((phrase_len,), dtype="int32", name="words"),
        keras.layers.Embedding(words, dim, name="embedding"),
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
        ),
        keras.layers.Dense(words, activation="softmax", name="dense"),
    ]
    if settings.dense_dropout:
        layers.insert(-1, keras.layers.Dropout(settings.dense_dropout, name="dropout"))
    share = settings.label_smoothing
    model = keras.Sequential(layers, name="quatrains")
    model.get_layer("embedding").set_weights([embeddings])
    model.compile(
        optimizer=keras.optimizers.RMSprop(settings.learning_rate),
        loss=SmoothedCrossEntropy(share) if share else "sparse_categorical_crossentropy",
        metrics=[
            # What SparseCategoricalAccuracy measures, without its argmax, which is slow under XLA.
            keras.metrics.SparseTopKCategoricalAccuracy(k=1, name="acc"),
            # In nats a token; without what the loss adds to it: weights, L2, label smoothing.
            keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy"),
        ],
        jit_compile=True,  # By itself Keras leaves XLA out on a CPU.
    )
    return model


@dataclass
class SmoothedCrossEntropy:
    """Cross-entropy that spreads a `share` of each target evenly over all words (Szegedy et al.
    2016), which Keras offers for one-hot targets only."""

    share: float
    get_config = asdict
    from_config = classmethod(lambda cls, config: cls(**config))

    def __call__(self, targets: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
        """Measure samples: numbers of words (batch x 1) by probabilities (batch x words)."""
        labels = keras.ops.one_hot(targets[:, 0], predicted.shape[-1])
        return keras.losses.categorical_crossentropy(labels, predicted, label_smoothing=self.share)


def check_model(model: keras.Model, words: int, phrase_len: int) -> None:
    """Try a model on two phrases; raise ValueError when it is not what `build_model` promises."""
    if not model.compiled:
        raise ValueError("it is not compiled")
    # A checkpoint of what Keras cannot make anew, such as a Lambda, could be written but not read.
    type(model).from_config(model.get_config())
    targets = np.zeros((2, 1), np.int32)
    predicted = model(np.zeros((2, phrase_len), np.int32))
    if tuple(predicted.shape) != (2, words) or np.min(predicted) < 0:
        found = f"{tuple(predicted.shape)} numbers from {np.min(predicted):.3g}"
        raise ValueError(f"two phrases give {found}, not {(2, words)} probabilities")
    model.compute_loss(None, targets, predicted, np.ones(2, np.float32))
    sum(map(float, model.compute_metrics(None, targets, predicted).values()))


# ==== Dropout: Keras's masks, drawn as XLA can draw them fast ====


def hash_dropout(values: tf.Tensor, rate: float, seed: Any, noise_shape: Any = None) -> tf.Tensor:
    """Do what tf.nn.experimental.stateless_dropout does, with other random bits. Every element has
    16 bits of a hash of its number and the seed (two ints), and is 0 where they are below `rate`.
    The mixing is Chris Wellons's lowbias32; the bits have a test of their own."""

    def mix(bits: tf.Tensor) -> tf.Tensor:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint32(shift)))
            bits *= np.uint32(factor)
        return bits

    sides = values.shape if noise_shape is None else tf.get_static_value(noise_shape)
    shape = [tf.get_static_value(n) or size for n, size in zip(sides, values.shape, strict=True)]
    size = int(np.prod(shape))
    seed = tf.cast(seed, tf.uint32)
    key = mix(tf.bitwise.bitwise_xor(seed[0], mix(seed[1] + np.uint32(0x9E3779B9))))
    index = tf.cast(tf.range((size + 1) // 2), tf.uint32)
    bits = mix(tf.bitwise.bitwise_xor(index * np.uint32(0x9E3779B1), key))
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


# ==== Training ====

STEPS_PER_CALL = 8  # Of the compiled graph. Each call copies the weights; more save nothing.
PATIENCE = 3  # Seconds after which an epoch shows how far it is.
# AutoGraph is off in all graphs: it reads the source again, which may have been edited meanwhile.


def build_epoch(model: keras.Model, train: tuple, check: tuple, batch_size: int) -> Callable:
    """Compile an epoch: show the model every training sample once, in a new order, and measure it.
    Returns a function that draws order and dropout from its generator, trains, and returns what
    the model's `compile` measures, and the same of validation as `val_...`."""
    train_steps, train_rest = compile_training(model, train)
    size, rest = len(train[1]), len(train[1]) % batch_size

    @tf.function(jit_compile=model.jit_compile, reduce_retracing=True, autograph=False)
    def evaluate(phrases: tf.Tensor, targets: tf.Tensor) -> Any:
        return model.test_step((phrases, targets))

    def epoch(rng: Generator) -> dict[str, float]:
        for variable in model.non_trainable_variables:
            if variable.name == "seed_generator_state":
                # Drawn anew, because Keras also moves them on where it then hides nothing.
                variable.assign(rng.integers(2**32, size=2, dtype=np.uint32))
        order = rng.permutation(size).astype(np.int32)
        batches = order[: size - rest].reshape(-1, batch_size)
        bar, start = keras.utils.Progbar(len(batches), unit_name="step"), time.monotonic()
        model.reset_metrics()
        for done in range(0, len(batches), STEPS_PER_CALL):
            part = batches[done : done + STEPS_PER_CALL]
            train_steps(np.resize(part, (STEPS_PER_CALL, batch_size)), np.int32(len(part)))
            if time.monotonic() - start > PATIENCE:
                bar.update(done + len(part))
        if rest:
            train_rest(order[-rest:])
        metrics = {name: float(value) for name, value in model.get_metrics_result().items()}
        model.reset_metrics()
        for place in range(0, len(check[1]), batch_size):
            part = slice(place, place + batch_size)
            evaluate(check[0][part], check[1][part, None])
        checked = model.get_metrics_result()
        return metrics | {f"val_{name}": float(value) for name, value in checked.items()}

    return epoch


def compile_training(model: keras.Model, train: tuple) -> tuple[Callable, Callable]:
    """Compile training steps, with XLA where the model's `compile` lets it.
    Returns a function for some steps, on the first `steps` of batches of sample numbers (int32,
    STEPS_PER_CALL x batch_size), and one for a single step, on a batch of another size."""
    data = [tf.constant(array) for array in (train[0], train[1][:, None], train[2])]
    model.optimizer.build(model.trainable_variables)

    def train_step(numbers: tf.Tensor) -> None:
        phrases, targets, weights = (tf.gather(array, numbers) for array in data)
        with tf.GradientTape() as tape, hashed_dropouts():
            predicted = model(phrases, training=True)
            loss = model.compute_loss(phrases, targets, predicted, weights, training=True)
        gradients = tape.gradient(loss, model.trainable_variables)
        # Dense, as in 2017: Keras would square apart the parts of a word that the batch has twice.
        dense = [None if each is None else tf.convert_to_tensor(each) for each in gradients]
        model.optimizer.apply(dense, model.trainable_variables)
        model.metrics[0].update_state(loss, sample_weight=numbers.shape[0])  # The mean loss.
        model.compute_metrics(phrases, targets, predicted, weights)

    @tf.function(jit_compile=model.jit_compile, autograph=False)
    def train_steps(batches: tf.Tensor, steps: tf.Tensor) -> None:
        def advance(step: tf.Tensor) -> tf.Tensor:
            train_step(batches[step])
            return step + 1

        tf.while_loop(lambda step: step < steps, advance, [tf.zeros_like(steps)])

    return train_steps, tf.function(train_step, autograph=False)


# ==== Sampling ====


def build_sampler(model: Any, phrase_len: int, max_words: int, free: Any = ()) -> Callable:
    """Compile the drawing of whole quatrains into one graph.
    Returns a function that draws `count` of them, each as the numbers of its words up to its break
    or to `max_words`, in which those of `free` do not count, from an opening after an all-break
    phrase. A word is drawn from all predicted, or the `top_k` likeliest, at a `temperature`."""
    share = getattr(getattr(model, "loss", None), "share", 0)

    @tf.function(reduce_retracing=True, autograph=False)
    def sample(phrases: tf.Tensor, seed: tf.Tensor, temperature: float, top_k: int) -> tf.Tensor:
        def advance(i: tf.Tensor, phrases: tf.Tensor, rows: tf.TensorArray) -> tuple:
            chances = model(phrases, training=False)
            # Less what label smoothing has it give to every word, or one in ten would be just any.
            logits = tf.math.log(tf.maximum(chances - share / chances.shape[1], 0)) / temperature
            if top_k:
                least = tf.math.top_k(logits, min(top_k, logits.shape[1])).values[:, -1:]
                logits = tf.where(logits < least, -np.inf, logits)
            word_seed = tf.random.experimental.stateless_fold_in(seed, i)
            word = tf.random.stateless_categorical(logits, 1, word_seed, tf.int32)
            return i + 1, tf.concat([phrases[:, 1:], word], 1), rows.write(i, word[:, 0])

        loop = (0, phrases, tf.TensorArray(tf.int32, max_words + len(free)))
        return tf.transpose(tf.while_loop(lambda i, _, r: i < r.size(), advance, loop)[2].stack())

    def cut(row: list[int]) -> list[int]:
        counted = itertools.accumulate(number not in free for number in row)
        return [number for number, words in zip(row, counted, strict=True) if words <= max_words]

    def draw(count: int, rng: Any, opening: Any = (), temperature: Any = 1, top_k: int = 0) -> list:
        phrase = np.array([*[0] * phrase_len, *opening][-phrase_len:], np.int32)
        rows = []
        while len(rows) < count:
            phrases = np.tile(phrase, (min(1000, count - len(rows)), 1))  # For memory's sake.
            seed = rng.integers(2**31, size=2, dtype=np.int32)
            rows += sample(phrases, seed, np.float32(temperature), top_k).numpy().tolist()
        return [cut([*opening, *itertools.takewhile(bool, row)]) for row in rows]

    return draw


# ==== Verse: four lines, capitals, punctuation closed up ====


def learn_spelling(quatrains: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Learn from texts which words they capitalize, and how, and which they end lines with. A
    capital means something only where a word starts neither a line nor a sentence."""
    forms, line_ends = {}, set()
    for line in itertools.chain.from_iterable(map(str.splitlines, quatrains)):
        words = TOKEN.findall(line)
        line_ends.update(word.lower() for word in words[-1:])
        for before, word in itertools.pairwise(words):
            if before not in SENTENCE_ENDS:
                forms.setdefault(word.lower(), Counter())[word] += 1
    usual = {word: counts.most_common(1)[0][0] for word, counts in forms.items()}
    return {word: form for word, form in usual.items() if form != word}, line_ends


def format_quatrain(parts: Iterable[Sequence[str]], capitals: Mapping[str, str]) -> str:
    """Restore the tokens of lines to verse: capitals of sentences, lines and names, spacing."""
    lines, starts_sentence = [], True
    for part in parts:
        line = ""
        for token in part:
            word = capitals.get(token, token)
            word = word[0].upper() + word[1:] if starts_sentence or not line else word
            line += " " * (line != "" and token not in PUNCTUATION) + word
            starts_sentence = token in SENTENCE_ENDS
        lines.append(line)
    return "\n".join(lines)


def part_lines(tokens: Sequence[str]) -> list[Sequence[str]]:
    """Part tokens into the lines whose ends were drawn, less punctuation that would start one."""
    groups = itertools.groupby(tokens, lambda token: token[0] == "<")
    lines = ([*itertools.dropwhile(PUNCTUATION.count, part)] for end, part in groups if not end)
    return [*filter(None, lines)]


def break_lines(tokens: Sequence[str], line_ends: set[str]) -> list[Sequence[str]]:
    """Part tokens into four lines of like length, or fewer where there are fewer words. None starts
    with punctuation; best is after a pause, or a word that ends lines in the corpus."""
    ends = [0, *itertools.accumulate(len(token) + 1 for token in tokens)]
    cuts = [0]
    for quarter in (1, 2, 3):
        rated = []
        for place in range(cuts[-1] + 1, len(tokens)):
            last = tokens[place - 1]
            # In letters: a pause makes up for two words of imbalance.
            bonus = 10 * (last in PUNCTUATION) - 8 * (last not in line_ends)
            if tokens[place] not in PUNCTUATION:
                rated.append((abs(ends[place] - ends[-1] * quarter / 4) - bonus, place))
        cuts += [min(rated)[1]] if rated else []
    return [tokens[start:end] for start, end in itertools.pairwise([*cuts, len(tokens)])]


# ==== Writing: what a trained model is good for ====

REDRAWS = 10  # How often a quatrain that quotes too much is drawn again.


class Quatrain(NamedTuple):
    """A new quatrain, and the longest quote from the corpus in it, from the quatrain `source`;
    `quoted` is how many words its first draw had quoted, before it was drawn again for that."""

    tokens: list[str]
    verse: str
    quote: list[str]
    source: str
    quoted: int

    def __str__(self) -> str:
        """Give the verse, for print."""
        return self.verse


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
    unknown = [token for token in tokens if token not in words]
    if unknown:
        near = (", ".join(get_close_matches(word, words, 3, 0.5)) for word in unknown)
        told = (f"{w} (near it: {n or 'nothing'})" for w, n in zip(unknown, near, strict=True))
        raise InputError(f"opening has words that the corpus never uses: {'; '.join(told)}")
    if len(tokens) >= max_words:
        raise InputError(f"opening has {len(tokens)} words: set max_words to more, or cut it")
    return [words.index(token) for token in tokens]


class Prophet:
    """A trained model that writes quatrains; a session keeps it as `prophet` after a training."""

    def __init__(self, model: Any, corpus: Corpus, phrase_len: int, max_words: int = 32) -> None:
        self.model, self.corpus, self.max_words = model, corpus, max_words
        self.capitals, line_ends = learn_spelling(corpus.texts)
        ends = {number for number, word in enumerate(corpus.words[1:], 1) if word[0] == "<"}
        self.draw = build_sampler(model, phrase_len, max_words, ends)
        self.part = part_lines if ends else functools.partial(break_lines, line_ends=line_ends)
        # For quotes, which are such whatever punctuation stands between their words.
        self.source = "\n".join(f" {' '.join(filter(WORD.match, row))} " for row in corpus.tokens)

    def write(
        self,
        count: int = 5,
        temperature: float = 1.0,
        top_k: int = 0,
        opening: str = "",
        seed: int | None = None,
        max_quote: int = 0,
    ) -> list[Quatrain]:
        """Write quatrains; the parameters are and are checked as the settings of these names."""
        check_setting("generate", count)
        for name in WRITING:
            check_setting(name, locals()[name])
        start = look_up(opening, self.corpus.words, self.max_words)
        given = (np.random.default_rng(seed), start, temperature, top_k)
        written = [self.describe(row) for row in self.draw(count, *given)]
        for _ in range(REDRAWS):
            long = [i for i, each in enumerate(written) if 0 < max_quote < len(each.quote)]
            for i, row in zip(long, self.draw(len(long), *given), strict=True):
                written[i] = self.describe(row)._replace(quoted=written[i].quoted)
        return written

    def describe(self, row: Sequence[int]) -> Quatrain:
        """Turn the numbers of words into a quatrain."""
        tokens = [self.corpus.words[number] for number in row]
        quote = longest_quote([*filter(WORD.match, tokens)], self.source)
        before = self.source.partition(f" {' '.join(quote)} ")[0]
        number = self.corpus.numbers[before.count("\n")] if quote else ""
        verse = format_quatrain(self.part(tokens), self.capitals)
        return Quatrain(tokens, verse, quote, number, len(quote))


def report_quotes(written: Iterable[Quatrain], max_quote: int) -> str:
    """Say in a line which quote is the longest, and what was drawn again for quoting too much."""
    *_, quote, source, _ = max(written, key=lambda quatrain: len(quatrain.quote))
    line = f'Longest quote: {len(quote)} words, "{" ".join(quote)}" ({source}).'
    line = line if quote else "Longest quote: none."
    left = sum(0 < max_quote < len(quatrain.quote) for quatrain in written)
    if again := sum(0 < max_quote < quatrain.quoted for quatrain in written):
        end = f", {left} of them {REDRAWS} times in vain." if left else "."
        line += f" {again} quoted more than {max_quote} words and were drawn again{end}"
    return line


# ==== Logs: one folder a training, and what TensorBoard shows of it ====

# Of these the best of all epochs is logged too.
BETTER = {"val_loss": min, "val_acc": max, "val_cross_entropy": min}


def make_folder(logs: Path) -> Path:
    """Make the folder of a new training, named after its start; InputError where it cannot be."""
    while True:
        # No longer than 14 letters, or TensorBoard's HParams cuts it.
        folder = logs / time.strftime("%y%m%d-%H%M%S")
        try:
            folder.mkdir(parents=True)
            return folder
        except OSError as error:
            if not folder.exists():  # Or else another one started in this second.
                told = f"logs {logs} cannot be written ({error.strerror})"
                raise InputError(f"{told}: set logs to another folder") from None
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
                told = f"a training is going on in {folder}: wait for its end, or start a new one"
                raise InputError(told) from None
        yield


def log_training(writer: Any, model: keras.Model, trial: str, settings: Settings) -> None:
    """Write the graph, layer by layer, and the settings as the row `trial` of HParams."""
    from tensorboard.plugins.hparams import api as hparams

    @tf.function(autograph=False)
    def layers(words: tf.Tensor) -> tf.Tensor:
        # Other models than a chain of layers are traced whole.
        for layer in model.layers if isinstance(model, keras.Sequential) else [model]:
            with tf.name_scope(layer.name):
                words = layer(tf.identity(words))  # So that one edge enters a layer.
        return words

    # Columns are sorted by name, and the first five shown, under the display names.
    columns = [hparams.HParam(f"{i:02} {n}", display_name=n) for i, n in enumerate(FIXED)]
    values = ("None" if (value := getattr(settings, name)) is None else value for name in FIXED)
    metrics = [hparams.Metric(f"best/{name}", display_name=f"best {name}") for name in BETTER]
    metrics += [hparams.Metric(n[4:], group="validation", display_name=n) for n in BETTER]
    with writer.as_default(0):
        # A batch of known size, or the edges would carry arithmetic on its size, too.
        words = tf.TensorSpec((settings.batch_size, settings.phrase_len), tf.int32, "words")
        tf.summary.graph(layers.get_concrete_function(words).graph)
        hparams.hparams_config(columns, metrics)
        hparams.hparams(dict(zip(columns, values, strict=True)), trial_id=trial)


def log_epoch(writers: Mapping[str, Any], epoch: int, metrics: dict, best: dict) -> None:
    """Write what was measured in an epoch, counted over all runs, and keep the best in `best`."""
    for name, value in metrics.items():
        with writers["validation" if name.startswith("val_") else "train"].as_default(epoch):
            tf.summary.scalar(name.removeprefix("val_"), value)
        if name in BETTER:
            best[name] = BETTER[name](value, best.get(name, value))


def log_run(writer: Any, model: keras.Model, epoch: int, best: dict, written: list) -> None:
    """Write where a run ended: weights, quatrains, how much they quote, the best figures so far."""
    with writer.as_default(epoch):
        for layer in model.layers:
            for number, weight in enumerate(layer.trainable_weights):
                # Of a large weight a sample shows the same shape in a tenth of the time.
                values = weight.numpy().ravel()
                values = values[:: values.size // 50_000 + 1]
                tf.summary.histogram(f"weights/{layer.name}/{number}_{weight.name}", values)
        for number, quatrain in enumerate(written, 1):
            tf.summary.text(f"quatrain {number}", "> " + quatrain.verse.replace("\n", "  \n> "))
        tf.summary.scalar("quote", max(quatrain.quoted for quatrain in written))
        for name, value in best.items():
            tf.summary.scalar(f"best/{name}", value)


def log_embedding(folder: Path, model: keras.Model, words: Sequence[str]) -> None:
    """Write the embeddings of the model, if it has any, and their words for the projector."""
    from tensorboard.plugins import projector

    (folder / "words.tsv").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = projector.ProjectorConfig()
    for layer in model.layers:
        if isinstance(layer, keras.layers.Embedding):
            matrix, path = layer.get_weights()[0], folder / f"{layer.name}.bytes"
            # The first byte, or TensorBoard may take the numbers for text.
            path.write_bytes(b"\xff" + matrix.tobytes()[1:])
            places = {"tensor_path": path.name, "metadata_path": "words.tsv"}
            config.embeddings.add(tensor_name=layer.name, tensor_shape=matrix.shape, **places)
    projector.visualize_embeddings(str(folder), config)


# ==== Checkpoint: all that a training needs to go on, in one file ====

AFRESH = "train without resume and generate, or set logs to another folder"
BROKEN = "checkpoint {} is broken, or none of this script"
BEFORE_RECIPES = {"recipe": "2017", "dense_dropout": 0.0, "label_smoothing": 0.0}
BEFORE_RECIPES |= {"padding": False, "line_tokens": False, "weighted": True}  # Old ones lack it.


class Checkpoint(NamedTuple):
    """What a checkpoint holds beside the model and its optimizer."""

    runs: int
    seed: int
    random_state: dict
    best: dict
    settings: dict
    quatrains: list


def save_checkpoint(path: Path, model: keras.Model, checkpoint: Checkpoint) -> None:
    """Write what Keras saves, and what it lacks, so that no crash leaves a checkpoint in parts."""
    for dead in path.parent.glob("unfinished-*.keras"):
        dead.unlink()
    new = path.with_name(f"unfinished-{os.getpid()}.keras")
    try:
        model.save(new)
        with zipfile.ZipFile(new, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("quatrains.json", json.dumps(checkpoint._asdict()))
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    if os.name == "posix":  # Elsewhere a folder cannot be opened, nor need be.
        os.fsync(folder := os.open(path.parent, os.O_RDONLY))
        os.close(folder)


def find_checkpoint(logs: Path) -> Path:
    """Find the checkpoint of the training that `logs` names, or of the latest in it."""
    found = logs.glob(f"{'[0-9]' * 6}-{'[0-9]' * 6}/checkpoint.keras")
    found = [*logs.glob("checkpoint.keras")] or sorted(found)
    if not found:
        raise InputError(f"logs {logs} has no checkpoint, which comes after a first run: {AFRESH}")
    return found[-1]


@contextlib.contextmanager
def refusing(fault: str, way_out: str) -> Iterator[None]:
    """Turn whatever is raised into an InputError of a fault and the way out."""
    try:
        yield
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{fault} ({reason}): {way_out}") from None


def read_checkpoint(path: Path) -> tuple[Checkpoint, Corpus]:
    """Read what stands beside the model; raise InputError for no whole checkpoint of ours."""
    with refusing(BROKEN.format(path), AFRESH), zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > 20 * path.stat().st_size:  # Ours shrink to a half at most.
            raise ValueError(f"it would unpack to {size:,} bytes")
        checkpoint = Checkpoint(**json.loads(archive.read("quatrains.json")))
        if [*map(type, checkpoint)] != [int, int, dict, dict, dict, list]:
            raise TypeError("its fields have other types")
        checkpoint = checkpoint._replace(settings=BEFORE_RECIPES | checkpoint.settings)
        for name in FIXED:
            check_setting(name, checkpoint.settings[name])
        check_setting("seed", checkpoint.seed), sum(checkpoint.best.values())
        np.random.PCG64().state = checkpoint.random_state
        return checkpoint, index_corpus(checkpoint.quatrains, checkpoint.settings["line_tokens"])


def load_model(path: Path, words: int, phrase_len: int) -> keras.Model:
    """Load the model of a checkpoint with its optimizer; raise InputError where it is broken."""
    with refusing(BROKEN.format(path), AFRESH):
        model = keras.models.load_model(path)
        check_model(model, words, phrase_len)
        return model


def keep_settings(settings: Settings, given: Mapping[str, Any], checkpoint: Checkpoint) -> Settings:
    """Put back what a training began with, and say so; InputError if it was given otherwise."""
    began = checkpoint.settings
    applied = vars(apply_recipe(settings, given, began["recipe"]))
    now = {**applied, "recipe": settings.recipe}
    told = {n: f"{n} was {began[n]!r} and is {now[n]!r}" for n in FIXED if began[n] != now[n]}
    if refused := ", ".join(told[name] for name in told if name in given):
        raise InputError(f"the training cannot be resumed, for {refused}: leave that out")
    if checkpoint.runs >= settings.runs:
        raise InputError(f"the training has its {checkpoint.runs} runs already: set runs higher")
    if told:
        say(f"A training keeps what it began with, though here {', '.join(told.values())}.")
    return Settings(**{**applied, **{name: began[name] for name in FIXED}})


# ==== Main ====


def run_training(settings: Settings, given: dict, stack: contextlib.ExitStack) -> None:
    """Train and write as the settings say; what is trained stays as `prophet`, to play with."""
    global prophet
    if settings.resume:
        path = find_checkpoint(Path(settings.logs))
        stack.enter_context(locked(path.parent))
        checkpoint, corpus = read_checkpoint(path)
        settings = keep_settings(settings, given, checkpoint)
    else:
        settings = apply_recipe(settings, given, settings.recipe)
        seed = int.from_bytes(os.urandom(4), "big") if settings.seed is None else settings.seed
        quatrains = read_corpus(Path(settings.corpus))
        checkpoint = Checkpoint(0, seed, {}, {}, vars(settings), quatrains)
        corpus = index_corpus(quatrains, settings.line_tokens)
    say(describe_settings(settings))
    told = f"{len(corpus.texts):,} quatrains, {corpus.counts[1:].sum():,} tokens"
    say(f"Corpus: {settings.corpus} has {told}, {len(corpus.words) - 1:,} distinct words.")
    rng = np.random.default_rng(checkpoint.seed)
    samples = make_samples(corpus, settings, rng)
    look_up(settings.opening, corpus.words, settings.max_words)

    device = load_tensorflow(settings.use_gpu)
    stack.enter_context(tf.device(device))
    keras.utils.set_random_seed(checkpoint.seed)
    if settings.seed is not None and settings.use_gpu:  # A CPU needs no telling.
        tf.config.experimental.enable_op_determinism()
    if settings.resume:
        model = load_model(path, len(corpus.words), settings.phrase_len)
        rng.bit_generator.state = checkpoint.random_state
        say(f"Going on after run {checkpoint.runs - 1} from {path}, with the model saved there.")
    else:
        embeddings = start_embeddings(corpus.words, settings.embedding_dim, settings.glove, rng)
        model = build_model(embeddings, settings.phrase_len, settings)
        with refusing("build_model does not return what it should", "see its docstring"):
            check_model(model, len(corpus.words), settings.phrase_len)
        path = make_folder(Path(settings.logs)) / "checkpoint.keras"
        stack.enter_context(locked(path.parent))
    prophet = Prophet(model, corpus, settings.phrase_len, settings.max_words)
    try:
        train_runs(settings, samples, rng, path, checkpoint)
    finally:
        if path.exists():
            how = "resume = True (--resume), write from it with generate = 20 (--generate 20)."
            play = " Or play: print(*prophet.write(3), sep='\\n\\n')" * IN_SESSION
            say(f"\n{path} holds the training up to its last whole run: go on with {how}{play}")


def train_runs(
    settings: Settings, samples: list[tuple], rng: Generator, path: Path, checkpoint: Checkpoint
) -> None:
    """Train and write with `prophet`, from the run that the checkpoint is at, and save each."""
    folder, model, best = path.parent, prophet.model, checkpoint.best
    train_epoch = build_epoch(model, *samples, settings.batch_size)
    train, check = (len(targets) for _, targets, _ in samples)
    with contextlib.ExitStack() as stack:
        writers = {}
        for part in ("", "train", "validation"):
            writers[part] = tf.summary.create_file_writer(str(folder / part))
            stack.enter_context(contextlib.closing(writers[part]))
        if not checkpoint.runs:
            log_training(writers[""], model, folder.name, settings)
        say("The first epoch compiles the training step, which takes some seconds.")
        for run in range(checkpoint.runs, settings.runs):
            say(f"\nRun {run}\nTrain on {train} samples, validate on {check} samples")
            for epoch in range(settings.epochs_per_run):
                start = time.time()
                metrics = train_epoch(rng)
                told = f"Epoch {epoch + 1}/{settings.epochs_per_run} - {time.time() - start:.1f}s"
                say(told, *(f"{name}: {value:.4f}" for name, value in metrics.items()), sep=" - ")
                if not np.isfinite(metrics["loss"]):
                    how = f"set learning_rate below {settings.learning_rate} and start again"
                    raise InputError(f"the loss has become {metrics['loss']}: {how}")
                log_epoch(writers, run * settings.epochs_per_run + epoch, metrics, best)
            # A seed of its own, so that what is written changes nothing in what is trained.
            how = {name: vars(settings)[name] for name in WRITING}
            how["seed"] = int(rng.integers(2**32))
            written = prophet.write(settings.quatrains_per_run, **how)
            for quatrain in written:
                say(" ".join(quatrain.tokens) if settings.raw else f"\n{quatrain}")
            say("\n" + report_quotes(written, settings.max_quote))
            log_run(writers[""], model, (run + 1) * settings.epochs_per_run - 1, best, written)
            log_embedding(folder, model, prophet.corpus.words)
            for writer in writers.values():
                writer.flush()
            checkpoint = checkpoint._replace(runs=run + 1, random_state=rng.bit_generator.state)
            save_checkpoint(path, model, checkpoint)


def write_quatrains(settings: Settings, given: dict, stack: contextlib.ExitStack) -> None:
    """Write quatrains from the checkpoint, without training, and on standard error their quotes."""
    global prophet
    path = find_checkpoint(Path(settings.logs))
    checkpoint, corpus = read_checkpoint(path)
    settings = apply_recipe(settings, given, checkpoint.settings["recipe"])
    look_up(settings.opening, corpus.words, settings.max_words)
    device = load_tensorflow(settings.use_gpu)
    stack.enter_context(tf.device(device))
    phrase_len = checkpoint.settings["phrase_len"]
    model = load_model(path, len(corpus.words), phrase_len)
    prophet = Prophet(model, corpus, phrase_len, settings.max_words)
    written = prophet.write(settings.generate, **{name: vars(settings)[name] for name in WRITING})
    shown = (" ".join(each.tokens) if settings.raw else each.verse for each in written)
    say(*shown, sep="\n" if settings.raw else "\n\n")
    say(f"\nFrom {path}. {report_quotes(written, settings.max_quote)}", file=sys.stderr)


def stop(number: int, _: Any) -> NoReturn:
    """Stop at Ctrl-C or SIGTERM, with all that is open closed; a second one ends it at once."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt(number)


def main(arguments: Sequence[str]) -> int:
    """Run the script with these command-line arguments, and return its exit status."""
    try:
        settings, given = read_settings(globals(), arguments)
        require_packages(settings.use_gpu)
        with contextlib.ExitStack() as stack:
            act = write_quatrains if settings.generate else run_training
            act(settings, given, stack)
        return 0
    except KeyboardInterrupt as stopped:
        told, status = "\nquatrains: stopped", 128 + next(iter(stopped.args), signal.SIGINT)
    except InputError as error:
        told, status = f"quatrains: {error}", 2
    except Exception as error:
        # A full disk, no memory, no rights: TensorFlow has errors of its own for these.
        if not (isinstance(error, OSError | MemoryError) or "tensorflow" in type(error).__module__):
            raise
        if not IN_SESSION:  # What standard output still holds may be what could not be written.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):  # As behind it, `head` has read enough.
            return 128 + signal.SIGPIPE
        reason = str(error).partition("\n")[0]
        told, status = f"quatrains: broke off ({reason}): make room, or mend what else it names", 2
    print(told, file=sys.stderr)
    return status


if __name__ == "__main__":
    if not IN_SESSION:
        sys.stdout and sys.stdout.reconfigure(errors="replace")  # Letters that a terminal lacks.
        for each in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(each) != signal.SIG_IGN:
                signal.signal(each, stop)
    # In a notebook's cell sys.argv is the kernel's own; %run, like a shell, gives a file its own.
    status = main(sys.argv[1:] if "__file__" in globals() else [])
    if status and not IN_SESSION:  # Where leaving would look like a failure.
        sys.exit(status)
