"""The programs in docs/export.md that use an artifact with nothing of this project, run as they stand there."""

import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from convert.synthetic import synthetic_image
from repvit_sam_jax import SamPredictor, load

pytestmark = pytest.mark.torch
TEXT = (Path(__file__).parents[3] / "docs" / "export.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", TEXT, re.DOTALL))
FOREIGN = "\nimport sys\nassert not {'repvit_sam_jax', 'convert', 'torch', 'flax'} & set(sys.modules)\n"


@pytest.fixture
def photo(tmp_path):
    image = synthetic_image(120, 160)
    Image.fromarray(image).save(tmp_path / "photo.png")
    return image


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return SamPredictor(*load(checkpoint.with_suffix(".safetensors")))


def agreement(predictor, photo, folder):
    predictor.set_image(photo)
    masks, iou, _ = predictor.predict([[20, 30]], [1])
    return np.mean((np.asarray(Image.open(folder / "mask.png")) > 0) == masks[iou.argmax()])


def run(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", code + FOREIGN], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_all_examples_are_known():
    assert set(EXAMPLES) == {"onnx", "stablehlo", "coreml"}


def test_onnx(onnx_folder, tmp_path, photo, predictor):
    """Pillow's resizing of logits is not PyTorch's to the last digit."""
    (tmp_path / "onnx").symlink_to(onnx_folder[0])
    # The session fixture has a decoder for photos' sizes as well, which wants to know them.
    code = EXAMPLES["onnx"].replace('"has_mask_input":', '"orig_im_size": np.ones(2, np.float32), "has_mask_input":')
    run(code, tmp_path)
    assert agreement(predictor, photo, tmp_path) > 0.999


def test_stablehlo(stablehlo_file, tmp_path):
    (tmp_path / "model.stablehlo").symlink_to(stablehlo_file)
    run(EXAMPLES["stablehlo"] + "assert low_res_masks.shape == (2, 1, 4, 32, 32)\n", tmp_path)


def test_coreml(coreml_folder, tmp_path, photo, predictor, monkeypatch):
    """coremltools runs models on macOS only: its part is taken by the interpreter."""
    from convert.export.mil import MilProgram

    class Model(MilProgram):
        def get_spec(self):
            return self.spec

        def predict(self, inputs):
            image = inputs.pop("image", None)
            if image is not None:
                inputs["image"] = np.asarray(image, np.float32).transpose(2, 0, 1)[None]
            return self(**inputs)

    (tmp_path / "coreml").symlink_to(coreml_folder)
    stand_in = types.SimpleNamespace(models=types.SimpleNamespace(MLModel=lambda path: Model(tmp_path / path)))
    models = {"coreml/encoder.mlpackage", "coreml/decoder.mlpackage"}
    assert models <= set(re.findall(r'MLModel\("(.*?)"\)', EXAMPLES["coreml"]))
    code = EXAMPLES["coreml"].replace("import coremltools\n", "")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/export.md", "exec"), {"coremltools": stand_in})
    assert agreement(predictor, photo, tmp_path) > 0.98
