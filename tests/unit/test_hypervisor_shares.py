"""The daemon for shared folders is the one that libvirt would take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labctl.errors import HostCannot
from labctl.hypervisor import shares


def test_a_nearer_description_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = tmp_path / "etc", tmp_path / "usr"
    monkeypatch.setattr(shares, "FOLDERS", (str(near), str(far)))
    for folder in (near, far):
        folder.mkdir()
    with pytest.raises(HostCannot, match="virtiofsd is not installed"):
        shares.daemon()
    (far / "10-gpu.json").write_text(json.dumps({"type": "gpu", "binary": "/bin/true"}))
    (far / "20-broken.json").write_text("{")
    (far / "50-fs.json").write_text(json.dumps({"type": "fs", "binary": "/bin/true"}))
    assert shares.daemon() == "/bin/true"
    (near / "50-fs.json").write_text(json.dumps({"type": "fs", "binary": str(tmp_path / "gone")}))
    with pytest.raises(HostCannot) as caught:
        shares.daemon()
    assert "apt-get install virtiofsd" in caught.value.hint
