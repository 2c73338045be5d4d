"""Labs of containers, whole: made, changed, used, disturbed, and gone without a trace."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab, listener, touched, until

pytestmark = pytest.mark.needs(*CONTAINERS)

Since = Callable[[], list[str]]
Maker = Callable[..., Lab]


@pytest.fixture
def make_lab(home: Home, tmp_path: Path, host_inventory: Since) -> Maker:
    """A lab of the profile; at the end it is taken down and the host is as it was."""

    def make(text: str, name: str = "lab") -> Lab:
        return Lab(home, tmp_path, name, f"name: {name}\n{text}")

    return make


def gone(lab: Lab, since: Since) -> None:
    """Take the lab down: nothing is left of it."""
    lab.down()
    assert lab.labs() == []
    assert since() == []


THREE = """
defaults: {image: micro}
nodes:
  a: {memory: 64MiB}
  b: {memory: 64MiB}
  c: {}
"""


def test_a_second_up_changes_only_what_differs_and_says_why(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab(THREE)
    lab.up()
    began = lab.starts("a", "b", "c")
    lab.sh("b", "echo kept > /root/mine")
    assert touched(lab.up()) == {}

    lab.write("name: lab" + THREE.replace("b: {memory: 64MiB}", "b: {memory: 96MiB}"))
    plan = json.loads(lab.good("plan", str(lab.file), "--json"))
    did = touched(lab.up())
    assert did == touched(plan)
    assert list(did) == ["container:b"] and "memory" in did["container:b"]
    assert lab.starts("a", "b", "c") == began, "a limit is changed in place"
    limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true"
    assert lab.sh("b", limit) == str(96 << 20)

    lab.write(lab.file.read_text().replace("c: {}", "c: {command: sleep 1000}"))
    did = touched(lab.up())
    assert {key.partition(":")[2] for key in did} == {"c"}
    assert did["container:c"].startswith("replace: ") and "args" in did["container:c"]
    now = lab.starts("a", "b", "c")
    assert (now["a"], now["b"]) == (began["a"], began["b"]) and now["c"] != began["c"]

    addresses = {name: node["addresses"] for name, node in lab.status().items()}
    lab.write(lab.file.read_text().replace("a: {memory: 64MiB}", "new: {}"))
    lab.up()
    assert lab.starts("b", "c") == {"b": now["b"], "c": now["c"]}
    assert lab.sh("b", "cat /root/mine") == "kept"
    after = {name: node["addresses"] for name, node in lab.status().items()}
    assert set(after) == {"b", "c", "new"}
    assert after["b"] == addresses["b"] and after["c"] == addresses["c"]
    assert lab.code("b", "ping -c 1 -W 5 new") == 0
    assert lab.code("b", "nslookup a") != 0
    gone(lab, host_inventory)


def test_a_further_network_reaches_a_container_as_it_runs(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab("nodes: {a: {image: micro, networks: [lan]}}\nnetworks: {lan: {}}\n")
    lab.up()
    began = lab.starts("a")
    lab.sh("a", "echo kept > /root/mine")
    nodes = "{a: {image: micro, networks: [lan, x, y]}, b: {image: micro, networks: [y]}}"
    lab.write(f"name: lab\nnodes: {nodes}\nnetworks: {{lan: {{}}, x: {{}}, y: {{}}}}\n")
    plan = json.loads(lab.good("plan", str(lab.file), "--json"))
    for point in ("change:before:net:a", "change:after:net:a", "change:before:container:a"):
        assert lab.run("up", str(lab.file), LABCTL_FAULT=f"kill@{point}").returncode == -9, point
    lab.up()
    assert touched(plan)["net:a"].startswith("change: ") and touched(plan)["net:a"].endswith("attached live")
    assert lab.starts("a") == began and lab.sh("a", "cat /root/mine") == "kept"
    assert lab.sh("a", "ls /sys/class/net").split() == ["eth0", "eth1", "eth2", "lo"]
    assert lab.code("a", "ping -c 1 -W 5 b") == 0 and lab.code("b", "ping -c 1 -W 5 a") == 0
    assert lab.sh("a", "grep -c nameserver /etc/resolv.conf") == "3"
    assert touched(lab.up()) == {}
    lab.good("restart", "lab/a")
    assert lab.code("a", "ping -c 1 -W 5 b") == 0 and lab.sh("a", "cat /root/mine") == "kept"
    gone(lab, host_inventory)


def test_replicas_come_and_go_at_the_end(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab("nodes: {web: {image: micro, replicas: 3}}\n")
    lab.up()
    began = lab.starts("web-1", "web-2")
    found = lab.sh("web-1", "nslookup web. | grep -c ^Address")
    assert int(found) >= 3
    lab.up("-s", "nodes.web.replicas=2")
    assert lab.starts("web-1", "web-2") == began
    lab.up("-s", "nodes.web.replicas=4")
    assert sorted(lab.states()) == ["web-1", "web-2", "web-3", "web-4"]
    assert lab.starts("web-1", "web-2") == began
    gone(lab, host_inventory)


def get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as reply:
        return str(reply.read().decode())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def own_address() -> str:
    told = subprocess.run(
        ["ip", "-4", "-json", "address", "show", "scope", "global"],
        capture_output=True,
        timeout=10,
        check=True,
    )
    found = [
        info["local"]
        for link in json.loads(told.stdout)
        if not link["ifname"].startswith("lb")
        for info in link["addr_info"]
    ]
    return str(found[0]) if found else "127.0.0.1"


def test_published_ports_are_reached_from_the_host(make_lab: Maker, host_inventory: Since) -> None:
    port = free_port()
    lab = make_lab(f"""
defaults: {{image: micro}}
nodes:
  web: {{command: {listener()}, ports: ['{port}:80', '80'], ready: {{port: 80}}}}
  local: {{command: {listener()}, ports: [{{host_ip: 127.0.0.1, node_port: 80}}], ready: {{http: /}}}}
""")
    document = lab.up()
    nodes = {node["name"]: node for node in document["nodes"]}
    for address in ("127.0.0.1", own_address()):
        assert "It works" in get(f"http://{address}:{port}/")
    other = int(nodes["web"]["ports"][1].removeprefix("*:").partition("->")[0])
    assert "It works" in get(f"http://127.0.0.1:{other}/")
    assert touched(lab.up()) == {}, "a port that was chosen stays"
    gone(lab, host_inventory)
    with pytest.raises(OSError):
        get(f"http://127.0.0.1:{port}/")


def test_a_node_waits_for_those_it_depends_on(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab("""
defaults: {image: micro}
nodes:
  last: {depends_on: {first: ready}}
  first: {command: 'sleep 1; touch /tmp/go; idle', ready: {command: [test, -e, /tmp/go], interval: 0.1s}}
  soon: {depends_on: {first: started}}
""")
    lab.up()
    began = {name: int(ticks) for name, ticks in lab.starts("last", "first", "soon").items()}
    assert began["last"] - began["first"] >= 100, "a second has 100 ticks"
    assert began["soon"] < began["last"]
    gone(lab, host_inventory)


def test_a_node_that_never_becomes_ready_fails_the_up_and_is_mended(
    make_lab: Maker, host_inventory: Since
) -> None:
    lab = make_lab("""
defaults: {image: micro}
nodes:
  fine: {}
  port: {ready: {port: 81, timeout: 1s, interval: 200ms}}
  command: {ready: {command: 'echo not yet >&2; exit 3', timeout: 1s}}
  later: {depends_on: {port: ready}}
""")
    told = lab.up_fails(1)
    assert "port did not become ready within 1 s: port 81" in told
    assert "command did not become ready within 1 s" in told and "not yet" in told
    assert "labctl logs" in told
    states = lab.states()
    assert states["port"] != "ready" and states["later"] in ("planned", "failed")
    assert lab.sh("fine", "hostname") == "fine"
    kept = lab.starts("port")
    lab.write("name: lab\ndefaults: {image: micro}\nnodes: {fine: {}, port: {}, command: {}, later: {}}\n")
    lab.up()
    assert set(lab.states().values()) == {"ready"}
    assert lab.starts("port") == kept, "only the wait is done again"
    gone(lab, host_inventory)


def test_a_failed_first_up_is_rolled_back_when_asked(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab("nodes: {a: {image: micro, ready: {command: ['false'], timeout: 500ms}}}\n")
    assert "did not become ready" in lab.up_fails(1, "--rollback")
    assert lab.labs() == [] and host_inventory() == []


def test_what_the_profile_puts_into_a_node_is_there(
    make_lab: Maker, host_inventory: Since, tmp_path: Path
) -> None:
    (tmp_path / "over/opt/tool").mkdir(parents=True)
    (tmp_path / "over/opt/tool/run").write_text("#!/bin/sh\necho laid over\n")
    (tmp_path / "over/opt/tool/run").chmod(0o775)
    (tmp_path / "note.txt").write_text("from a file\n")
    (tmp_path / "password").write_text("hush\n")
    lab = make_lab("""
defaults: {image: micro}
volumes: {data: {}}
secrets: {password: {file: password}, token: {env: LAB_TOKEN}}
nodes:
  full:
    env: {GREETING: "hello  'world'"}
    workdir: /opt
    user: www-data
    command: 'id -un; pwd; echo "$GREETING"; exec sleep 1000'
    root: over
    files:
      /etc/motd: written here
      /opt/note: {source: note.txt, mode: '0640', owner: 'www-data:www-data'}
    secrets: [password, {secret: token, target: /run/token, mode: '0440', owner: '33'}]
    volumes: ['data:/data']
    tmpfs: [{target: /scratch, size: 1MiB}]
    sysctls: {net.ipv4.ip_forward: '1', net.ipv4.conf.eth0.arp_announce: '2'}
    capabilities: {drop: [CHOWN]}
  other:
    volumes: [{source: data, target: /data, read_only: true}]
    read_only: true
    capabilities: {drop: [ALL]}
    pids: 20
""")
    lab.up(LAB_TOKEN="t0ken")
    assert lab.good("logs", "full").splitlines() == ["www-data", "/opt", "hello  'world'"]
    assert lab.sh("full", "/opt/tool/run; stat -c %a /opt/tool/run") == "laid over\n775"
    told = lab.sh("full", "cat /etc/motd; stat -c :%a:%U:%G /opt/note; cat /opt/note")
    assert told == "written here:640:www-data:www-data\nfrom a file"
    root = ["exec", "-u", "root", "lab/full", "--", "sh", "-c"]
    told = lab.good(
        *root, "cat /run/secrets/password /run/token; stat -c %a:%u /run/secrets/password /run/token"
    )
    assert told.split() == ["hush", "t0ken400:0", "440:33"]
    lab.good(*root, "echo shared > /data/x && touch /scratch/y")
    assert lab.sh("other", "cat /data/x") == "shared"
    assert lab.code("other", "touch /data/z") != 0 and lab.code("other", "touch /z") != 0
    assert lab.good(*root, "df -k /scratch | tail -1").split()[1] == "1024"
    assert (
        lab.sh("full", "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/eth0/arp_announce")
        == "1\n2"
    )
    assert int(lab.sh("other", "grep CapBnd /proc/1/status | cut -f2"), 16) == 0
    assert int(lab.good(*root, "grep CapBnd /proc/1/status | cut -f2"), 16) & 1 == 0
    assert lab.code("other", "for i in $(seq 40); do sleep 5 & done; wait") != 0
    assert b"t0ken" not in lab.home.ledger.read_bytes()
    gone(lab, host_inventory)


def test_start_up_scripts_go_on_and_provisioning_runs_once(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab("""
nodes:
  a:
    image: micro
    startup: |
      echo one >> /root/startup
      ls /nothing/there
      echo two >> /root/startup
      no-such-program
    provision:
      - echo done >> /root/provision
      - {name: second, run: 'echo again >> /root/provision'}
""")
    done = lab.run("up", str(lab.file))
    assert done.returncode == 0, done.stderr
    assert "ls /nothing/there" in done.stderr and "no-such-program" in done.stderr
    assert lab.sh("a", "cat /root/startup") == "one\ntwo"
    assert touched(lab.up()) == {}
    lab.good("restart", "a")
    assert lab.sh("a", "cat /root/startup /root/provision") == "one\ntwo\none\ntwo\ndone\nagain"
    lab.write(lab.file.read_text() + "      - echo third >> /root/provision; echo oops >&2; exit 7\n")
    told = lab.up_fails(1)
    assert "'echo third" in told and "ended with 7" in told and "oops" in told
    lab.write(lab.file.read_text().replace("; exit 7", ""))
    lab.up()
    assert lab.sh("a", "cat /root/provision") == "done\nagain\nthird\nthird"
    gone(lab, host_inventory)


SLOW = "nodes: {a: {image: micro, ready: {command: [test, -e, /tmp/go], timeout: 30s, interval: 100ms}}}\n"


def test_one_up_at_a_time_and_down_waits_for_it(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab(SLOW)
    with lab.begin("up", str(lab.file)) as first:
        until(lambda: bool(lab.labs()) and lab.states().get("a") == "running", "the first up has begun")
        for told in (lab.up_fails(1), lab.fails(1, "down", "lab"), lab.fails(1, "stop", "lab/a")):
            assert f"`labctl up lab` (pid {first.pid}) is at work on this lab" in told
        assert lab.sh("a", "hostname") == "a", "looking and using it disturbs nobody"
        with lab.begin("down", "lab", "--wait", "30") as down:
            time.sleep(0.5)
            assert down.poll() is None
            lab.sh("a", "touch /tmp/go")
            assert first.wait(20) == 0
            assert down.wait(20) == 0
            first.communicate()
            down.communicate()
    assert lab.labs() == [] and host_inventory() == []


def test_stop_start_pause_resume_restart_wait(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab("""
defaults: {image: micro}
nodes:
  polite:
    command: "trap 'echo bye; exit 0' USR1; while :; do sleep 0.1; done"
    stop_signal: USR1
    stop_timeout: 1h
  rude: {command: "trap '' TERM; while :; do sleep 0.1; done", stop_timeout: 500ms}
  short: {command: 'sleep 1; exit 3'}
""")
    lab.up()
    lab.good("wait", "lab/short", "--for", "stopped", "--timeout", "20")
    assert "3" in lab.status()["short"]["reason"]
    lab.good("pause", "lab/polite")
    assert lab.states()["polite"] == "paused"
    assert "lab/polite is paused" in lab.fails(1, "wait", "lab/polite", "--timeout", "0.2")
    lab.good("resume", "lab/polite")
    assert lab.states()["polite"] == "ready"
    lab.sh("polite", "echo mine > /root/x")
    lab.good("stop", "lab/polite", "lab/rude")
    assert lab.good("logs", "lab/polite") == "bye\n"
    assert {lab.states()[name] for name in ("polite", "rude")} == {"stopped"}
    assert "stopped" in lab.fails(1, "exec", "lab/polite", "--", "true") + "stopped"
    lab.good("start", "lab/polite", "lab/rude")
    assert {lab.states()[name] for name in ("polite", "rude")} == {"ready"}
    assert lab.sh("polite", "cat /root/x") == "mine"
    before = lab.starts("polite")
    lab.good("restart", "lab/polite")
    assert lab.starts("polite") != before
    assert lab.code("rude", "ping -c 1 -W 5 polite") == 0
    lab.good("stop", "lab/rude")
    assert "container:rude" in touched(lab.up()), "up starts what was stopped"
    gone(lab, host_inventory)


def test_a_machine_that_died_is_made_again(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab("nodes: {a: {image: micro}, b: {image: micro}}\n")
    lab.up()
    kept = lab.starts("b")
    pids = [p.parent.name for p in Path("/proc").glob("[0-9]*/cgroup") if _in(p, "/a")]
    for pid in pids:
        subprocess.run(["kill", "-KILL", pid], timeout=5, check=False)
    until(lambda: lab.states()["a"] in ("stopped", "failed"), "a is dead")
    did = touched(lab.up())
    assert "container:a" in did and not any(key.endswith(":b") for key in did)
    assert lab.states() == {"a": "ready", "b": "ready"} and lab.starts("b") == kept
    gone(lab, host_inventory)


def _in(path: Path, end: str) -> bool:
    try:
        return any("/labctl/" in line and line.endswith(end) for line in path.read_text().splitlines())
    except OSError:
        return False


def test_privileged_is_refused_unless_allowed(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab("nodes: {a: {image: micro, privileged: true}, b: {image: micro}}\n")
    told = lab.up_fails(2)
    assert "a: privileged" in told and "--allow-privileged" in told
    assert lab.labs() == [] and host_inventory() == []
    lab.up("--allow-privileged")
    own, usual = (int(lab.sh(node, "grep CapBnd /proc/1/status | cut -f2"), 16) for node in "ab")
    assert own > usual
    gone(lab, host_inventory)


TWICE = """
networks: {front: {}, back: {}}
defaults: {image: micro}
nodes:
  web_server: {networks: [front, back]}
  client: {networks: [front]}
"""


def test_one_profile_twice_names_with_underscores_and_no_way_between_labs(
    make_lab: Maker, host_inventory: Since
) -> None:
    one, two = make_lab(TWICE, "one"), make_lab(TWICE, "two_2")
    one.up()
    two.up()
    assert sorted(one.labs()) == ["one", "two_2"]
    mine, theirs = one.status(), two.status()
    used = [a for nodes in (mine, theirs) for node in nodes.values() for a in node["addresses"]]
    assert len(set(used)) == len(used) == 6
    assert one.sh("web_server", "hostname") == "web_server"
    for lab in (one, two):
        assert lab.code("client", "ping -c 1 -W 5 web_server") == 0
    for address in theirs["web_server"]["addresses"]:
        assert one.code("client", f"ping -c 1 -W 1 {address}") != 0
    back = mine["web_server"]["addresses"][1]
    assert one.code("client", f"ping -c 1 -W 1 {back}") != 0, (
        "another network of the same lab is no neighbour"
    )
    began = two.starts("client")
    one.down()
    assert two.labs() == ["two_2"] and two.starts("client") == began
    assert two.code("client", "ping -c 1 -W 5 web_server") == 0
    gone(two, host_inventory)


def test_networks_changed_under_a_running_lab(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab(
        "networks: {x: {}}\ndefaults: {image: micro}\nnodes: {a: {networks: [x]}, b: {networks: [x]}}\n"
    )
    lab.up()
    kept = lab.starts("b")
    lab.write(
        lab.file.read_text()
        .replace("{x: {}}", "{x: {}, y: {}}")
        .replace("a: {networks: [x]}", "a: {networks: [x, y]}")
    )
    lab.up()
    assert "eth1" in lab.sh("a", "ls /sys/class/net") and lab.starts("b") == kept
    assert lab.code("a", "ping -c 1 -W 5 b") == 0
    lab.write(lab.file.read_text().replace("{x: {}, y: {}}", "{x: {}}").replace("[x, y]", "[x]"))
    lab.up()
    assert "eth1" not in lab.sh("a", "ls /sys/class/net")
    assert lab.code("b", "ping -c 1 -W 5 a") == 0
    gone(lab, host_inventory)


def test_down_of_nothing_and_twice(make_lab: Maker, host_inventory: Since) -> None:
    lab = make_lab("nodes: {a: {image: micro}}\n")
    done = lab.run("down", "lab")
    assert done.returncode == 0
    lab.up()
    lab.file.unlink()
    lab.down()
    done = lab.run("down", "lab")
    assert done.returncode == 0 and "lab" in done.stderr
    assert host_inventory() == []
