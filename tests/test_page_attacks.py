"""Attacks on a real `make up`: by a page in a real browser whose user has logged in, and by another user.

What they are after: runs of their own (and with a `command`, code on the workers), events that move automations, and
anything that they can read.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from selenium import webdriver

from prefect_regional_diffusion.deployments import background_processes as processes
from prefect_regional_diffusion.deployments import up
from prefect_regional_diffusion.deployments.up import StartError, wait_for_server
from prefect_regional_diffusion.flows.server.local import auth_string_of, use_auth_string
from tests.browsing import Page, needs_browser, opened_browser
from tests.machine import KEYS, Machine
from tests.processes import post

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("machine"), pytest.mark.timeout(900)]

ATTACK = """
const [api, command, id, done] = arguments, socket = api.replace('http', 'ws'), read = {};
const json = {'Content-Type': 'application/json'};
async function attempt(name, make) {
    try {
        const answer = await Promise.race([make(), new Promise((_, no) => setTimeout(() => no('nothing'), 5000))]);
        read[name] = typeof answer == 'string' ? answer : `${answer.status} ${answer.type} ${await answer.text()}`;
    } catch (error) { read[name] = 'refused: ' + error; }
}
function told(path, protocols, ...messages) {
    return new Promise((yes, no) => {
        const link = new WebSocket(socket + path, protocols);
        link.onopen = () => {
            messages.forEach(message => link.send(JSON.stringify(message)));
            setTimeout(() => yes('open'), 3000);
        };
        link.onmessage = message => yes('told ' + message.data);
        link.onclose = link.onerror = () => no('closed');
    });
}
const event = {event: 'planted', resource: {'prefect.resource.id': 'planted.event'}, id,
               occurred: new Date().toISOString(), payload: {}, related: []};
const auth = {type: 'auth', token: null}, filter = {type: 'filter', filter: {}};
(async () => {
    await attempt('read', () => fetch(api + '/deployments/filter', {method: 'POST', headers: json, body: '{}'}));
    for (const found of JSON.parse((/\\[.*\\]/s.exec(read['read']) || ['[]'])[0]))
        await attempt('run ' + found.name, () => fetch(`${api}/deployments/${found.id}/create_flow_run`,
            {method: 'POST', headers: json, body: JSON.stringify({job_variables: {command}})}));
    await attempt('token', () => fetch(api + '/csrf-token?client=planted'));
    await attempt('settings', () => fetch(api + '/admin/settings'));
    await attempt('signed', () => fetch(api + '/admin/settings', {headers: {Authorization: 'Basic YWRtaW46cGFzcw=='}}));
    await attempt('health', () => fetch(api + '/health'));
    await attempt('where', () => fetch(api.replace('/api', '/ui-settings')));
    for (const type of ['text/plain', '']) {  // without preflight: the answer is not to be read, but was it done?
        const body = new Blob([JSON.stringify({name: 'planted_' + (type ? 'text' : 'bare'), value: 1})], {type});
        await attempt('blind ' + type, () => fetch(api + '/variables/', {method: 'POST', mode: 'no-cors', body}));
    }
    const form = document.createElement('form'), frame = document.createElement('iframe');
    Object.assign(frame, {name: 'hidden'});
    Object.assign(form, {method: 'POST', action: api + '/variables/', enctype: 'text/plain', target: 'hidden'});
    const field = document.createElement('input');
    Object.assign(field, {name: '{"name": "planted_form", "value": "', value: '"}'});
    form.append(field);
    document.body.append(frame, form);
    form.submit();
    for (const [kind, protocols] of [['old', []], ['new', ['prefect']]]) {
        const first = kind == 'new' ? [auth] : [];
        await attempt('events in ' + kind, () => told('/events/in', protocols, ...first, event));
        await attempt('events out ' + kind, () => told('/events/out', protocols, ...first, filter));
        await attempt('logs out ' + kind, () => told('/logs/out', protocols, ...first, filter));
    }
    done(read);
})();
"""

TRIES = """
import base64, json, os, sys, urllib.error, urllib.request
api, folder, pid = sys.argv[1:]
"".encode("idna")  # the rest of Python may not be there for others to read
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
got = {}
for path in [folder + "/auth", folder + "/server.log", folder + "/server.json", folder + "/prefect/prefect.db", folder,
             f"/proc/{pid}/environ"]:
    try:
        got[path] = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(40).decode("latin-1")
    except OSError as error:
        got[path] = None
guesses = [None, "", ":", "admin:", "admin:pass", "admin:admin"]
for guess in guesses:
    variable = {"name": "planted", "value": 1}
    questions = {"deployments/filter": {}, "flow_runs/filter": {}, "variables/": variable, "events": []}
    for path, body in questions.items():
        headers = {"Content-Type": "application/json"}
        if guess is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(guess.encode()).decode()
        request = urllib.request.Request(f"{api}/{path}", json.dumps(body).encode(), headers, method="POST")
        try:
            got[f"{guess} {path}"] = urllib.request.urlopen(request, timeout=20).status
        except urllib.error.HTTPError as error:
            got[f"{guess} {path}"] = error.code
print(json.dumps(got))
"""


@pytest.fixture(scope="module")
def browser(shared_machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser whose user has logged in; a name of the attacker's leads to this machine."""
    with opened_browser(
        tmp_path_factory.mktemp("chromium"), "--host-resolver-rules=MAP evil.example 127.0.0.1"
    ) as opened:
        shared_machine.ensure_up()
        Page(opened).log_in(shared_machine.ui, shared_machine.auth_string)
        yield opened


@contextmanager
def attackers_site() -> Generator[int]:
    """A web server with an empty page; yields its port."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><body>a harmless page")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site.server_port
        site.shutdown()


def runs_of_others(machine: Machine) -> set[str]:
    """The ids of runs that are not the reaper's."""
    reaper, asked = machine.deployment("reap"), {"sort": "EXPECTED_START_TIME_DESC"}
    runs = post(machine.api, "flow_runs/filter", asked)
    return {run["id"] for run in runs if run["deployment_id"] != reaper["id"]}


@pytest.fixture
def planted(machine: Machine) -> Callable[[], list[Any]]:
    """What attackers have left on the server since the test began: runs (not the reaper's), variables, events."""
    before = runs_of_others(machine)

    def found() -> list[Any]:
        variables = post(machine.api, "variables/filter", {})
        events = post(machine.api, "events/filter", {"filter": {"event": {"name": ["planted"]}}})["events"]
        return [*(runs_of_others(machine) - before), *variables, *events]

    return found


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("host", ["evil.localhost", "127.0.0.1", "evil.example", "evil.example, rebound"])
def test_a_page_can_neither_run_nor_read_nor_write(
    host: str, machine: Machine, browser: webdriver.Chrome, planted: Callable[[], list[Any]]
) -> None:
    """From another name, another port of ours, and a name that points to this machine's own port (DNS rebinding)."""
    pwned = machine.folder.parent / "PWNED"
    with attackers_site() as port:
        name, _, rebound = host.partition(", ")
        site = f"http://{name}:{machine.port if rebound else port}"
        browser.get(f"{site}/api/health")
        browser.set_script_timeout(120)
        api = f"{site}/api" if rebound else machine.api
        read = browser.execute_async_script(ATTACK, api, f"touch {pwned}", str(uuid4()))
    answers = [answer for answer in read.values() if not answer.startswith(("refused: ", "0 opaque", "403 "))]
    assert answers == [], read
    assert len(read) >= 14
    time.sleep(5)  # a worker asks every second
    assert not pwned.exists()
    assert planted() == []


@pytest.mark.browser
@needs_browser
def test_a_page_cannot_show_the_ui_in_a_frame(machine: Machine, browser: webdriver.Chrome) -> None:
    """There its visitor could be made to click."""
    with attackers_site() as port:
        browser.get(f"http://127.0.0.1:{port}/")
        script = """
            const frame = document.createElement('iframe');
            frame.onload = () => setTimeout(() => arguments[1](frame.contentDocument === null), 2000);
            frame.src = arguments[0]; document.body.append(frame);
        """
        browser.execute_async_script(script, f"{machine.ui}/v2/dashboard")
        browser.switch_to.frame(0)
        shown = browser.execute_script("return document.body.innerText + location.href")
        browser.switch_to.default_content()
    assert "Dashboard" not in shown
    assert shown.endswith("chrome-error://chromewebdata/"), shown


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_ui_itself_works_after_the_auth_string_was_typed_once(
    version: str, machine: Machine, browser: webdriver.Chrome
) -> None:
    """It reads, and it writes: with CSRF protection, and from its own address."""
    page, base = Page(browser), machine.ui + ("/v2" if version == "v2" else "")
    page.open(f"{base}/deployments", "recurring")
    (found,) = post(machine.api, "deployments/filter", {"deployments": {"name": {"any_": ["recurring"]}}})
    # The UI's own way to ask: its address, the auth string that it keeps, and a token.
    script = """
        const [id, done] = arguments, client = crypto.randomUUID();
        const Authorization = 'Basic ' + localStorage['prefect-password'];
        const headers = {'Content-Type': 'application/json', Authorization};
        fetch('/api/csrf-token?client=' + client, {headers}).then(a => a.json()).then(({token}) =>
            fetch(`/api/deployments/${id}`, {method: 'PATCH', body: JSON.stringify({description: 'ours'}),
                headers: {...headers, 'Prefect-Csrf-Token': token, 'Prefect-Csrf-Client': client}}))
        .then(a => done(a.status), error => done(String(error)));
    """
    status = None
    for _ in range(10):  # a server on SQLite that is busy answers 503
        status = browser.execute_async_script(script, found["id"])
        if status != 503:
            break
        time.sleep(1)
    assert status == 204
    page.open(f"{machine.ui.replace('127.0.0.1', 'localhost')}/v2/deployments", "recurring")
    assert browser.current_url.startswith(machine.ui), "localhost is another origin, which may be somebody else's"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_another_user_gets_in_nowhere(machine: Machine, planted: Callable[[], list[Any]]) -> None:
    server = processes.running(machine.folder, "server")
    assert server is not None
    arguments = [machine.api, str(machine.folder), str(server.pid)]
    command = [sys.executable, "-I", "-c", TRIES, *arguments]
    done = subprocess.run(command, cwd="/", env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    answers = {name: answer for name, answer in got.items() if isinstance(answer, int)}
    assert len(answers) == 24
    assert set(answers.values()) <= {401, 403}, answers
    assert {name: content for name, content in got.items() if name not in answers and content is not None} == {}
    assert planted() == []


def test_a_program_needs_the_auth_string_and_a_token(machine: Machine) -> None:
    """Also this user's own."""
    right = {"Authorization": "Basic " + base64.b64encode(machine.auth_string.encode()).decode()}
    for headers, status in ({}, 403), ({"Authorization": "Basic YWRtaW46cGFzcw=="}, 403), (right, 403):
        question = urllib.request.Request(f"{machine.api}/flow_runs/filter", b"{}", headers)
        with pytest.raises(urllib.error.HTTPError, match=str(status)):
            urllib.request.urlopen(question)
    for path in ("deployments/name/render/render", "csrf-token?client=planted", "admin/settings"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{machine.api}/{path}")
        assert urllib.request.urlopen(urllib.request.Request(f"{machine.api}/{path}", headers=right)).status == 200


@pytest.mark.parametrize(
    "variables", [{"command": "touch PWNED"}, {"env": {"REGIONAL_OUT": "/tmp"}}, {"image": "evil"}]
)
def test_not_even_with_the_auth_string_is_a_command_set(variables: dict[str, Any], machine: Machine) -> None:
    """Where Prefect's server does not look, the worker does: at runs that are made without asking their deployment."""
    pwned = machine.folder.parent / "PWNED"
    if "command" in variables:
        variables = {"command": f"touch {pwned}"}
    (render,) = post(machine.api, "deployments/filter", {"deployments": {"name": {"any_": ["render"]}}})
    order = {"job_variables": variables, "parameters": {"job": {"prompt": "a blue background"}}}
    with pytest.raises(urllib.error.HTTPError, match="422"):
        post(machine.api, f"deployments/{render['id']}/create_flow_run", order)
    order |= {"flow_id": render["flow_id"], "deployment_id": render["id"], "work_pool_name": "gpu"}
    order |= {"state": {"type": "SCHEDULED"}}
    run = post(machine.api, "flow_runs/", order)["id"]
    try:
        machine.wait_for("the worker's refusal", lambda: machine.run(run)["state_type"] == "CRASHED", 60)
        assert not pwned.exists()
    finally:
        machine.delete(f"flow_runs/{run}")


def test_the_server_has_no_keys_and_no_command_line_has_secrets(machine: Machine) -> None:
    started = {part: processes.running(machine.folder, part) for part in ("server", "worker-gpu", "worker-control")}
    for part, process in started.items():
        assert process is not None
        for one in [process, *process.children(recursive=True)]:
            try:
                command, variables = " ".join(one.cmdline()), one.environ()
            except psutil.NoSuchProcess:  # it has ended meanwhile
                assert one != process
                continue
            assert machine.auth_string not in command
            secrets = [name for name, value in variables.items() if value in KEYS.values()]
            # Workers hand them on to what draws.
            assert part != "server" or not secrets
            assert part == "server" or "AWS_SECRET_ACCESS_KEY" in secrets


def test_what_is_kept_is_for_its_user_alone(machine: Machine) -> None:
    kept = [machine.folder, *machine.folder.rglob("*")]
    open_to_others = {str(path): oct(path.stat().st_mode) for path in kept if path.stat().st_mode & 0o077}
    assert len(kept) > 10
    assert open_to_others == {}
    assert machine.auth_string not in machine.logs()
    assert len(machine.auth_string) >= 32


def test_submit_tells_no_stranger_the_auth_string(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found through the server's own process: another's at its port, or at another address, is none."""
    with attackers_site() as port:
        assert auth_string_of(f"http://127.0.0.1:{port}/api") is None
        # Not even when it claims to be such a server.
        claim = {processes.OWNER_TAG: str(machine.folder), processes.PART: "server"}
        with subprocess.Popen([sys.executable, "-c", "input()"], env=os.environ | claim, stdin=subprocess.PIPE):
            assert auth_string_of(f"http://127.0.0.1:{port}/api") is None
    assert auth_string_of(machine.api) == machine.auth_string
    for other in (
        "http://localhost:",
        "http://[::1]:",
        "http://192.0.2.1:",
        "https://127.0.0.1:",
        "http://evil@localhost:",
    ):
        assert auth_string_of(f"{other}{machine.port}/api") is None
    # By that name a stranger at ::1 would be asked first.
    monkeypatch.setenv("PREFECT_API_URL", machine.api.replace("127.0.0.1", "localhost"))
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}):
        use_auth_string()
    assert os.environ["PREFECT_API_URL"] == machine.api
    assert os.environ["PREFECT_API_AUTH_STRING"] == machine.auth_string


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # so that it outlives us
def test_a_server_that_is_not_ours_is_told_nothing_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger takes the port while our server still starts, and answers to the question whether it is there."""
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    with attackers_site() as port:
        assert processes.start(tmp_path, "server", waiting, os.environ, tmp_path, port)
        try:
            with pytest.raises(StartError, match="the server did not start"):
                wait_for_server(up.LocalStack(tmp_path, port), seconds=3)
        finally:
            processes.stop(tmp_path, "server")
