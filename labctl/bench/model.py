"""What a suite is: benchmarks, each with a command, the figures read from what it prints, and its needs.

A command is a shell script or a list of words.  These stand for something in it: {seconds} how long to
work, {data} a folder for files on the node's root (or volume), {cpus} the processors that the place may
use, {address} where the server of a network benchmark is, {port} its port.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from labctl.profile.model import Model
from labctl.profile.types import Duration, Flag, Name, Text, Whole

WORDS = ("seconds", "data", "cpus", "address", "port")


class Better(StrEnum):
    """Which way a figure is good; `neither` for one that is only told."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"


class Route(StrEnum):
    """Between which two places a network benchmark runs."""

    NONE = "none"
    HOST = "host"
    PEER = "peer"


class Folder(StrEnum):
    """Which file system {data} is on."""

    ROOT = "root"
    VOLUME = "volume"


def _expression(value: str) -> str:
    try:
        groups = re.compile(value).groups if value else 1
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    if groups < 1:
        raise ValueError("must have a group (…) around the number")
    return value


def _path(value: str) -> str:
    if value and not re.fullmatch(r"[^.\s]+(\.[^.\s]+)*", value):
        raise ValueError("must be keys and list places with dots between, such as jobs.0.read.iops")
    return value


class Metric(Model):
    """One figure of a benchmark, and how it is read: exactly one of `regex`, `json` and `wall`."""

    title: Text = Field(default="", description="What it is; empty: the benchmark's title.")
    unit: Text = Field(min_length=1, description="Its unit.", examples=["MB/s", "µs"])
    better: Better = Field(description="lower, higher, or neither.")
    regex: Annotated[str, AfterValidator(_expression)] = Field(
        default="", description="Regular expression (Python's); group 1 of its last match is the figure."
    )
    json_path: Annotated[str, AfterValidator(_path)] = Field(
        default="", alias="json", description="Where it is in the JSON that is printed: jobs.0.read.iops."
    )
    wall: Flag = Field(default=False, description="The time from outside, in seconds, is the figure.")
    factor: float = Field(default=1.0, description="What the number found is multiplied with.")

    @model_validator(mode="after")
    def _one_way(self) -> Metric:
        if sum((bool(self.regex), bool(self.json_path), self.wall)) != 1:
            raise ValueError("exactly one of regex, json and wall: true is wanted")
        return self


class Benchmark(Model):
    """One benchmark: it runs alike in every place."""

    title: Text = Field(min_length=1, description="What it measures, in some words.")
    about: Text = Field(default="", description="What the figure means and what it does not.")
    tool: Text = Field(default="", description="The program that measures.")
    version: Text = Field(default="", description="Shell command that prints the tool's version.")
    command: Text | tuple[Text, ...] = Field(description="Shell script, or a list of words.", min_length=1)
    prepare: Text = Field(default="", description="Shell script that runs once in each place before.")
    cleanup: Text = Field(default="", description="Shell script that runs once in each place after.")
    serve: Text = Field(default="", description="Shell command of the server at the other end.")
    port: Whole = Field(default=0, ge=0, le=65535, description="The port that the server listens on.")
    route: Route = Field(
        default=Route.NONE,
        description="host: server in the place, client on the host; peer: server in a peer, client here.",
    )
    beside: Text = Field(
        default="",
        description="Shell command that runs in a peer meanwhile; figures are the share that is left.",
    )
    folder: Folder = Field(default=Folder.ROOT, description="Which file system {data} is on.")
    seconds: Duration = Field(default=2.0, description="What {seconds} stands for.")
    warmup: Whole = Field(default=1, ge=0, le=100, description="Runs in each place that don't count.")
    limit: Duration = Field(default=60.0, description="How long one run may take.")
    needs: tuple[Text, ...] = Field(default=(), description="Programs that must be in the image.")
    quick: Flag = Field(default=False, description="Whether it belongs to the suite `quick`.")
    quick_seconds: Duration = Field(default=0.3, description="What {seconds} stands for there.")
    metrics: dict[Name, Metric] = Field(
        min_length=1, description="The figures; the first one decides on runs."
    )

    @model_validator(mode="after")
    def _routed(self) -> Benchmark:
        if bool(self.serve) != (self.route is not Route.NONE) or bool(self.serve) != bool(self.port):
            raise ValueError("serve, port and route belong together")
        if self.serve and self.beside:
            raise ValueError("serve and beside can't go together")
        return self


class Suite(Model):
    """Benchmarks about one thing."""

    name: Name = Field(description="The suite's name.")
    description: Text = Field(default="", description="What it is about.")
    benchmarks: dict[Name, Benchmark] = Field(min_length=1, description="By their names.")


def filled(text: str, values: dict[str, str]) -> str:
    """The text with its {words} filled in; other braces (JSON, shell) stay."""
    for word in WORDS:
        text = text.replace("{" + word + "}", values.get(word, "{" + word + "}"))
    return text
