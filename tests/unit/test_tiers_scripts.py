"""Start-up scripts run to their end, and every failing statement is told with its line."""

from __future__ import annotations

import subprocess

from labctl.tiers.scripts import failures, statements, wrap

SCRIPT = """# a comment
x=1
false
for i in 1 2; do
  echo "loop $i $x"
done

cat > /dev/stdout <<'EOF'
not a command
for x in
EOF
ls /nowhere/at/all \\
   2>/dev/null
cat <<-ONE
\ttext
\tONE
echo "it's $x"
(exit 7)
"""


def test_statements_stay_whole() -> None:
    assert [(s.line, s.text.splitlines()[0]) for s in statements(SCRIPT)] == [
        (2, "x=1"),
        (3, "false"),
        (4, "for i in 1 2; do"),
        (8, "cat > /dev/stdout <<'EOF'"),
        (12, "ls /nowhere/at/all \\"),
        (14, "cat <<-ONE"),
        (17, 'echo "it\'s $x"'),
        (18, "(exit 7)"),
    ]


def test_it_goes_on_and_reports_each_failing_line() -> None:
    done = subprocess.run(
        ["/bin/sh", "-s"], input=wrap(SCRIPT), capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0
    assert "loop 2 1\n" in done.stdout and "not a command\n" in done.stdout and "it's 1\n" in done.stdout
    assert [(f.line, f.code) for f in failures(SCRIPT, done.stdout)] == [(3, 1), (12, 2), (18, 7)]
    assert str(failures(SCRIPT, done.stdout)[0]) == "line 3: `false` ended with 1"


def test_a_failing_line_is_told_with_what_it_said() -> None:
    script = """echo fine >&2
sh -c 'echo x:1: Error: no such chain >&2; echo "^^" >&2; exit 1'
cat /nowhere/at/all
(exit 3)
"""
    done = subprocess.run(
        ["/bin/sh", "-s"], input=wrap(script), capture_output=True, text=True, timeout=20, check=False
    )
    assert [failed.said for failed in failures(script, done.stdout, done.stderr)] == [
        "x:1: Error: no such chain",
        "cat: /nowhere/at/all: No such file or directory",
        "",
    ]


def test_a_script_with_a_mistake_fails_in_the_shell_and_not_here() -> None:
    script = "echo before\nif true; then\n"
    done = subprocess.run(
        ["/bin/sh", "-s"], input=wrap(script), capture_output=True, text=True, timeout=20, check=False
    )
    assert "before" in done.stdout
