from pathlib import Path

import pytest
from typer.testing import CliRunner

from aqr_model import evaluate, publish, train, visualize
from aqr_model.user_errors import USER_ERROR

ROOT = Path(__file__).parents[2]
NANO = str(ROOT / "aqr_model" / "configs" / "cmt_nano.py")
DOUBLED = str(ROOT / "tests" / "data" / "users" / "r50_doubled.py")


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (train, [DOUBLED], "assigns `model` twice, in lines 4 and 11"),
        (train, ["no_such_config.py"], "no_such_config.py"),
        (evaluate, [NANO, "no_such.pth"], "'no_such.pth' is not there"),
        (evaluate, [DOUBLED, "no_such.pth"], "assigns `model` twice"),
        (publish, [NANO, "no_such.pth", "out.pth"], "a checkpoint must stand at no_such.pth"),
        (visualize, [DOUBLED, "no_such.pth"], "assigns `model` twice"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(module, arguments, said):
    result = CliRunner().invoke(module.app, arguments)
    assert result.exit_code == USER_ERROR
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_options_are_still_shown():
    assert "--resume" in CliRunner().invoke(train.app, ["--help"]).stdout


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(*given):
        raise KeyError("of ours")

    monkeypatch.setattr(train, "given_config", fail)
    assert isinstance(CliRunner().invoke(train.app, [NANO]).exception, KeyError)
