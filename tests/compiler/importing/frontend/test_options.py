"""Options of operators that ONNX's own cases leave out, against onnxruntime: many outputs in a graph."""

from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import agrees, model, run
from wasmgraph.errors import UnsupportedOperatorError

RNG = np.random.default_rng(5)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(
        operator, [i if i != "-" else "" for i in inputs.split()], [output], **attributes
    )


def test_scales_and_biases_of_normalisations_broadcast() -> None:
    x = draw(2, 3, 4, 5)
    scales = {"s5": draw(5), "s45": draw(4, 5), "s41": draw(4, 1), "s345": draw(3, 4, 5), "s1": draw(1)}
    nodes = []
    for n, (axis, scale, bias) in enumerate(
        [
            (-1, "s5", "s5"),
            (2, "s5", "s41"),
            (2, "s41", "-"),
            (2, "s45", "s1"),
            (1, "s345", "s45"),
            (1, "s5", "s1"),
        ]
    ):
        nodes.append(node("LayerNormalization", f"x {scale} {bias}".rstrip(" -"), f"y{n}", axis=axis))
    agrees(model(nodes, {"x": x}, [f"y{n}" for n in range(len(nodes))], scales), {"x": x}, atol=1e-4)


@pytest.mark.parametrize("scale", [(5,), (4, 5), (4, 1)])
def test_scales_of_rms_normalisation_broadcast(scale: tuple[int, ...]) -> None:
    x, s = draw(2, 3, 4, 5), draw(*scale)
    made = model([node("RMSNormalization", "x s", "y", axis=2)], {"x": x}, ["y"], {"s": s}, {"": 23})
    expected = x / np.sqrt(np.mean(x * x, axis=(2, 3), keepdims=True) + 1e-5) * s
    np.testing.assert_allclose(run(made, {"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_local_response_normalisation_of_any_size(size: int) -> None:
    x = draw(1, 5, 3, 3)
    lrn = model([node("LRN", "x", "y", size=size, alpha=0.5, beta=0.6, bias=1.5)], {"x": x}, ["y"])
    if size % 2:
        agrees(lrn, {"x": x})
    else:  # onnxruntime knows odd sizes only, ONNX's reference takes the batch for the channels
        squares = [
            (x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1] ** 2).sum(axis=1) for c in range(5)
        ]
        expected = x / (1.5 + 0.5 / size * np.stack(squares, axis=1)) ** 0.6
        np.testing.assert_allclose(run(lrn, {"x": x})["y"], expected, rtol=1e-4)


def test_regions_by_half_pixels_scales_and_maxima() -> None:
    x = np.abs(draw(2, 3, 9, 8))
    constants = {
        "rois": np.array([[1, 2, 13, 11], [0, 0, 4, 15], [3, 1, 3.5, 1.25]], np.float32),
        "images": np.array([1, 0, 1], np.int64),
    }
    nodes = [
        node(
            "RoiAlign",
            "x rois images",
            f"{mode}_{transformation}_{ratio}_{n}",
            mode=mode,
            coordinate_transformation_mode=transformation,
            sampling_ratio=ratio,
            spatial_scale=scale,
            output_height=3,
            output_width=2,
        )
        for mode in ("avg", "max")
        for transformation in ("half_pixel", "output_half_pixel")
        for ratio in (0, 2)
        for n, scale in enumerate((0.5, 1.0))
    ]
    names = [n.output[0] for n in nodes]
    agrees(model(nodes, {"x": x}, names, constants), {"x": x}, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_padding_that_also_cuts(dtype: type) -> None:
    x = (draw(4, 6) * 10).astype(dtype)
    amounts = [(1, 2, 2, 3), (-1, 1, 1, 0), (0, -2, 2, 2), (-1, -2, -1, -1), (2, 0, -1, 1)]
    constants = {f"p{n}": np.array(pads, np.int64) for n, pads in enumerate(amounts)}
    nodes = [
        node("Pad", f"x p{n}", f"{mode}{n}", mode=mode)
        for mode in ("edge", "wrap", "constant")
        for n in range(len(amounts))
    ]
    agrees(model(nodes, {"x": x}, [n.output[0] for n in nodes], constants), {"x": x})
    # onnxruntime refuses to reflect beyond what it has cut off: here what is cut is gone first.
    reflected = model([node("Pad", "x p1", "y", mode="reflect")], {"x": x}, ["y"], constants)
    expected = np.pad(x[1:], ((0, 1), (1, 0)), mode="reflect")
    np.testing.assert_array_equal(run(reflected, {"x": x})["y"], expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_integers_are_resized_as_onnxruntime_resizes_them(dtype: type) -> None:
    limits = np.iinfo(np.int8 if dtype == np.int32 else dtype)
    x = RNG.integers(limits.min, limits.max, (1, 2, 5, 5)).astype(dtype)
    factors = [(1.5, 1.5), (0.6, 2.3), (2, 1), (1, 0.4)]
    constants = {f"s{n}": np.array([1, 1, *pair], np.float32) for n, pair in enumerate(factors)}
    nodes = [
        node("Resize", f"x - s{n}", f"y{n}{mode}", mode="linear", coordinate_transformation_mode=mode)
        for n in range(len(factors))
        for mode in ("half_pixel", "asymmetric", "pytorch_half_pixel")
    ]
    agrees(model(nodes, {"x": x}, [n.output[0] for n in nodes], constants), {"x": x}, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("functions", "alphas", "betas", "direction"),
    [
        (["Sigmoid", "LeakyRelu", "Tanh"], [0.4], [], "forward"),
        (["HardSigmoid", "LeakyRelu", "Affine"], [0.3, 0.4, 0.5], [0.1, 0.2], "reverse"),
        (
            ["Sigmoid", "LeakyRelu", "Tanh", "HardSigmoid", "Tanh", "Elu"],
            [0.4, 0.25, 0.6],
            [0.3],
            "bidirectional",
        ),
    ],
)
def test_alphas_belong_to_the_functions_that_take_one(
    functions: list[str], alphas: list[float], betas: list[float], direction: str
) -> None:
    count = 2 if direction == "bidirectional" else 1
    constants = {"w": draw(count, 16, 5) / 2, "r": draw(count, 16, 4) / 2}
    x = draw(2, 2, 5)
    lstm = node(
        "LSTM",
        "x w r",
        "y",
        hidden_size=4,
        direction=direction,
        activations=functions,
        activation_alpha=alphas,
        **({"activation_beta": betas} if betas else {}),
    )
    agrees(model([lstm], {"x": x}, ["y"], constants), {"x": x})


@pytest.mark.parametrize(
    ("operator", "operand", "numbers"),
    [("Unsqueeze", "axes", [0, 1]), ("Pad", "pads", [0, 1, 0, 1]), ("Trilu", "k", 1)],
)
def test_shapes_from_data_are_refused_in_onnx_words(
    operator: str, operand: str, numbers: int | list[int]
) -> None:
    feeds = {"x": draw(2, 3), "n": np.array(numbers, np.int64)}
    with pytest.raises(UnsupportedOperatorError, match=f"{operator} takes its '{operand}' from data"):
        wg.compile(model([node(operator, "x n", "y")], feeds, ["y"]))


def test_random_operators_name_a_remedy() -> None:
    x = draw(2, 3)
    with pytest.raises(UnsupportedOperatorError, match="feed random numbers as an input"):
        wg.compile(model([node("RandomNormalLike", "x", "y", dtype=TensorProto.FLOAT)], {"x": x}, ["y"]))


def test_several_threads_compile_at_once() -> None:
    x = draw(3, 4)
    made = model([node("MatMul", "x w", "y")], {"x": x}, ["y"], {"w": draw(4, 5)})
    expected, found = run(made, {"x": x})["y"], []

    def work() -> None:
        found.append(run(made, {"x": x})["y"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for result in found:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_padding_beyond_the_size(target: str) -> None:
    """Reflected or wrapped more often than once: it read beyond the tensor, natively until a SIGSEGV."""
    x = draw(4, 5)
    amounts = [(0, 9, 0, 9), (5, 0, 6, 0), (4, 0, 0, 5), (3, 4, 3, 4)]
    constants = {f"p{n}": np.array(pads, np.int64) for n, pads in enumerate(amounts)}
    modes = ("reflect", "wrap")
    nodes = [node("Pad", f"x p{n}", f"{m}{n}", mode=m) for m in modes for n in range(len(amounts))]
    found = run(model(nodes, {"x": x}, [each.output[0] for each in nodes], constants), {"x": x}, target)
    for mode in modes:
        for n, (top, left, bottom, right) in enumerate(amounts):
            expected = np.pad(x, ((top, bottom), (left, right)), mode=mode)
            np.testing.assert_array_equal(found[f"{mode}{n}"], expected)
