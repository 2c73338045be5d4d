"""What `pipx install` gets: the wheel carries everything that labctl needs besides its dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_wheel_carries_profiles_templates_and_recipes(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path / "dist"), str(ROOT)],
        timeout=200,
        check=True,
    )
    (wheel,) = (tmp_path / "dist").glob("labctl-*.whl")
    place = tmp_path / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(place), str(wheel)], timeout=200, check=True
    )
    env = {**os.environ, "PYTHONPATH": str(place), "LABCTL_HOME": str(tmp_path / "home")}

    def python(code: str) -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path, check=True
        )
        return done.stdout.strip()

    assert python("import labctl; print(labctl.__file__)").startswith(str(place))
    for folder in ("templates", "profiles", "images"):
        shipped = python(f"from labctl.data import data; print(data({folder!r}))")
        assert shipped == str(place / "labctl/_data" / folder)
        ours = {str(path.relative_to(ROOT / folder)) for path in (ROOT / folder).rglob("*") if path.is_file()}
        found = {str(path.relative_to(shipped)) for path in Path(shipped).rglob("*") if path.is_file()}
        assert {name for name in ours if "__pycache__" not in name} == found
    done = subprocess.run(
        [sys.executable, "-m", "labctl.cli", "validate", "spectrum"],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
