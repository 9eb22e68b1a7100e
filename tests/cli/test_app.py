"""The command line: quick help, exit codes, errors a person can act on, data on stdout."""

import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from saccade.cli import app, options


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "saccade", *words], capture_output=True, text=True, timeout=120)


def test_help_imports_no_torch_and_names_every_command():
    code = (
        "import sys; from typer.testing import CliRunner; from saccade.cli import app\n"
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


def test_help_is_quick():
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert run("--help").returncode == 0
        times.append(time.perf_counter() - began)
    assert min(times) < 2.0  # 0.2 s on a quiet machine; the bound only catches a heavy import


def test_evaluation_and_report_import_no_torch():
    code = (
        "import sys, saccade.evaluation.protocol, saccade.evaluation.tables, saccade.evaluation.guard\n"
        "import saccade.reporting.write, saccade.store, saccade.runs, saccade.config\n"
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
    monkeypatch.setattr(options, "LINE_SECONDS", 0.0)
    with options.Bar() as bar:
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
