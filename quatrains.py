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
    python quatrains.py --runs 2 --glove none    the same, in small
    python quatrains.py --resume                 go on where the last training was stopped
    python quatrains.py --generate 20            write twenty, without training
    python quatrains.py --generate 5 --opening "the great king" --temperature 0.8
    python quatrains.py --help                   every setting, with its default
    tensorboard --port 8080 --logdir=logs        watch it

A port to TensorFlow and Keras 3 of a system published in 2017. It is told in the order in which
things happen: settings, command line, packages, corpus, phrases, GloVe, model, training, sampling,
verse, writing, logs, checkpoint, main.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import difflib
import functools
import hashlib
import http.client
import importlib.util
import io
import itertools
import json
import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

try:
    import numpy as np
except ModuleNotFoundError:  # `require_packages` binds it, or says what to do.
    np = None

if TYPE_CHECKING:  # load_tensorflow binds these when it is called.
    import keras
    import tensorflow as tf

# ==== Settings: edit them and run again, or give them on the command line (--gru-dim 256) ====

# Device. True trains on /gpu:0, False on /cpu:0.
use_gpu = False

# Model. GloVe comes in 50, 100, 200 and 300 dimensions; without GloVe, any size from 1.
embedding_dim = 300
# Units of the GRU, from 1. More of them learn faster, and quote the corpus sooner.
gru_dim = 128
# Part of the GRU's inputs and of its state that a training step hides, from 0 to below 1. Half is
# much, but the corpus is small, and a model that sees everything soon knows it by heart.
dropout = 0.5
# L2 penalty on the GRU's kernel, recurrent kernel and bias, from 0. More makes the output tamer;
# the losses that are printed include it.
regularization = 0.02
# Tokens that the model sees before it guesses the next one, from 1.
phrase_len = 4

# Training. Samples a step, from 1.
batch_size = 512
# Step size of RMSprop, above 0. High, because the model is small and somebody is watching.
learning_rate = 0.003
# A run is some epochs and then some quatrains. A thousand last a night and more; stop any time.
runs = 1000
epochs_per_run = 5
# True goes on with the training in `logs` from the checkpoint after its last run.
resume = False
# None, or a whole number from 0 that makes the training repeat exactly on the same machine.
seed = None

# Writing. Quatrains after each run, and the most words of one (punctuation counts), from 1.
quatrains_per_run = 5
max_words = 32
# True prints the bare tokens; False restores lines, capitals and spacing.
raw = False
# Below 1 the likely words get likelier and the verse tamer, above 1 it gets wilder.
temperature = 1.0
# 0 draws from all words, any other number only from so many of the likeliest.
top_k = 0
# Words that every quatrain begins with.
opening = ""
# A quatrain that quotes a longer run of words from the corpus is drawn again; 0 lets all pass.
max_quote = 8
# 0 trains; any other number writes that many quatrains from the checkpoint in `logs` instead, to
# the file `output`, or to the screen if that is "-".
generate = 0
output = "-"

# Files. Quatrains parted by blank lines, or, in a file without blank lines, one a line.
corpus = "data/quatrains.txt"
# "auto" takes data/glove.6B.<embedding_dim>d.txt or data/glove.6B.zip, and fetches the zip (862 MB)
# if neither is there; "none" starts every word at random; anything else is the path of a text or
# zip file of vectors.
glove = "auto"
# The folder that TensorBoard reads, with the checkpoint. Earlier trainings in it are moved to
# `earlier`, not deleted.
logs = "logs"


# In a notebook and its like.
IN_SESSION = "ipykernel" in sys.modules
# Prints at once, also into a pipe or a file.
say = functools.partial(print, flush=True)


class InputError(Exception):
    """A mistake that the user can mend; its text names the setting or file and the way out."""


class Setting(NamedTuple):
    """What a setting is for, its type, and the least and most it may be, or its letters."""

    meaning: str
    kind: type
    low: float = 0
    high: float = math.inf

    def legal(self) -> str:
        """Say what the setting may be."""
        if self.kind is bool:
            return "True or False"
        if self.kind is str:
            return "a text of at least one letter" if self.low else "a text"
        upper = f" to {self.high}" if self.high < math.inf else ""
        return f"a {'whole ' if self.kind is int else ''}number from {self.low}{upper}"


SETTINGS = {
    "use_gpu": Setting("train on /gpu:0 instead of /cpu:0", bool),
    "embedding_dim": Setting("numbers in the vector of a word", int, 1),
    "gru_dim": Setting("units of the GRU", int, 1),
    "dropout": Setting("part of the GRU's inputs and state hidden in training", float, 0, 0.99),
    "regularization": Setting("L2 penalty on the GRU's weights", float, 0, 1e9),
    "phrase_len": Setting("tokens seen before the next one is guessed", int, 1),
    "batch_size": Setting("samples a training step", int, 1),
    "learning_rate": Setting("step size of RMSprop", float, 1e-9, 1e9),
    "runs": Setting("runs of a training", int, 1),
    "epochs_per_run": Setting("epochs a run", int, 1),
    "resume": Setting("go on from the checkpoint in the logs", bool),
    "seed": Setting("None, or what makes a training repeat exactly", int, 0, 2**32 - 1),
    "quatrains_per_run": Setting("quatrains written after each run", int, 1),
    "max_words": Setting("most words of a quatrain", int, 1),
    "raw": Setting("print the bare tokens, one quatrain a line", bool),
    "temperature": Setting("how freely words are drawn", float, 0.01, 100),
    "top_k": Setting("draw from so many of the likeliest words, 0 from all", int),
    "opening": Setting("words that every quatrain begins with", str),
    "max_quote": Setting("longest quote from the corpus, in words, 0 for any", int),
    "generate": Setting("quatrains to write instead of training", int),
    "output": Setting('file for them, or "-" for the screen', str, 1),
    "corpus": Setting("file to learn from", str, 1),
    "glove": Setting('where word vectors come from: "auto", "none" or a file', str, 1),
    "logs": Setting("folder for TensorBoard", str, 1),
}


# ==== Command line ====


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others here."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError where argparse would print its usage and exit."""
        raise InputError(f"{message}; --help lists all settings")


def read_settings(defaults: Mapping[str, Any], arguments: Sequence[str]) -> SimpleNamespace:
    """Merge the settings of the file with those of the command line, and check every one.

    Raises InputError for an unknown, ill-typed or illegal setting, from either side.
    """
    parser = OneLineParser(
        prog="quatrains.py",
        description="Learn to write new prophecies in the manner of Nostradamus.",
        epilog="The defaults stand at the top of quatrains.py, with the reasons for them.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, setting in SETTINGS.items():
        flag = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(
            "--" + name.replace("_", "-"),
            help=f"{setting.meaning}: {setting.legal()} (default: {defaults[name]})",
            **(flag if setting.kind is bool else {"metavar": "VALUE"}),
        )
    given = vars(parser.parse_args(arguments))
    chosen = dict(defaults) | {name: parse_setting(name, text) for name, text in given.items()}
    settings = SimpleNamespace(**{name: check_setting(name, chosen[name]) for name in SETTINGS})
    if settings.glove == "auto" and settings.embedding_dim not in GLOVE_HASHES:
        raise InputError(
            f"embedding_dim = {settings.embedding_dim}, but GloVe comes in 50, 100, 200 and 300 "
            'dimensions: choose one of these, or set glove = "none"'
        )
    return settings


def parse_setting(name: str, text: str | bool) -> Any:
    """Turn what the command line gave into the setting's type, or leave it to be refused."""
    if name == "seed" and text.lower() == "none":
        return None
    try:
        return SETTINGS[name].kind(text)
    except ValueError:
        return text


def check_setting(name: str, value: Any) -> Any:
    """Return a legal value in its setting's type; raise InputError for any other."""
    setting = SETTINGS[name]
    if name == "seed" and value is None:
        return None
    if setting.kind is float and type(value) is int:
        value = float(value)
    if type(value) is setting.kind:
        size = len(value) if setting.kind is str else value
        if setting.kind is bool or setting.low <= size <= setting.high:
            return value
    raise InputError(f"{name} = {value!r} will not do: it must be {setting.legal()}")


def describe_settings(settings: SimpleNamespace) -> str:
    """Put the settings in force into a paragraph."""
    # No-break spaces keep a setting on one line.
    items = (f"{name}\xa0=\xa0{value!r}" for name, value in vars(settings).items())
    folded = textwrap.fill(", ".join(items), 88, initial_indent="  ", subsequent_indent="  ")
    return "Settings:\n" + folded.replace("\xa0", " ")


# ==== Packages: what a session lacks, it installs ====


def require_packages(use_gpu: bool) -> None:
    """See that the packages of requirements.txt are there; in a session, install them if not.

    Elsewhere the interpreter is its owner's: InputError says what to type.
    """
    global np
    needed = ("numpy", "tensorflow", "keras", "tensorboard")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return
    told = f"{', '.join(missing)} not installed"
    if not IN_SESSION:
        raise InputError(f"{told}: type `{sys.executable} -m pip install -r requirements.txt`")
    try:
        lines = Path("requirements.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        raise InputError(
            f"{told}: start in the folder of requirements.txt, or install them"
        ) from None
    cuda = "tensorflow[and-cuda]" if use_gpu else "tensorflow"
    packages = [re.sub(r"^tensorflow\b", cuda, line) for line in lines]
    say(f"{told}: installing {', '.join(packages)}. That takes a few minutes.")
    command = [sys.executable, "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{told}, and pip cannot install them: {done.stderr.strip()}")
    importlib.invalidate_caches()
    import numpy as np


# ==== Corpus: quatrains, tokens, vocabulary ====

BREAK = "<BREAK>"
PUNCTUATION = ".,;!?"
SENTENCE_ENDS = ".!?"
# What the tokenizer of 2017 dropped, and the curly quotation marks and dashes of typeset texts.
DROPPED = '"#$%&()*+/:<=>@[\\]^_{|}~`\u201c\u201d\u201e\u00ab\u00bb\u2013\u2014\u2026'
HEADING = re.compile(r"#.*\b([IVXLCDM]+|\d+)$")
TOKEN = re.compile(rf"[{PUNCTUATION}]|[^\s{re.escape(PUNCTUATION + DROPPED)}]+")


def read_corpus(path: Path) -> list[tuple[str, str]]:
    """Read the quatrains of a UTF-8 text file, each with its number and its lines as in the file.

    Quatrains are parted by blank lines; in a file without blank lines each line is one. Lines that
    start with `#` are comments. Raises InputError when the file cannot be read or has no words.
    """
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        likely = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "cp1252"
        raise InputError(
            f"corpus {path} is not UTF-8 (see byte {error.start}): convert it, for instance with "
            f"`iconv -f {likely} -t utf-8`"
        ) from None
    except OSError as error:
        raise InputError(
            f"corpus {path} cannot be read ({error.strerror}): start in the folder of "
            "quatrains.py, or set corpus to a text file"
        ) from None
    if b"\0" in data:
        raise InputError(f"corpus {path} is no text: set corpus to a file of quatrains in UTF-8")
    quatrains = split_quatrains([line.strip() for line in lines])
    if not quatrains:
        raise InputError(f"corpus {path} has no words: set corpus to a file of quatrains")
    return quatrains


def split_quatrains(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Part the lines of a corpus into quatrains, each with its number, for instance VI.57.

    It counts from the last comment that ends in a numeral, or from the start of the corpus.
    """
    text = "\n".join(line for line in lines if not line.startswith("#")).strip()
    gap = "\n\n" if "\n\n" in text else "\n"
    marked = (HEADING.sub(rf"{gap}\0\1.{gap}", line) for line in lines)
    text = "\n".join(line for line in marked if not line.startswith("#"))
    quatrains, heading, number = [], "", 0
    for part in map(str.strip, text.split(gap)):
        if part.startswith("\0"):
            heading, number = part[1:], 0
        elif tokenize(part):
            number += 1
            quatrains.append((f"{heading}{number}", part))
    return quatrains


def tokenize(text: str) -> list[str]:
    """Split a text into lower-case tokens, `. , ; ! ?` being tokens of their own.

    Hyphens and apostrophes stay inside words. `encode` adds the breaks around a quatrain.
    """
    return [word.lower() for word in TOKEN.findall(text)]


def build_vocabulary(quatrains: Iterable[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """Number the words of tokenized quatrains by falling frequency, from 1; 0 is the break.

    Returns the words by index, and how often each occurs (int64; 1 for the break, so that its
    samples weigh 1).
    """
    ranked = Counter(itertools.chain.from_iterable(quatrains)).most_common()
    words, counts = zip((BREAK, 1), *ranked, strict=True)
    return list(words), np.array(counts)


def encode(quatrains: Iterable[Sequence[str]], words: Sequence[str]) -> list[np.ndarray]:
    """Turn tokenized quatrains into int32 word indices with a break before and after each."""
    index = {word: number for number, word in enumerate(words)}
    return [np.array([0, *map(index.__getitem__, tokens), 0], np.int32) for tokens in quatrains]


class Corpus(NamedTuple):
    """The quatrains of a corpus: numbers, texts, tokens; its words by index, and their counts."""

    numbers: list[str]
    texts: list[str]
    tokens: list[list[str]]
    words: list[str]
    counts: np.ndarray


def load_corpus(path: Path) -> Corpus:
    """Read a corpus, number its words, and say what was found."""
    numbers, texts = map(list, zip(*read_corpus(path), strict=True))
    tokens = [tokenize(text) for text in texts]
    words, counts = build_vocabulary(tokens)
    say(
        f"Corpus: {path} has {len(texts):,} quatrains, {counts[1:].sum():,} tokens, "
        f"{len(words) - 1:,} distinct words."
    )
    return Corpus(numbers, texts, tokens, words, counts)


# ==== Phrases: what the model is shown, and what it should answer ====


class Samples(NamedTuple):
    """Phrases (int32, samples x phrase_len), the next words (int32), their weights (float32)."""

    phrases: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def cut_phrases(quatrains: Iterable[np.ndarray], phrase_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut every window of `phrase_len` tokens that has a token after it.

    Takes the quatrains of `encode`; one of n words gives n + 2 - phrase_len windows, or none.
    Returns the windows (int32, samples x phrase_len) and the tokens after them (int32, samples).
    """
    length = phrase_len + 1
    windows = [np.empty((0, length), np.int32)]
    for tokens in quatrains:
        if len(tokens) >= length:
            windows.append(np.lib.stride_tricks.sliding_window_view(tokens, length))
    joined = np.concatenate(windows)
    return joined[:, :-1], joined[:, -1]


def make_samples(
    corpus: Corpus, phrase_len: int, rng: np.random.Generator
) -> tuple[Samples, Samples]:
    """Cut a corpus into samples, shuffle them, and part 95 % to train on from 5 % to validate with.

    A training sample weighs the square root of its target's count, so that rare words are learnt
    and frequent ones still lead; validation is unweighted. Raises InputError when there are so few
    samples that 5 % is less than one.
    """
    phrases, targets = cut_phrases(encode(corpus.tokens, corpus.words), phrase_len)
    if len(targets) < 20:
        raise InputError(
            f"the corpus gives {len(targets)} samples, too few to keep 5 % for validation: set "
            f"corpus to a longer text, or phrase_len below {phrase_len}"
        )
    order = rng.permutation(len(targets))
    phrases, targets = phrases[order], targets[order]
    cut = int(0.95 * len(targets))
    weights = np.sqrt(corpus.counts[targets]).astype(np.float32)
    weights[cut:] = 1
    samples = Samples(phrases, targets, weights)
    return Samples(*(array[:cut] for array in samples)), Samples(
        *(array[cut:] for array in samples)
    )


# ==== GloVe: vectors that already know something of the words ====

GLOVE_SOURCES = (
    "https://huggingface.co/stanfordnlp/glove/resolve/main/glove.6B.zip",
    "https://nlp.stanford.edu/data/glove.6B.zip",
)
# SHA-256, or MD5 where only that is known, of the member of each size; the sources have packed the
# same members into different zips.
GLOVE_HASHES = {
    50: "d8f717f8dd4b545cb7f418ef9f3d0c3e6e68a6f48b97d32f8b7aae40cb31f96f",
    100: "95dde4dfd627ab26608d33e76d1195ec059734bd29089ea52cadb08d07c64544",
    200: "49fa83e4a287c42c6921f296a458eb80",
    300: "91125602f730fea7ca768736c6f442e668b49db095682bf2aad375db061c21ed",
}
# Seconds without a byte after which a source is given up.
GLOVE_TIMEOUT = 20
# The spread of GloVe's own numbers.
EMBEDDING_STDDEV = 0.4


@contextlib.contextmanager
def open_glove(path: Path, dim: int) -> Iterator[IO[bytes]]:
    """Open a text file of vectors, or the one for `dim` dimensions inside a zip, as bytes."""
    member = f"glove.6B.{dim}d.txt"
    try:
        with contextlib.ExitStack() as stack:
            if path.suffix.lower() == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                # Buffered, because a zip member hands out lines three times as slowly by itself.
                file = stack.enter_context(archive.open(member))
                yield stack.enter_context(io.BufferedReader(file, 2**18))
            else:
                yield stack.enter_context(path.open("rb"))
    except KeyError:
        reason = f"has no {member} in it"
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        reason = f"is broken ({error})"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    else:
        return
    raise InputError(f'GloVe file {path} {reason}: get {GLOVE_SOURCES[0]}, or set glove = "none"')


def read_glove(path: Path, words: Sequence[str], dim: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Read the vectors of the given words out of a GloVe file, and look at no others.

    A line is a word and `dim` numbers, separated by single spaces. Returns the indices of the words
    found (int64), their vectors (float32, found x dim), and a sentence on what was wrong with the
    file, or "". Raises InputError when it is not a file of `dim` dimensions at all.
    """
    wanted = {word.encode(): index for index, word in enumerate(words)}
    found: dict[int, np.ndarray] = {}
    damaged: list[int] = []
    number, line = 0, b""
    with open_glove(path, dim) as lines:
        for number, line in enumerate(lines, 1):
            word = line.partition(b" ")[0]
            if word in wanted or number == 1:
                vector = parse_vector(line, dim)
                if vector is None:
                    damaged.append(number)
                elif word in wanted:
                    found[wanted[word]] = vector
            elif not word.isascii() and word.decode(errors="ignore").encode() != word:
                damaged.append(number)
            if damaged == [1]:
                break
    if number == 0 or damaged == [1]:
        raise InputError(
            f"GloVe file {path} does not start with a word and {dim} numbers: set embedding_dim to "
            "the size of its vectors, or glove to another file"
        )
    if line.startswith(b"<unk> ") or (number not in damaged and parse_vector(line, dim) is None):
        damaged.append(number)
    note = ""
    if damaged:
        note = (
            f"{len(damaged)} of its lines were passed over, being cut, not UTF-8, or no word of "
            f"GloVe's (line {damaged[0]:,} is the first)."
        )
    return np.array([*found], int), np.array([*found.values()]).reshape(-1, dim), note


def parse_vector(line: bytes, dim: int) -> np.ndarray | None:
    """Parse the `dim` numbers after the word of a line (float32); None if they are not that."""
    try:
        vector = np.array(line.split()[1:], np.float32)
    except ValueError:
        return None
    return vector if len(vector) == dim and np.isfinite(vector).all() else None


def fetch_glove(dim: int) -> Path | None:
    """Download GloVe's zip to data/, from the first source that has it; None if none has.

    A zip gets its final name only when its member for `dim` dimensions has the published hash.
    """
    path = Path("data/glove.6B.zip")
    problems = []
    for url in GLOVE_SOURCES:
        host = urllib.parse.urlsplit(url).netloc
        part = path.with_name(f"{path.name}.{host.replace(':', '-')}.part")
        say(f"GloVe: fetching {url}")
        try:
            path.parent.mkdir(exist_ok=True)
            download(url, part)
            if hash_glove(part, dim) == GLOVE_HASHES[dim]:
                part.replace(path)
                for other in path.parent.glob(f"{path.name}.*.part"):
                    other.unlink()
                return path
            part.unlink()
            problems.append(f"{host} sent something else")
        except (OSError, http.client.HTTPException) as error:
            problems.append(f"{host}: {getattr(error, 'reason', None) or error}")
    say(
        f"GloVe: not to be had ({'; '.join(problems)}), so all words start random. To start from "
        f'it, put {GLOVE_SOURCES[0]} into data/; to skip it, set glove = "none".'
    )
    return None


def download(url: str, part: Path) -> None:
    """Download a file, going on behind what `part` has of it already if the server can.

    Done here, because keras.utils.get_file knows no time-out, starts over when a download breaks
    off, and writes under the final name. Raises OSError when no more bytes arrive.
    """
    while True:
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        before, broken = have, None
        try:
            with urllib.request.urlopen(request, timeout=GLOVE_TIMEOUT) as answer:
                if answer.status != 206:
                    have = 0
                total = have + int(answer.headers.get("Content-Length", 0))
                bar = keras.utils.Progbar(max(1, total // 2**20), unit_name="MiB", interval=1)
                try:
                    with part.open("ab" if have else "wb") as file:
                        while block := answer.read1(2**20):
                            have += file.write(block)
                            bar.update(have // 2**20, finalize=False)
                finally:
                    bar.update(have // 2**20, finalize=True)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # There is no more: it was whole already.
                return
            raise
        except OSError as error:
            broken = error
        if not broken and have >= total:
            return
        if have <= before:
            raise broken or OSError("the download broke off")


def hash_glove(archive: Path, dim: int) -> str:
    """Hash the member of a GloVe zip for `dim` dimensions like its published hash; "" if broken."""
    digest = hashlib.new("md5" if len(GLOVE_HASHES[dim]) == 32 else "sha256")
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(f"glove.6B.{dim}d.txt") as file:
            while block := file.read(2**20):
                digest.update(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError):
        return ""
    return digest.hexdigest()


def start_embeddings(
    words: Sequence[str], dim: int, setting: str, rng: np.random.Generator
) -> np.ndarray:
    """Make the embedding that training starts from (float32, words x dim), and say how.

    Rows are GloVe's own where the file that the setting `glove` names knows the word, and otherwise
    normal with GloVe's spread.
    """
    embeddings = rng.normal(0, EMBEDDING_STDDEV, (len(words), dim)).astype(np.float32)
    bundled = (Path(f"data/glove.6B.{dim}d.txt"), Path("data/glove.6B.zip"))
    path = Path(setting) if setting not in ("auto", "none") else None
    if setting == "auto":
        path = next((file for file in bundled if file.exists()), None) or fetch_glove(dim)
    if path is not None:
        indices, vectors, note = read_glove(path, words, dim)
        embeddings[indices] = vectors
        unknown = len(words) - 1 - len(indices)
        say(f"GloVe: {path} knows {len(indices):,} words; {unknown:,} and the break start random.")
        if note:
            say(f"GloVe: {note}")
    return embeddings


# ==== TensorFlow, its device, and the model ====


def load_tensorflow(use_gpu: bool) -> str:
    """Import TensorFlow and Keras for all that follows, and return the device, made ready.

    Not imported at the top, because that takes seconds that --help and a mistyped setting need not
    cost. Raises InputError when a GPU is wanted and TensorFlow sees none.
    """
    global keras, tf
    # 3 silences TensorFlow; on a GPU its warnings (1) tell which library is missing.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if use_gpu else "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with contextlib.nullcontext() if use_gpu else quiet_stderr():
        import keras
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"Keras already runs on {keras.backend.backend()} in this session: start a fresh one"
        )
    if use_gpu and not gpus:
        raise InputError(
            "use_gpu = True, but TensorFlow sees no GPU: install its CUDA libraries with "
            '`pip install "tensorflow[and-cuda]"`, or set use_gpu = False'
        )
    if use_gpu and len(gpus) > 1:
        say(f"TensorFlow sees {len(gpus)} GPUs; the first one is used.")
    for gpu in gpus:
        # Or TensorFlow takes the whole card. It refuses once the card is in use: then it is set.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    return "/gpu:0" if use_gpu else "/cpu:0"


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what is written to standard error, and show it only if the block fails.

    While it is imported TensorFlow prints lines that its own settings cannot silence.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def build_model(embeddings: np.ndarray, phrase_len: int, settings: SimpleNamespace) -> keras.Model:
    """Build and compile the model of 2017: Embedding -> GRU -> Dense softmax.

    Takes the embedding to start from (words x dim). The model maps phrases (int32, batch x
    phrase_len) to the probabilities of the next word (float32, batch x words).
    """
    words, dim = embeddings.shape
    penalty = settings.regularization
    layers = [
        keras.Input((phrase_len,), dtype="int32", name="words"),
        keras.layers.Embedding(words, dim, name="embedding"),
        keras.layers.GRU(
            settings.gru_dim,
            dropout=settings.dropout,
            recurrent_dropout=settings.dropout,
            kernel_regularizer=keras.regularizers.L2(penalty),
            recurrent_regularizer=keras.regularizers.L2(penalty),
            bias_regularizer=keras.regularizers.L2(penalty),
            # A loop over a few words costs more than the words; over many, unrolling does.
            unroll=phrase_len <= 8,
            name="GRU",
        ),
        keras.layers.Dense(words, activation="softmax", name="dense"),
    ]
    model = keras.Sequential(layers, name="quatrains")
    model.get_layer("embedding").set_weights([embeddings])
    model.compile(
        optimizer=keras.optimizers.RMSprop(settings.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="acc")],
    )
    return model


def predict_logits(
    model: keras.Model, phrases: tf.Tensor, masks: tf.Tensor | None = None
) -> tf.Tensor:
    """Run the layers of the model up to its softmax (float32, batch x words).

    With `masks`, see `make_masks`, as in training; without, nothing is hidden.
    """
    embedding, gru, dense = model.layers
    vectors = embedding(phrases)
    state = gru(vectors) if masks is None else run_gru(gru, vectors, masks)
    return tf.matmul(state, dense.kernel) + dense.bias


def run_gru(gru: keras.layers.GRU, vectors: tf.Tensor, masks: tf.Tensor) -> tf.Tensor:
    """Compute what a GRU layer makes of phrases, with the dropout masks of `make_masks`.

    Takes vectors (float32, batch x phrase_len x dim) and returns the last states (float32, batch x
    units). The formulas are those of Cho et al. (2014) as cuDNN and Keras vary them. The layer
    itself would draw masks of its own, and multiply word by word where all words can go at once.
    """
    batch, length, dim = vectors.shape
    kernels, memory_kernels = (
        tf.split(kernel, 3, 1) for kernel in (gru.cell.kernel, gru.cell.recurrent_kernel)
    )
    biases, memory_biases = (tf.split(bias, 3) for bias in tf.unstack(gru.cell.bias))
    input_masks, state_masks = masks[:, :, :dim], masks[:, :, dim : dim + gru.units]
    gates = []
    for mask, kernel, bias in zip(tf.unstack(input_masks), kernels, biases, strict=True):
        gate = tf.matmul(tf.reshape(vectors * mask[:, None], (-1, dim)), kernel) + bias
        gates.append(tf.transpose(tf.reshape(gate, (batch, length, gru.units)), (1, 0, 2)))
    of_memory = [*zip(tf.unstack(state_masks), memory_kernels, memory_biases, strict=True)]

    def advance(state: tf.Tensor | None, word: Sequence[tf.Tensor]) -> tf.Tensor:
        # A phrase starts from a state of zeros, of which nothing but the biases is left.
        memory = memory_biases
        if state is not None:
            memory = [tf.matmul(state * mask, kernel) + bias for mask, kernel, bias in of_memory]
        update, reset = tf.sigmoid(word[0] + memory[0]), tf.sigmoid(word[1] + memory[1])
        candidate = tf.tanh(word[2] + reset * memory[2])
        return (1 - update) * candidate + (0 if state is None else update * state)

    if gru.unroll:
        return functools.reduce(advance, zip(*map(tf.unstack, gates), strict=True), None)
    return tf.scan(advance, gates, tf.zeros((batch, gru.units)))[-1]


def draw_bits(batches: tuple[int, int], places: int, seed: np.ndarray) -> tf.Tensor:
    """Draw the random bits of the masks of several training steps: 16 for each place and gate.

    Takes steps x batch_size, and the inputs and units of the GRU together. Returns int32.
    """
    steps, batch = batches
    shape = (steps, 3, batch, (places + 1) // 2)
    return tf.random.stateless_uniform(shape, seed, None, None, tf.int32)


def make_masks(bits: tf.Tensor, dropout: float) -> tf.Tensor:
    """Turn random bits into the dropout masks of a training step, as Keras draws them.

    Each sample has for each of the three gates one mask over its inputs and one over the state, the
    same at all words of its phrase: 0 with probability `dropout`, otherwise 1 / (1 - dropout).
    Takes int32 bits (3 x batch x n) and returns float32 masks (3 x batch x 2 n), inputs first.
    """
    gates, batch, half = bits.shape
    numbers = tf.cast(tf.reshape(tf.bitcast(bits, tf.uint16), (gates, batch, 2 * half)), tf.int32)
    return tf.cast(numbers >= round(dropout * 2**16), tf.float32) / (1 - dropout)


# ==== Training ====

METRICS = ("loss", "acc", "val_loss", "val_acc")
# Steps that one call of the compiled graph takes. More save nothing; fewer copy the weights more.
STEPS_PER_CALL = 8

# AutoGraph is off in all graphs: it reads the source again, which may have been edited meanwhile.


def build_epoch(
    model: keras.Model, training: Samples, validation: Samples, batch_size: int
) -> Callable[[np.random.Generator], dict[str, float]]:
    """Compile an epoch: show the model every training sample once, in a new order, and measure it.

    Returns a function that draws order and dropout from the generator it is given, trains, and
    returns the METRICS. Losses include the L2 penalty; accuracies are not weighted.
    """
    embedding, gru, _ = model.layers
    train_steps = compile_train_steps(model, training)
    evaluate = compile_evaluation(model)
    size, check_size = len(training.targets), len(validation.targets)
    calls = -(-size // (STEPS_PER_CALL * batch_size))

    def epoch(rng: np.random.Generator) -> dict[str, float]:
        order = np.full(calls * STEPS_PER_CALL * batch_size, -1, np.int32)
        order[:size] = rng.permutation(size)
        sums = []
        for batches in order.reshape(calls, STEPS_PER_CALL, batch_size):
            bits = draw_bits(
                batches.shape, gru.units + embedding.output_dim, rng.integers(2**31, size=2)
            )
            sums.append(train_steps(batches, (batches[:, 0] >= 0).sum(), bits))
        parts = (slice(i, i + batch_size) for i in range(0, check_size, batch_size))
        checks = [evaluate(validation.phrases[i], validation.targets[i]) for i in parts]
        loss, acc = tf.add_n(sums).numpy() / size
        val_loss, val_acc = tf.add_n(checks).numpy() / check_size
        val_loss += tf.add_n(model.losses).numpy()
        return {"loss": loss, "acc": acc, "val_loss": val_loss, "val_acc": val_acc}

    return epoch


def compile_train_steps(model: keras.Model, training: Samples) -> Callable:
    """Compile training steps with XLA, several to a call.

    The graph takes batches of sample numbers (int32, STEPS_PER_CALL x batch_size; -1 is no sample),
    how many of the batches to train on, and random bits for their dropout. It returns the sums over
    their samples of the losses and of the hits (float32).

    XLA melts the many small operations of this model into few. It draws random numbers slowly,
    hence the bits from outside; each call copies the weights, hence several steps to a call.
    """
    data = [tf.constant(array) for array in training]
    model.optimizer.build(model.trainable_variables)

    def train_step(numbers: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
        samples = Samples(*(tf.gather(array, tf.maximum(numbers, 0)) for array in data))
        return train_batch(model, samples, tf.cast(numbers >= 0, tf.float32), bits)

    @tf.function(jit_compile=True, autograph=False)
    def train_steps(batches: tf.Tensor, steps: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(
            lambda step, _: step < steps,
            lambda step, sums: (step + 1, sums + train_step(batches[step], bits[step])),
            (tf.zeros_like(steps), tf.zeros(2)),
        )[1]

    return train_steps


def train_batch(
    model: keras.Model, samples: Samples, is_sample: tf.Tensor, bits: tf.Tensor
) -> tf.Tensor:
    """Take one training step on samples, of which those count where `is_sample` is 1.0, not 0.0.

    Returns the sums over them of the losses and of the hits (two float32).
    """
    weights = model.trainable_variables
    count = tf.reduce_sum(is_sample)
    factors = samples.weights * is_sample / count
    masks = make_masks(bits, model.get_layer("GRU").cell.dropout)
    with tf.GradientTape() as tape:
        logits = predict_logits(model, samples.phrases, masks)
        penalty = tf.add_n(model.losses)
    losses, errors = cross_entropy(logits, samples.targets)
    gradients = tape.gradient(
        [logits, penalty],
        [weight.value for weight in weights],
        output_gradients=[errors * factors[:, None], tf.ones(())],
    )
    # Dense, as in 2017: Keras would square apart the parts of a word that the batch has twice.
    model.optimizer.apply([tf.convert_to_tensor(gradient) for gradient in gradients], weights)
    loss = tf.reduce_sum(factors * losses) + penalty
    return tf.stack([loss * count, tf.reduce_sum(is_sample * hits(logits, samples.targets))])


def compile_evaluation(model: keras.Model) -> Callable:
    """Compile the measuring of samples: from phrases and targets to sums of losses and hits."""

    @tf.function(reduce_retracing=True, autograph=False)
    def evaluate(phrases: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        logits = predict_logits(model, phrases)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        return tf.stack([tf.reduce_sum(losses), tf.reduce_sum(hits(logits, targets))])

    return evaluate


def hits(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Say of each sample whether its target is the likeliest word: 1.0 or 0.0."""
    of_target = tf.gather(logits, targets, batch_dims=1)
    return tf.cast(of_target >= tf.reduce_max(logits, 1), tf.float32)


def cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Compute the cross-entropy of each sample, and its gradient by the logits.

    The gradient is the softmax less one at the target (Bridle 1990). TensorFlow's own function
    would go over the logits, the largest tensor of all, twice more.
    """
    logits -= tf.reduce_max(logits, 1, keepdims=True)
    powers = tf.exp(logits)
    totals = tf.reduce_sum(powers, 1)
    losses = tf.math.log(totals) - tf.gather(logits, targets, batch_dims=1)
    return losses, powers / totals[:, None] - tf.one_hot(targets, logits.shape[1])


# ==== Sampling ====


def build_sampler(model: keras.Model, phrase_len: int, max_words: int) -> Callable:
    """Compile the drawing of whole quatrains into one graph.

    The graph takes the phrases to go on from (int32, quatrains x phrase_len), a seed (two int32),
    the temperature that logits are divided by, and `top_k`. It returns the words after them (int32,
    quatrains x max_words), of which those after a first break mean nothing. Each is drawn from the
    predicted distribution, the whole of it if `top_k` is 0.
    """
    specs = [
        tf.TensorSpec((None, phrase_len), tf.int32),
        tf.TensorSpec((2,), tf.int32),
        tf.TensorSpec(()),
        tf.TensorSpec((), tf.int32),
    ]

    def keep_top(logits: tf.Tensor, top_k: tf.Tensor) -> tf.Tensor:
        least = tf.math.top_k(logits, tf.minimum(top_k, logits.shape[1])).values[:, -1:]
        return tf.where(logits < least, -np.inf, logits)

    @tf.function(autograph=False, input_signature=specs)
    def sample(
        phrases: tf.Tensor, seed: tf.Tensor, temperature: tf.Tensor, top_k: tf.Tensor
    ) -> tf.Tensor:
        def draw(position: tf.Tensor, phrases: tf.Tensor, quatrains: tf.TensorArray) -> tuple:
            logits = predict_logits(model, phrases) / temperature
            logits = tf.cond(top_k > 0, lambda: keep_top(logits, top_k), lambda: logits)
            word_seed = tf.random.experimental.stateless_fold_in(seed, position)
            words = tf.random.stateless_categorical(logits, 1, word_seed, tf.int32)
            phrases = tf.ensure_shape(tf.concat([phrases[:, 1:], words], 1), (None, phrase_len))
            return position + 1, phrases, quatrains.write(position, words[:, 0])

        loop = (0, phrases, tf.TensorArray(tf.int32, max_words))
        _, _, quatrains = tf.while_loop(lambda position, *_: position < max_words, draw, loop)
        return tf.transpose(quatrains.stack())

    return sample


def draw_quatrains(
    sampler: Callable,
    count: int,
    rng: np.random.Generator,
    opening: Sequence[int] = (),
    temperature: float = 1.0,
    top_k: int = 0,
) -> list[list[int]]:
    """Draw quatrains that begin with an opening, each as its word indices up to its break.

    Before the opening stands an all-break phrase.
    """
    phrase_len = sampler.input_signature[0].shape[1]
    phrase = np.array([*[0] * phrase_len, *opening][-phrase_len:], np.int32)
    seed = rng.integers(2**31, size=2, dtype=np.int32)
    rows = sampler(np.tile(phrase, (count, 1)), seed, temperature, top_k).numpy()
    words = ([*opening, *itertools.takewhile(bool, row)] for row in rows.tolist())
    return [row[: rows.shape[1]] for row in words]


# ==== Verse: four lines, capitals, punctuation closed up ====


class Spelling(NamedTuple):
    """How a corpus writes: the words it capitalises, as it does, and those it ends lines with."""

    capitals: dict[str, str]
    line_ends: set[str]


def learn_spelling(quatrains: Iterable[str]) -> Spelling:
    """Learn from the quatrains of `read_corpus` how their words are written.

    A capital means something only where a word starts neither a line nor a sentence.
    """
    forms: dict[str, Counter[str]] = {}
    line_ends = set()
    for line in itertools.chain.from_iterable(map(str.splitlines, quatrains)):
        words = TOKEN.findall(line)
        line_ends.update(word.lower() for word in words[-1:])
        for before, word in itertools.pairwise(words):
            if before not in SENTENCE_ENDS:
                forms.setdefault(word.lower(), Counter())[word] += 1
    usual = {word: counts.most_common(1)[0][0] for word, counts in forms.items()}
    return Spelling({word: form for word, form in usual.items() if form != word}, line_ends)


def format_quatrain(tokens: Sequence[str], spelling: Spelling) -> str:
    """Restore drawn tokens to verse: lines, capitals of sentences, lines and names, spacing."""
    lines = []
    starts_sentence = True
    for line_tokens in break_lines(tokens, spelling.line_ends):
        line = ""
        for token in line_tokens:
            if token not in PUNCTUATION:
                word = spelling.capitals.get(token, token)
                capital = starts_sentence or not line
                line += " " * bool(line) + (word[0].upper() + word[1:] if capital else word)
            else:
                line += token
            starts_sentence = token in SENTENCE_ENDS
        lines.append(line)
    return "\n".join(lines)


def break_lines(tokens: Sequence[str], line_ends: set[str]) -> list[Sequence[str]]:
    """Part tokens into four lines of like length; fewer words than four give fewer lines.

    No line starts with punctuation; a pause, and a word that ends lines in the corpus, are good
    places to break.
    """
    places = [i for i in range(1, len(tokens)) if tokens[i] not in PUNCTUATION]
    ends = [0, *itertools.accumulate(len(token) + 1 for token in tokens)]
    cuts = [0]
    for quarter in (1, 2, 3):
        ideal = ends[-1] * quarter / 4

        def badness(place: int, ideal: float = ideal) -> float:
            last = tokens[place - 1]
            # In letters: a pause makes up for two words of imbalance.
            bonus = 10 * (last in PUNCTUATION) - 8 * (last not in line_ends)
            return abs(ends[place] - ideal) - bonus

        later = [place for place in places if place > cuts[-1]]
        cuts += [min(later, key=badness)] if later else []
    return [tokens[start:end] for start, end in itertools.pairwise([*cuts, len(tokens)])]


# ==== Writing: what a trained model is good for ====

# How often a quatrain that quotes too much is drawn again.
REDRAWS = 10


class Quatrain(NamedTuple):
    """A new quatrain: its tokens, the same as verse, and the longest quote from the corpus in it.

    `source` is the number of the quatrain it stands in, `quoted` what its first draw had quoted, in
    words, before it was drawn again for quoting too much.
    """

    tokens: list[str]
    verse: str
    quote: list[str]
    source: str
    quoted: int

    def __str__(self) -> str:
        """Give the verse, for print."""
        return self.verse


def longest_quote(words: Sequence[int], corpus: np.ndarray) -> tuple[int, int, int]:
    """Find the longest run of words that stands in the corpus too.

    Takes indices, in the corpus with a -1 after each quatrain. Returns the length of the run and
    where it ends in both. (The longest common substring, by dynamic programming.)
    """
    best = (0, 0, 0)
    lengths = np.zeros(len(corpus) + 1, np.int32)
    for end, word in enumerate(words, 1):
        lengths[1:] = np.where(corpus == word, lengths[:-1] + 1, 0)
        best = max(best, (int(lengths.max()), end, int(lengths.argmax())))
    return best


class Prophet:
    """A trained model that writes quatrains; a session keeps it as `prophet` after a training."""

    def __init__(self, model: keras.Model, checkpoint: Checkpoint, max_words: int = 32) -> None:
        self.model = model
        self.words = checkpoint.words
        self.numbers = checkpoint.numbers
        self.max_words = max_words
        self.spelling = learn_spelling(checkpoint.texts)
        self.sampler = build_sampler(model, model.input_shape[1], max_words)
        self.index = {word: number for number, word in enumerate(self.words)}
        self.marks = {self.index[mark] for mark in PUNCTUATION if mark in self.index}
        rows = [self.bare([self.index[t] for t in tokenize(text)]) for text in checkpoint.texts]
        self.corpus = np.array([number for row in rows for number in (*row, -1)])

    def write(
        self,
        count: int = 5,
        temperature: float = 1.0,
        top_k: int = 0,
        opening: str = "",
        seed: int | None = None,
        max_quote: int = 0,
    ) -> list[Quatrain]:
        """Write quatrains; the parameters are as the settings of these names.

        Raises InputError for illegal parameters, and for opening words that the corpus never uses.
        """
        check_setting("quatrains_per_run", count)
        for name in ("temperature", "top_k", "opening", "seed", "max_quote"):
            check_setting(name, locals()[name])
        rng = np.random.default_rng(seed)
        start = self.look_up(opening)
        draw = functools.partial(
            draw_quatrains,
            self.sampler,
            rng=rng,
            opening=start,
            temperature=temperature,
            top_k=top_k,
        )
        written = [self.describe(row) for row in draw(count)]
        for _ in range(REDRAWS):
            long = [i for i, each in enumerate(written) if 0 < max_quote < len(each.quote)]
            if not long:
                break
            for i, row in zip(long, draw(len(long)), strict=True):
                written[i] = self.describe(row)._replace(quoted=written[i].quoted)
        return written

    def describe(self, row: Sequence[int]) -> Quatrain:
        """Turn word indices into a quatrain."""
        tokens = [self.words[number] for number in row]
        bare = self.bare(row)
        length, end, place = longest_quote(bare, self.corpus)
        quote = [self.words[number] for number in bare[end - length : end]]
        source = self.numbers[np.count_nonzero(self.corpus[: place - 1] < 0)] if length else ""
        return Quatrain(tokens, format_quatrain(tokens, self.spelling), quote, source, length)

    def bare(self, row: Iterable[int]) -> list[int]:
        """Leave the punctuation out: a quote is one whatever stands between its words."""
        return [number for number in row if number not in self.marks]

    def look_up(self, opening: str) -> list[int]:
        """Turn opening words into indices; InputError names those that the corpus has not."""
        tokens = tokenize(opening)
        unknown = [token for token in tokens if token not in self.index]
        if unknown:
            near = {word: difflib.get_close_matches(word, self.words, 3, 0.5) for word in unknown}
            told = [f"{w} (near it: {', '.join(n) or 'nothing'})" for w, n in near.items()]
            raise InputError(f"opening has words that the corpus never uses: {'; '.join(told)}")
        if len(tokens) >= self.max_words:
            raise InputError(f"opening has {len(tokens)} words: set max_words to more, or cut it")
        return [self.index[token] for token in tokens]


def report_quotes(written: Iterable[Quatrain], max_quote: int) -> str:
    """Say in a line which quote is the longest, and what was drawn again for quoting too much."""
    longest = max(written, key=lambda quatrain: len(quatrain.quote))
    if not longest.quote:
        return "Longest quote: none."
    words = " ".join(longest.quote)
    line = f'Longest quote: {len(longest.quote)} words, "{words}" ({longest.source}).'
    again = sum(0 < max_quote < quatrain.quoted for quatrain in written)
    left = sum(0 < max_quote < len(quatrain.quote) for quatrain in written)
    if again:
        line += f" {again} quoted more than {max_quote} words and were drawn again"
        line += f", {left} of them {REDRAWS} times in vain." if left else "."
    return line


# ==== Logs: what TensorBoard shows ====

SCALARS = {
    "train": {"loss": "loss", "acc": "acc"},
    "validation": {"loss": "val_loss", "acc": "val_acc"},
}


def prepare_logs(logs: Path) -> Path:
    """Move an earlier training to the folder `earlier`, whole, and make one for a new training.

    A training has a folder named after its start, for what concerns it whole, and one for each run.
    Returns the new one's. Raises InputError when the logs cannot be written.
    """
    folder = logs / datetime.now().strftime("%y%m%d-%H%M%S")
    try:
        logs.mkdir(parents=True, exist_ok=True)
        earlier = [path for path in logs.iterdir() if re.fullmatch(r"\d+|\d{6}-\d{6}", path.name)]
        # What names the training goes last, so that a move that was cut short can be finished.
        earlier.sort(key=lambda path: len(path.name) == len(folder.name))
        if earlier:
            destination = logs / "earlier" / earlier[-1].name
            destination.mkdir(parents=True, exist_ok=True)
            for path in earlier:
                path.rename(destination / path.name)
            say(f"The logs and the checkpoint of the earlier training are now in {destination}.")
        folder.mkdir()
    except OSError as error:
        raise InputError(
            f"logs {logs} cannot be written ({error.strerror}): set logs to another folder"
        ) from None
    return folder


def log_training(
    writer: tf.summary.SummaryWriter, model: keras.Model, trial: str, settings: SimpleNamespace
) -> None:
    """Write what is known before the first epoch: the graph, layer by layer, and the settings.

    The settings go to TensorBoard's HParams as one row, told from others by the name `trial`.
    """
    from tensorboard.plugins.hparams import api as hparams

    # A batch of known size, or the edges would carry arithmetic on its size beside the tensors.
    shape = (settings.batch_size, settings.phrase_len)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape, tf.int32, name="words")])
    def layers(words: tf.Tensor) -> tf.Tensor:
        for layer in model.layers:
            with tf.name_scope(layer.name):
                words = layer(tf.identity(words))  # So that one edge enters a layer.
        return words

    values = {name: "None" if value is None else value for name, value in vars(settings).items()}
    with writer.as_default(0):
        tf.summary.graph(layers.get_concrete_function().graph)
        metrics = [hparams.Metric(name) for name in ("val_loss", "val_acc")]
        hparams.hparams_config([hparams.HParam(name) for name in values], metrics)
        hparams.hparams(values, trial_id=trial)


def log_epoch(writers: Mapping[str, Any], epoch: int, metrics: Mapping[str, float]) -> None:
    """Write loss and acc of an epoch, counted over all runs, as two curves of one chart each."""
    for name, writer in writers.items():
        with writer.as_default(epoch):
            for tag, metric in SCALARS[name].items():
                tf.summary.scalar(tag, metrics[metric])


def log_run(
    writer: tf.summary.SummaryWriter,
    model: keras.Model,
    epoch: int,
    metrics: Mapping[str, float],
    written: Sequence[Quatrain],
) -> None:
    """Write where a run ended: weights, quatrains, how much they quote, the metrics of HParams."""
    rng = np.random.default_rng(0)
    with writer.as_default(epoch):
        for layer in model.layers:
            for weight in layer.trainable_weights:
                # Of a large weight a sample shows the same shape in a tenth of the time.
                values = weight.numpy().ravel()
                values = rng.choice(values, min(values.size, 50_000), replace=False)
                tf.summary.histogram(f"weights/{layer.name}/{weight.name}", values)
        for number, quatrain in enumerate(written, 1):
            tf.summary.text(f"quatrain {number}", "> " + quatrain.verse.replace("\n", "  \n> "))
        tf.summary.scalar("quote", max(quatrain.quoted for quatrain in written))
        for name in ("val_loss", "val_acc"):
            tf.summary.scalar(name, metrics[name])
    writer.flush()


def log_embedding(folder: Path, embedding: np.ndarray, words: Sequence[str], run: int) -> None:
    """Write the embedding for the projector, in place of the run before's, and list all trainings'.

    TensorBoard reads one list at the root of the logs, and keeps what it has read under the same
    name: hence the run in the name. It would take the numbers for text, but for a first byte 0xFF.
    """
    from tensorboard.plugins import projector

    for old in folder.glob("embedding-*.bytes"):
        old.unlink()
    data = bytearray(embedding.tobytes())
    data[0] = 0xFF
    (folder / f"embedding-{run}.bytes").write_bytes(data)
    (folder / "words.tsv").write_text("\n".join(words) + "\n", encoding="utf-8")

    logs = folder.parent
    config = projector.ProjectorConfig()
    # Sorted by name, and the first is what the tab opens with: digits come before letters.
    for path in [*folder.glob("embedding-*.bytes"), *logs.glob("earlier/*/*/embedding-*.bytes")]:
        start = path.parent.name if path.parent == folder else f"earlier {path.parent.name}"
        rows = len((path.parent / "words.tsv").read_text(encoding="utf-8").splitlines())
        config.embeddings.add(
            tensor_name=f"{start}, {path.stem.replace('embedding-', 'run ')}",
            tensor_path=path.relative_to(logs).as_posix(),
            metadata_path=(path.parent / "words.tsv").relative_to(logs).as_posix(),
            tensor_shape=[rows, path.stat().st_size // 4 // rows],
        )
    projector.visualize_embeddings(str(logs), config)


# ==== Checkpoint: all that a training needs to go on, in one file ====

# What a training cannot change on its way. All else may differ when it is resumed.
FIXED = (
    *("embedding_dim", "gru_dim", "dropout", "regularization", "phrase_len", "batch_size"),
    *("learning_rate", "epochs_per_run", "seed"),
)


class Checkpoint(NamedTuple):
    """What a checkpoint holds beside the model and its optimizer: see `run_training`."""

    runs: int
    seed: int
    random_state: dict[str, Any]
    settings: dict[str, Any]
    words: list[str]
    numbers: list[str]
    texts: list[str]


def save_checkpoint(path: Path, model: keras.Model, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a crash at any instant leaves the one before or this one, whole.

    It is the file that Keras saves, with one member more.
    """
    new = path.with_name("unfinished.keras")
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
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def find_checkpoint(logs: Path) -> Path:
    """Find the checkpoint of the latest training in the logs; raise InputError if there is none."""
    found = sorted(logs.glob("*-*/checkpoint.keras"))
    if not found:
        raise InputError(
            f"logs {logs} has no checkpoint, there is one after the first run: train without "
            "resume and generate, or set logs to another folder"
        )
    return found[-1]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what stands beside the model; raise InputError for no whole checkpoint of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            return Checkpoint(**json.loads(archive.read("quatrains.json")))
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"checkpoint {path} is broken, or none of this script ({error}): train without resume "
            "and generate, or set logs to another folder"
        ) from None


def load_model(path: Path, checkpoint: Checkpoint) -> keras.Model:
    """Load the model of a checkpoint with its optimizer; raise InputError where it is broken."""
    try:
        model = keras.models.load_model(path)
        if model.get_layer("dense").units == len(checkpoint.words):
            return model
        reason = "its words are not the model's"
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
    raise InputError(
        f"checkpoint {path} is broken, or cannot be read ({reason}): train without resume and "
        "generate, or set logs to another folder"
    )


def find_resumable(settings: SimpleNamespace, corpus: Corpus) -> tuple[Path, Checkpoint]:
    """Find and read the checkpoint that a training goes on from.

    Raises InputError, with a line for each that differs, when it cannot go on with these settings.
    """
    path = find_checkpoint(Path(settings.logs))
    checkpoint = read_checkpoint(path)
    then, now = checkpoint.settings, vars(settings)
    lines = [
        f"{name} was {then[name]!r} and is {now[name]!r}"
        for name in FIXED
        if then[name] != now[name]
    ]
    if checkpoint.texts != corpus.texts:
        lines.append(f"corpus {settings.corpus} has another text than when the training began")
    if lines:
        raise InputError(
            "the training cannot be resumed: set these back, or start a new one without resume\n  "
            + "\n  ".join(lines)
        )
    if checkpoint.runs >= settings.runs:
        raise InputError(
            f"the training has its {checkpoint.runs} runs already: set runs higher to resume it"
        )
    return path, checkpoint


# ==== Main ====


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; `args[0]` is the signal's number."""


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise Stopped where Ctrl-C or SIGTERM hits the block; a second one ends the process."""
    if IN_SESSION or threading.current_thread() is not threading.main_thread():
        yield  # The session has its own way to interrupt, and only main threads get signals.
        return

    def stop(number: int, _: Any) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def explained_end(checkpoint: Path) -> Iterator[None]:
    """Say when the block is left how to go on from the checkpoint, and what broke it off, if so."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the training broke off ({reason}): make room, or mend what else it names, and go on "
            "from the last checkpoint"
        ) from None
    finally:
        if checkpoint.exists():
            play = " Or play: print(*prophet.write(3), sep='\\n\\n')" if IN_SESSION else ""
            say(
                f"\n{checkpoint} holds the training up to its last whole run: go on from it with "
                f"resume = True (--resume), write from it with generate = 20 (--generate 20).{play}"
            )


def run_training(settings: SimpleNamespace) -> None:
    """Train and write, run after run, as the settings say, from the start or from a checkpoint.

    What is trained stays there as `prophet`, whole or interrupted, for a session to play with.
    """
    global prophet
    say(describe_settings(settings))
    corpus = load_corpus(Path(settings.corpus))
    if settings.resume:
        path, checkpoint = find_resumable(settings, corpus)
        seed = checkpoint.seed
    else:
        path, checkpoint = None, None
        seed = secrets.randbelow(2**32) if settings.seed is None else settings.seed
    rng = np.random.default_rng(seed)
    samples = make_samples(corpus, settings.phrase_len, rng)

    device = load_tensorflow(settings.use_gpu)
    keras.utils.set_random_seed(seed)
    if settings.seed is not None:
        tf.config.experimental.enable_op_determinism()
    with tf.device(device):
        if checkpoint:
            model = load_model(path, checkpoint)
            rng.bit_generator.state = checkpoint.random_state
            say(f"Going on after run {checkpoint.runs - 1} from {path}.")
        else:
            embeddings = start_embeddings(corpus.words, settings.embedding_dim, settings.glove, rng)
            model = build_model(embeddings, settings.phrase_len, settings)
            path = prepare_logs(Path(settings.logs)) / "checkpoint.keras"
            given = (vars(settings), corpus.words, corpus.numbers, corpus.texts)
            checkpoint = Checkpoint(0, seed, {}, *given)
        prophet = Prophet(model, checkpoint, settings.max_words)
        with explained_end(path):
            train_runs(settings, prophet, samples, rng, path, checkpoint)


def train_runs(
    settings: SimpleNamespace,
    prophet: Prophet,
    samples: tuple[Samples, Samples],
    rng: np.random.Generator,
    path: Path,
    checkpoint: Checkpoint,
) -> None:
    """Train and write from the run that the checkpoint is at, and save one at `path` after each."""
    folder, model = path.parent, prophet.model
    train_epoch = build_epoch(model, *samples, settings.batch_size)
    with contextlib.closing(tf.summary.create_file_writer(str(folder))) as writer:
        if not checkpoint.runs:
            log_training(writer, model, folder.name, settings)
        for run in range(checkpoint.runs, settings.runs):
            say(
                f"\nRun {run}\nTrain on {len(samples[0].targets)} samples, "
                f"validate on {len(samples[1].targets)} samples"
            )
            metrics = train_run(run, train_epoch, settings, rng)
            # A seed of its own, so that what is written changes nothing in what is trained.
            seed = int(rng.integers(2**32))
            written = prophet.write(settings.quatrains_per_run, seed=seed, **pick_writing(settings))
            for quatrain in written:
                say(" ".join(quatrain.tokens) if settings.raw else f"\n{quatrain}")
            say("\n" + report_quotes(written, settings.max_quote))
            log_run(writer, model, (run + 1) * settings.epochs_per_run - 1, metrics, written)
            log_embedding(folder, model.get_layer("embedding").get_weights()[0], prophet.words, run)
            state = rng.bit_generator.state
            save_checkpoint(path, model, checkpoint._replace(runs=run + 1, random_state=state))


def train_run(
    run: int, train_epoch: Callable, settings: SimpleNamespace, rng: np.random.Generator
) -> dict[str, float]:
    """Train the epochs of a run; print and log each, and return the metrics of the last.

    Raises InputError when the loss is no number any more.
    """
    folder = Path(settings.logs, str(run))
    # An unfinished run's logs would stand beside those of the run that is resumed.
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                contextlib.closing(tf.summary.create_file_writer(str(folder / name)))
            )
            for name in SCALARS
        }
        for epoch in range(settings.epochs_per_run):
            start = time.perf_counter()
            metrics = train_epoch(rng)
            seconds = time.perf_counter() - start
            if not np.isfinite(metrics["loss"]):
                raise InputError(
                    f"the loss has become {metrics['loss']} in epoch {epoch + 1} of run {run}: set "
                    f"learning_rate below {settings.learning_rate} and start again"
                )
            log_epoch(writers, run * settings.epochs_per_run + epoch, metrics)
            figures = " - ".join(f"{name}: {metrics[name]:.4f}" for name in METRICS)
            say(f"Epoch {epoch + 1}/{settings.epochs_per_run} - {seconds:.1f}s - {figures}")
    return metrics


def pick_writing(settings: SimpleNamespace) -> dict[str, Any]:
    """Pick the settings that `Prophet.write` takes."""
    names = ("temperature", "top_k", "opening", "max_quote")
    return {name: getattr(settings, name) for name in names}


def write_quatrains(settings: SimpleNamespace) -> None:
    """Write quatrains from the checkpoint, without training, and on standard error their quotes."""
    global prophet
    path = find_checkpoint(Path(settings.logs))
    checkpoint = read_checkpoint(path)
    device = load_tensorflow(settings.use_gpu)
    with tf.device(device):
        prophet = Prophet(load_model(path, checkpoint), checkpoint, settings.max_words)
        written = prophet.write(settings.generate, seed=settings.seed, **pick_writing(settings))
    if settings.raw:
        text = "\n".join(" ".join(quatrain.tokens) for quatrain in written)
    else:
        text = "\n\n".join(map(str, written))
    if settings.output == "-":
        say(text)
    else:
        try:
            Path(settings.output).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"output {settings.output} cannot be written ({error.strerror}): set it to another "
                "file"
            ) from None
    print("\n" + report_quotes(written, settings.max_quote), file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the script with these command-line arguments, and return its exit status."""
    try:
        with stopped_by_signals():
            settings = read_settings({name: globals()[name] for name in SETTINGS}, arguments)
            require_packages(settings.use_gpu)
            (write_quatrains if settings.generate else run_training)(settings)
    except InputError as error:
        print(f"quatrains: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("\nquatrains: stopped", file=sys.stderr)
        return 128 + next(iter(stop.args), signal.SIGINT)
    return 0


if __name__ == "__main__":
    # In a notebook's cell sys.argv is the kernel's own; %run, like a shell, gives a file its own.
    status = main(sys.argv[1:] if "__file__" in globals() else [])
    # Where there is a session, leaving it would look like a failure.
    if status and not IN_SESSION:
        sys.exit(status)
