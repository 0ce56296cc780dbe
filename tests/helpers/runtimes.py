"""The demonstration model in other runtimes than JAX."""

from repvit_sam_jax import SamPredictor, load
from repvit_sam_jax.inference.onnx import OnnxPredictor
from repvit_sam_jax.models.prompt_encoder import TOP_LEFT
from repvit_sam_jax.weights import loading


def torch_predictor(folder):
    """The predictor over the PyTorch twin."""
    import torch

    from convert.to_torch import to_torch
    from convert.torch_models import twin_of

    class Twin:
        """A `Backend`."""

        def __init__(self, twin):
            self.config, self.dtype, self.twin = twin.config, "float32", twin

        def encode(self, images):
            with torch.no_grad():
                return list(self.twin.encode(torch.tensor(images.transpose(0, 3, 1, 2))).split(1))

        def decode(self, embedding, prompts, multimask_output):
            """A box goes in as one, for the twin appends a not-a-point to points."""
            found = []
            for i, valid in enumerate(prompts.point_valid[0]):
                coords = torch.tensor(prompts.point_coords[0, i][valid])[None].float()
                labels = torch.tensor(prompts.point_labels[0, i][valid])[None].float()
                given = (None, None, coords.reshape(1, 4)) if (labels >= TOP_LEFT).all() else (coords, labels)
                with torch.no_grad():
                    found.append(self.twin.decode(embedding, *given, multimask_output=multimask_output))
            return tuple(torch.cat(parts).numpy()[None] for parts in zip(*found, strict=True))

        def decode_above(self, embedding, prompts, iou_threshold):
            """All masks are computed."""
            return self.decode(embedding, prompts, True)

    to_torch(loading.DEMO, folder / "demo.pt")
    twin = twin_of(load("demo", form="train")[0].config, "train")
    twin.load_state_dict(torch.load(folder / "demo.pt"))
    return SamPredictor.over(Twin(twin.eval()))


def onnx_predictor(folder):
    """The predictor over ONNX Runtime."""
    from convert.export.onnx import export_onnx

    export_onnx(loading.DEMO, folder / "onnx")
    return OnnxPredictor(folder / "onnx")


OTHERS = {"torch": torch_predictor, "onnx": onnx_predictor}
"""Name -> what makes the predictor, given a folder for its files."""
