"""`python -m benchmarks`: JAX against the PyTorch twin on the same weights, images and threads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from convert.synthetic import synthetic_image
from repvit_sam_jax import Prompts, Sam, transforms
from repvit_sam_jax.config import get_config
from repvit_sam_jax.model import Params

from .harness import Candidate, environment, interleave, ratios


def main(
    what: Annotated[Literal["encoder", "decoder", "models", "everything", "all"], tyro.conf.Positional] = "all",
    *,
    preset: str = "repvit_sam",
    image_size: int | None = None,
    prompts: tuple[int, ...] = (1, 64),
    points: int = 32,
    rounds: int = 5,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Time the encoder and the mask decoder on synthetic weights; the results are compared before anything is timed.

    Args:
      what: Which of them; "models" is a table of all published segmenters, and "everything" the automatic mask
        generator, both of which take a while and are not among "all".
      preset: The model.
      image_size: Input side in pixels, if not the preset's.
      prompts: Point prompts on one image, for the decoder.
      points: Points along a side of the image, for "everything".
      rounds: Timed runs of each candidate; the candidates take turns.
      as_json: Print JSON in place of tables.
    """
    from . import everything, models, rivals

    config = get_config(preset, image_size)
    report: dict[str, Any]
    if what == "models":
        rows = models.table(image_size=image_size, rounds=rounds)
        report = {"environment": environment(), "models": rows}
        print(json.dumps(report, indent=1) if as_json else f"{_about(report)}\n\n{models.to_markdown(rows)}")
        return
    model, params = Sam(config), models.deploy_params(config)
    if what == "everything":
        report = {"environment": environment(), **everything.everything(config, params, points, rounds)}
        print(json.dumps(report, indent=1) if as_json else f"{_about(report)}\n\n{everything.to_markdown(report)}")
        return
    images = transforms.preprocess(synthetic_image(config.image_size * 3 // 4, config.image_size), config.image_size)
    report = {"environment": environment(), "preset": preset, "image_size": config.image_size}
    if what in ("encoder", "all"):
        theirs = [*rivals.encoders(model, params, images), *rivals.compiled_encoder(model, params, images)]
        candidates = [*theirs, *models.encoders(config, params)]
        report["encoder"] = _timed(candidates, rounds)
    if what in ("decoder", "all"):
        embedding = np.asarray(models.encode(model, params, images))
        report["decoder"] = {
            str(count): _timed(_decoders(model, params, embedding, count), rounds) for count in prompts
        }
    print(json.dumps(report, indent=1) if as_json else _markdown(report))


def _timed(candidates: Sequence[Candidate], rounds: int) -> dict[str, Any]:
    times = interleave(list(candidates), rounds)
    return {"milliseconds": times, "ratios": ratios(times)}


def _decoders(model: Sam, params: Params, embedding: np.ndarray, count: int) -> list[Candidate]:
    from . import rivals

    decode = jax.jit(Sam.decode, static_argnums=0)
    rng = np.random.default_rng(0)
    coords = rng.uniform(0, model.config.image_size, (1, count, 1, 2)).astype(np.float32)
    given = Prompts(coords, np.ones((1, count, 1), np.int32), np.ones((1, count, 1), bool))
    on_device = jax.device_put(embedding)

    def ours(name: str, model: Sam, tolerance: float) -> Candidate:
        run = lambda: np.asarray(decode(model, params, on_device, given)[0][0])
        return Candidate(name, run, "torch_fp32", tolerance)

    half = Sam(model.config, dtype="bfloat16")
    return [
        *rivals.decoders(model, params, embedding, given),
        ours("jax_fp32", model, 1e-5),
        ours("jax_bf16", half, 5e-2),
    ]


def _about(report: dict[str, Any]) -> str:
    about = report["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return f"{about['cpus']} CPUs of {about['machine']}, JAX on {about['devices'][0]}; {versions}"


def _markdown(report: dict[str, Any]) -> str:
    lines = [f"{report['preset']} at {report['image_size']}, {_about(report)}"]
    sections = {"encoder": report["encoder"]} if "encoder" in report else {}
    sections |= {f"decoder, {n} point prompts": timed for n, timed in report.get("decoder", {}).items()}
    for title, timed in sections.items():
        lines += ["", f"| {title} | median ms | minimum ms |", "|---|---:|---:|"]
        lines += [f"| {k} | {v['median']:.0f} | {v['minimum']:.0f} |" for k, v in timed["milliseconds"].items()]
        lines += ["", *(f"- {name}: {value:.2f}" for name, value in timed["ratios"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main, prog="benchmarks", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
