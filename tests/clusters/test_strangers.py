"""Other users of this machine: nothing that hepdask starts lets them in, and what it writes they cannot read."""

import contextlib
import http.client
import json
import os
import secrets
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from helpers.ordinary_user import ordinary_user

import hepdask
from hepdask import clusters
from hepdask.clusters import connection_file
from hepdask.clusters.batch_cluster import BatchCluster, job_script
from hepdask.clusters.tls import remove_certificate, write_certificate
from hepdask.distributed import RankOptions, local_allreduce, run
from hepdask.errors import ClusterError

NOBODY = 65534

# What somebody tries who knows nothing but the ports: in the clear, without a certificate, and with one of his own.
ATTACK = """
import asyncio, json, ssl, sys
from distributed.core import connect
from hepdask.clusters.tls import make_certificate, security_of

async def attack(port, way):
    scheme, how = ("tcp", {}) if way == "clear" else ("tls", dict(require_encryption=True))
    if way == "bare":
        how["ssl_context"] = ssl._create_unverified_context()
    if way == "own":
        how = security_of(make_certificate()).get_connection_args("client")
        how["ssl_context"].verify_mode = ssl.CERT_NONE
    comm = await connect(f"{scheme}://127.0.0.1:{port}", timeout=3, **how)
    await comm.write({"op": "identity", "reply": True})
    return [port, way, (await comm.read())["type"]]

async def main():
    ways = [(int(port), way) for port in sys.argv[1:] for way in ("clear", "bare", "own")]
    tries = [asyncio.create_task(attack(*way)) for way in ways]
    await asyncio.wait(tries, timeout=30)
    return [one.result() for one in tries if one.done() and not one.exception()]

import os
assert os.getuid() == 65534
print(json.dumps(asyncio.get_event_loop().run_until_complete(main())), flush=True)
os._exit(0)
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")


def as_nobody(*words, **options):
    """Run Python as another user."""
    words = [*ordinary_user(), sys.executable, "-P", *map(str, words)]
    root = str(Path(hepdask.__file__).parent.parent)
    options = {"env": {**os.environ, "PYTHONPATH": root}, "timeout": 240, "text": True, **options}
    done = subprocess.run(words, cwd="/", stdout=subprocess.PIPE, **options)
    assert done.returncode == 0
    return done.stdout


def listening():
    """Give the ports at which this process and those that it started listen."""
    me = psutil.Process()
    found = set()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    found.add(one.laddr.port)
    return found


@pytest.fixture(scope="module")
def standing():
    """A local cluster as `hepdask.session` starts it, and all the ports that it brought."""
    before = listening()
    with hepdask.session({"kind": "local", "workers": 1, "dashboard_port": 0}) as here:
        yield here.client, listening() - before


def test_nobody_else_comes_in_at_any_port_of_a_local_cluster(standing, caplog):
    client, ports = standing
    known = {int(client.scheduler.address.rpartition(":")[2])}
    for address, facts in client.scheduler_info()["workers"].items():
        known |= {int(where.rpartition(":")[2]) for where in (address, facts["nanny"])}
    assert len(known) == 3
    assert known < ports, "the others are those of figures"
    closed = {"kind": "local", "workers": 1, "dashboard_port": 0, "tls": False}
    before = listening()
    caplog.set_level("INFO", "hepdask")
    with clusters.connect(closed) as open_to_all:
        assert caplog.text.count("tls is off") == 1
        open_ports = listening() - before
        # an attack that cannot succeed would prove nothing
        came = json.loads(as_nobody("-c", ATTACK, *ports, *open_ports))
        scheduler = int(open_to_all.scheduler.address.rpartition(":")[2])
    assert {port for port, _, _ in came} <= open_ports
    assert {kind for _, _, kind in came} == {"Scheduler", "Worker", "Nanny"}
    assert [scheduler, "clear", "Scheduler"] in came


def test_the_pages_of_a_scheduler_can_only_be_read(standing):
    client, _ = standing
    host = urlsplit(client.dashboard_link).netloc

    def status(method, path):
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request(method, path)
        return connection.getresponse().status

    assert status("GET", "/json/identity.json") == 200
    worker = next(iter(client.scheduler_info()["workers"].values()))
    for path in (
        f"/proxy/{worker['services']['dashboard']}/127.0.0.1/metrics",
        "/api/v1/retire_workers", "/api/v1/get_workers", "/jupyter",
    ):  # fmt: skip
        assert status("GET", path) == 404
    for path in ("/json/identity.json", "/info/main/workers.html", "/status", "/metrics", "/health"):
        assert {status(method, path) for method in ("POST", "PUT", "DELETE", "PATCH")} <= {403, 404, 405, 501}


def test_the_address_is_enough_for_the_same_user_alone(standing, monkeypatch, tmp_path):
    client, _ = standing
    address = client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    file = connection_file.find(address)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]
    for way in (address, address.replace("127.0.0.1", "localhost"), str(file)):
        with clusters.connect(way) as own:
            assert own.submit(abs, -1, pure=False).result(60) == 1
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with pytest.raises(ClusterError, match=r"you have no connection file for it in .*--connection FILE"):
        clusters.connect(address).__enter__()
    wrong = tmp_path / "wrong.json"
    connection_file.write(wrong, address, str(tmp_path / "gone.pem"))
    with pytest.raises(ClusterError, match=r"gone\.pem cannot be used"):
        clusters.connect(str(wrong)).__enter__()


def test_connection_files_go_with_their_cluster(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    address = "tls://127.0.0.1:4321"
    with connection_file.announced(address, "-----BEGIN\n"):
        assert connection_file.find(address)
    assert connection_file.find(address) is None
    folder = tmp_path / "hepdask/clusters"
    ended = subprocess.Popen(["true"])
    ended.wait(30)
    stale = folder / f"127.0.0.1_4321@{socket.gethostname()}@{ended.pid}.json"
    elsewhere = folder / "192.0.2.1_4321@another@1.json"
    for path in (stale, elsewhere):
        path.write_text("{}")
    assert connection_file.find(address) is None
    assert not stale.exists()
    assert connection_file.find("tls://192.0.2.1:4321") == elsewhere
    folder.chmod(0o755)  # others could have put something there
    assert connection_file.find("tls://192.0.2.1:4321") is None


def test_no_folder_that_others_can_enter_is_used(monkeypatch, tmp_path, caplog):
    """No HOME, and a folder of that name that somebody else made before."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    planted = tmp_path / f"hepdask-{os.getuid()}"
    planted.mkdir()
    os.chown(planted, NOBODY, NOBODY)
    caplog.set_level("INFO", "hepdask")
    with connection_file.announced("tls://127.0.0.1:4321", "-----BEGIN\n"):
        assert list(planted.iterdir()) == []
    assert "no private folder can be written" in caplog.text


def test_certificates_and_logs_are_for_their_owner_alone(client, mark, stub, tmp_path):
    path = write_certificate(tmp_path / "jobs")
    logs = tmp_path / "logs"
    run(print, "a figure", client=client, ranks=1, options=RankOptions(env=stub | mark, log_dir=logs))
    for one in (path, path.parent, path.parent.parent, logs / "rank-0.log"):
        assert stat.S_IMODE(one.stat().st_mode) & 0o077 == 0, one
        assert subprocess.run(["cat", str(one)], user=NOBODY, group=NOBODY, extra_groups=[]).returncode == 1
    remove_certificate(path)
    assert not path.parent.exists()


@pytest.mark.parametrize("kind", ["slurm", "htcondor"])
def test_a_farm_is_closed_and_its_folder_of_logs_is_private(kind, monkeypatch, tmp_path):
    """Without the batch system's programs: scheduler and certificate are there before the first job."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    settings = {"kind": kind, "host": "127.0.0.1", "interface": "lo", "dashboard_port": 0}
    settings = clusters.load_cluster(settings | {"log_directory": str(tmp_path / "jobs"), "max_failures": 1})
    with BatchCluster(settings) as farm:
        assert farm.scheduler_address.startswith("tls://")
        port = farm.scheduler_address.rpartition(":")[2]
        assert json.loads(as_nobody("-c", ATTACK, port)) == []
        assert stat.S_IMODE((tmp_path / "jobs").stat().st_mode) == 0o700
        assert key_of(farm.certificate) not in farm.job_script()
        (tmp_path / "jobs").chmod(0o755)
        assert f"jobs/private-{os.getuid()}" in job_script(settings)
        assert stat.S_IMODE((tmp_path / f"jobs/private-{os.getuid()}").stat().st_mode) == 0o700
    assert list((tmp_path / "jobs").glob("certificate-*")) == []


def key_of(path):
    return path.read_text().splitlines()[1]


WITHOUT_ENTRY = """
import os, getpass, pathlib, sys
import hepdask.analysis.topology, matplotlib, dask.config, distributed
assert getpass.getuser() == str(os.getuid())
assert os.access(pathlib.Path.home(), os.R_OK)
assert os.access(matplotlib.get_cachedir(), os.W_OK)
if "NUMBA_CACHE_DIR" in os.environ:
    folder = pathlib.Path(os.environ["NUMBA_CACHE_DIR"])
    assert not folder.stat().st_mode & 0o077
print(*os.listdir())
"""


@pytest.mark.parametrize("home", [None, "/", "/proc/1", "/nowhere/at/all"])
def test_a_user_without_name_home_or_place_for_caches_can_work(home):
    """As in containers that run with a number which no passwd has."""
    words = [word.replace("nobody", "54321").replace("nogroup", "54321") for word in ordinary_user()]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(hepdask.__file__).parent.parent)}
    with tempfile.TemporaryDirectory() as folder:  # not one of pytest's, which others may not enter
        os.chown(folder, 54321, 54321)
        environment |= {"TMPDIR": folder} | ({"HOME": home} if home else {})
        done = subprocess.run(
            [*words, sys.executable, "-P", "-c", WITHOUT_ENTRY],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "~" not in done.stdout.split(), "a folder that is called so"
    assert "atplotlib" not in done.stderr


def test_another_user_is_no_rank_even_with_the_secret():
    secret = secrets.token_bytes(local_allreduce._SECRET_BYTES)
    name = f"hepdask-test-{secrets.token_hex(8)}"
    greet = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(chr(0) + sys.argv[1]);"
        "s.sendall(bytes.fromhex(sys.argv[2]) + (1).to_bytes(4, 'big')); print(s.recv(1) or 'closed')"
    )
    found = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen(2)
        accepting = threading.Thread(
            target=lambda: found.extend(local_allreduce._accept(listener, 2, secret))
        )
        accepting.start()
        assert as_nobody("-S", "-c", greet, name, secret.hex()).strip() == "closed"
        with local_allreduce._connect(1, f"\0{name}", secret) as mine:
            accepting.join(20)
            assert [one.getpeername() or True for one in found] == [True]
            found[0].sendall(b"x")
            assert mine.recv(1) == b"x"
    for one in found:
        one.close()
