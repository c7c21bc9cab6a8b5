from __future__ import annotations

import numpy as np
import onnxruntime

import wasmgraph as wg
from wasmgraph.compiler import CompileLog
from wasmgraph.models.byte_classifier import LENGTH, TOKENS, build


def test_it_is_as_onnxruntime_s_and_nothing_in_it_is_slow() -> None:
    """Its spelled-out powers were calls of the C library, and its embedding went by the rule for rows."""
    proto, log = build(), CompileLog()
    feeds = {"bytes": np.random.default_rng(0).integers(0, TOKENS, (1, LENGTH))}
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    with wg.load(wg.compile(proto, log=log)) as session:
        np.testing.assert_allclose(session.run(feeds)["logits"], expected, rtol=1e-4, atol=1e-4)
    assert not log.slow
    assert not log.fallbacks
