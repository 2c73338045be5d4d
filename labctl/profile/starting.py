"""The profile that `labctl init` writes: short, commented, and ready to run."""

from __future__ import annotations

from labctl.profile import words

STARTER = """\
# A lab for labctl: {command} brings it up, `labctl down {name}` takes it away without a trace.
# All keys: docs/profile.md, or `labctl schema` for your editor.
name: {name}
description: A virtual machine and a container on one network.

# Networks are segments: any number of nodes on each.  Left out, there is one called lan.
networks:
  lan:
    internet: false            # true: nodes reach the outside through this machine
    # subnet: 10.77.0.0/24     # left out, labctl chooses one that clashes with nothing here

# What every node has unless it says otherwise.
defaults:
  image: base                  # the same image on every tier: micro, base, bench, or one of your own

nodes:
  server:
    tier: emulation            # emulation, hardware or para: a machine with a kernel of its own
    memory: 256MiB
    files:
      /srv/index.html: |
        hello from the virtual machine
    # A command runs as the node's service; text is a line for the shell, a list is run as it is.
    command: exec python3 -m http.server --directory /srv 80
    ready: 80                  # ready when port 80 answers; also a command, or http://:80/
    # ports: ["8080:80"]       # port 8080 of this machine leads to port 80 of the node

  client:
    tier: container            # shares this machine's kernel
    memory: 128MiB
    depends_on:
      server: ready

# What must hold once the lab is ready; `labctl check {name}` looks again.
checks:
  - name: the container reads the virtual machine's page, by name
    node: client
    command: curl --silent http://server/
    expect: hello from the virtual machine
    within: 20s
"""


def starter(name: str = "my-lab", file: str = "lab.yaml") -> str:
    """A commented profile to start from; it validates as it is.

    Raises ValueError for a name that no lab can have.
    """
    words.name(name)
    return STARTER.replace("{command}", f"`labctl up {file}`").replace("{name}", name)
