"""The command line: quick help, exit codes, errors a person can act on, data on stdout."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from saccade.cli import app, attend, finetune, options, progress


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "saccade", *words], capture_output=True, text=True, timeout=120)


def test_help_imports_no_torch_and_names_every_command():
    code = (
        "import sys; from typer.testing import CliRunner; from saccade.cli.app import app\n"
        "out = CliRunner().invoke(app, ['--help']).output\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(out)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for word in ("quickstart", "show", "pretrain", "embed", "evaluate", "attend", "report", "doctor"):
        assert word in found
    assert "..." not in found.partition("Commands:")[2]  # every command is described in whole sentences


def test_version_is_the_packages_own():
    import saccade

    answer = run("--version")
    assert (answer.returncode, answer.stdout) == (0, f"saccade {saccade.__version__}\n")


def test_help_takes_less_than_half_a_second():
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # CPU time: what other processes of the machine do must not fail the test
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_completion_knows_commands_and_options():
    for words, expected in (("saccade pre", "pretrain"), ("saccade pretrain --conf", "--config")):
        environment = os.environ | {"_SACCADE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
        code = "import sys; sys.argv = ['saccade']; from saccade.cli.app import main; main()"
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert expected in answer.stdout, answer


def test_every_command_has_a_module_of_its_name():
    folder = Path(app.__file__).parent
    for command in app.COMMANDS:
        assert (folder / f"{command.__name__}.py").is_file()
        assert Path(command.__code__.co_filename).stem == command.__name__


def test_evaluation_and_report_import_no_torch():
    code = (
        "import sys, saccade.evaluation.protocol, saccade.evaluation.tables, saccade.evaluation.contamination\n"
        "import saccade.reporting.write, saccade.base.run_folder, saccade.base.config\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "no-such-folder"], 1, "no-such-folder"),
        (
            ["pretrain", "synthetic:tissue?n=8", "--out", "x", "--backbone", "vit_tinny_patch8"],
            2,
            "did you mean",
        ),
        (["pretrain", "synthetic:tissue?n=8", "--out", "x", "--set", "dino.out_dimm=3"], 2, "did you mean"),
        (["pretrain", "synthetic:tissue?n=8", "--out", "x", "--recipe", "natral"], 2, "did you mean 'natural'"),
        (["pretrain", "synthetic:tissue?n=8", "--out", "x", "--method", "dyno"], 2, "did you mean 'dino'"),
        (["evaluate", "only-one"], 2, "MODELs and then DATA"),
        (["report", "."], 2, "not a run folder"),
    ],
)
def test_errors_say_what_to_do(words, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app.app, words)
    error = result.exception
    assert isinstance(error, app.SaccadeError), (error, result.output)
    assert error.exit_code == code
    assert said in str(error)


def test_an_error_has_no_traceback(tmp_path):
    found = run("show", str(tmp_path / "nothing"))
    assert found.returncode == 1
    assert found.stderr.startswith("error: ") and "Traceback" not in found.stderr
    assert found.stdout == ""


def test_doctor_is_json():
    found = json.loads(CliRunner().invoke(app.app, ["doctor", "--json"]).output)
    assert found["versions"]["torch"] and "extras" in found


def test_show_prints_data_on_stdout():
    found = json.loads(CliRunner().invoke(app.app, ["show", "synthetic:tissue?n=16&size=32", "--json"]).output)
    assert found["images"] == 16


def test_progress_in_a_pipe_is_plain_lines_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.ProgressBar() as bar:
        bar.progress(40, 100, {"loss": 0.5})
        bar.progress(41, 100, {"loss": 0.25, "images_per_second": 9.6})
        bar.progress(1, 6, {"folds": 1.0})
        bar.progress(2, 3, {})
    said = capsys.readouterr()
    lines = said.err.splitlines()[:4]
    assert lines == ["training: 40 of 100, loss 0.500", "training: 41 of 100, 10 images/s  loss 0.250"] + [
        "folds: 1 of 6",
        "reading: 2 of 3",
    ]
    assert said.out == "" and "\x1b" not in said.err


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("attend", (attend.ImageFlags, attend.TextFlags, attend.SlideFlags, options.TilingFlags)),
        ("finetune", (finetune.NetworkFlags, finetune.HeadFlags)),
    ],
)
def test_values_of_a_group_have_the_names_of_the_options(command, groups):
    names = {name for parameter in get_command(app.app).commands[command].params for name in parameter.opts}
    for group in groups:
        values = options.option_values(group())
        assert values.keys() <= names and set(values.values()) == {None}
