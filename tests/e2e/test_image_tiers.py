"""Images that know nothing of labctl, as a container and as a machine: what they print must be the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab

pytestmark = [pytest.mark.long, pytest.mark.needs(*CONTAINERS, "libvirt", "tcg", "kernel")]

#: One static program, no shell, no C library, no passwd; numeric user, folder, variables, a volume.
BARE = """
FROM scratch
COPY busybox /bin/id
COPY busybox /bin/env
ENV WHAT=bare
VOLUME /data
USER 1000:1001
WORKDIR /work
ENTRYPOINT ["/bin/env"]
CMD ["sh-is-not-needed=1", "/bin/id"]
"""
#: An entry point that ends at once, with a code of its own, and says something on both streams.
ENDS = """
FROM micro
WORKDIR /srv
ENTRYPOINT ["sh", "-c", "pwd; echo to stderr >&2; exit $0"]
CMD ["3"]
"""
#: A user by name, with the group and home of its passwd; and a stop signal of its own, that is caught.
NAMED = """
FROM micro
RUN echo 'app:x:77:78::/home/app:/bin/false' >> /etc/passwd && mkdir -p /home/app && chown 77:78 /home/app
COPY --chown=77 wait.sh /home/app/
USER app
WORKDIR /home/app
STOPSIGNAL SIGUSR1
CMD ["sh", "wait.sh"]
"""
#: Only what one dynamic program needs, as distroless images are: a C library, no shell.
DYNAMIC = """
FROM micro AS whole
RUN mkdir -p /o/lib64 /o/usr/bin && cp /usr/sbin/dropbear /o/usr/bin/tool \\
 && cp /lib64/ld-linux-x86-64.so.2 /o/lib64/ && cp -r /usr/lib/x86_64-linux-gnu /o/lib64/libs
FROM scratch
COPY --from=whole /o /
ENV LD_LIBRARY_PATH=/lib64/libs
USER 65532
ENTRYPOINT ["/usr/bin/tool", "-V"]
"""
WAIT = 'trap "echo caught; exit 9" USR1\nid -u; id -g; pwd; echo $HOME\nwhile :; do sleep 0.1; done\n'
PROFILE = "name: alike\ndefaults: {memory: 192MiB}\nnodes:\n"


def test_the_same_on_both_tiers(home: Home, tmp_path: Path) -> None:
    busybox = shutil.which("busybox") or "/bin/busybox"
    profile = PROFILE
    for name, text in (("bare", BARE), ("ends", ENDS), ("named", NAMED), ("dynamic", DYNAMIC)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "Containerfile").write_text(text)
        shutil.copy(busybox, folder / "busybox")
        (folder / "wait.sh").write_text(WAIT)
        profile += f"  {name}-box: {{image: ./{name}}}\n  {name}-vm: {{image: ./{name}, tier: emulation}}\n"
    lab = Lab(home, tmp_path, "alike", profile)
    try:
        lab.good("up", str(lab.file), timeout=300)
        lab.good("exec", "alike/named-vm", "--", "true")
        said = {}
        for name in ("bare", "ends", "named", "dynamic"):
            said[name] = [lab.run("logs", f"alike/{name}-{kind}") for kind in ("box", "vm")]
            box, vm = said[name]
            assert (box.stdout, box.stderr) == (vm.stdout, vm.stderr), name
        assert said["bare"][0].stdout.startswith("uid=1000 gid=1001")
        assert (said["ends"][0].stdout, said["ends"][0].stderr) == ("/srv\n", "to stderr\n")
        assert said["named"][0].stdout.split() == ["77", "78", "/home/app", "/home/app"]
        assert "Dropbear" in said["dynamic"][0].stdout + said["dynamic"][0].stderr
        nodes = json.loads(lab.good("status", "alike", "--json"))["nodes"]
        assert {n["name"]: n["reason"] for n in nodes}["ends-box"] == "ended with 3"
        lab.good("stop", "alike/named-box")
        assert lab.run("logs", "alike/named-box").stdout.endswith("caught\n")
        nodes = json.loads(lab.good("status", "alike", "--json"))["nodes"]
        assert {n["name"]: n["reason"] for n in nodes}["named-box"] == "ended with 9"
    finally:
        lab.good("down", "alike")
