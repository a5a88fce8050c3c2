"""Hosts in network namespaces of one machine, joined by a bridge, which can be killed and cut off.

A holder process keeps the network of each host, so that its address stays when all processes of the
host are killed. A program runs in a PID namespace of its host: when its first process is killed,
the kernel kills all others in it with SIGKILL.
"""

import os
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

BRIDGE = "10.77.0.254"


def address(number):
    return f"10.77.0.{number}"


def why_no_hosts():
    """Why this machine cannot have hosts in namespaces; None if it can."""
    for tool in ("ip", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"the command {tool} is not installed"
    asked = ["unshare", "--net", "--pid", "--fork", "--mount-proc"]
    asked += ["ip", "link", "add", "name", "here", "type", "veth", "peer", "name", "there"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return f"{' '.join(asked)}: {done.stderr.strip()}" if done.returncode else None


class Hosts:
    """Hosts 1, 2 and 3, and the machine of the bridge, number 0, which is never cut off."""

    def __init__(self, stack, logs):
        self._stack = stack
        self.logs = logs
        self._networks = [self._network()]
        self._on(0, "ip", "link", "add", "name", "bridge", "type", "bridge")
        self._on(0, "ip", "addr", "add", f"{BRIDGE}/24", "dev", "bridge")
        self._on(0, "ip", "link", "set", "bridge", "up")
        for number in (1, 2, 3):
            network = self._network()
            self._networks.append(network)
            peer = ["peer", "name", "eth0", "netns", str(network)]
            self._on(0, "ip", "link", "add", f"host{number}", "type", "veth", *peer)
            self._on(0, "ip", "link", "set", f"host{number}", "master", "bridge", "up")
            self._on(number, "ip", "addr", "add", f"{address(number)}/24", "dev", "eth0")
            self._on(number, "ip", "link", "set", "eth0", "up")
        self._programs = {}

    def start(self, number, command, **environment):
        """Start a program on a host; what it prints is appended to its log."""
        inside = [*self._inside(number), "unshare", "--pid", "--fork", "--kill-child"]
        with self.log(number).open("ab") as log:
            self._programs[number] = self._started(
                [*inside, "--mount-proc", *command],
                env=os.environ | environment,
                stdout=log,
                stderr=log,
            )

    def log(self, number):
        return self.logs / f"host_{number}.txt"

    def status(self, number):
        """The exit status of a host's program; None while it runs."""
        return self._programs[number].poll()

    def kill(self, number):
        """Kill all processes of a host's program with SIGKILL."""
        self._programs[number].kill()  # --kill-child passes it to the first one in the namespace
        self._programs[number].wait()

    def cut(self, number):
        self._on(0, "ip", "link", "set", f"host{number}", "down")

    def mend(self, number):
        self._on(0, "ip", "link", "set", f"host{number}", "up")

    def _network(self):
        """Make a network namespace and return the process that holds it."""
        command = ["unshare", "--net", "sh", "-c", "ip link set lo up; echo; exec sleep 1000000"]
        holder = self._started(command, stdout=subprocess.PIPE)
        holder.stdout.readline()
        return holder.pid

    def _started(self, command, **options):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def _inside(self, number):
        return ["nsenter", "--net", "--target", str(self._networks[number])]

    def _on(self, number, *command):
        subprocess.run([*self._inside(number), *command], check=True)


@contextmanager
def hosts(logs):
    """Three hosts, whose logs are in this folder; they are gone at the end of the context."""
    with ExitStack() as stack:
        yield Hosts(stack, Path(logs))
