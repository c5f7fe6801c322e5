"""Real batch systems on this machine: Slurm and HTCondor, run by an ordinary user, on loopback alone."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from helpers.waiting import until

CORES = 2  # of each of the three nodes
NODES = ("n1", "n2", "n3")
PATIENCE = 180  # seconds for what takes a few, on a machine that has other things to do


def free_ports(count):
    """Find ports where nothing listens, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def output(*words, check=True, cwd=None):
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


class Daemons:
    """Processes in the foreground, each with its log; stopped in the reverse order."""

    def __init__(self, folder):
        self.folder = folder
        self.running = {}

    def start(self, name, *words):
        with (self.folder / f"{name}.stdout").open("a") as log:
            self.running[name] = subprocess.Popen([*map(str, words)], stdout=log, stderr=log)

    def stop(self, name, how=signal.SIGTERM):
        process = self.running.pop(name)
        with suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)

    def stop_all(self, how=signal.SIGTERM):
        for name in reversed(list(self.running)):
            self.stop(name, how)


class Listeners(threading.Thread):
    """Notes on which addresses a farm's daemons, its jobs and the commands of the tests listen, and what they are.

    They are known by the configuration of the farm, which all of them have in their environment.

    Attributes
    ----------
    found : set of (str, str)
        Address, and the command line of who listens there.
    """

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.mark = str(folder)
        self.found = set()
        self._over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join()

    def run(self):
        while not self._over.wait(1):
            for process in processes_of(self.mark):
                with suppress(psutil.Error):
                    addresses = {c.laddr.ip for c in process.net_connections("inet") if _listens(c)}
                    self.found |= {(address, " ".join(_command(process))) for address in addresses}


def _listens(connection):
    if connection.type == socket.SOCK_DGRAM:
        return not connection.raddr
    return connection.status == psutil.CONN_LISTEN


def processes_of(mark):
    """Give the processes with a value in their environment that this is part of."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(mark in value for value in process.environ().values()):
                found.append(process)
    return found


def family(pid):
    """Give a process and all it started."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


class Slurm:
    """A controller and three nodes of two cores."""

    kind = "slurm"
    programs = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")

    def __init__(self, folder):
        self.folder = folder
        self.daemons = Daemons(folder)
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        controller, *self.ports = free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        user = output("id", "-un").strip()
        settings = {
            "ClusterName": "tests", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmctldPort": controller,
            "SlurmUser": user, "SlurmdUser": user, "AuthType": "auth/munge", "CredType": "cred/munge",
            "AuthInfo": f"socket={folder}/munge.socket", "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "StateSaveLocation": f"{folder}/state", "SlurmdSpoolDir": f"{folder}/spool-%n",
            "SlurmctldPidFile": f"{folder}/slurmctld.pid", "SlurmdPidFile": f"{folder}/slurmd-%n.pid",
            "SlurmctldLogFile": f"{folder}/slurmctld.log", "SlurmdLogFile": f"{folder}/slurmd-%n.log",
            "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "MpiDefault": "none",
            "JobAcctGatherType": "jobacct_gather/none", "AccountingStorageType": "accounting_storage/none",
            "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core_Memory",
            "SlurmdParameters": "config_overrides", "PropagateResourceLimits": "NONE", "ReturnToService": 2,
            "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0",
            # a job that is being ended counts as running: it must not do so for as long as `lost_after`
            "KillWait": 2, "MinJobAge": 60, "SlurmdTimeout": 60, "MessageTimeout": 10,
        }  # fmt: skip
        lines = [f"{key}={value}" for key, value in settings.items()]
        lines += [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CORES} Boards=1 "
            f"SocketsPerBoard=1 CoresPerSocket={CORES} ThreadsPerCore=1 RealMemory=16000 State=UNKNOWN"
            for node, port in zip(NODES, self.ports, strict=True)
        ]
        lines += [f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"]
        lines += [f"PartitionName=short Nodes={','.join(NODES)} MaxTime=5 State=UP"]
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")

    def start(self):
        folder = self.folder
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.daemons.start(
            "munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        until((folder / "munge.socket").exists, 20, "munged")
        self.start_controller()
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
            self.start_node(node)
        idle = lambda: len(output("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split()) == 3  # noqa: E731
        until(idle, PATIENCE, f"Slurm's nodes, see {folder}")

    def start_controller(self):
        self.daemons.start("slurmctld", "slurmctld", "-D")
        until(lambda: "UP" in output("scontrol", "ping", check=False), PATIENCE, "slurmctld")

    def stop_controller(self):
        self.daemons.stop("slurmctld", signal.SIGKILL)

    def start_node(self, node):
        self.daemons.start(node, "slurmd", "-D", "-N", node)

    def stop_node_of(self, job):
        """Kill a node with everything on it, as a power cut does; return what brings it back."""
        node = re.search(r"NodeList=(n\d)", output("scontrol", "show", "job", job))[1]
        # steps have a session of their own, and are told by the node they belong to
        steps = [p for p in psutil.process_iter() if f"[{job}.batch]" in " ".join(_command(p))]
        victims = [one for step in steps for one in family(step.pid)]
        self.daemons.stop(node, signal.SIGKILL)
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        return lambda: self.start_node(node)

    def stop(self):
        if "slurmctld" in self.daemons.running:
            output("scancel", "--user", str(os.getuid()), check=False)
            gone = lambda: not output("squeue", "-h", "--user", str(os.getuid()), check=False).strip()  # noqa: E731
            with suppress(AssertionError):
                until(gone, 20, "the jobs end")
        self.daemons.stop_all()

    def kill(self, job):
        output("scancel", job)

    def kill_hard(self, job):
        """Kill a job without a moment to tidy up."""
        output("scancel", "--signal=KILL", "--full", job)

    def living(self):
        """Name the jobs that wait or run."""
        return output("squeue", "-h", "-o", "%A %j %T").splitlines()

    def hold(self, job):
        output("scontrol", "requeuehold", job)

    def vacate(self, job):
        """Put a running job back into the queue; Slurm lets it wait for two minutes, which are cut short.

        Not below a few seconds: what the job was allowed is revoked up to the second, and a job that starts again
        within it is refused ("Job credential revoked").
        """
        output("scontrol", "requeue", job)
        waits = lambda: "Reason=BeginTime" in output("scontrol", "show", "job", job)  # noqa: E731
        until(waits, PATIENCE, "the job waits")
        time.sleep(2)
        output("scontrol", "update", f"JobId={job}", "StartTime=now")

    def shorten(self, job):
        """Let a job's wall time be over at Slurm's next look; give the moment when it is."""
        output("scontrol", "update", f"JobId={job}", "EndTime=now")
        return time.monotonic()

    def close(self):
        """Take no more jobs."""
        output("scontrol", "update", "PartitionName=main", "State=INACTIVE")

    def open(self):
        """Take jobs again."""
        output("scontrol", "update", "PartitionName=main", "State=UP")

    def shown(self):
        """Give all that Slurm shows of the jobs, with their scripts."""
        jobs = output("squeue", "-h", "-o", "%A").split()
        scripts = [output("scontrol", "write", "batch_script", job, "-") for job in jobs]
        return output("scontrol", "show", "--details", "job") + "".join(scripts)

    def exists(self, job):
        """Tell whether a job is waiting or running."""
        return any(line.strip() == job for line in output("squeue", "-h", "-o", "%A").splitlines())


def _command(process):
    with suppress(psutil.Error):
        return process.cmdline()
    return []


class HTCondor:
    """A central manager, a schedd, and a startd of six cores."""

    kind = "htcondor"
    programs = ("condor_master", "condor_q", "condor_submit")

    def __init__(self, folder):
        self.folder = folder
        self.daemons = Daemons(folder)
        self.environment = {"CONDOR_CONFIG": str(folder / "condor_config")}
        release = Path(shutil.which("condor_q")).parent.parent
        (port,) = free_ports(1)
        for name in ("log", "spool", "execute", "lock", "run", "tokens", "passwords"):
            (folder / name).mkdir()
        settings = {
            "RELEASE_DIR": release, "LOCAL_DIR": folder, "BIN": "$(RELEASE_DIR)/bin", "SBIN": "$(RELEASE_DIR)/sbin",
            "LIBEXEC": "$(RELEASE_DIR)/libexec/condor", "LIB": "$(RELEASE_DIR)/lib/condor",
            "SHARE": "$(RELEASE_DIR)/share/condor", "LOCK": f"{folder}/lock", "RUN": f"{folder}/run",
            "LOG": f"{folder}/log", "SPOOL": f"{folder}/spool", "EXECUTE": f"{folder}/execute",
            "LOCAL_CONFIG_FILE": "", "LOCAL_CONFIG_DIR": "", "CONDOR_HOST": "127.0.0.1",
            "NETWORK_INTERFACE": "127.0.0.1", "BIND_ALL_INTERFACES": False, "ENABLE_IPV6": False,
            "SHARED_PORT_PORT": port, "COLLECTOR_HOST": f"127.0.0.1:{port}", "UID_DOMAIN": "localhost",
            "FILESYSTEM_DOMAIN": "localhost",
            "DAEMON_LIST": "MASTER, COLLECTOR, NEGOTIATOR, SCHEDD, STARTD, SHARED_PORT",
            "SEC_DEFAULT_AUTHENTICATION": "REQUIRED", "SEC_DEFAULT_AUTHENTICATION_METHODS": "FS",
            "SEC_CLIENT_AUTHENTICATION_METHODS": "FS", "SEC_TOKEN_DIRECTORY": f"{folder}/tokens",
            "SEC_TOKEN_SYSTEM_DIRECTORY": f"{folder}/tokens", "SEC_PASSWORD_DIRECTORY": f"{folder}/passwords",
            **{f"ALLOW_{what}": "*" for what in ("READ", "WRITE", "DAEMON", "NEGOTIATOR", "ADMINISTRATOR")},
            "NUM_CPUS": CORES * len(NODES), "MEMORY": 48000, "START": True, "SUSPEND": False, "PREEMPT": False,
            "KILL": False, "BASE_CGROUP": "", "RUNBENCHMARKS": 0, "JOB_START_DELAY": 0, "POLLING_INTERVAL": 1,
            "SCHEDD_INTERVAL": 1, "SCHEDD_MIN_INTERVAL": 1, "NEGOTIATOR_INTERVAL": 1, "NEGOTIATOR_MIN_INTERVAL": 1,
            "NEGOTIATOR_CYCLE_DELAY": 1, "UPDATE_INTERVAL": 2, "STARTER_UPDATE_INTERVAL": 2,
            "SHADOW_QUEUE_UPDATE_INTERVAL": 2, "MASTER_BACKOFF_CEILING": 3, "PERIODIC_EXPR_INTERVAL": 2,
        }  # fmt: skip
        lines = [f"{key} = {value}" for key, value in settings.items()]
        (folder / "condor_config").write_text(
            "\n".join([*lines, "use FEATURE: PartitionableSlot(1,100%)", ""])
        )

    def start(self):
        self.daemons.start("condor", "condor_master", "-f", "-pidfile", self.folder / "master.pid")
        self.wait_for_pool()

    def wait_for_pool(self):
        there = lambda: output("condor_status", "-af", "Name", check=False).strip()  # noqa: E731
        until(there, PATIENCE, f"HTCondor's slots, see {self.folder}/log")
        until(lambda: "Total for query" in output("condor_q", check=False), PATIENCE, "HTCondor's queue")

    def _find(self, name):
        found = [p for p in family(self.daemons.running["condor"].pid) if name in " ".join(_command(p)[:1])]
        assert found, f"no {name} is running"
        return found[0]

    def stop_controller(self):
        """Kill the schedd; the master starts it again."""
        self._find("condor_schedd").kill()

    def start_controller(self):
        self.wait_for_pool()

    def stop_node_of(self, job):
        """Kill the startd with everything on it, as a power cut does; the master starts it again."""
        for victim in reversed(family(self._find("condor_startd").pid)):
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        return self.wait_for_pool

    def stop(self):
        output("condor_rm", "-all", check=False)
        self.daemons.stop_all(signal.SIGQUIT)  # the fast shutdown of all its daemons

    def kill(self, job):
        output("condor_rm", job)

    def kill_hard(self, _job):
        """Kill the only driver without a moment to tidy up."""
        running = processes_of(str(self.folder))
        (driver,) = (p for p in running if "hepdask run" in " ".join(_command(p)))
        driver.kill()

    def living(self):
        """Name the jobs that wait or run."""
        return output("condor_q", "-af", "ClusterId", "JobBatchName", "JobStatus").splitlines()

    def hold(self, job):
        output("condor_hold", job)

    def vacate(self, job):
        output("condor_vacate_job", job)

    def shorten(self, job):
        """Give the moment when a job's wall time is over; that of the tests is short already."""
        began, limit = output("condor_q", job, "-af", "EnteredCurrentStatus", "MaxRuntime").split()
        return time.monotonic() + int(began) + int(limit) - time.time()

    def close(self):
        """Take no more jobs."""
        with (self.folder / "condor_config").open("a") as config:
            config.write("SUBMIT_REQUIREMENT_NAMES = Open\nSUBMIT_REQUIREMENT_Open = False\n")
        output("condor_reconfig", "-schedd")

    def open(self):
        """Take jobs again."""
        with (self.folder / "condor_config").open("a") as config:
            config.write("SUBMIT_REQUIREMENT_Open = True\n")
        output("condor_reconfig", "-schedd")

    def shown(self):
        """Give all that HTCondor shows of the jobs."""
        return output("condor_q", "-long")

    def exists(self, job):
        """Tell whether a job is waiting, running or held."""
        return bool(output("condor_q", job, "-af", "JobStatus").strip())
