"""The page of a run under way: what it shows, to whom, and that nothing of it runs."""

import json
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser
from http.server import ThreadingHTTPServer

import pytest
from PIL import Image

import run as program
from pipeline.commands.watch import HOST, handler_of, watch
from pipeline.planning.line_progress import PlannedStage, plan_line
from pipeline.recipes.schema import load
from pipeline.reporting.watch_page import WatchPage
from pipeline.runs.lock import LOCK, hold
from pipeline.training.overfitting import Preview, write_previews

ATTACK = "\"'><img src=x onerror=alert(1)><script>alert(1)</script>"


class Found(HTMLParser):
    """What of a page could run or be fetched, and its pictures."""

    def __init__(self, html: str):
        super().__init__()
        self.wrong, self.pictures = [], 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.wrong += [tag] if tag in ("script", "iframe", "object", "svg", "link") else []
        self.pictures += tag == "img"
        for name, value in attributes:
            outside = name in ("src", "href") and not value.startswith(("data:", "#"))
            self.wrong += [name] if name.startswith("on") or outside else []


@pytest.fixture()
def under_way(tmp_path):
    """A run whose generator is trained."""
    run = tmp_path / "run"
    names = {"train_tokenizer": "tokenizer", "train_generator": "generator", "publish": "pipeline"}
    stages = [PlannedStage(name, writes) for name, writes in names.items()]
    line = plan_line(load("digits", ["generator.loop.steps=100"]), stages, run)
    line.stages[0].state, line.stages[0].seconds = "done", 61.0
    line.stages[1].state, line.stages[1].folder = "running", ".generator-x"
    draft = run / ".generator-x"
    draft.mkdir(parents=True)
    rows = [{"step": step, "network/flow": 1 / step, "rate": 2.0} for step in (10, 20, 40)]
    (draft / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5')
    losses = ((1.0, 1.0), (0.9, 0.8), (0.95, 0.7), (0.97, 0.6), (1.0, 0.5))
    write_previews(draft, [Preview(10 * n, *both) for n, both in enumerate(losses, 1)])
    (run / "preview" / "generator").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(run / "preview" / "generator" / "latest.png")
    (run / "recipe.yaml").write_text("# digits\n")
    line.write(run)
    return run, line


def test_the_page_shows_the_line_the_time_left_and_the_pictures(under_way):
    run, _ = under_way
    page = WatchPage(run, 7)
    html = page.render()
    assert "Nothing runs at the moment" in html and 'http-equiv="refresh" content="7"' in html
    assert "1 min 1 s" in html and "40 / 100" in html
    assert "at least 30.0 s left; nothing is known yet of publish" in html
    assert "Generator: it began to memorise its training images at step 20" in html
    found = Found(html)
    assert not found.wrong and found.pictures == 3, "latest picture, held-out losses and curves"
    with hold(run / LOCK, "run"):
        assert "train-generator, since" in page.render()


def test_plots_are_drawn_again_when_something_changed(under_way, monkeypatch):
    run, _ = under_way
    page = WatchPage(run, 5)
    page.render()
    monkeypatch.setattr("pipeline.reporting.watch_page.pictures", lambda *of: pytest.fail("drawn again"))
    page.render()
    with (run / ".generator-x" / "metrics.jsonl").open("a") as file:
        file.write("0}\n")
    with pytest.raises(pytest.fail.Exception):
        page.render()


def test_what_others_wrote_is_text_and_files_outside_are_not_shown(under_way):
    run, line = under_way
    line.name = line.stages[0].writes = line.stages[1].trainings[0].title = ATTACK
    line.write(run)
    html = WatchPage(run, 5).render()
    assert not Found(html).wrong and "alert(1)" in html
    line.stages[1].folder = "../elsewhere"
    line.write(run)
    assert "names a file outside of it" in WatchPage(run, 5).render()
    (run / "progress.json").write_text("{<script>")
    html = WatchPage(run, 5).render()
    assert "is damaged" in html and not Found(html).wrong and "refresh" in html


def test_only_this_machine_and_only_the_page_are_answered(under_way):
    run, _ = under_way
    with ThreadingHTTPServer((HOST, 0), handler_of(WatchPage(run, 5))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://{HOST}:{server.server_port}/"
        with urllib.request.urlopen(place) as reply:
            assert reply.headers["Content-Type"] == "text/html; charset=utf-8" and "40 / 100" in reply.read().decode()
        for request in (f"{place}../recipe.yaml", urllib.request.Request(place, headers={"Host": "evil.example:80"})):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(request)
        with pytest.raises(ValueError, match=f"port {server.server_port} of {HOST} cannot be had"):
            watch([str(run), f"port={server.server_port}"])
        server.shutdown()


def test_a_page_in_a_file_is_written_until_the_line_is_done(under_way, tmp_path, capsys):
    run, line = under_way
    for stage in line.stages:
        stage.state, stage.folder = "done", stage.writes
    (run / ".generator-x").rename(run / "generator")
    line.write(run)
    out = tmp_path / "page.html"
    assert program.main(["watch", str(run), f"out={out}"]) == 0
    assert "Everything is done." in out.read_text() and Found(out.read_text()).pictures == 3
    assert str(out) in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (["watch", "digits"], "there is no run 'digits' yet; start it first"),
        (["watch", "digits", "port=70000"], "port is 70000"),
        (["watch", "one", "two"], "watch shows one run"),
    ):
        assert program.main(words) == 2
        assert said in capsys.readouterr().err
