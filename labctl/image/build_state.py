"""What a build knows of a stage while it goes through its instructions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field, replace

from labctl.image.containerfile import Instruction
from labctl.image.expand import BadWord, expand, expand_raw, expand_words
from labctl.image.model import HistoryEntry, Image, ImageConfig, Layer
from labctl.records import dataclass
from labctl.runtime.spec import DEFAULT_PATH

#: Build arguments that need no ARG, and that are kept out of history and cache (Dockerfile reference).
PREDEFINED = frozenset(
    name
    for word in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (word, word.lower())
)


@dataclass
class StageText:
    """A stage as written: FROM and what follows."""

    index: int
    head: Instruction
    name: str = ""
    body: list[Instruction] = field(default_factory=list)


@dataclass
class Stage:
    """A stage as far as it is built."""

    text: StageText
    config: ImageConfig = field(default_factory=ImageConfig)
    layers: list[Layer] = field(default_factory=list)
    key: str = ""  # of the cache: follows from all that was done so far
    args: dict[str, str] = field(default_factory=dict)  # what ARG declared, with its value
    known_args: set[str] = field(default_factory=set)
    cmd_set: bool = False
    volumes: set[str] = field(default_factory=set)

    @classmethod
    def on(cls, text: StageText, base: Image | None, architecture: str) -> Stage:
        """A stage on an image, or on nothing (`scratch`)."""
        if base is None:
            return cls(text, with_path(ImageConfig(architecture=architecture)), key=f"scratch {architecture}")
        config = replace(with_path(base.config), onbuild=())
        return cls(text, config, list(base.layers), key=base.config_digest)

    @property
    def values(self) -> dict[str, str]:
        """What $name stands for: ENV wins over ARG."""
        return {**self.args, **self.config.environment()}

    @property
    def shell(self) -> tuple[str, ...]:
        """What runs the shell form."""
        return self.config.shell or ("/bin/sh", "-c")

    def change(self, **fields: object) -> None:
        """Replace fields of the configuration."""
        self.config = replace(self.config, **fields)  # type: ignore[arg-type]

    def inputs(self) -> str:
        """The configuration as far as it decides what a later step makes: without its history."""
        return json.dumps(replace(self.config, history=(), created="").to_json(), sort_keys=True)

    def note(self, created: str, text: str, *, empty: bool) -> None:
        """Add a step to the history."""
        entry = HistoryEntry(created, text, "labctl build", empty)
        self.change(history=(*self.config.history, entry), created=created)

    def word(self, step: Instruction, text: str) -> str:
        """One word with its variables and quotes; raises UsageError with the place."""
        try:
            return expand(text, self.values, step.escape)
        except BadWord as error:
            raise step.wrong(str(error)) from None

    def words(self, step: Instruction) -> list[str]:
        """The instruction's words; those of the JSON form have variables, but no quotes."""
        try:
            if step.words is not None:
                return [expand_raw(word, self.values, step.escape) for word in step.words]
            return expand_words(step.rest, self.values, step.escape)
        except BadWord as error:
            raise step.wrong(str(error)) from None

    def environment(self, build_args: Mapping[str, str]) -> tuple[str, ...]:
        """What a RUN sees: the image's ENV over the declared ARGs over the proxies that were given."""
        proxies = {name: value for name, value in build_args.items() if name in PREDEFINED}
        return tuple(f"{name}={value}" for name, value in {**proxies, **self.values}.items())


def with_path(config: ImageConfig) -> ImageConfig:
    """The configuration with a PATH, as Docker gives one to each image that is built on one without."""
    if "PATH" in config.environment():
        return config
    return replace(config, env=(DEFAULT_PATH, *config.env))


def with_variables(env: Sequence[str], added: Mapping[str, str]) -> tuple[str, ...]:
    """The list with these set, at their old places."""
    merged = {item.partition("=")[0]: item for item in env}
    merged.update({name: f"{name}={value}" for name, value in added.items()})
    return tuple(merged.values())
