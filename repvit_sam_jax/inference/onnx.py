"""`SamPredictor` over the files of `repvit-sam export onnx`, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..config import Dtype, SamConfig
from ..models.prompt_encoder import TOP_LEFT, Prompts
from ..weights.checkpoint import CheckpointError, Metadata
from .predictor import SamPredictor
from .prompts import append_not_a_point

PROVIDER = "CPUExecutionProvider"
ENCODER_SHA256 = "encoder_sha256"
"""Name of the digest of `embeddings.encoder_sha256` in a file's metadata."""


class OnnxPredictor(SamPredictor):
    """The predictor with an exported encoder and decoder; what it takes, gives and refuses is the same.

    predictor = OnnxPredictor("onnx_folder")
    predictor.set_image(photo)
    masks, iou_predictions, low_res_masks = predictor.predict(point_coords=[[500, 375]], point_labels=[1])
    """

    def __init__(self, folder: Path | str, providers: Sequence[str] = (PROVIDER,)) -> None:
        """As `OnnxBackend`."""
        self._use(OnnxBackend(folder, providers))

    @property
    def sessions(self) -> dict[str, Any]:
        """The encoder's and the decoder's `onnxruntime.InferenceSession`."""
        return self.backend.sessions  # type: ignore[attr-defined]


class OnnxBackend:
    """The exported encoder and decoder in ONNX Runtime."""

    dtype: Dtype = "float32"

    def __init__(self, folder: Path | str, providers: Sequence[str] = (PROVIDER,)) -> None:
        """Open `encoder.onnx` and `decoder.onnx` in the folder.

        `providers`: ONNX Runtime's, the preferred one first.

        Raises:
          FileNotFoundError: one of them is not there.
          CheckpointError: they are no ONNX files, were not written by `convert onnx`, or are not of one model.
          RuntimeError: onnxruntime is not installed.
        """
        self._encoder, self._decoder = (
            _open(Path(folder) / f"{part}.onnx", providers) for part in ("encoder", "decoder")
        )
        encoder, decoder = (_read(Path(folder) / f"{part}.onnx", s) for part, s in self.sessions.items())
        if encoder != decoder:
            raise CheckpointError(f"{folder}: encoder.onnx and decoder.onnx were exported from different weights")
        assert isinstance(encoder.config, SamConfig)
        # A decoder that also gives masks of the photo's size wants to know it, whatever is asked for.
        wanted = [given.name for given in self._decoder.get_inputs()]
        self._unused = {"orig_im_size": np.ones(2, np.float32)} if "orig_im_size" in wanted else {}
        self.config = encoder.config

    @property
    def encoder_sha256(self) -> str:
        """As `Backend.encoder_sha256`, from the file. Raises ValueError for one that was exported before it had it."""
        found = self._encoder.get_modelmeta().custom_metadata_map.get(ENCODER_SHA256)
        if not found:
            raise ValueError(
                "these ONNX files do not say what image encoder they hold; run repvit-sam export onnx again"
            )
        return found

    @property
    def sessions(self) -> dict[str, Any]:
        """The encoder's and the decoder's `onnxruntime.InferenceSession`."""
        return {"encoder": self._encoder, "decoder": self._decoder}

    def warmup(self, num_points: int, multimask_output: bool, num_images: int) -> None:
        """Nothing: the sessions are ready when they are opened."""

    def encode(self, images: Float[np.ndarray, "b s s 3"]) -> list[Any]:
        """As `Backend.encode`."""
        given = {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
        embeddings = self._encoder.run(["image_embeddings"], given)[0].transpose(0, 2, 3, 1)
        return [embeddings[i : i + 1] for i in range(len(embeddings))]

    def decode(self, embedding: Any, prompts: Prompts, multimask_output: bool) -> tuple[Any, Any]:
        """Prompts of the same number of points go together: here nothing is padded."""
        given = np.ascontiguousarray(np.asarray(embedding).transpose(0, 3, 1, 2))
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        points = [_points(prompts, i) for i in range(prompts.point_valid.shape[1])]
        masks: list[Any] = [None] * len(points)
        ious: list[Any] = [None] * len(points)
        for group in _groups(points, prompts.masks is not None):
            coords, labels = zip(*(points[i] for i in group), strict=True)
            low_res, iou = self._decoder.run(
                ["low_res_masks", "iou_predictions"],
                {
                    "image_embeddings": given,
                    "point_coords": np.stack(coords),
                    "point_labels": np.stack(labels),
                    **self._mask_input(None if prompts.masks is None else prompts.masks[0, group[0]]),
                    **self._unused,
                },
            )
            for i, found, predicted in zip(group, low_res[:, chosen], iou[:, chosen], strict=True):
                masks[i], ious[i] = found, predicted
        return np.stack(masks)[None], np.stack(ious)[None]

    def decode_above(self, embedding: Any, prompts: Prompts, iou_threshold: np.float32) -> tuple[Any, Any]:
        """As `Backend.decode_above`; all masks are computed."""
        return self.decode(embedding, prompts, True)

    def _mask_input(self, mask: Any) -> dict[str, np.ndarray]:
        side = self.config.low_res_size
        logits = np.zeros((side, side), np.float32) if mask is None else mask
        return {"mask_input": logits[None, None], "has_mask_input": np.array([mask is not None], np.float32)}


Points = tuple[np.ndarray, np.ndarray]


def _groups(points: Sequence[Points], have_masks: bool) -> list[list[int]]:
    """Indices of the prompts that one call of the decoder can take: as many points, and no masks of their own."""
    groups: dict[Any, list[int]] = {}
    for i, (_, labels) in enumerate(points):
        groups.setdefault((len(labels), i if have_masks else None), []).append(i)
    return list(groups.values())


def _points(prompts: Prompts, number: int) -> Points:
    """A prompt's coordinates and labels with the not-a-point that SAM appends where points come without a box."""
    used = prompts.point_valid[0, number]
    coords = np.asarray(prompts.point_coords[0, number][used], np.float32)
    labels = np.asarray(prompts.point_labels[0, number][used], np.float32)
    if not len(labels) or (labels >= TOP_LEFT).any():
        return coords, labels
    return append_not_a_point(coords, labels)


def _open(path: Path, providers: Sequence[str]) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} at {path.parent}; repvit-sam export onnx WEIGHTS --out DIR writes it")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            "onnxruntime is not installed: pip install 'repvit-sam-jax[export]' or onnxruntime"
        ) from error
    try:
        return onnxruntime.InferenceSession(path, providers=list(providers))
    except Exception as error:  # its errors share no class of their own
        raise CheckpointError(f"{path} is no ONNX file, or it is damaged: {str(error).splitlines()[0]}") from error


def _read(path: Path, session: Any) -> Metadata:
    try:
        metadata = Metadata.from_strings(session.get_modelmeta().custom_metadata_map)
    except CheckpointError as error:
        raise CheckpointError(f"{path} was not written by repvit-sam export onnx: {error}") from error
    if not isinstance(metadata.config, SamConfig):
        raise CheckpointError(f"{path} holds {metadata.config.name}, no segmenter")
    return metadata
