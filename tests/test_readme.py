"""What the README shows must run as it is written."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_edits(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 14
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert re.search(r"efficacy\s+1\.000", capsys.readouterr().out)
    assert (tmp_path / "eiffel-in-rome" / "adapter_model.safetensors").is_file()


def test_what_it_names_exists():
    for path in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / path).exists(), path
    for folder in re.findall(r"^\| `(\w+/)`", TEXT, flags=re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
