"""JSON Schema 2020-12 of what people may write, short forms and all, so that editors complete it.

The models give the long forms; the tables here add the short ones that `shapes_*` understand.  A test
holds the two together: what the schema's examples say, the loader accepts.
"""

from __future__ import annotations

import copy
from typing import Any

from labctl.profile import words
from labctl.profile.models import Profile

Schema = dict[str, Any]
ID = "urn:labctl:profile:1"
SCALAR: Schema = {"type": ["string", "number", "boolean"]}
TEXT: Schema = {"type": "string"}
TEXTS: Schema = {"type": "array", "items": SCALAR}
COMMAND: Schema = {
    "anyOf": [
        {"type": "string", "description": "A line for the shell."},
        {
            "type": "array",
            "items": SCALAR,
            "description": "A command and its arguments, run without a shell.",
        },
    ]
}
TEXT_MAP: Schema = {
    "anyOf": [
        {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
        {"type": "array", "items": {"type": "string", "pattern": "^[^=]+="}},
    ]
}
ADDRESSES: Schema = {
    "anyOf": [
        {"const": "none"},
        {"type": "string", "pattern": r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$"},
        {"type": "array", "items": {"type": "string", "pattern": r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$"}},
    ]
}
PORT: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": 65535},
        {"type": "string", "pattern": r"^(([0-9.]+:|\[[0-9A-Fa-f:.]+\]:)?[0-9-]*:)?[0-9-]+(/(tcp|udp))?$"},
        {"$ref": "#/$defs/Port"},
    ]
}
EXAMPLES: dict[str, dict[str, list[Any]]] = {
    "Node": {
        "networks": [["lan"], {"lan": "10.1.0.5", "wan": {"address": ["10.2.0.5", "fd00::5"], "up": True}}],
        "ports": [["8080:80", "127.0.0.1:5353:53/udp", 443]],
        "depends_on": [["db"], {"db": "ready"}],
        "env": [{"PORT": 8080}, ["PORT=8080"]],
        "command": ["exec httpd -f", ["httpd", "-f"]],
        "files": [{"/etc/motd": "hello"}, ["./index.html:/srv/index.html:0644"]],
        "volumes": [["data:/var/lib/data", "./src:/src:ro"]],
        "tmpfs": ["/run", {"/tmp": "64MiB"}],
        "disks": [{"data": "1GiB"}, {"data": {"size": "1GiB", "mount": "/srv"}, "tools": {"image": "micro"}}],
        "provision": ["apt-get update", ["echo one", {"name": "two", "run": "echo two"}]],
        "ready": [80, {"http": "http://:8080/", "timeout": "2m"}, {"command": "test -e /done"}],
        "capabilities": [["NET_ADMIN"], {"add": ["NET_ADMIN"], "drop": ["MKNOD"]}],
        "routes": [["10.2.0.0/16 via 10.1.0.1"]],
        "sysctls": [{"net.ipv4.ip_forward": 1}],
    },
    "Network": {"subnet": ["10.1.0.0/24", ["10.1.0.0/24", "fd00:1::/64"], "none"]},
    "Check": {"expect": [0, "hello", {"matches": "load: ([0-9.]+)", "range": [0, 2]}]},
}


def json_schema() -> Schema:
    """The schema of a profile as people write it."""
    schema = Profile.model_json_schema(mode="validation")
    defs: dict[str, Schema] = schema["$defs"]
    top = schema["properties"]
    for name in ("name", "replica_of"):
        del defs["Node"]["properties"][name]
    del top["source"]
    _nodes(defs)
    _others(defs)
    top["networks"] = _named(top["networks"], "Network", {"type": "string", "description": "Its subnet."})
    top["nodes"] = _named(top["nodes"], "Node")
    top["volumes"] = _named(top["volumes"], "Volume")
    top["secrets"] = _named(top["secrets"], "Secret", {"type": "string", "description": "Its file."})
    top["checks"] = _either(
        top["checks"], {"type": "object", "additionalProperties": {"$ref": "#/$defs/NamedCheck"}}
    )
    top["defaults"] = {"$ref": "#/$defs/Node", "description": "What every node has unless it says otherwise."}
    groups: Schema = {"type": "object", "description": "Parts of nodes that nodes take over with `extends`."}
    top["groups"] = _named(groups, "Node")
    for name, fields in EXAMPLES.items():
        for field, examples in fields.items():
            defs[name]["properties"][field]["examples"] = examples
    _tidy(schema)
    order = "name description nested defaults groups networks nodes volumes secrets checks"
    schema["properties"] = {key: top[key] for key in order.split()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": ID, "title": "labctl profile"}
    return {**head, **{key: value for key, value in schema.items() if key != "title"}}


def _nodes(defs: dict[str, Schema]) -> None:
    """Short forms of a node's fields."""
    node = defs["Node"]["properties"]
    node["extends"] = {
        "anyOf": [TEXT, TEXTS],
        "description": "Groups whose parts it takes over, the last one first.",
    }
    attachment = defs["Attachment"]
    attachment["properties"]["address"] = {
        **ADDRESSES,
        "description": "Short for `addresses`; `none`: no address.",
    }
    attachment["properties"]["addresses"] = {**ADDRESSES, **_kept(attachment["properties"]["addresses"])}
    attachment["properties"]["aliases"] = _either(attachment["properties"]["aliases"], TEXT)
    values: dict[str, tuple[str, str, Schema]] = {
        "networks": ("Attachment", "network", ADDRESSES),
        "files": ("File", "path", SCALAR),
        "volumes": ("Mount", "source", TEXT),
        "tmpfs": ("Tmpfs", "target", {"type": ["string", "integer"]}),
        "disks": ("Disk", "name", {"type": ["string", "integer"]}),
        "secrets": ("SecretUse", "secret", TEXT),
        "routes": ("Route", "to", TEXT),
    }
    defs["Mount"]["properties"]["type"] = {"enum": ["volume", "bind"], "description": "Short for `kind`."}
    for field, (name, key, value) in values.items():
        keyed = _keyed(defs, name, key, value)
        items = {
            "anyOf": [TEXT, {"$ref": f"#/$defs/{name}"}, {**keyed, "minProperties": 1, "maxProperties": 1}]
        }
        node[field] = {**_kept(node[field]), "anyOf": [TEXT, {"type": "array", "items": items}, keyed]}
    step = {
        "anyOf": [
            TEXT,
            {"$ref": "#/$defs/Step"},
            {"type": "object", "additionalProperties": TEXT, "maxProperties": 1},
        ]
    }
    node["provision"] = {**_kept(node["provision"]), "anyOf": [step, {"type": "array", "items": step}]}
    vm = defs["Vm"]["properties"]
    vm["pin"] = {**_kept(vm["pin"]), "anyOf": [SCALAR, {"type": "array", "items": SCALAR}]}
    node["ports"] = {**_kept(node["ports"]), "anyOf": [PORT, {"type": "array", "items": PORT}]}
    source = {
        "type": "object",
        "properties": {"source": {**TEXT, "description": "A file next to the profile."}},
        "required": ["source"],
        "additionalProperties": False,
    }
    node["startup"] = _either(node["startup"], source)
    _words(defs)


def _words(defs: dict[str, Schema]) -> None:
    """Short forms of the fields of a node that are no lists of things."""
    node = defs["Node"]["properties"]
    for field in ("command", "entrypoint"):
        node[field] = {**_kept(node[field]), **copy.deepcopy(COMMAND)}
    for field in ("env", "labels", "sysctls"):
        node[field] = {**_kept(node[field]), **copy.deepcopy(TEXT_MAP)}
    node["aliases"] = _either(node["aliases"], TEXT)
    node["user"] = {**node["user"], "type": ["string", "integer"]}
    condition = {"anyOf": [{"$ref": "#/$defs/Condition"}, {"type": "null"}]}
    waits = {"type": "object", "additionalProperties": condition}
    node["depends_on"] = {
        **_kept(node["depends_on"]),
        "anyOf": [TEXT, {"type": "array", "items": TEXT}, waits],
    }
    port = {"type": "integer", "minimum": 1, "maximum": 65535}
    node["ready"] = {**_kept(node["ready"]), "anyOf": [port, TEXT, TEXTS, {"$ref": "#/$defs/Ready"}]}
    defs["Ready"]["properties"]["command"] = {**_kept(defs["Ready"]["properties"]["command"]), **COMMAND}
    node["capabilities"] = {
        **_kept(node["capabilities"]),
        "anyOf": [TEXT, TEXTS, {"$ref": "#/$defs/Capabilities"}],
    }
    gateways = {"type": "array", "items": TEXT, "maxItems": 2}
    node["gateway"] = {**_kept(node["gateway"]), "anyOf": [TEXT, {"const": False}, gateways]}


def _others(defs: dict[str, Schema]) -> None:
    """Short forms of networks and checks."""
    net = defs["Network"]["properties"]
    net["subnet"] = {**_kept(net["subnet"]), "anyOf": [TEXT, {"type": "array", "items": TEXT, "maxItems": 2}]}
    net["host_address"] = {
        **_kept(net["host_address"]),
        "anyOf": [{"type": "boolean"}, TEXT, {"type": "array", "items": TEXT, "maxItems": 2}],
    }
    net["labels"] = {**_kept(net["labels"]), **copy.deepcopy(TEXT_MAP)}
    check = defs["Check"]["properties"]
    check["node"] = {
        **_kept(check["node"]),
        "description": "The node where the command runs, several of them, or `all`: then one check each.",
        "anyOf": [TEXT, {"type": "array", "items": TEXT}],
    }
    check["needs"] = _either(check["needs"], TEXT)
    check["command"] = {**_kept(check["command"]), **copy.deepcopy(COMMAND)}
    code = {"type": "integer", "minimum": 0, "maximum": 255}
    check["expect"] = {**_kept(check["expect"]), "anyOf": [code, TEXT, {"$ref": "#/$defs/Expect"}]}
    expect = defs["Expect"]["properties"]
    expect["exit"] = {**_kept(expect["exit"]), "anyOf": [code, {"const": "any"}]}
    expect["exit_code"] = {**expect["exit"], "description": "The same as `exit`."}
    ends = {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 2, "maxItems": 2}
    pattern = r"^(-?[0-9.]+)?\s*\.\.\s*(-?[0-9.]+)?$"
    expect["range"] = {**_kept(expect["range"]), "anyOf": [ends, {"type": "string", "pattern": pattern}]}
    for name in ("output", "equals", "matches"):
        expect[name] = {**_kept(expect[name]), **SCALAR}
    defs["NamedCheck"] = copy.deepcopy(defs["Check"])


def _kept(schema: Schema) -> Schema:
    """What stays of a field when its types are written anew."""
    return {key: schema[key] for key in ("description", "title", "default", "examples") if key in schema}


def _either(schema: Schema, *more: Schema) -> Schema:
    """A field that may also be something else."""
    kept = _kept(schema)
    rest = {key: value for key, value in schema.items() if key not in kept}
    return {**kept, "anyOf": [*(rest["anyOf"] if set(rest) == {"anyOf"} else [rest]), *more]}


def _named(schema: Schema, name: str, *more: Schema) -> Schema:
    """A map of named things, whose names are checked; or a list of names."""
    child = {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}, *more]}
    names = {"type": "string", "pattern": f"^{words.NAME}$"}
    keyed = {"type": "object", "additionalProperties": child, "propertyNames": names}
    return {**_kept(schema), "anyOf": [keyed, {"type": "array", "items": names}]}


def _keyed(defs: dict[str, Schema], name: str, key: str, value: Schema) -> Schema:
    """A map whose keys go under `key` of a model: {lan: 10.1.0.5, wan: {…}}."""
    inner = copy.deepcopy(defs[name])
    inner["properties"].pop(key)
    inner["required"] = [field for field in inner.get("required", []) if field != key]
    defs[f"{name}Value"] = inner
    return {
        "type": "object",
        "additionalProperties": {"anyOf": [{"type": "null"}, value, {"$ref": f"#/$defs/{name}Value"}]},
    }


def _tidy(at: object) -> None:
    """Pydantic's titles (the key again) and empty defaults only make pop-ups longer."""
    if isinstance(at, dict):
        for key in ("title", "default"):
            value = at.get(key, "absent")
            if (key == "title" and isinstance(value, str)) or value in ("", [], {}, None):
                at.pop(key, None)
        children = list(at.values())
    else:
        children = at if isinstance(at, list) else []
    for child in children:
        _tidy(child)
