"""The page: a browser uploads a stack, gets its molecule, mends it and takes it home; strangers are refused."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from afmol.data.bending import lay_down
from afmol.data.chemistry import molecule_from_smiles
from afmol.elements import CATEGORIES, ELEMENTS
from afmol.errors import ConfigError, ScanError
from afmol.files import read_molecule, read_scan, write_scan
from afmol.fitting import Conditions, FitConfig, fit_conditions, imaged
from afmol.results import prediction_record
from afmol.serve.jobs import JOBS, molecule_of, opened, simulated
from afmol.serve.server import PAGE, known_host, serve, serving
from afmol.serve.worker import REFINING, Worker, _work
from afmol.simulation import TIPS, grid_around, simulate
from afmol.structures import Molecule, Scan

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1400,1200"),
)
TIP_NAME = "co-quadrupole"
TIP = TIPS[TIP_NAME]
ABOVE = 2.55
"""Closest approach above the topmost nucleus in the stack, A."""
ROOM = 4.0
"""Around the molecule, A."""
BINARY = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def molecule() -> Molecule:
    """4-chloro-aminophenol's relative, flat, with four classes."""
    return lay_down(molecule_from_smiles("Nc1ccc(Cl)cc1O"), np.random.default_rng(0), tilt=0.0)


@pytest.fixture(scope="module")
def stack(molecule, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "chlorophenol.npz"
    grid = grid_around(molecule, TIP, margin=ROOM, pixel=0.2)
    assert grid.heights[-1] - TIP.bond_length - molecule.positions[:, 2].max() == pytest.approx(ABOVE, abs=0.05)
    write_scan(simulate(molecule, TIP, grid), path)
    return path


def recorded(molecule: Molecule) -> dict:
    """The molecule as it lies in its stack, as the page has it."""
    there = molecule.positions - [*grid_around(molecule, margin=ROOM, pixel=0.2).origin, 0.0]
    scan = Scan(np.zeros((2, 2, 2), np.float32), (1.0, 1.0))
    return prediction_record(scan, dataclasses.replace(molecule, positions=there), "", 0.8)


class Served:
    """The server in a thread of its own, until `end`."""

    def __init__(self, named: list[str]) -> None:
        self.ready, self.worker = threading.Event(), None
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run(named)))
        self.thread.start()
        assert self.ready.wait(20)
        self.host, self.path = urlsplit(self.address).netloc, urlsplit(self.address).path

    async def _run(self, named: list[str]) -> None:
        self.loop, self.until = asyncio.get_running_loop(), asyncio.Event()
        await serving(named, "127.0.0.1", 0, self._told, self.until)

    def _told(self, address: str) -> None:
        self.address = address
        self.ready.set()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.until.set)
        self.thread.join(20)

    def asked(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of a request; the host and the origin are the page's own unless given."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        sent = {"Host": self.host, "Origin": f"http://{self.host}"} | {
            k.replace("_", "-"): v for k, v in headers.items()
        }
        connection.request(method, path, body, {k: v for k, v in sent.items() if v})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, dict(answer.getheaders())

    def job(self, name: str, payload: bytes = b"", **request: object) -> tuple[str, object, bytes]:
        """The last of what a job says, "done" or "mistake", with its bytes."""
        head = json.dumps({"job": name} | request).encode()
        status, rest, _ = self.asked(
            "POST", f"{self.path}job", head + b"\n" + payload, **{"Content-Type": BINARY["Content-Type"]}
        )
        assert status == 200, rest
        while True:
            line, _, rest = rest.partition(b"\n")
            said = json.loads(line)
            if "say" not in said:
                kind = "done" if "done" in said else "mistake"
                return kind, said[kind], rest


@pytest.fixture(scope="module")
def served(stack):
    page = Served([str(stack)])
    yield page
    page.end()


def test_only_the_page_itself_is_answered(served):
    job = f"{served.path}job"
    assert served.asked("GET", served.path)[0] == 200
    assert served.asked("GET", served.path, Host="evil.example")[0] == 403  # DNS rebinding
    assert served.asked("GET", served.path, Host=served.host.replace("127.0.0.1", "localhost"), Origin="")[0] == 200
    assert served.asked("GET", f"{served.path}stacks", Origin="http://evil.example")[0] == 403
    assert served.asked("GET", f"{served.path}stacks", Sec_Fetch_Site="cross-site")[0] == 403
    assert served.asked("GET", "/")[0] == 404
    assert served.asked("GET", "/wrong-token/stacks")[0] == 404
    assert served.asked("POST", job, b"{}\n", Origin="http://evil.example", **BINARY)[0] == 403
    assert served.asked("POST", job, b"{}\n", Origin="", **BINARY)[0] == 403
    assert served.asked("POST", job, b"{}\n", Content_Type="multipart/form-data; boundary=x")[0] == 415
    assert served.asked("POST", job, b'{"job": "open", "path": "/etc/passwd"}\n', **BINARY)[0] == 403
    assert served.asked("POST", job, b'{"job": "open", "path": ""}\n', **BINARY)[0] == 403
    assert served.asked("POST", job, b'{"job": "format_disk"}\n', **BINARY)[0] == 403
    for nonsense in (b"", b"\n", b"[]\n", b"[" * 100_000 + b"\n", b'{"job": {}}\n'):
        assert served.asked("POST", job, nonsense, **BINARY)[0] in (400, 403)
    for outside in ("../server.py", "%2e%2e/server.py", "..%2fserver.py"):
        assert served.asked("GET", f"{served.path}{outside}")[0] in (403, 404)


@pytest.mark.parametrize(
    ("host", "port", "said", "whether"),
    [
        ("127.0.0.1", 81, "127.0.0.1:81", True),
        ("127.0.0.1", 81, "[::1]:81", True),
        ("127.0.0.1", 81, "127.0.0.1:82", False),
        ("127.0.0.1", 81, "10.0.0.1:81", False),
        ("127.0.0.1", 80, "LOCALHOST", True),  # browsers leave the usual port out
        ("Lab.example", 81, "lab.example:81", True),
        ("Lab.example", 81, "127.0.0.1:81", False),
        ("0.0.0.0", 81, "10.0.0.1:81", True),
        ("::", 81, "[fe80::1]:81", True),
        ("0.0.0.0", 81, f"{socket.gethostname()}:81", True),
        ("0.0.0.0", 81, "evil.example:81", False),  # DNS rebinding
        ("0.0.0.0", 81, "[::1:81", False),
        ("0.0.0.0", 81, "10.0.0.1:x", False),
    ],
)
def test_who_may_be_called(host, port, said, whether):
    assert known_host(host, port)(said) == whether


def test_what_is_not_there_is_not_served(tmp_path):
    with pytest.raises(ScanError, match="does not exist"):
        serve([str(tmp_path / "a.npz")])
    write_scan(Scan(np.random.default_rng(0).random((8, 8, 3), np.float32), (4.0, 4.0)), tmp_path / "a.gsf")
    with pytest.raises(ScanError, match="folder of its slices"):
        serve([str(tmp_path / "a.gsf" / "000.gsf")])


def test_an_upload_of_10_gb_is_refused_unread(served):
    connection = http.client.HTTPConnection(served.host, timeout=10)
    connection.putrequest("POST", f"{served.path}job")
    for name, value in (BINARY | {"Origin": f"http://{served.host}", "Content-Length": str(10**10)}).items():
        connection.putheader(name, value)
    connection.endheaders(b"{")
    with contextlib.suppress(http.client.RemoteDisconnected):
        assert connection.getresponse().status in (400, 413)
    connection.close()


def test_the_page_may_load_nothing_from_elsewhere(served):
    _, content, headers = served.asked("GET", served.path)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    parts = re.findall(r'(?:src|href)="([^"]+)"', content.decode())
    assert {"main.js", "page.css", "3Dmol-min.js"} <= set(parts)
    own = [p for p in PAGE.iterdir() if p.suffix in (".js", ".css", ".html") and p.name != "3Dmol-min.js"]
    for path in own:
        assert served.asked("GET", f"{served.path}{path.name}")[1] == path.read_bytes()
        assert set(re.findall(r"https?://[^\"'` )]+", path.read_text())) <= {"http://www.w3.org/2000/svg"}, path
        assert not re.search(r"<script>|\son\w+=|style=", path.read_text().replace("style.aspectRatio", ""))


def test_the_vendored_viewer_is_the_published_one():
    import hashlib

    line = (PAGE / "3Dmol-min.js.sha256").read_text().split()[0]
    assert hashlib.sha256((PAGE / "3Dmol-min.js").read_bytes()).hexdigest() == line


def test_a_stack_goes_in_and_its_molecule_comes_out(served, stack, molecule):
    kind, record, data = served.job("open", path=str(stack))
    assert kind == "done"
    assert record["shape"][2] == 10
    assert "lacks" not in record
    uploaded = served.job("open", stack.read_bytes(), files=[["stack.npz", stack.stat().st_size]])
    assert uploaded[2] == data
    assert uploaded[1]["size"] == record["size"]
    kind, found, _ = served.job("predict", data, scan=record, model="base")
    assert kind == "done"
    assert sorted(a["element"] for a in found["atoms"]) == sorted(molecule.symbols)
    kind, other, _ = served.job("predict", data, scan=record, model="base", formula="C20H20")
    assert (kind, {a["element"] for a in other["atoms"]}) == ("done", {"C", "H"})
    assert other["model"]["formula"] == "C20H20"

    truth = recorded(molecule)
    usual = {"scan": record, "molecule": truth, "tip": TIP_NAME, "force": "lennard-jones", "step": 0.1, "pixel": 0.25}
    conditions = {"above_topmost": ABOVE, "stiffness": 0.25, "charge": 1.0}
    kind, answer, both = served.job("simulate", data, conditions=conditions, **usual)
    assert kind == "done"
    assert min(answer["correlations"]) > 0.9
    assert len(both) == 2 * 4 * np.prod(answer["shape"])
    kind, fitted, _ = served.job("fit", data, conditions=conditions | {"above_topmost": 2.9}, **usual)
    assert kind == "done"
    assert fitted["conditions"]["above_topmost"] == pytest.approx(ABOVE, abs=0.15)
    for form, start in (("xyz", b"15\n"), ("sdf", b"\n"), ("json", b"{"), ("png", b"\x89PNG"), ("svg", b"<?xml")):
        kind, _, content = served.job("export", data, format=form, molecule=found, scan=record, model="base", depth=0.8)
        assert (kind, content[: len(start)]) == ("done", start)
        if form == "json":  # what the page was told is what it writes
            assert json.loads(content)["atoms"] == found["atoms"]
            assert json.loads(content)["scan"]["stated_size"] == record["size"]
    assert served.job("export", data, format="smiles", molecule=found, scan=record)[2] == b"Nc1ccc(Cl)cc1O\n"


def test_what_a_file_does_not_say_is_asked_for(served, tmp_path):
    np.savez(tmp_path / "a.npz", data=np.random.default_rng(0).random((32, 32, 6), np.float32))
    content = (tmp_path / "a.npz").read_bytes()
    kind, record, data = served.job("open", content, files=[["a.npz", len(content)]])
    assert kind == "done"
    assert record["lacks"] == ["size"]
    assert "how large" in record["why"]
    assert len(data) == 4 * 32 * 32 * 6
    kind, record, _ = served.job("open", content, files=[["a.npz", len(content)]], size=[8.0, 8.0])
    assert kind == "done"
    assert "lacks" not in record
    assert record["size"] == [8.0, 8.0]


def test_slices_are_what_they_are_whatever_lies_beside_them(tmp_path):
    """In a folder among other files, or uploaded from folders of their own under one name."""
    images = np.random.default_rng(0).random((8, 8, 3), np.float32)
    write_scan(Scan(images, (4.0, 4.0)), tmp_path / "a.gsf")
    (tmp_path / "a.gsf" / "notes.txt").write_text("Monday")
    for name in ("000.gsf", "001.gsf", "002.gsf"):
        content = (tmp_path / "a.gsf" / name).read_bytes().replace(b"AfmolSlice", b"AnotherOne")
        (tmp_path / "a.gsf" / name).write_bytes(content)
    record, _ = opened({"path": str(tmp_path / "a.gsf")}, b"", print)
    assert record["lacks"] == ["heights"]
    parts = [(tmp_path / "a.gsf" / f"00{k}.gsf").read_bytes() for k in range(3)]
    files = [["../scan.gsf", len(part)] for part in parts]
    record, data = opened({"files": files, "heights": [3, 2, 1]}, b"".join(parts), print)
    assert np.array_equal(np.frombuffer(data, "<f4").reshape(record["shape"]), images)


def test_a_slice_that_shows_nothing_is_left_out_of_the_comparison(stack, molecule):
    scan = read_scan(stack)
    scan = dataclasses.replace(scan, data=np.where(np.arange(scan.data.shape[2]) == 0, 0.0, scan.data))
    record = {"shape": list(scan.data.shape), "size": list(scan.size), "heights": None, "name": ""}
    request = {
        "scan": record,
        "molecule": recorded(molecule),
        "pixel": 0.5,
        "force": "lennard-jones",
        "tip": TIP_NAME,
        "step": 0.1,
    }
    request |= {"conditions": {"above_topmost": 3.0, "stiffness": 0.25, "charge": 1.0}}
    answer, both = simulated(request, scan.data.astype("<f4").tobytes(), print)
    assert answer["slices"] == list(range(1, scan.data.shape[2]))
    assert len(answer["correlations"]) == answer["shape"][2] == len(answer["slices"])
    assert len(both) == 2 * 4 * np.prod(answer["shape"])


def test_what_nobody_foresaw_is_one_sentence_and_no_stopped_process(monkeypatch):
    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr("afmol.serve.worker.signal.signal", lambda *_: None)
    monkeypatch.setattr("afmol.serve.worker.resource.setrlimit", lambda *_: None)

    def fails(*_):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(JOBS, "open", fails)
    for _ in range(2):
        ours.send(("open", {}, b""))
    thread = threading.Thread(target=_work, args=(theirs, 0))
    thread.start()
    said = [ours.recv() for _ in range(2)]
    ours.close()
    thread.join(20)
    assert said == [("mistake", "This is our mistake, please report it (RuntimeError: no such thing).")] * 2


def test_mistakes_are_one_sentence(served, stack):
    kind, said, _ = served.job("open", b"PK not a stack", files=[["broken.npz", 14]])
    assert kind == "mistake"
    assert "broken.npz" in said
    kind, said, _ = served.job("predict", b"1234", scan={"shape": [9, 9, 9], "size": [1, 1], "name": "x"}, model="base")
    assert kind == "mistake"
    assert "cut off" in said
    kind, said, _ = served.job("predict", b"")
    assert kind == "mistake"
    assert "reload" in said


def test_a_killed_worker_costs_its_job_alone(served, stack):
    import psutil

    served.job("open", path=str(stack))
    (worker,) = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)
    assert served.job("open", path=str(stack))[0] == "done"


def test_two_pages_at_once(served, stack):
    _, record, data = served.job("open", path=str(stack))
    answers = []
    ask = lambda: answers.append(served.job("predict", data, scan=record, model="base"))  # noqa: E731
    pages = [threading.Thread(target=ask) for _ in range(2)]
    for page in pages:
        page.start()
    for page in pages:
        page.join(60)
    assert [kind for kind, _, _ in answers] == ["done", "done"]
    assert answers[0][1] == answers[1][1]


def test_leaving_the_page_ends_its_job(served, stack):
    """A page that goes away while it waits does not keep others waiting."""
    _, record, _ = served.job("open", path=str(stack))
    large = {"shape": [900, 900, 10], "size": [90.0, 90.0], "name": "large"}
    payload = np.random.default_rng(0).random((900, 900, 10), np.float32).tobytes()
    connection = http.client.HTTPConnection(served.host, timeout=60)
    head = json.dumps({"job": "predict", "scan": large, "model": "base"}).encode()
    connection.request(
        "POST", f"{served.path}job", head + b"\n" + payload, BINARY | {"Origin": f"http://{served.host}"}
    )
    answer = connection.getresponse()
    said = answer.fp.readline()
    assert said  # it has begun
    connection.close()
    answer.close()
    start = time.monotonic()
    assert served.job("open", path=str(stack))[1]["shape"] == record["shape"]
    assert time.monotonic() - start < 30


def test_a_job_that_takes_too_long_is_stopped(stack):
    worker = Worker(seconds=0.0)
    *_, last = worker.do("open", {"path": str(stack)}, b"")
    assert last[0] == "mistake"
    assert "took more than" in last[1]
    assert worker.process is None


@pytest.mark.parametrize("refine", [True, False])
def test_what_is_read_is_tested_where_that_is_asked_for(stack, molecule, monkeypatch, refine):
    """A refinement takes a minute and more: the job says so before, and may take longer than others."""
    asked, said = {}, []
    monkeypatch.setattr("afmol.serve.jobs.predict", lambda scan, network, **how: asked.update(how) or molecule)
    record, data = opened({"path": str(stack)}, b"", said.append)
    request = {"scan": record, "model": "base", "refine": refine}
    answer, _ = JOBS["predict"](request, data, said.append)
    assert len(answer["atoms"]) == len(molecule)
    assert asked["refine"] is refine
    assert any("minute" in text for text in said) is refine
    worker = Worker(seconds=0.01)
    *_, last = worker.do("predict", request, data)
    assert f"more than {0.01 * (REFINING if refine else 1):g} s" in last[1]


def test_a_job_that_takes_too_much_memory_is_refused(stack):
    worker = Worker(memory=2**27)  # not enough for torch
    *_, last = worker.do("open", {"path": str(stack)}, b"")
    worker.stop()
    assert last[0] == "mistake"
    assert "memory" in last[1]


def test_an_address_that_is_taken_is_one_sentence(served):
    port = int(served.host.split(":")[1])
    with pytest.raises(ConfigError, match="another --port"):
        asyncio.run(serving([], "127.0.0.1", port, print))


def test_conditions_come_back(molecule):
    """Height, stiffness and charge of a simulated stack, from others, the molecule staying where it lies."""
    config, true = FitConfig("exponential", "co-charge"), Conditions(2.7, 0.4, 0.08)
    there = Molecule(molecule.positions + np.array([6.0, 6.0, 0.0]), molecule.numbers, molecule.bonds, molecule.charges)
    empty = Scan(np.random.default_rng(0).random((48, 48, 6)).astype(np.float32), (12.0, 12.0))
    scan = imaged(there, empty, config, true)
    found, alike = fit_conditions(there, scan, config, Conditions(3.0, 0.25, 0.02))
    assert min(alike) > 0.999
    assert found.above_topmost == pytest.approx(2.7, abs=0.03)
    assert found.stiffness == pytest.approx(0.4, abs=0.05)
    assert found.charge == pytest.approx(0.08, abs=0.01)


# In a browser


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver here (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def until(condition, seconds=60.0):
    """The first true value of a condition."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value


def test_a_person_mends_a_molecule(browser, stack, downloads, molecule):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def one(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def labels():
        return browser.execute_script(
            "return [...document.querySelectorAll('.atom')].map(a => a.getAttribute('aria-label'))"
        )

    def elements():
        return sorted(label.split()[0] for label in labels())

    def middle(index):
        circle = "document.querySelectorAll('.atom')[arguments[0]].querySelectorAll('circle')[1]"
        return np.array(
            browser.execute_script(f"const c = {circle}; return [+c.getAttribute('cx'), +c.getAttribute('cy')]", index)
        )

    def correlation():
        words = re.findall(r"Mean correlation (-?\d+\.\d+)", one("#simulated").text)
        return float(words[0]) if words else None

    def downloaded(name):
        return until(lambda: (downloads / name).exists() and (downloads / name).read_bytes())

    page = Served([])
    try:
        browser.get(page.address)
        until(lambda: one("body").get_attribute("data-ready"))
        one("#files").send_keys(str(stack))
        until(lambda: correlation() is not None)
        assert elements() == sorted(molecule.symbols)
        told = correlation()
        assert one("#problems").text == ""

        one("#formula").send_keys("C20H20" + Keys.ENTER)
        until(lambda: {*elements()} == {"C", "H"})
        one("[data-format=json]").click()
        assert json.loads(downloaded("chlorophenol.json"))["model"]["formula"] == "C20H20"
        one("#formula").send_keys(Keys.BACKSPACE * 6 + Keys.ENTER)
        until(lambda: elements() == sorted(molecule.symbols))
        until(lambda: correlation() == told)

        chlorine = next(i for i, label in enumerate(labels()) if label.startswith("Cl"))
        before = middle(chlorine)
        atom = browser.find_elements(By.CSS_SELECTOR, ".atom")[chlorine]
        ActionChains(browser).drag_and_drop_by_offset(atom, 110, 0).perform()
        until(lambda: middle(chlorine)[0] > before[0] + 0.5)
        until(lambda: correlation() < told - 0.005)  # simulated as edited
        one("#undo").click()
        until(lambda: np.allclose(middle(chlorine), before))
        until(lambda: abs(correlation() - told) < 1e-3)

        browser.execute_script("document.querySelectorAll('.atom')[arguments[0]].focus()", chlorine)
        second = browser.execute_script(
            "return document.querySelector('#inspector table').rows[1].cells[1].textContent"
        )
        ActionChains(browser).send_keys("2").perform()
        until(lambda: labels()[chlorine].split()[0] == second.split(",")[0])
        ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
        until(lambda: middle(chlorine)[0] == pytest.approx(before[0] + 0.05, abs=1e-3))
        ActionChains(browser).send_keys(Keys.DELETE).perform()
        until(lambda: len(labels()) == len(molecule) - 1)
        for _ in range(3):
            ActionChains(browser).key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()
        until(lambda: elements() == sorted(molecule.symbols))
        ActionChains(browser).key_down(Keys.CONTROL).send_keys("y").key_up(Keys.CONTROL).perform()
        until(lambda: labels()[chlorine].split()[0] == second.split(",")[0])
        one("#undo").click()

        def focus(index):
            browser.execute_script("document.querySelectorAll('.atom')[arguments[0]].focus()", index)

        def bonds():
            return len(browser.find_elements(By.CSS_SELECTOR, ".bond"))

        def atom(index):
            return browser.find_elements(By.CSS_SELECTOR, ".atom")[index]

        other = (chlorine + 1) % len(molecule)
        focus(other)  # what is clicked is what is meant, whatever had the focus
        ActionChains(browser).click(atom(chlorine)).send_keys(Keys.DELETE).perform()
        until(lambda: not any(label.startswith("Cl") for label in labels()))
        one("#undo").click()
        until(lambda: elements() == sorted(molecule.symbols))
        ring = bonds()
        for begin in ("#connect", None):  # by the button, and by the key, from an atom that has the focus
            ActionChains(browser).send_keys(Keys.ESCAPE).perform()
            if begin:
                one(begin).click()
                ActionChains(browser).click(atom(chlorine)).perform()
                ActionChains(browser).click(atom(other)).perform()
            else:
                focus(chlorine)
                ActionChains(browser).send_keys("b").perform()
                focus(other)
                ActionChains(browser).send_keys(Keys.ENTER).perform()
            until(lambda: abs(bonds() - ring) == 1)
            one("#undo").click()
            until(lambda: bonds() == ring)
        focus(chlorine)
        one("#inspector select").send_keys(Keys.ARROW_DOWN)
        until(lambda: not any(label.startswith("Cl") for label in labels()))
        assert browser.execute_script("return document.activeElement.tagName") == "SELECT"
        one("#undo").click()
        until(lambda: elements() == sorted(molecule.symbols))

        one("[data-format=xyz]").click()
        downloaded("chlorophenol.xyz")
        assert sorted(read_molecule(downloads / "chlorophenol.xyz").symbols) == sorted(molecule.symbols)
        until(lambda: one("#cancel").get_attribute("hidden"))
        one("#save").click()
        session = json.loads(downloaded("chlorophenol.afmol.json"))
        assert len(session["molecule"]["atoms"]) == len(molecule)

        browser.get(page.address)
        until(lambda: one("body").get_attribute("data-ready"))
        one("#files").send_keys(str(downloads / "chlorophenol.afmol.json"))
        until(lambda: len(labels()) == len(molecule))
        until(lambda: correlation() is not None and abs(correlation() - told) < 1e-3)
        assert "restored" in one("#status").text
        assert one("#undo").is_enabled() == bool(session["past"])

        # a session that is opened while another stack is read is not overwritten by what is found there
        chosen = {**session["molecule"], "atoms": session["molecule"]["atoms"][:3], "bonds": []}
        session |= {"molecule": chosen, "charges": None, "stack": {**session["stack"], "name": "another.npz"}}
        (downloads / "another.afmol.json").write_text(json.dumps(session))
        one("#files").send_keys(str(stack))
        one("#files").send_keys(str(downloads / "another.afmol.json"))
        until(lambda: one("#about").text.startswith("another.npz"))
        until(lambda: "restored" in one("#status").text and correlation() is not None)
        time.sleep(1.0)  # longer than a prediction takes
        assert one("#about").text.startswith("another.npz")
        assert len(labels()) == 3
        assert "restored" in one("#status").text

        one("#refine").click()
        until(lambda: "by simulation" in one("#status").text)
        one("#cancel").click()
        until(lambda: one("#status").text == "Cancelled.")
        assert len(labels()) == 3

        # nothing of a molecule is left beside a stack in which there is none
        noise = np.random.default_rng(0).standard_normal((64, 64, 10)).astype(np.float32)
        write_scan(Scan(noise, (16.0, 16.0)), downloads / "noise.npz")
        one("#files").send_keys(str(downloads / "noise.npz"))
        until(lambda: one("#status").text.startswith("No atom was found."))
        assert "Warning:" in one("#status").text
        assert labels() == []
        assert browser.find_elements(By.CSS_SELECTOR, "#strips *") == []
        assert one("#simulated").text == ""
        assert not one("#fit").is_enabled()

        for entry in browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                assert message["params"]["request"]["url"].startswith((page.address, "data:", "blob:")), message
        severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert severe == []
    finally:
        browser.get("about:blank")
        page.end()


def test_what_the_network_said_survives_the_page():
    """Warnings, and the elements of each atom; one that a person puts there is certain."""
    said = np.zeros((2, len(ELEMENTS)))
    said[0, [1, 8]], said[1, 3] = (0.6, 0.4), 1.0
    classes = np.stack([said[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1)
    molecule = Molecule(
        *(np.array([[0.0, 0, 0], [1.4, 0, 0]]), np.array([6, 8]), np.array([[0, 1]])),
        **{"class_probabilities": classes, "element_probabilities": said, "confidence": np.ones(2)},
        **{"bond_probabilities": np.ones(1), "warnings": ("it is made up.",)},
    )
    scan = Scan(np.zeros((2, 2, 2), np.float32), (4.0, 4.0))
    record = prediction_record(scan, molecule, "m", 0.8)
    again = molecule_of(record)
    assert prediction_record(scan, again, "m", 0.8) == record
    assert [list(changes.values()) for changes, _ in again.readings()] == [[], [ELEMENTS[8].symbol]]
    put = {"position": [3, 0, 0], "element": "N", "class": 2, "class_probabilities": [0, 0, 1, 0, 0], "confidence": 1}
    more = molecule_of({"atoms": [*record["atoms"], put], "bonds": record["bonds"]})
    assert more.alternatives()[2] == [("N", 1.0)]
    assert more.warnings == ()
