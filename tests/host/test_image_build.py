"""Containerfiles, built for real on the micro image: each instruction by what it leaves behind."""

# ruff: noqa: E501 - tables of scripts and of what they print read better whole

from __future__ import annotations

import hashlib
import http.server
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from labctl.errors import LabError, UsageError
from labctl.events import Event, Note
from labctl.image.build import BuildOptions, build
from labctl.image.model import Image
from labctl.image.runner import OverlayRunner, Step
from labctl.image.store import Store
from tests.shared_images import share

pytestmark = pytest.mark.needs("root", "overlay")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("cache") / "images")
    share(store, "micro")
    return store


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "c").mkdir()
    return tmp_path / "c"


class Built:
    """An image and the words that its build said."""

    def __init__(self, store: Store, image: Image, events: list[Event]) -> None:
        self.store, self.image = store, image
        self.said = [event.text for event in events if isinstance(event, Note)]

    def sh(self, script: str, **more: object) -> str:
        out: list[bytes] = []
        config = self.image.config
        with self.store.scratch.folder("test") as work:
            (work / "upper").mkdir()
            step = Step(("sh", "-c", script), config.env, config.working_dir or "/", config.user, **more)  # type: ignore[arg-type]
            code = OverlayRunner().run(self.store.rootfs(self.image), work / "upper", step, out.append)
        text = b"".join(out).decode()
        assert code == 0, text
        return text


def make(store: Store, context: Path, text: str, **options: object) -> Built:
    events: list[Event] = []
    (context / "Containerfile").write_text(text)
    wanted = BuildOptions(str(context), tags=("test/image",), **options)  # type: ignore[arg-type]
    return Built(store, build(store, wanted, events.append), events)


def test_configuration(store: Store, context: Path) -> None:
    built = make(
        store, context,
        "FROM micro\nENV a=hello\nENV a=bye b=$a c='x y'\nENV old form $a\nLABEL one=1 two=\"t w o\"\n"
        "WORKDIR /w\nWORKDIR sub\nUSER nobody\nEXPOSE 80 53/udp 8000-8001\nVOLUME /v [\"x\"]\n"
        "STOPSIGNAL usr1\nSHELL [\"/bin/ash\", \"-c\"]\nCMD run $a\nENTRYPOINT [\"/e\", \"$a\"]\n"
        "HEALTHCHECK --interval=1m30s --retries=3 CMD curl x\nMAINTAINER me\n",
    )  # fmt: skip
    config = built.image.config
    env = config.environment()
    assert (env["a"], env["b"], env["c"], env["old"]) == ("bye", "hello", "x y", "form bye")
    assert config.labels["two"] == "t w o" and config.author == "me" and "maintainer" not in config.labels
    assert (config.working_dir, config.user, config.stop_signal) == ("/w/sub", "nobody", "usr1")
    assert config.exposed_ports == ("53/udp", "80/tcp", "8000/tcp", "8001/tcp")
    assert config.cmd == ("/bin/ash", "-c", "run $a") and config.entrypoint == ("/e", "$a")
    assert config.healthcheck == {"Test": ["CMD-SHELL", "curl x"], "Interval": 90 * 10**9, "Retries": 3}
    assert built.sh("pwd; id -un") == "/w/sub\nnobody\n"
    assert store.history("test/image")[0]["created_by"].startswith("MAINTAINER")
    again = make(store, context, 'FROM test/image\nENTRYPOINT ["/other"]\n')
    assert again.image.config.cmd == ()  # arguments of another entry point


def test_run_forms_and_user(store: Store, context: Path) -> None:
    built = make(
        store, context,
        "FROM micro\nARG who=you\nRUN echo $who > /a && rm /etc/issue\nRUN [\"sh\", \"-c\", \"echo $0 > /b\", \"zero\"]\n"
        "USER www-data\nWORKDIR /tmp\nRUN id -un > /tmp/c; pwd >> /tmp/c\nUSER root\n"
        "RUN <<EOF\nset -e\necho here > /d\nEOF\nRUN <<END cat > /e\ntext $who\nEND\n"
        "RUN <<E\n#!/bin/sh\necho script > /f\nE\nRUN true\nRUN --network=none ip -o link | wc -l > /g\n",
        build_args={"who": "me"},
    )  # fmt: skip
    assert built.sh("cat /a /b /tmp/c /d /e /f /g; ls /etc/issue 2>&1 || true") == (
        "me\nzero\nwww-data\n/tmp\nhere\ntext me\nscript\n1\nls: /etc/issue: No such file or directory\n"
    )
    tree = store.rootfs(built.image)[-1]
    assert not (tree / "proc").exists() and not (tree / "etc/resolv.conf").exists()
    assert [entry.empty for entry in built.image.config.history if entry.created_by == "RUN true"] == [True]


def test_failures_name_the_place(store: Store, context: Path) -> None:
    with pytest.raises(LabError, match="exit code 3") as caught:
        make(store, context, "FROM micro\n\nRUN echo so; exit 3\n")
    assert caught.value.where and caught.value.where.line == 3 and "so" in caught.value.message
    for text, words in [
        ("RUN x\n", "FROM"), ("FROM micro\nCOPY nothing /\n", "not there"), ("FROM micro\nCOPY ../x /\n", "outside"),
        ("FROM micro\nUSER nosuch\nRUN id\n", "unable to find user"), ("FROM micro\nEXPOSE 99999\n", "no port"),
        ("FROM micro\nCOPY --from=9 a b\n", "no earlier stage"), ("FROM ${x}\n", "empty"), ("FROM micor\n", "micro"),
        ("FROM micro\nSTOPSIGNAL nope\n", "no signal"), ("FROM micro\nADD x\n", "at least one source"),
        ("FROM micro\nENV a=${x\n", "bad way"), ("FROM micro\nRUN [\"/nosuch\"]\n", "127"),
        ("FROM micro\nCMD [\"a\", 1]\n", "double quotes"), ("FROM micro\nHEALTHCHECK NONE x\n", "stands alone"),
        ("FROM micro\nEXPOSE 1-3:1-2\n", "no port"), ("FROM micro\nARG =x\n", "has no name"), ("FROM micro\nRUN []\n", "needs a command"),
        ("FROM micro\nHEALTHCHECK CMD []\n", "needs a command"), ("FROM micro\nHEALTHCHECK --timeout=5us CMD x\n", "less than 1ms"),
        ("FROM micro\nUSER a b\nRUN id\n", "unable to find user"), ("FROM micro\nEXPOSE\n", "needs something"),
    ]:  # fmt: skip
        with pytest.raises(LabError) as failed:
            make(store, context, text)
        error = failed.value
        assert words in f"{error.message} {error.hint}", (text, error)
        assert error.where and error.where.line, text
    with pytest.raises(UsageError, match="no stage"):
        make(store, context, "FROM micro\n", target="x")
    assert store.verify() == []


def test_copy(store: Store, context: Path) -> None:
    (context / "d/sub").mkdir(parents=True)
    for name in ("one.txt", "two.txt", "d/f", "d/sub/g", "d/skip.log", "odd name"):
        (context / name).write_text(name)
    (context / "d/f").chmod(0o750)
    (context / "d/link").symlink_to("f")
    (context / "out").symlink_to("/etc/passwd")
    (context / ".dockerignore").write_text("**/*.log\n")
    built = make(
        store, context,
        "FROM micro\nENV to=/var\nWORKDIR /w\nCOPY one.txt .\nCOPY *.txt many/\nCOPY d tree\nCOPY one.txt name\n"
        "COPY one.txt ${to}/\nCOPY --chown=www-data --chmod=600 d /owned\nCOPY --chown=5:6 one.txt /deep/er/x\n"
        "COPY [\"odd name\", \"/with space\"]\nCOPY d /usr/sbin/\nCOPY <<A <<'B' /docs/\n$to\nA\n$to\nB\n"
        "COPY one.txt /bin/tool\n",
    )  # fmt: skip
    said = built.sh(
        "cd /w; ls . many tree; cat name /var/one.txt; stat -c '%u:%g %a' /owned /owned/f /owned/sub /deep/er/x /deep "
        "/w/tree/f; cat '/with space' /usr/bin/f /docs/A /docs/B; readlink tree/link; readlink /bin; cat /usr/bin/tool"
    )
    assert said == (
        ".:\nmany\nname\none.txt\ntree\n\nmany:\none.txt\ntwo.txt\n\ntree:\nf\nlink\nsub\none.txtone.txt"
        "33:33 755\n33:33 600\n33:33 600\n5:6 644\n5:6 755\n0:0 750\nodd named/f/var\n$to\nf\nusr/bin\none.txt"
    )
    with pytest.raises(UsageError, match="not there"):
        make(store, context, "FROM micro\nCOPY out /stolen\nCOPY out/x /y\n")
    with pytest.raises(UsageError, match=r"dockerignore|not there"):
        make(store, context, "FROM micro\nCOPY d/skip.log /\n")


def test_folders_links_and_modes_as_docker_has_them(store: Store, context: Path) -> None:
    """As docker 20.10's own builder and buildah leave them: compared with both of them once, then written down."""
    (context / "d/in").mkdir(parents=True)
    for name in ("d/in/f", "d/tool", "no/a.log", "no/keep/b"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text("x")
    (context / "d/tool").chmod(0o6755)
    os.setxattr(context / "d/tool", "user.note", b"kept")
    (context / "d/in").chmod(0o2700)
    (context / "d").chmod(0o700)
    os.link(context / "d/in/f", context / "d/hard")
    (context / ".dockerignore").write_text("no\n!no/keep\nContainerfile\n.dockerignore\n")
    built = make(
        store, context,
        "FROM micro AS one\nCOPY d /a\nCOPY d /a\nRUN chmod 4755 /a/tool\n"
        "FROM micro\nCOPY --from=one /a /b\nCOPY --chown=7:8 ./d/../d /c\nCOPY . /all\nCOPY d/in/f /w/\nCOPY d/in/f /w\n"
        "USER www-data\nWORKDIR /home/x\nUSER 12\nWORKDIR y\nUSER root\n",
    )  # fmt: skip
    said = built.sh(
        "cd /; stat -c '%n %a %u:%g' b b/in b/tool c c/in c/tool all/d/in all/no/keep/b home/x home/x/y;"
        "stat -c '%a %u:%g %h' c/hard c/in/f b/in/f; ls all all/no; ls w"
    )
    assert said.splitlines() == [
        "b 755 0:0", "b/in 2700 0:0", "b/tool 4755 0:0", "c 755 7:8", "c/in 2700 7:8", "c/tool 755 7:8",
        "all/d/in 2700 0:0", "all/no/keep/b 644 0:0", "home/x 755 33:33", "home/x/y 755 12:0",
        "644 7:8 2", "644 7:8 2", "644 0:0 2", "all:", "d", "no", "", "all/no:", "keep", "f",
    ]  # fmt: skip
    assert os.getxattr(store.rootfs(built.image)[1] / "b/tool", "user.note") == b"kept"


def test_a_layer_that_comes_twice(store: Store, context: Path) -> None:
    """Two steps that leave the same: overlayfs takes no folder twice."""
    (context / "f").write_text("f")
    text = "FROM micro\nCOPY f /\nRUN rm /f\nCOPY f /\nRUN test -f /f\n"
    built = make(store, context, text, build_args={"SOURCE_DATE_EPOCH": "1"})
    layers = built.image.layers
    assert layers[1] == layers[3] and len(layers) == 4 and built.sh("cat /f") == "f"


def test_copy_follows_no_link_out_of_anything(store: Store, context: Path) -> None:
    """A link in the image or in the folder that points to the host leads into the image or nowhere."""
    (context / "f").write_text("mine")
    target = context.parent / "host"
    target.mkdir()
    built = make(
        store, context, f"FROM micro\nRUN ln -s {target} /evil\nRUN mkdir -p {target}\nCOPY f /evil/f\n"
    )
    assert built.sh(f"cat {target}/f") == "mine"
    assert not any(target.iterdir())


def test_add(store: Store, context: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        info = tarfile.TarInfo("in/tar")
        info.size, info.uid = 4, 7
        archive.addfile(info, io.BytesIO(b"text"))
    (context / "a.tgz").write_bytes(packed.getvalue())
    (context / "b.gz").write_bytes(b"\x1f\x8bnot a tar")
    built = make(
        store, context, "FROM micro\nADD a.tgz /x\nADD b.gz /y/\nCOPY a.tgz /z\nADD *.tgz b.g? /n/\n"
    )
    assert (
        built.sh("cat /x/in/tar; stat -c ' %u' /x/in/tar; ls /y; stat -c %s /z; ls /n")
        == f"text 7\nb.gz\n{len(packed.getvalue())}\nb.gz\nin\n"
    )


class Web(http.server.BaseHTTPRequestHandler):
    """A file of an old day; under /cut it ends early."""

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        """Send it."""
        self.send_response(200)
        self.send_header("Content-Length", "9" if self.path == "/cut" else "4")
        self.send_header("Last-Modified", "Thu, 01 Jan 2015 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(b"text")


def test_add_from_the_web(store: Store, context: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    good = f"sha256:{hashlib.sha256(b'text').hexdigest()}"
    try:
        built = make(
            store, context,
            f"FROM micro\nADD {url}/a/name.txt?x=1 /d/\nADD --chmod=644 --chown=3:4 --checksum={good} {url}/x /e\n",
        )  # fmt: skip
        assert built.sh("cat /d/name.txt /e; stat -c ' %a %u:%g %Y' /d/name.txt /e") == (
            "texttext 600 0:0 1420070400\n 644 3:4 1420070400\n"
        )
        for words, said in (
            (f"{url}/cut /f", "cannot download"),
            (f"{url}/ /d/", "no file name"),
            (f"--checksum=sha256:{'0' * 64} {url}/x /f", "not what --checksum says"),
            ("http://127.0.0.1:1/x /f", "cannot download"),
        ):
            with pytest.raises(LabError, match=said) as caught:
                make(store, context, f"FROM micro\nADD {words}\n")
            assert caught.value.where and caught.value.where.line == 2
    finally:
        server.shutdown()
        server.server_close()
    assert store.verify() == []


def test_stages(store: Store, context: Path) -> None:
    (context / "f").write_text("f")
    text = (
        'ARG base=micro\nFROM ${base} AS one\nARG base\nRUN echo "<$base>" > /made; chown 3:4 /made\n'
        "FROM micro AS unused\nRUN exit 9\n"
        "FROM one AS two\nRUN echo more >> /made\n"
        "FROM scratch\nCOPY --from=two /made /made\nCOPY --from=0 /made /first\nCOPY --from=micro /bin/busybox /sh\n"
    )
    built = make(store, context, text)
    layers = store.rootfs(built.image)
    assert len(layers) == 3
    assert (layers[0] / "made").read_text() == "<micro>\nmore\n" and (layers[0] / "made").stat().st_uid == 3
    assert (layers[1] / "first").read_text() == "<micro>\n"
    assert (layers[2] / "sh").stat().st_size > 500_000
    one = make(store, context, text, target="one")
    assert one.sh("cat /made") == "<micro>\n"
    alone = make(store, context, "FROM scratch\nCOPY f /f\n")
    assert [path.name for path in store.rootfs(alone.image)[0].iterdir()] == ["f"]


def test_onbuild(store: Store, context: Path) -> None:
    (context / "f").write_text("from here")
    make(store, context, "FROM micro\nONBUILD COPY f /trigger\nONBUILD RUN echo ran > /ran\n")
    assert store.resolve("test/image").config.onbuild == ("COPY f /trigger", "RUN echo ran > /ran")
    store.tag("test/image", "test/parent")
    built = make(store, context, "FROM test/parent\n")
    assert built.sh("cat /trigger /ran") == "from hereran\n" and built.image.config.onbuild == ()


def test_cache(store: Store, context: Path) -> None:
    (context / "f").write_text("1")
    text = "FROM micro\nARG x=1\nRUN cat /proc/sys/kernel/random/uuid > /u\nCOPY f /f\nRUN cat /f > /g\n"
    first = make(store, context, text)
    os.utime(context / "f", (1, 1))
    second = make(store, context, text)
    assert [layer.digest for layer in second.image.layers] == [layer.digest for layer in first.image.layers]
    assert sum("from the cache" in line for line in second.said) == 3
    (context / "f").write_text("2")
    third = make(store, context, text)
    assert third.image.layers[1] == first.image.layers[1] and third.sh("cat /g") == "2"
    proxied = make(store, context, text, build_args={"http_proxy": "http://127.0.0.1:1"})
    assert proxied.image.layers[1] == third.image.layers[1]
    assert make(store, context, text, build_args={"x": "2"}).image.layers[1] != first.image.layers[1]
    assert make(store, context, text, no_cache=True).image.layers[1] != first.image.layers[1]


def test_cache_sees_attributes_and_hard_links(store: Store, context: Path) -> None:
    (context / "d").mkdir()
    (context / "d/a").write_text("same")
    os.link(context / "d/a", context / "d/b")
    text = "FROM micro\nCOPY d /d\n"

    def look() -> tuple[str, bool]:
        tree = store.rootfs(make(store, context, text).image)[-1] / "d"
        value = os.getxattr(tree / "a", "user.k").decode() if os.listxattr(tree / "a") else ""
        return value, (tree / "a").samefile(tree / "b")

    assert look() == ("", True)
    (context / "d/b").unlink()
    (context / "d/b").write_text("same")
    assert look() == ("", False)
    os.setxattr(context / "d/a", "user.k", b"1")
    assert look() == ("1", False)
    os.setxattr(context / "d/a", "user.k", b"2")
    assert look() == ("2", False)
    assert any("from the cache" in line for line in make(store, context, text).said)


# What each line leaves in the configuration: as the classic builder of Docker 20.10 reads it, by its parser's rules.
LENIENT = {
    "EXPOSE 8080:80 127.0.0.1:90:91/udp [::1]:1:2 8000-8002:70 1-2:3-4": (
        "exposed_ports", ("2/tcp", "3/tcp", "4/tcp", "70/tcp", "80/tcp", "91/udp")),
    'ENV p="80 443/TCP"\nEXPOSE $p': ("exposed_ports", ("443/tcp", "80/tcp")),
    "EXPOSE 0000080": ("exposed_ports", ("80/tcp",)),
    "CMD": ("cmd", ("/bin/sh", "-c")),
    "CMD x\nENTRYPOINT": ("cmd", ("/bin/sh", "-c", "x")),
    "ENTRYPOINT x\nENTRYPOINT": ("entrypoint", ()),
    "CMD []\nENTRYPOINT [ \"a\" , \"b\" ]": ("entrypoint", ("a", "b")),
    "USER a b": ("user", "a b"),
    "USER x\nUSER $nothing": ("user", ""),
    "STOPSIGNAL RTMIN+3": ("stop_signal", "RTMIN+3"),
    "stopsignal 9": ("stop_signal", "9"),
    "WORKDIR /a b": ("working_dir", "/a b"),
    "VOLUME /a [b]": ("volumes", ("/a", "[b]")),
    'VOLUME [ "/a" , "/b c" ]': ("volumes", ("/a", "/b c")),
    "HEALTHCHECK\t--interval='90s' --retries=0\\\n # c\n  --start-period=1.5m\tCMD\tx  y": (
        "healthcheck", {"Test": ["CMD-SHELL", "x  y"], "Interval": 9 * 10**10, "StartPeriod": 9 * 10**10, "Retries": 0}),
    'HEALTHCHECK CMD [ "a" ]\nhealthcheck none': ("healthcheck", {"Test": ["NONE"]}),
    'SHELL ["a","b"]\nCMD c': ("cmd", ("a", "b", "c")),
    "LABEL a=1 'b c'=\\\n#x\n\n\"2 3\" $nothing'd'=e\nLABEL f g h": ("labels", {"a": "1", "b c": "2 3", "d": "e", "f": "g h"}),
    "ARG a=1 b=${a}2\nLABEL x=${b:-y}${c:-y}${b:+z}\\$x": ("labels", {"x": "12yz$x"}),
    "MAINTAINER  A B <c@d>": ("author", "A B <c@d>"),
    "onbuild run true\nONBUILD CMD": ("onbuild", ("run true", "CMD")),
}  # fmt: skip


def test_what_docker_takes(store: Store, context: Path) -> None:
    for text, (field, wanted) in LENIENT.items():
        config = make(store, context, f"FROM scratch\n{text}\n").image.config
        assert getattr(config, field) == wanted, text
    on_arm = make(store, context, "ARG A=arm64\nFROM --platform=linux/$A scratch\nCMD\n")
    assert on_arm.image.architecture == "arm64"
    (context / "Containerfile").write_bytes(b"# \xe9\nFROM scratch\nLABEL a=\xe9\n")
    said: list[Event] = []
    read = build(store, BuildOptions(str(context), tags=("test/image",)), said.append)
    assert read.config.labels == {"a": "\ufffd"} and "Containerfile:1" in str(said)


def test_reproducible(store: Store, context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    (context / "f").write_text("1")
    text = "FROM micro\nRUN mkdir /d && echo x > /d/x\nCOPY f /new/f\nENV a=b\n"
    digests = {make(store, context, text, no_cache=True).image.digest for _ in range(2)}
    assert len(digests) == 1
    assert store.resolve("test/image").config.created == "2023-11-14T22:13:20Z"


def test_steps_have_no_rights_over_the_host(store: Store, context: Path) -> None:
    script = (
        "mount -t tmpfs x /mnt 2>/dev/null && echo MOUNTED; (echo x > /proc/sys/kernel/domainname) 2>/dev/null && echo WROTE;"
        "mknod /tmp/sda b 254 0; cat /tmp/sda > /dev/null 2>&1 && echo DISK; rm -f /tmp/sda; hostname; ps | wc -l"
    )
    built = make(store, context, "FROM micro\n")
    said = built.sh(script)
    assert "MOUNTED" not in said and "WROTE" not in said and "DISK" not in said
    assert said.split()[0] == "build" and int(said.split()[-1]) < 8


BUILD = """
import sys
from pathlib import Path
from labctl.image.build import BuildOptions, build
from labctl.image.store import Store
build(Store(Path(sys.argv[1])), BuildOptions(sys.argv[2], tags=("killed",), no_cache=True))
"""


def test_killed_at_any_moment(store: Store, context: Path) -> None:
    (context / "Containerfile").write_text(
        "FROM micro\nRUN dd if=/dev/zero of=/a bs=1M count=20 2>/dev/null\nCOPY big /big\nRUN sleep 0.1; echo 1 > /b\n"
    )
    (context / "big").write_bytes(os.urandom(8 << 20))
    chance, killed = random.Random(7), 0
    for _ in range(12):
        argv = [sys.executable, "-c", BUILD, str(store.root), str(context)]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.05, 1.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        assert store.verify(deep=True) == []
    assert killed >= 3
    store.prune(cache=True)
    assert not list((store.root / "tmp").iterdir())
    mounts = Path("/proc/self/mounts").read_text()
    assert str(store.root) not in mounts


def test_an_emptied_folder_hides_only_what_was_below(store: Store, context: Path) -> None:
    """A folder removed and made again in one step; later steps copy its attributes up, and add to it."""
    (context / "more").write_text("m")
    built = make(
        store, context,
        "FROM micro\nRUN mkdir /d && touch /d/old\nRUN rm -r /d && mkdir /d && touch /d/new\n"
        "COPY more /d/\nRUN touch /d/last\n",
    )  # fmt: skip
    assert built.sh("ls /d").split() == ["last", "more", "new"]


def test_the_same_again_has_the_same_digest(
    store: Store, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps from the cache, at another time of day; and ENV before RUN does not keep it from that."""
    text = "FROM micro\nENV A=1\nRUN date +%N > /when\nLABEL l=1\nRUN date +%N > /again\n"
    first = make(store, context, text)
    monkeypatch.setattr("labctl.image.build.time.time", lambda: 2_000_000_000)
    assert make(store, context, text).image.digest == first.image.digest


def test_mounts_of_a_step(store: Store, context: Path) -> None:
    """RUN --mount: what it shows, and that none of it is in the layer or in the build's folder."""
    (context / "f").write_text("from the folder")
    text = (
        "FROM micro AS other\nRUN echo other > /o\nFROM micro\n"
        "RUN --mount=type=cache,target=/c,mode=0700 echo x >> /c/n; wc -l < /c/n > /count; stat -c %a /c >> /count\n"
        "RUN --mount=type=bind,target=/ctx cat /ctx/f > /r; ! touch /ctx/no 2>/dev/null\n"
        "RUN --mount=type=bind,target=/ctx,rw echo w > /ctx/f && cat /ctx/f >> /r\n"
        "RUN --mount=from=other,source=/o,target=/oo cat /oo >> /r\n"
        "RUN --mount=type=tmpfs,target=/t,size=1m grep -c ' /t tmpfs' /proc/mounts >> /r\n"
        'RUN --mount=type=secret,id=s --mount=type=secret,id=s,env=S cat /run/secrets/s >> /r; echo "$S" >> /r\n'
    )
    built = make(store, context, text, secrets={"s": b"secret "})
    assert built.sh("cat /count /r; ls -d /c /ctx /oo /t /run/secrets 2>/dev/null; true") == (
        "1\n700\nfrom the folderw\nother\n1\nsecret secret \n"
    )
    assert (context / "f").read_text() == "from the folder"
    again = make(store, context, text, secrets={"s": b"secret "}, no_cache=True)
    assert again.sh("cat /count").startswith("2")
    for words, said in (
        ("type=secret,id=t,required", "there is no secret t"),
        ("type=ssh", "not offered"),
        ("type=disk,target=/x", "no type disk"),
        ("type=cache", "needs a target"),
        ("type=bind,target=/x,source=nonesuch", "not there"),
        ("type=tmpfs,target=/x,size=big", "is no size"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            make(store, context, f"FROM micro\nRUN --mount={words} true\n")
        assert caught.value.where and caught.value.where.line == 2
