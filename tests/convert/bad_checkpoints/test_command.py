"""`repvit-sam convert`: one line of error, and nothing written."""

import pytest

from convert import __main__ as command

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["from-torch", "missing.pt", "out.safetensors"], "error: no checkpoint at missing.pt\n"),
        (["from-torch", "text.pt", "out.safetensors"], "error: text.pt was refused"),
        (
            ["from-torch", "deploy.pt", "out.safetensors", "--form", "train"],
            "error: deploy.pt: the checkpoint is fused",
        ),
        (["from-torch", "deploy.pt", "out.safetensors", "--preset", "nano"], "error: deploy.pt: unknown preset 'nano'"),
        (["from-torch", "deploy.pt", "out.safetensors", "--image-size", "100"], "error: image_size must be"),
        (["from-torch", "deploy.pt", "text.pt/out.safetensors"], "error: "),
        (["to-torch", "missing.safetensors", "out.pt"], "error: no checkpoint at missing.safetensors\n"),
        (["to-torch", "text.pt", "out.pt"], "error: text.pt is no checkpoint"),
        (
            ["to-torch", "deploy.safetensors", "out.pt", "--form", "train"],
            "error: deploy.safetensors is in deploy form",
        ),
        (["parity", "missing.pt"], "error: no checkpoint at missing.pt\n"),
        (["parity", "deploy.pt", "--image", "missing.jpg"], "error: no image at missing.jpg\n"),
        (["synthetic", "out.pt", "--preset", "nano"], "error: unknown preset 'nano'"),
    ],
)
def test_command_fails(files, tmp_path, monkeypatch, capsys, arguments, message):
    for name in ("deploy.pt", "deploy.safetensors"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    (tmp_path / "text.pt").write_text("import torch\n" * 20)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["convert", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith(message)
    assert errors.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
