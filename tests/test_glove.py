"""GloVe vectors: both containers, damaged copies, and what starts at random."""

import re
import struct
import zipfile

import numpy as np
import pytest

import quatrains

WORDS = [quatrains.BREAK, "the", "king", "na\u00efve", "zyzzyva"]
VECTORS = {"the": [0.5] * 50, "king": [-1.25e-1] * 50, "na\u00efve": [2.0] * 50, "unused": [9] * 50}


def glove_text(vectors=VECTORS):
    return b"".join(
        word.encode() + b" " + " ".join(map(str, vector)).encode() + b"\n"
        for word, vector in vectors.items()
    )


def make_zip(path, text, member="glove.6B.50d.txt"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, text)
    return path


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A working directory with an empty data folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


def start(setting="auto", dim=50):
    return quatrains.start_embeddings(WORDS, dim, setting, np.random.default_rng(3))


def refused(setting="auto", dim=50):
    """The one line that refuses a GloVe file."""
    with pytest.raises(quatrains.InputError) as error:
        start(setting, dim)
    told = str(error.value)
    assert "\n" not in told
    assert re.match(r"GloVe file \S+ cannot be used \(.+\): set glove to another file", told)
    return told


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("container", ["text", "zip"])
def test_known_words_start_from_glove_and_the_others_at_random(in_folder, container, mark, capsys):
    if container == "text":
        (in_folder / "data/glove.6B.50d.txt").write_bytes(mark + glove_text())
    else:
        make_zip(in_folder / "data/glove.6B.zip", mark + glove_text())
    embeddings = start()
    assert embeddings.shape == (5, 50)
    assert embeddings.dtype == np.float32
    for word in ("the", "king", "na\u00efve"):
        assert embeddings[WORDS.index(word)] == pytest.approx(np.array(VECTORS[word]))
    without = start("none")
    assert np.array_equal(embeddings[[0, 4]], without[[0, 4]])
    printed = capsys.readouterr().out
    assert "knows 3 words; 1 and the break start random" in printed
    assert printed.count("\n") == 1


def test_random_rows_have_the_spread_of_glove():
    embeddings = quatrains.start_embeddings(["w"] * 2000, 50, "none", np.random.default_rng(1))
    assert embeddings.mean() == pytest.approx(0, abs=0.01)
    assert embeddings.std() == pytest.approx(0.4, abs=0.01)


def test_a_named_file_is_read(in_folder):
    (in_folder / "mine.txt").write_bytes(glove_text())
    assert start("mine.txt")[1] == pytest.approx(0.5)
    make_zip(in_folder / "mine.ZIP", glove_text())
    assert start("mine.ZIP")[1] == pytest.approx(0.5)


def test_a_text_is_taken_before_the_zip(in_folder):
    make_zip(in_folder / "data/glove.6B.zip", glove_text())
    (in_folder / "data/glove.6B.50d.txt").write_bytes(glove_text({"the": [7] * 50}))
    assert start()[1] == pytest.approx(7)


def test_a_file_that_knows_no_word_leaves_all_random(in_folder, capsys):
    (in_folder / "data/glove.6B.50d.txt").write_bytes(glove_text({"unused": [9] * 50}))
    assert np.array_equal(start(), start("none"))
    assert "knows 0 words; 4 and the break start random" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [b"caf\xe9 " + b"1 " * 50, b"<unk> 1 2 3", b"other " + b"x " * 50, b"\n", b"last 1 2 3"],
    ids=["not UTF-8", "short", "no numbers", "empty", "cut"],
)
def test_lines_of_words_that_the_corpus_lacks_are_not_looked_at(in_folder, line):
    (in_folder / "data/glove.6B.50d.txt").write_bytes(glove_text())
    whole = start()
    (in_folder / "data/glove.6B.50d.txt").write_bytes(glove_text() + line)
    assert np.array_equal(start(), whole)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"the 1 2 3\n" + glove_text(), 1),
        (b"unknown 1 2 3\n" + glove_text(), 1),
        (b"400000 50\n" + glove_text(), 1),
        (b"\x89PNG\r\n\x1a\n" * 9, 1),
        (glove_text() + b"zyzzyva " + b"1 " * 48 + b"1\n", 5),
        (glove_text() + b"zyzzyva", 5),
        (glove_text() + b"zyzzyva " + b"1 " * 50 + b"1\n", 5),
        (glove_text() + b"zyzzyva " + b"1 " * 49 + b"nan\n", 5),
    ],
    ids=["short", "other size", "header", "binary", "cut", "cut at the word", "long", "nan"],
)
def test_lines_that_are_looked_at_must_be_right(in_folder, content, line):
    (in_folder / "data/glove.6B.50d.txt").write_bytes(content)
    assert f"(line {line} has not 50 numbers)" in refused()


def test_what_is_no_number_is_refused(in_folder):
    content = glove_text() + b"zyzzyva " + b"1 " * 49 + b"x\n"
    (in_folder / "data/glove.6B.50d.txt").write_bytes(content)
    assert "float" in refused()


def test_a_file_of_another_size_names_the_setting(in_folder):
    (in_folder / "mine.txt").write_bytes(glove_text())
    told = refused("mine.txt", 100)
    assert "(line 1 has not 100 numbers)" in told
    assert "embedding_dim" in told


def change_members(path, **fields):
    """Change fields in both headers of a zip's only member."""
    packed = bytearray(path.read_bytes())
    places = {"flags": (6, 8), "method": (8, 10)}
    for name, value in fields.items():
        for signature, place in zip((b"PK\3\4", b"PK\1\2"), places[name], strict=True):
            struct.pack_into("<H", packed, packed.index(signature) + place, value)
    path.write_bytes(packed)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"not a zip"), "not a zip"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "not a zip"),
        (lambda path: make_zip(path, glove_text(), "glove.6B.100d.txt"), "glove.6B.50d.txt"),
        (lambda path: change_members(path, flags=1), "encrypted"),
        (lambda path: change_members(path, method=97), "compression method"),
    ],
    ids=["no zip", "cut", "other sizes", "encrypted", "method"],
)
def test_bad_zips_are_refused(in_folder, damage, reason):
    path = make_zip(in_folder / "data/glove.6B.zip", glove_text())
    assert start()[1] == pytest.approx(0.5)
    damage(path)
    assert reason in refused()


def test_a_zip_damaged_inside_is_refused(in_folder):
    path = make_zip(in_folder / "data/glove.6B.zip", glove_text() * 200)
    whole = path.read_bytes()
    for place in (60, whole.index(b"PK\1\2") - 5):
        path.write_bytes(whole[:place] + b"????" + whole[place + 4 :])
        refused()


def test_a_missing_file_is_refused(in_folder):
    assert "No such file" in refused("nowhere.txt")
    assert "No such file" in refused("nowhere.zip")
    assert "Is a directory" in refused("data")
