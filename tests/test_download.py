"""Fetching GloVe from a server on this machine, which also misbehaves."""

import hashlib
import http.server
import io
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest

import quatrains
from conftest import ROOT, SMALL, arguments, write_verses

WORDS = [quatrains.BREAK, "king", "eagle", "zyzzyva"]
DRAW = np.random.default_rng(1)
TEXT = "".join(
    f"{word} {' '.join(f'{x:.4f}' for x in DRAW.normal(size=50))}\n"
    for word in ("king", "eagle", *(f"word{number}" for number in range(3000)))
).encode()


def pack(text):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("glove.6B.50d.txt", text)
    return packed.getvalue()


ARCHIVE = pack(TEXT)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the archive; the first part of the path says how it misbehaves, and how often."""

    def do_GET(self):
        how = self.path.split("/")[1]
        server = self.server
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(start[1]) if start and how != "no-ranges" else 0
        server.asked.append((how, start))
        first = [name for name, _ in server.asked].count(how) == 1
        if how in ("404", "500"):
            return self.send_error(int(how))
        if how == "redirect":
            self.send_response(302)
            self.send_header("Location", "/good/glove.6B.zip")
            return self.end_headers()
        content = {"wrong": pack(b"the 1 2 3\n"), "page": b"<html>sign in</html>"}.get(how, ARCHIVE)
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        content = content[start:]
        if how in ("cut", "no-ranges") and first:
            content = content[: len(content) // 2]
        elif how == "always-cut":
            content = b""
        elif how == "stall":
            self.wfile.write(content[:10_000] if first else b"")
            self.wfile.flush()
            server.released.wait(30)
            return None
        self.wfile.write(content)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server, a folder to work in, and a GloVe whose published hash is that of our archive."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(quatrains.GLOVE_HASHES, 50, hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setattr(quatrains, "GLOVE_TIMEOUT", 0.4)
    quatrains.load_tensorflow(use_gpu=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked = []
    server.released = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def sources(*hows):
        urls = tuple(f"{server.url}/{how}/glove.6B.zip" for how in hows)
        monkeypatch.setattr(quatrains, "GLOVE_SOURCES", urls)

    server.sources = sources
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def start(setting="auto"):
    return quatrains.start_embeddings(WORDS, 50, setting, np.random.default_rng(3))


def files(folder):
    return sorted(path.name for path in (folder / "data").iterdir())


@pytest.mark.parametrize(
    ("hows", "asked"),
    [
        (["good"], ["good"]),
        (["redirect"], ["redirect", "good"]),
        (["404", "500", "good"], ["404", "500", "good"]),
        (["cut"], ["cut", "cut"]),
        (["no-ranges"], ["no-ranges", "no-ranges"]),
        (["wrong", "page", "good"], ["wrong", "page", "good"]),
        (["always-cut", "good"], ["always-cut", "good"]),
        (["stall", "good"], ["stall", "stall", "good"]),
    ],
    ids=lambda value: "-".join(value),
)
def test_vectors_are_fetched_in_spite_of(server, tmp_path, capsys, hows, asked):
    server.sources(*hows)
    embeddings = start()
    assert [how for how, _ in server.asked] == asked
    assert (tmp_path / "data/glove.6B.zip").read_bytes() == ARCHIVE
    assert files(tmp_path) == ["glove.6B.zip"]
    expected = np.array(TEXT.split(b"\n")[0].split()[1:], np.float32)
    assert np.array_equal(embeddings[1], expected)
    told = capsys.readouterr().out
    assert [f"GloVe: fetching {url}\n" in told for url in quatrains.GLOVE_SOURCES]
    assert "knows 2 words; 1 and the break start random" in told
    # What is there is not fetched again.
    start()
    assert [how for how, _ in server.asked] == asked


def test_a_download_that_broke_off_goes_on(server, tmp_path):
    server.sources("cut")
    start()
    assert server.asked == [("cut", 0), ("cut", len(ARCHIVE) // 2)]


def test_a_later_training_goes_on_with_a_download(server, tmp_path):
    server.sources("stall")
    start()
    (part,) = files(tmp_path)
    assert re.fullmatch(r"glove\.6B\.zip\.127\.0\.0\.1-\d+\.part", part)
    server.released.set()
    server.sources("good")
    start()
    assert server.asked[-1] == ("good", 10_000)
    assert files(tmp_path) == ["glove.6B.zip"]


def test_parts_from_other_sources_go_when_one_has_it_all(server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/glove.6B.zip.elsewhere.part").write_bytes(b"PK")
    server.sources("good")
    start()
    assert files(tmp_path) == ["glove.6B.zip"]


def test_a_whole_part_is_not_fetched_again(server, tmp_path):
    (tmp_path / "data").mkdir()
    host = server.url.removeprefix("http://").replace(":", "-")
    (tmp_path / f"data/glove.6B.zip.{host}.part").write_bytes(ARCHIVE)
    server.sources("good")
    start()
    assert server.asked == [("good", len(ARCHIVE))]
    assert files(tmp_path) == ["glove.6B.zip"]


@pytest.mark.parametrize("how", ["404", "500", "wrong", "page", "always-cut", "stall", "nobody"])
def test_without_a_good_source_one_line_tells_it(server, tmp_path, capsys, how):
    server.sources(how)
    if how == "nobody":
        quatrains.GLOVE_SOURCES = ("http://127.0.0.1:9/glove.6B.zip",)
    embeddings = start()
    assert np.array_equal(embeddings, start("none"))
    told = [line for line in capsys.readouterr().out.splitlines() if "not to be had" in line]
    assert len(told) == 1
    assert re.match(
        r"GloVe: not to be had \(127\.0\.0\.1:\d+.+\), so all words start random", told[0]
    )
    assert 'glove = "none"' in told[0]
    assert "glove.6B.zip" not in files(tmp_path)
    if how in ("wrong", "page"):
        assert files(tmp_path) == []


def test_none_asks_nobody(server, tmp_path):
    server.sources("good")
    start("none")
    assert server.asked == []
    assert not (tmp_path / "data").exists()


def test_a_whole_training_fetches_its_vectors(server, tmp_path, capsys):
    write_verses(tmp_path / "verses.txt")
    server.sources("404", "good")
    settings = SMALL | {"corpus": "verses.txt", "glove": "auto", "embedding_dim": 50, "runs": 1}
    assert quatrains.main(arguments(**settings)) == 0
    assert "glove.6B.zip knows 2 words" in capsys.readouterr().out


def test_ctrl_c_while_fetching_leaves_nothing_half_named(server, tmp_path):
    write_verses(tmp_path / "verses.txt")
    server.sources("stall")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import quatrains\n"
        "quatrains.GLOVE_SOURCES = (sys.argv[2],)\n"
        "sys.exit(quatrains.main(sys.argv[3:]))"
    )
    settings = SMALL | {"corpus": "verses.txt", "glove": "auto", "embedding_dim": 50}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT), *quatrains.GLOVE_SOURCES, *arguments(**settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not server.asked and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "\nquatrains: stopped\n")
    assert all(name.endswith(".part") for name in files(tmp_path))
    assert not (tmp_path / "logs").exists()
