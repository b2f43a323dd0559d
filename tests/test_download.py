"""Fetching GloVe from a server on this machine, which also misbehaves."""

import functools
import hashlib
import http.server
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest

import quatrains
from conftest import QUICK, edited, wait_for, write_verses
from quatrains import keras

WORDS = [quatrains.BREAK, "king", "eagle", "zyzzyva"]
DRAW = np.random.default_rng(1)
TEXT = "".join(
    f"{word} {' '.join(f'{x:.4f}' for x in DRAW.normal(size=50))}\n"
    for word in ("king", "eagle", *(f"word{number}" for number in range(300)))
).encode()
KING = np.array(TEXT.split(b"\n")[0].split()[1:], np.float32)
CACHED = "home/datasets/glove.6B.zip"


def pack(text):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("glove.6B.50d.txt", text)
    return packed.getvalue()


ARCHIVE = pack(TEXT)
WRONG = pack(TEXT.replace(b"eagle", b"raven"))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the archive; the first part of the path says how it misbehaves."""

    def do_GET(self):
        how = self.path.split("/")[1]
        self.server.asked.append(how)
        if how in ("404", "500"):
            return self.send_error(int(how))
        content = WRONG if how == "wrong" else ARCHIVE
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if how in ("cut", "stalled") else content)
        if how == "stalled":
            self.wfile.flush()
            if not self.server.released.wait(40):
                self.server.asked.append("waited for in vain")
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked = []
    server.released = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/{{}}/glove.6B.zip"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path, monkeypatch):
    """Start embeddings with GloVe from the server, in a folder to work in with a Keras home."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()  # As Keras does when it is imported.
    get_file = functools.partial(keras.utils.get_file, cache_dir=tmp_path / "home")
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    monkeypatch.setattr(quatrains, "GLOVE_SHA256", hashlib.sha256(ARCHIVE).hexdigest())
    monkeypatch.setattr(quatrains, "GLOVE_TIMEOUT", 0.4)

    def fetch(how, glove="auto"):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/glove.6B.zip"
        url = nobody if how == "nobody" else server.url.format(how)
        monkeypatch.setattr(quatrains, "GLOVE_URL", url)
        settings = quatrains.Settings(glove=glove, embedding_dim=50)
        return quatrains.start_embeddings(WORDS, settings, np.random.default_rng(3))

    return fetch


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def lines_of(capsys):
    """What the script itself printed, its announcement apart; Keras shows how far it is."""
    announced, *others = re.findall(r"^GloVe: .*$", capsys.readouterr().out, re.MULTILINE)
    assert "fetched, 862 MB, this once; " in announced
    assert '; to go without, set glove = "none" (--glove none).' in announced
    return others


def test_vectors_are_fetched_once(fetch, server, tmp_path, capsys):
    embeddings = fetch("good")
    assert files(tmp_path) == [CACHED]
    assert (tmp_path / CACHED).read_bytes() == ARCHIVE
    assert np.array_equal(embeddings[1], KING)
    used = f"GloVe: {tmp_path / CACHED} knows 2 words; 1 and the break start random."
    assert lines_of(capsys) == [used]
    assert np.array_equal(fetch("good"), embeddings)
    assert lines_of(capsys) == [used]
    assert server.asked == ["good"]


@pytest.mark.parametrize("how", ["404", "500", "wrong", "cut", "stalled", "nobody"])
def test_what_cannot_be_fetched_is_one_line_and_is_never_read(fetch, server, capsys, how):
    embeddings = fetch(how)
    (failed,) = lines_of(capsys)
    assert re.match(r"GloVe: not to be had \(.+\), so all words start random; ", failed)
    assert 'glove = "none"' in failed
    assert np.array_equal(embeddings, fetch(how, "none"))
    assert socket.getdefaulttimeout() is None

    assert np.array_equal(fetch("good")[1], KING)
    assert len(lines_of(capsys)) == 1
    assert server.asked == [*[how] * (how != "nobody"), "good"]


def test_a_file_cut_short_is_not_read_but_fetched_anew(fetch, server, tmp_path, capsys):
    (tmp_path / CACHED).parent.mkdir()
    (tmp_path / CACHED).write_bytes(ARCHIVE[:-1000])
    assert np.array_equal(fetch("good")[1], KING)
    assert (tmp_path / CACHED).read_bytes() == ARCHIVE
    (tmp_path / CACHED).write_bytes(ARCHIVE[:-1000])
    assert np.array_equal(fetch("404"), fetch("404", "none"))
    assert server.asked == ["good", "404"]


def test_data_is_looked_into_first_and_none_asks_nobody(fetch, server, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/glove.6B.zip").write_bytes(ARCHIVE)
    assert np.array_equal(fetch("good")[1], KING)
    assert capsys.readouterr().out.startswith("GloVe: data/glove.6B.zip knows 2 words")
    fetch("good", "none")
    assert (server.asked, capsys.readouterr().out) == ([], "")


def start_edited(folder, url):
    """Start a copy of the script that fetches from an address into a home in its folder."""
    write_verses(folder / "verses.txt")
    text = edited(**QUICK | {"glove": "auto", "embedding_dim": 50})
    (folder / "mine.py").write_text(text.replace(quatrains.GLOVE_URL, url), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "mine.py"],
        cwd=folder,
        env=os.environ | {"KERAS_HOME": str(folder / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_while_fetching_leaves_nothing(server, tmp_path):
    process = start_edited(tmp_path, server.url.format("stalled"))
    deadline = time.monotonic() + 60
    while CACHED not in files(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "quatrains: stopped\n")
    assert server.asked == ["stalled"]
    assert {*files(tmp_path)} <= {"home/keras.json", "mine.py", "verses.txt"}
    assert not (tmp_path / "logs").exists()


def test_a_home_that_cannot_be_written_is_one_line_and_training_goes_on(server, tmp_path):
    (tmp_path / "home").write_text("a file")
    process = start_edited(tmp_path, server.url.format("good"))
    out = wait_for(process, "Epoch 1/")
    process.kill()
    process.communicate()
    assert re.findall(r"^GloVe: not to be had \(.+\), so all words start random", out, re.MULTILINE)
    assert server.asked == []
