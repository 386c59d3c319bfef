"""`watch NAME|FOLDER`: a run under way, on a page that a browser shows."""

import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

from pipeline.components import structure
from pipeline.files.paths import given_path
from pipeline.files.writing import write_text
from pipeline.planning.line_progress import read_progress
from pipeline.program import command_line
from pipeline.ranges import Count, RangedFields
from pipeline.recipes.files import is_setting, parse_settings
from pipeline.reporting.watch_page import WatchPage
from pipeline.runs.finished import run_folder
from pipeline.validation import Range

HOST = "127.0.0.1"
Port = Annotated[int, Range(0, 65535)]


@dataclass
class WatchSettings(RangedFields):
    """What `watch` takes beside the run."""

    port: Port = 8008  # of 127.0.0.1, where the page is; 0: any that is free
    every: Count = 5  # seconds after which the page is made anew
    out: str | None = None  # file to write the page to, again and again until the line is done, in place of a port


def watch(words: list[str]) -> None:
    """Show a run under way: stages, time left, loss curves, held-out losses and the latest pictures of previews.

    The page is at a port of this machine and of no other, until Ctrl-C; with out=FILE.html it is a file that is written
    again until the line is done. Pictures and held-out losses are there where `loop.preview_every` is set.
    """
    names = [word for word in words if not is_setting(word)]
    settings = structure(WatchSettings, parse_settings(filter(is_setting, words)))
    if len(names) != 1:
        raise ValueError(f"watch shows one run; type: {command_line('watch', 'RUN')}")
    run = run_folder(names[0])
    if run is None:
        raise ValueError(f"there is no run {names[0]!r} yet; start it first: {command_line('all', 'RECIPE')}")
    page = WatchPage(run, settings.every)
    try:
        serve(page, settings.port) if settings.out is None else rewrite(page, given_path(settings.out))
    except KeyboardInterrupt:
        print()


def serve(page: WatchPage, port: int) -> None:
    """Answer with the page until interrupted; ValueError where the port is taken."""
    try:
        server = ThreadingHTTPServer((HOST, port), handler_of(page))
    except OSError as error:
        raise ValueError(f"port {port} of {HOST} cannot be had ({error.strerror}); set another port=...") from None
    with server:
        print(f"watching {page.run} at http://{HOST}:{server.server_port} until Ctrl-C", flush=True)
        server.serve_forever()


def handler_of(page: WatchPage) -> type[BaseHTTPRequestHandler]:
    """Answers requests for `/`, and no others, from this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (HOST, "localhost") or self.path != "/":  # another site's name may lead here
                self.send_error(404)
                return
            content = page.render().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: object) -> None:
            """Requests are not logged."""

    return Handler


def rewrite(page: WatchPage, out: Path) -> None:
    """Write the page to `out` until the line is done."""
    print(f"watching {page.run}: {out} is written every {page.refresh} s until the line is done", flush=True)
    while True:
        write_text(out, page.render())
        line = read_progress(page.run)
        if line is not None and all(stage.state == "done" for stage in line.stages):
            return
        time.sleep(page.refresh)
