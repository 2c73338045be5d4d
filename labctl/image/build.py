"""Build an image from a Containerfile (Dockerfile reference, what Docker 20.10 honours, and here-documents).

Each step that changes files works in an overlay over the layers so far; what it leaves there becomes the
next layer.  A step whose inputs are all the same as before is taken from the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labctl.errors import LabError, UsageError, Where
from labctl.events import Emit, Note, silent
from labctl.image import refs
from labctl.image.build_cache import BuildCache, Made, key_of
from labctl.image.build_config import CONFIG_STEPS, command
from labctl.image.build_files import Files
from labctl.image.build_mounts import Mounts
from labctl.image.build_state import PREDEFINED, Stage, StageText
from labctl.image.containerfile import Instruction, instruction, parse
from labctl.image.expand import BadWord, expand, split
from labctl.image.ignore import Ignore
from labctl.image.model import Image, Layer, host_arch, oci_arch
from labctl.image.pack import Packing, pack
from labctl.image.runner import OverlayRunner, Runner, Step
from labctl.image.store import Store
from labctl.records import dataclass


@dataclass(frozen=True)
class BuildOptions:
    """What `labctl image build` was asked for.  `context` "" means that COPY has nothing to copy from."""

    context: str
    containerfile: str = ""  # empty = Containerfile, then Dockerfile, in the context
    tags: tuple[str, ...] = ()
    build_args: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    no_cache: bool = False
    platform: str = ""  # linux/ARCH, or ARCH
    network: bool = True
    secrets: Mapping[str, bytes] = field(default_factory=dict)  # for RUN --mount=type=secret, by id


def build(store: Store, options: BuildOptions, emit: Emit = silent, *, runner: Runner | None = None) -> Image:
    """Build and name the image; raises UsageError with file:line for what is written wrong, LabError for a
    step that fails.
    """
    path = _containerfile(options)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read it: {error.strerror}", where=Where(str(path))) from error
    # Names in old comments are often Latin-1; what is no UTF-8 ends as this sign with Docker, too.
    text = raw.decode(errors="replace")
    if "\ufffd" in text:
        line = 1 + text[: text.index("\ufffd")].count("\n")
        emit(Note("", f"{path}:{line}: what is not UTF-8 is read as \ufffd", "warning"))
    for tag in options.tags:
        refs.parse(tag)
    store.sweep()
    with store.adding():
        return _Builder(store, options, path, parse(text, str(path)), emit, runner or OverlayRunner()).run()


def _containerfile(options: BuildOptions) -> Path:
    if options.containerfile:
        return Path(options.containerfile)
    for name in ("Containerfile", "Dockerfile"):
        if (Path(options.context) / name).is_file():
            return Path(options.context) / name
    raise UsageError(f"{options.context or '.'} has no Containerfile", hint="write one, or name it with -f")


class _Builder:
    def __init__(
        self,
        store: Store,
        options: BuildOptions,
        path: Path,
        steps: list[Instruction],
        emit: Emit,
        runner: Runner,
    ) -> None:
        self.store, self.options, self.emit, self.runner = store, options, emit, runner
        self.cache = BuildCache(store)
        self.global_args: dict[str, str] = {}
        self.used_args: set[str] = set()
        platform = options.platform.rpartition("/")[2] if "/" in options.platform else options.platform
        self.arch = oci_arch(platform) if platform else host_arch()
        self.platform_args = {
            "TARGETPLATFORM": f"linux/{self.arch}", "TARGETOS": "linux", "TARGETARCH": self.arch,
            "TARGETVARIANT": "v7" if self.arch == "arm" else "", "BUILDVARIANT": "",
            "BUILDPLATFORM": f"linux/{host_arch()}", "BUILDOS": "linux", "BUILDARCH": host_arch(),
        }  # fmt: skip
        epoch = options.build_args.get("SOURCE_DATE_EPOCH", os.environ.get("SOURCE_DATE_EPOCH", ""))
        self.epoch = int(epoch) if epoch.isdigit() else None
        now = self.epoch if self.epoch is not None else int(time.time())
        self.created = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.texts = self._stages(steps)
        self.done: dict[int, Stage] = {}
        context = Path(options.context or path.parent).absolute()
        self.files = Files(self, context, Ignore.of(context, path))
        self.mounts = Mounts(self, self.files)

    def run(self) -> Image:
        """Build the stages that the wanted one needs, and name the result."""
        stage = self.stage(self._target())
        unused = set(self.options.build_args) - self.used_args - PREDEFINED - {"SOURCE_DATE_EPOCH"}
        if unused:
            self.emit(
                Note("", f"build arguments that no ARG asks for: {', '.join(sorted(unused))}", "warning")
            )
        config = replace(stage.config, created=stage.config.created or self.created)
        image = self.store.add_image(self.options.tags[0] if self.options.tags else "", config, stage.layers)
        for tag in self.options.tags[1:]:
            self.store.add_image(tag, config, stage.layers)
        return image

    # -- stages -----------------------------------------------------------------------------------

    def _stages(self, steps: list[Instruction]) -> list[StageText]:
        stages: list[StageText] = []
        for step in steps:
            if step.name == "FROM":
                parts = step.rest.split()
                if len(parts) not in (1, 3) or (len(parts) == 3 and parts[1].upper() != "AS"):
                    raise step.wrong("reads FROM image [AS name]")
                name = parts[2].lower() if len(parts) == 3 else ""
                if name and (name[0].isdigit() or any(one.name == name for one in stages)):
                    raise step.wrong(f"{name} can't be the name of this stage: taken, or a number")
                stages.append(StageText(len(stages), step, name))
            elif stages:
                stages[-1].body.append(step)
            elif step.name == "ARG":
                self._global_arg(step)
            else:
                raise step.wrong("must come after FROM", "the first instruction is FROM image")
        if not stages:
            raise steps[0].wrong("there is no FROM", "the first instruction is FROM image")
        return stages

    def _global_arg(self, step: Instruction) -> None:
        try:
            for word in split(step.rest, step.escape):
                name, equals, raw = _arg_of(step, word)
                self.used_args.add(name)
                known = {**self.platform_args, **self.global_args}
                if name in self.options.build_args:
                    self.global_args[name] = self.options.build_args[name]
                elif equals:
                    self.global_args[name] = expand(raw, known, step.escape)
        except BadWord as error:
            raise step.wrong(str(error)) from None

    def _target(self) -> StageText:
        wanted = self.options.target
        if not wanted:
            return self.texts[-1]
        found = self.find_stage(wanted, len(self.texts))
        if found is None:
            names = ", ".join(text.name or str(text.index) for text in self.texts)
            raise UsageError(f"there is no stage {wanted}", hint=f"there are: {names}")
        return found

    def find_stage(self, name: str, before: int) -> StageText | None:
        """The stage of that name or number, among those before that one."""
        for text in self.texts[:before]:
            if text.name == name.lower() or str(text.index) == name:
                return text
        return None

    def stage(self, text: StageText) -> Stage:
        """The stage, built now if it isn't yet."""
        if text.index not in self.done:
            self.done[text.index] = self._build(text)
        return self.done[text.index]

    def image_layers(self, ref: str, step: Instruction) -> tuple[list[Layer], str]:
        """Layers and key of an image that a step names."""
        try:
            image = self.store.ensure(ref, self.emit, arch=self.arch)
        except LabError as error:
            raise type(error)(f"{step.name}: {error.message}", hint=error.hint, where=step.where) from error
        return list(image.layers), image.config_digest

    def _build(self, text: StageText) -> Stage:
        head = text.head
        try:
            name = expand(head.rest.split()[0], {**self.platform_args, **self.global_args}, head.escape)
        except BadWord as error:
            raise head.wrong(str(error)) from None
        below = self.find_stage(name, text.index)
        triggers: tuple[str, ...] = ()
        if name == "scratch":
            stage = Stage.on(text, None, self._arch_of(head))
        elif below is not None:
            base = self.stage(below)
            triggers = base.config.onbuild
            stage = Stage(text, replace(base.config, onbuild=()), list(base.layers), base.key)
        else:
            image = self._base(name, head)
            triggers = image.config.onbuild
            stage = Stage.on(text, image, self.arch)
        if self.epoch is not None:
            # Layers made without it have other times in them.
            stage.key = key_of(stage.key, "SOURCE_DATE_EPOCH", self.epoch)
        steps = [instruction(trigger, head.line, head.file, head.escape) for trigger in triggers]
        for number, step in enumerate([*steps, *text.body], 1):
            self._note(text, number, len(steps) + len(text.body), step)
            self.step(stage, step)
        return stage

    def _base(self, name: str, head: Instruction) -> Image:
        if not name:
            raise head.wrong("the image's name is empty", "an ARG before FROM gives it a value")
        try:
            return self.store.ensure(name, self.emit, arch=self._arch_of(head))
        except LabError as error:
            raise type(error)(error.message, hint=error.hint, where=head.where) from error

    def _arch_of(self, head: Instruction) -> str:
        """What --platform of a FROM asks for, else what the whole build is for."""
        platform = head.flags.get("platform", "")
        try:
            platform = expand(platform, {**self.platform_args, **self.global_args}, head.escape)
        except BadWord as error:
            raise head.wrong(str(error)) from None
        return oci_arch(platform.split("/")[1] if "/" in platform else platform) if platform else self.arch

    def _note(self, text: StageText, number: int, total: int, step: Instruction) -> None:
        name = f"{text.name} " if text.name else (f"stage {text.index} " if len(self.texts) > 1 else "")
        self.emit(Note("", f"[{name}{number}/{total}] {step.text[:200]}"))

    # -- steps ------------------------------------------------------------------------------------

    def step(self, stage: Stage, step: Instruction) -> None:
        """Carry out one instruction."""
        if step.name == "ARG":
            self._arg(stage, step)
        elif step.name == "RUN":
            self._run(stage, step)
        elif step.name in ("COPY", "ADD"):
            self.files.copy(stage, step)
        elif step.name == "WORKDIR":
            self._workdir(stage, step)
        else:
            CONFIG_STEPS[step.name](stage, step)
            self._empty(stage, step)

    def _empty(self, stage: Stage, step: Instruction) -> None:
        stage.key = key_of(stage.key, step.text, stage.inputs())
        made = None if self.options.no_cache else self.cache.get(stage.key)
        if made is None:
            made = Made(None, self.created)
            self.cache.put(stage.key, made)
        stage.note(made.created, step.text, empty=True)

    def _arg(self, stage: Stage, step: Instruction) -> None:
        try:
            for word in split(step.rest, step.escape):
                name, equals, raw = _arg_of(step, word)
                self.used_args.add(name)
                value = expand(raw, stage.values, step.escape) if equals else None
                if value is None:
                    value = {**self.platform_args, **self.global_args}.get(name)
                value = self.options.build_args.get(name, value)
                if value is not None:
                    stage.args[name] = value
        except BadWord as error:
            raise step.wrong(str(error)) from None
        self._empty(stage, step)

    def _workdir(self, stage: Stage, step: Instruction) -> None:
        path = stage.word(step, step.rest)
        if not path:
            raise step.wrong("the path is empty")
        full = os.path.normpath(os.path.join(stage.config.working_dir or "/", path))  # noqa: PTH118
        stage.change(working_dir=full)
        if full == "/":
            self._empty(stage, step)
            return
        words = {"do": "folder", "target": full, "user": stage.config.user}
        self.layer(
            stage,
            step,
            key_of(stage.key, "WORKDIR", words),
            lambda upper: self.child(stage, step, upper, words),
        )

    def _run(self, stage: Stage, step: Instruction) -> None:
        argv, stdin_text = self._argv(stage, step)
        environment = stage.environment(self.options.build_args)
        where = stage.config.working_dir or "/"
        network = self.options.network and step.flags.get("network", "default") != "none"
        kept = [item for item in environment if item.partition("=")[0] not in PREDEFINED]
        mounts = self.mounts.of(stage, step)
        marks = [mount.mark for mount in mounts]
        user = stage.config.user
        key = key_of(stage.key, "RUN", argv, stdin_text, sorted(kept), where, user, network, marks)

        def work(upper: Path) -> None:
            said = _Lines(self.emit)
            layers = self.store.layers.stack(stage.layers)
            try:
                with self.mounts.ready(mounts, upper) as (places, added):
                    order = Step(
                        argv, (*environment, *added), where, user, network, stdin_text.encode(), places
                    )
                    code = self.runner.run(layers, upper, order, said)
            except LabError as error:
                raise type(error)(error.message, hint=error.hint, where=step.where) from error
            said.flush()
            if code:
                tail = "\n".join(said.last)
                raise LabError(f"RUN failed with exit code {code}:\n{tail}", where=step.where)

        self.layer(stage, step, key, work)

    def _argv(self, stage: Stage, step: Instruction) -> tuple[tuple[str, ...], str]:
        if step.words == ():
            raise step.wrong("needs a command")
        if not step.heredocs:
            return command(stage, step), ""
        first = step.heredocs[0]
        alone = step.rest.strip().startswith("<<") and len(step.rest.split()) == 1
        if alone and first.text.startswith("#!"):
            # A script of its own: its interpreter reads it from standard input.
            return (*first.text.splitlines()[0][2:].split(), "/dev/stdin"), first.text
        if alone:
            return (*stage.shell, first.text), ""
        documents = "".join(f"{document.text}{document.name}\n" for document in step.heredocs)
        return (*stage.shell, f"{step.rest}\n{documents}"), ""

    # -- layers -----------------------------------------------------------------------------------

    def layer(self, stage: Stage, step: Instruction, key: str, work: Callable[[Path], None]) -> None:
        """Do the work in an empty folder and make a layer of what it leaves; or take it from the cache."""
        stage.key = key
        made = None if self.options.no_cache else self.cache.get(key)
        if made is None:
            made = Made(self._made(work), self.created)
            self.cache.put(key, made)
        else:
            self.emit(Note("", "  from the cache"))
        if made.layer is not None:
            stage.layers.append(made.layer)
        stage.note(made.created, step.text, empty=made.layer is None)

    def _made(self, work: Callable[[Path], None]) -> Layer | None:
        with self.store.scratch.folder("step") as aside:
            upper = aside / "upper"
            upper.mkdir()
            work(upper)
            if not any(upper.iterdir()):
                return None
            tar = aside / "layer.tar"
            with tar.open("wb") as out:
                pack(upper, out, Packing(epoch=self.epoch, root=False))
            with tar.open("rb") as file:
                layer = self.store.add_layer(iter(lambda: file.read(1 << 20), b""))
            if self.epoch is None:
                self.store.layers.adopt(layer, upper)
            return layer

    def child(self, stage: Stage, step: Instruction, upper: Path, words: Mapping[str, Any]) -> None:
        """Have `build_child` do something to the image's files."""
        for name in ("work", "root", "from"):
            (upper.parent / name).mkdir(exist_ok=True)
        full = {
            "layers": [str(path) for path in self.store.layers.stack(stage.layers)],
            "upper": str(upper),
            "work": str(upper.parent / "work"),
            "root": str(upper.parent / "root"),
            "from_layers": [],
            "from_root": str(upper.parent / "from"),
            **words,
        }
        program = Path(__file__).with_name("build_child.py")
        argv = [sys.executable, "-I", "-S", str(program), json.dumps(full)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=3600, check=False)
        if done.returncode:
            raise LabError(
                f"{step.name} failed: {done.stderr.decode(errors='replace')[-1000:]}", where=step.where
            )
        if problem := json.loads(done.stdout).get("error"):
            raise step.wrong(problem)


def _arg_of(step: Instruction, word: str) -> tuple[str, str, str]:
    name, equals, raw = word.partition("=")
    if not name:
        raise step.wrong(f"{word} has no name", "as in ARG name or ARG name=value")
    return name, equals, raw


class _Lines:
    """Output of a step: each line becomes an event; the last ones are kept for the error."""

    def __init__(self, emit: Emit) -> None:
        self.emit, self.last, self._rest = emit, [""], ""
        self.last.clear()

    def __call__(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk.decode(errors="replace")).split("\n")
        for line in lines:
            self._line(line)

    def flush(self) -> None:
        """The last line, when it has no end."""
        if self._rest:
            self._line(self._rest)
            self._rest = ""

    def _line(self, line: str) -> None:
        shown = line.rstrip("\r").rpartition("\r")[2]  # what a terminal would show in the end
        self.last = [*self.last[-19:], shown]
        self.emit(Note("", f"  {shown}"))
