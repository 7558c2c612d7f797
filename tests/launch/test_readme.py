"""What README shows is what the program takes."""

import re
from pathlib import Path

import pytest

from launch.opening import open_spec
from launch.workplace import Workplace

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def workplace(monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(ROOT)
    return Workplace(code=ROOT, root=ROOT)


def test_every_spec_in_the_readme_is_accepted(workplace, tmp_path):
    specs = blocks("yaml")
    assert specs
    for number, text in enumerate(specs):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        # Without the data: a fresh checkout has none.
        opened = open_spec(path, workplace, check_files=False)
        assert opened.spec.space


def test_a_mistake_in_such_a_spec_would_be_found(workplace, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(blocks("yaml")[0].replace("residual_weight:", "residual_wait:", 1))
    with pytest.raises(ValueError, match="residual_wait"):
        open_spec(path, workplace, check_files=False)


def test_the_commands_in_the_readme_exist():
    targets = set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == {"sweep", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
