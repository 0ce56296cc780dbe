"""Structural reparameterization: training-form params to deploy-form params (arXiv 2307.09283, section 3).

Every Conv+BN becomes one convolution with bias, every RepVGGDW (3x3 branch, 1x1 branch, identity, outer BatchNorm)
one 3x3 depthwise convolution, and a classifier's one or two BN+Linear heads one linear layer. A pure function on nested
dicts of arrays. The arithmetic is NumPy's float64, because folding in float32 costs accuracy that the model then never
gets back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

EPSILON = 1e-5
"""BatchNorm's, in every official RepViT and TinyViT."""


class ReparamError(ValueError):
    """Params that are not those of a training form: a BatchNorm that nothing folds, or statistics without a place."""


def fuse(params: Mapping[str, Any]) -> dict[str, Any]:
    """Deploy-form params of training-form params.

    Args:
      params: nested dict with `batch_stats` at the top, as `load(..., form="train")` or `Sam.init` gives it.

    Returns:
      A nested dict without `batch_stats`; fused leaves are new float32 arrays, all others are the same objects.

    Raises:
      ReparamError: there are no statistics, a BatchNorm or statistics would be left over, a BatchNorm has unknown
        neighbours, a running variance is negative, or the result does not fit into float32.
    """
    if "batch_stats" not in params:
        raise ReparamError("these params have no batch_stats: they are in deploy form already, or incomplete")
    trained = {k: v for k, v in params.items() if k != "batch_stats"}
    return _fuse_node(trained, params["batch_stats"], "params")


def _fuse_node(node: Any, stats: Any, path: str) -> Any:
    if not isinstance(node, Mapping):
        if stats:
            raise ReparamError(f"batch_stats has statistics at {path}, where there is no BatchNorm")
        return node
    keys = set(node)
    if keys == {"conv3x3", "conv1x1", "bn"}:
        return _to_leaves(*_repvgg_dw(node, stats, path), path)
    if keys == {"conv", "bn"}:
        return _to_leaves(*_conv_bn(node, stats, path), path)
    if keys == {"bn", "linear"}:
        return _to_leaves(*_bn_linear(node, stats, path), path)
    if "bn" in keys:
        raise ReparamError(f"{path} holds a BatchNorm that nothing here folds: its keys are {sorted(keys)}")
    stray = set(stats or {}) - keys
    if stray:
        raise ReparamError(f"batch_stats has statistics at {path} that nothing uses: {sorted(stray)}")
    if keys >= {"head", "head_dist"}:
        return _mean_of_heads(node, stats, path)
    return {key: _fuse_node(value, (stats or {}).get(key, {}), f"{path}/{key}") for key, value in node.items()}


def _conv_bn(node: Mapping[str, Any], stats: Mapping[str, Any], path: str) -> tuple[np.ndarray, np.ndarray]:
    conv = node["conv"]
    if set(conv) != {"kernel"}:
        raise ReparamError(f"{path}/conv should hold a kernel alone, its keys are {sorted(conv)}")
    scale, shift = _affine(node["bn"], _statistics(stats, {"bn"}, path)["bn"], f"{path}/bn")
    return np.asarray(conv["kernel"], np.float64) * scale, shift


def _bn_linear(node: Mapping[str, Any], stats: Mapping[str, Any], path: str) -> tuple[np.ndarray, np.ndarray]:
    linear = node["linear"]
    if set(linear) != {"kernel", "bias"}:
        raise ReparamError(f"{path}/linear should hold kernel and bias, its keys are {sorted(linear)}")
    scale, shift = _affine(node["bn"], _statistics(stats, {"bn"}, path)["bn"], f"{path}/bn")
    kernel = np.asarray(linear["kernel"], np.float64)
    return kernel * scale[:, None], np.asarray(linear["bias"], np.float64) + shift @ kernel


def _mean_of_heads(node: Mapping[str, Any], stats: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A distilled classifier answers with the mean of its two heads; linear as they are, that is one layer."""
    names = ("head", "head_dist")
    for name in names:
        if set(node[name]) != {"bn", "linear"}:
            raise ReparamError(f"{path}/{name} should hold bn and linear, its keys are {sorted(node[name])}")
    rest = {key: value for key, value in node.items() if key not in names}
    fused = _fuse_node(rest, {key: value for key, value in stats.items() if key not in names}, path)
    heads = [_bn_linear(node[name], stats.get(name, {}), f"{path}/{name}") for name in names]
    kernel, bias = ((first + second) / 2 for first, second in zip(*heads, strict=True))
    return {**fused, "head": _to_leaves(kernel, bias, f"{path}/head")}


def _repvgg_dw(node: Mapping[str, Any], stats: Mapping[str, Any], path: str) -> tuple[np.ndarray, np.ndarray]:
    stats = _statistics(stats, {"bn", "conv3x3"}, path)
    if set(node["conv1x1"]) != {"kernel", "bias"}:
        raise ReparamError(f"{path}/conv1x1 should hold kernel and bias, its keys are {sorted(node['conv1x1'])}")
    kernel, bias = _conv_bn(node["conv3x3"], stats["conv3x3"], f"{path}/conv3x3")
    kernel[1, 1] += np.asarray(node["conv1x1"]["kernel"], np.float64) + 1.0  # the identity branch
    bias = bias + np.asarray(node["conv1x1"]["bias"], np.float64)
    scale, shift = _affine(node["bn"], stats["bn"], f"{path}/bn")
    return kernel * scale, bias * scale + shift


def _statistics(stats: Any, expected: set[str], path: str) -> Mapping[str, Any]:
    found = set(stats) if isinstance(stats, Mapping) else set()
    if found != expected:
        raise ReparamError(f"batch_stats at {path} should hold {sorted(expected)}, its keys are {sorted(found)}")
    return stats


def _affine(bn: Mapping[str, Any], stats: Mapping[str, Any], path: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift, float64, that BatchNorm applies in evaluation."""
    if set(bn) != {"scale", "bias"} or set(stats) != {"mean", "var", "count"}:
        raise ReparamError(f"{path} is not a BatchNorm: its keys are {sorted(bn)} and {sorted(stats)}")
    weight, bias, mean, var = (
        np.asarray(a, np.float64) for a in (bn["scale"], bn["bias"], stats["mean"], stats["var"])
    )
    if not (var >= 0).all():
        raise ReparamError(f"{path} has a negative or NaN running variance")
    scale = weight / np.sqrt(var + EPSILON)
    return scale, bias - mean * scale


def _to_leaves(kernel: np.ndarray, bias: np.ndarray, path: str) -> dict[str, Any]:
    for values in (kernel, bias):
        if not (np.abs(values) <= np.finfo(np.float32).max).all():
            raise ReparamError(f"{path}: the fused weights are NaN or too large for float32")
    return jax.device_put({"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)})
