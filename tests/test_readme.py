"""The README's Python examples run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda code: code.splitlines()[-1].strip()[:40])
def test_readme_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repaint_jax").symlink_to(ROOT / "repaint_jax")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
