"""The rules and recipes of docs/security.md are run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
COMMAND = Path(sys.executable).with_name("nas-attn")


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def in_a_network_of_its_own(*command, text=None):
    """A command in a network namespace; skips where this user may not have one."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network namespace takes root")
    return subprocess.run(["unshare", "-n", *command], input=text, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("rules", blocks("nft"))
def test_the_rules_of_nft_parse(rules):
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed")
    done = in_a_network_of_its_own("nft", "-c", "-f", "-", text=rules)
    assert done.returncode == 0, done.stderr
    assert in_a_network_of_its_own("nft", "-c", "-f", "-", text=rules.replace("drop", "dorp")).returncode != 0


@pytest.mark.parametrize("program", ["iptables-restore", "ip6tables-restore"])
def test_the_rules_of_iptables_parse(program):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    (rules,) = blocks("iptables")
    done = in_a_network_of_its_own(program, "--test", text=rules)
    assert done.returncode == 0, done.stderr
    assert in_a_network_of_its_own(program, "--test", text=rules.replace("--dports", "--doprts")).returncode != 0


FAR_AND_NEAR = """
import socket, subprocess, sys
from pathlib import Path

def sh(text):
    subprocess.run(text, shell=True, check=True)

far = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE)
while Path(f"/proc/{far.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
    pass
sh("ip link set lo up; ip link add near0 type veth peer name far0; ip addr add 10.9.0.1/24 dev near0; ip link set near0 up")
sh(f"ip link set far0 netns {far.pid}; nsenter -t {far.pid} -n sh -c 'ip addr add 10.9.0.2/24 dev far0; ip link set far0 up'")
server = socket.create_server(("0.0.0.0", 40000))
call = "import socket; socket.create_connection((%r, 40000), timeout=1)"

def reached(address, *words):
    return subprocess.run([*words, sys.executable, "-c", call % address], capture_output=True).returncode == 0

there = ["nsenter", "-t", str(far.pid), "-n"]
before = [reached("10.9.0.1", *there), reached("127.0.0.1")]
subprocess.run(["nft", "-f", "-"], input=sys.stdin.read(), text=True, check=True)
print(before, [reached("10.9.0.1", *there), reached("127.0.0.1")])
far.stdin.close()
far.wait()
"""


def test_the_rules_close_what_they_should():
    if shutil.which("nft") is None or shutil.which("nsenter") is None:
        pytest.skip("nft is not installed")
    done = in_a_network_of_its_own(sys.executable, "-c", FAR_AND_NEAR, text=blocks("nft")[0])
    assert done.stdout.strip() == "[True, True] [False, True]", done.stderr


def test_the_namespace_runs_the_program():
    (recipe,) = blocks("sh")
    words = "nas-attn search yolo11 --data data.yaml --trials 40 --out study"
    assert recipe.count(words) == 1
    script = recipe.replace(words, f"{COMMAND} sites yolo11n.yaml --json")
    if subprocess.run(["unshare", "--map-root-user", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no user namespaces")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert '"neck_P4"' in done.stdout
