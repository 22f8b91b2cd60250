"""The page's server: files of the page, and jobs, on loopback, for whoever has the token.

    GET  /TOKEN/            the page; its parts beside it
    GET  /TOKEN/stacks      stacks of the folder that it was started in, and those named on the command line
    POST /TOKEN/job         a line of JSON, then bytes -> lines of JSON, then bytes

Everything else is refused: another Host (DNS rebinding), another Origin, a body that is not application/octet-stream,
one beyond the limit. Cancelling a request, or leaving the page, ends its job: there is one job at a time.
"""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import webbrowser
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler, StaticFileHandler, stream_request_body

from ..checkpoint import DEFAULT_MODEL, shipped_models
from ..elements import ELEMENTS
from ..errors import ConfigError, ScanError
from ..files import SCANS, is_single_slice
from ..simulation import FORCES, TIPS
from .worker import Worker

PAGE = Path(__file__).parent / "page"
LARGEST = 512 * 2**20
"""Bytes of a request."""
MOST = 200
"""Stacks of a folder that are listed, at most."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
"""All addresses of this machine."""
NAMES = ("open", "predict", "simulate", "fit", "export")
"""Of the jobs; jobs.py, which has them, takes seconds to import."""
ABOUT = {
    "co": "CO as measurements show it: a small positive charge at the oxygen.",
    "co-charge": "CO as measurements show it: a small positive charge at the oxygen.",
    "co-quadrupole": "CO with the quadrupole of the original data set.",
    "co-neutral": "CO without electrostatic forces.",
    "xe": "A xenon atom: larger, softer, +0.3 e.",
}
"""A sentence on each tip, for people."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guarded(RequestHandler):
    """A request that comes from the page itself."""

    def prepare(self) -> None:
        origin = f"http://{self.request.host}"
        known = self.settings["known"](self.request.host) and self.request.headers.get("Origin", origin) == origin
        if not known or self.request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            self.refuse(403, "This page answers to itself alone.")

    def refuse(self, status: int, sentence: str) -> None:
        """End the request."""
        self.set_status(status)
        self.finish(sentence)

    def set_default_headers(self) -> None:
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.clear_header("Server")

    def write_error(self, status_code: int, **about: Any) -> None:
        self.finish(f"{status_code}")


class Part(Guarded, StaticFileHandler):
    """A file of the page."""

    def should_return_304(self) -> bool:
        return False


class Nothing(Guarded):
    """What is not there."""

    def prepare(self) -> None:
        self.refuse(404, "There is nothing here; afmol serve prints the whole address.")


class Stacks(Guarded):
    """What can be opened and chosen, and what the page has to know."""

    def get(self) -> None:  # pyrefly: ignore[bad-override-mutable-attribute]
        elements = [{"symbol": e.symbol, "class": e.category, "radius": e.covalent_radius} for e in ELEMENTS]
        self.write(
            {
                "stacks": [{"path": p, "name": Path(p).name} for p in listed(self.settings["named"])],
                "models": shipped_models(),
                "model": DEFAULT_MODEL,
                "tips": {name: {"charges": len(tip.charges), "about": ABOUT[name]} for name, tip in TIPS.items()},
                "forces": {name: force.standard_distance for name, force in FORCES.items()},
                "elements": elements,
                "largest": LARGEST,
            }
        )


@stream_request_body
class Job(Guarded):
    """One job."""

    SUPPORTED_METHODS = ("POST",)

    def initialize(self) -> None:
        self.parts: list[bytes] = []
        self.gone = self.working = False

    def prepare(self) -> None:
        super().prepare()
        if self._finished:
            return
        if "Origin" not in self.request.headers:  # browsers say it with every POST
            self.refuse(403, "This page answers to itself alone.")
        elif self.request.headers.get("Content-Type") != "application/octet-stream":
            self.refuse(415, "A job is application/octet-stream.")

    def data_received(self, chunk: bytes) -> None:
        self.parts.append(chunk)

    async def post(self) -> None:  # pyrefly: ignore[bad-override-mutable-attribute]
        head, _, payload = b"".join(self.parts).partition(b"\n")
        self.parts.clear()
        try:
            request = json.loads(head)
            job = request.pop("job")
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            return self.refuse(400, "A job begins with a line of JSON.")
        if job not in NAMES or request.get("path") not in (None, *listed(self.settings["named"])):
            return self.refuse(403, "Only stacks of the folder that afmol was started in can be opened by name.")
        async with self.settings["lock"]:
            if not self.gone:
                await self._work(job, request, payload)

    async def _work(self, job: str, request: dict[str, Any], payload: bytes) -> None:
        said = self.settings["worker"].do(job, request, payload)
        loop, self.working = asyncio.get_running_loop(), True
        try:
            while (line := await loop.run_in_executor(None, next, said, None)) is not None:
                kind, what, *content = line
                payload = b"".join(content)
                self.write(json.dumps({kind: what, "bytes": len(payload)}).encode() + b"\n" + payload)
                await self.flush()
        except StreamClosedError:
            self.settings["worker"].stop()
        finally:
            self.working = False

    def on_connection_close(self) -> None:
        self.gone = True
        if self.working:
            self.settings["worker"].stop()


def listed(named: Sequence[str]) -> list[str]:
    """Stacks that can be opened by name: those named, or else those of this folder; folders of slices are one stack."""
    if named:
        return list(named)
    try:
        entries = sorted(Path().iterdir())
    except OSError:
        return []
    return [str(p) for p in entries if (p.suffix.lower() in SCANS and not is_single_slice(p)) or _has_slices(p)][:MOST]


def _has_slices(folder: Path) -> bool:
    try:
        return folder.is_dir() and sum(is_single_slice(p) for p in folder.iterdir()) > 1
    except OSError:
        return False


def known_host(host: str, port: int) -> Callable[[str], bool]:
    """Whether a request's Host is meant for a server that listens at `host`: it has this machine's names; or, where
    that listens at all addresses, it is any address, since DNS rebinding needs a name."""
    everywhere = host in EVERYWHERE
    names = (
        {*LOOPBACK, socket.gethostname().lower()} if everywhere else LOOPBACK if host in LOOPBACK else {host.lower()}
    )

    def known(said: str) -> bool:
        try:
            parts = urlsplit(f"//{said}")
            name, there = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        return there == port and (name in names or (everywhere and _is_address(name)))

    return known


def _is_address(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


def application(token: str, known: Callable[[str], bool], named: Sequence[str], worker: Worker) -> Application:
    """The server's application; `known`: whether a request's Host is this server."""
    return Application(
        [
            (f"/{token}/stacks", Stacks),
            (f"/{token}/job", Job),
            (f"/{token}/(.*)", Part, {"path": str(PAGE), "default_filename": "index.html"}),
        ],
        default_handler_class=Nothing,
        known=known,
        named=list(named),
        lock=asyncio.Lock(),
        worker=worker,
        log_function=lambda handler: None,
    )


async def serving(
    named: Sequence[str], host: str, port: int, told: Callable[[str], None], until: asyncio.Event | None = None
) -> None:
    """Serve until cancelled, or until an event; `told` gets the page's address, token and all.

    Raises:
        ConfigError: an address that cannot be had.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        listening.setblocking(False)
    except (OSError, OverflowError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"Nothing can be served at {host}, port {port} ({why}); choose another --port.") from error
    port, token, worker = listening.getsockname()[1], secrets.token_urlsafe(24), Worker()
    name = socket.gethostname() if host in EVERYWHERE else host
    server = HTTPServer(
        application(token, known_host(host, port), named, worker),
        max_body_size=LARGEST,
        max_buffer_size=2**26,
    )
    server.add_socket(listening)
    told(f"http://{f'[{name}]' if ':' in name else name}:{port}/{token}/")
    try:
        await (until or asyncio.Event()).wait()
    finally:
        server.stop()
        await server.close_all_connections()
        worker.stop()


def serve(named: Sequence[str] = (), port: int = 0, host: str = "127.0.0.1", browser: bool = True) -> None:
    """Serve the page until Ctrl-C.

    Args:
        named: stacks that it can open by name; those of this folder if empty.
        port: 0: a free one.
        host: address to listen at.
        browser: open the page there.

    Raises:
        ConfigError: an address that cannot be had. ScanError: a stack that is not there, or a single image of one.
    """
    for path in named:
        if not os.path.exists(path):
            raise ScanError(f"{path} does not exist; check the path.")
        if is_single_slice(path):
            raise ScanError(f"{path} is a single image of a stack; name the folder of its slices.")

    def told(address: str) -> None:
        print(f"{address}\nCtrl-C ends it.", flush=True)
        if browser:
            webbrowser.open(address)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serving(named, host, port, told))
