"""Requests that show what the options of the operators are for; the documentation offers each of them."""

from __future__ import annotations

from typing import Any

from service.ops.spec import Example

LOGITS = [[1.1316, -0.7943, 0.1328], [0.2654, 0.1978, -0.0265], [-2.8054, 0.2867, -0.1517]]
"""Three rows over three classes."""

LOG_PROBS = [[-0.4148, -2.3407, -1.4136], [-0.9864, -1.054, -1.2783], [-3.6171, -0.525, -0.9634]]
"""Their log-softmax, to four digits."""

COMPACT_LOGITS = {
    "dtype": "float32",
    "shape": [3, 3],
    "base64": "RdiQPz9XS7+5/Ac+guKHPhWMSj6HFtm8rIszwFjKkj4/Vxu+",
}
"""The same logits as bytes."""

COMPACT_TARGET = {"dtype": "uint8", "shape": [3], "base64": "AAEC"}
"""Targets 0, 1 and 2 as bytes."""

SENTENCE = [[[2.1, 0.3, -1.2, 0.0], [0.2, 1.7, -0.4, 0.1], [-0.3, 0.5, 0.9, 2.2]]]
"""What a language model gives: one sequence of three tokens over a vocabulary of four, (B, T, V)."""

MASKED = [[1.5, 0.3, "-Infinity"], [0.2, "-Infinity", 1.1]]
"""Logits in which each row has a class that cannot be."""

PIXELS = [[[[0.9, -0.2], [1.4, 0.3]], [[-0.5, 0.8], [0.1, 1.2]]]]
"""One image of 2 x 2 pixels with two classes, (N, C, H, W)."""

TEACHER = [[0.7, 0.1, 0.2], [0.3, 0.4, 0.3], [0.05, 0.6, 0.35]]
"""Class probabilities."""


def of_softmax(output: str) -> tuple[Example, ...]:
    """Return the examples of an operator that turns logits into `output`."""
    upstream: dict[str, Any] = {"grad_output": [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]}
    return (
        Example(
            "temperature",
            "Temperature 2, with logsumexp",
            {"logits": LOGITS, "temperature": 2.0, "outputs": [output, "logsumexp"]},
            gradient=False,
        ),
        Example("masked", "Classes masked with -Infinity", {"logits": MASKED}, gradient=False),
        Example("class-last", "Language-model shape (B, T, V)", {"logits": SENTENCE, "class_dim": -1}, gradient=False),
        Example(
            "compact", "Compact tensors, in and out", {"logits": COMPACT_LOGITS, "encoding": "base64"}, gradient=False
        ),
        Example("masked", "Classes masked with -Infinity", {"logits": MASKED, **upstream}, gradient=True),
        Example(
            "only-gradient",
            "Only the gradient, computed in float64",
            {"logits": MASKED, **upstream, "outputs": ["grad_logits"], "accuracy": "accurate"},
            gradient=True,
        ),
    )


OF_NLL_LOSS = (
    Example(
        "weights",
        "Class weights and a skipped row",
        {"log_probs": LOG_PROBS, "target": [0, -100, 2], "weight": [1.0, 2.0, 0.5]},
    ),
    Example(
        "none",
        "The loss of every row",
        {"log_probs": LOG_PROBS, "target": [0, 1, 2], "reduction": "none"},
        gradient=False,
    ),
    Example(
        "upstream",
        "An upstream gradient for every row",
        {"log_probs": LOG_PROBS, "target": [0, 1, 2], "reduction": "none", "grad_output": [1.0, 0.5, 0.0]},
        gradient=True,
    ),
)

OF_CROSS_ENTROPY = (
    Example(
        "soft-targets",
        "Soft targets: distillation at temperature 2",
        {"logits": LOGITS, "target": TEACHER, "temperature": 2.0},
    ),
    Example("label-smoothing", "Label smoothing", {"logits": LOGITS, "target": [0, 1, 2], "label_smoothing": 0.1}),
    Example(
        "weights",
        "Class weights and a row skipped by ignore_index",
        {"logits": LOGITS, "target": [0, -100, 2], "weight": [1.0, 2.0, 0.5], "ignore_index": -100},
    ),
    Example(
        "class-last", "Language-model shape (B, T, V)", {"logits": SENTENCE, "target": [[0, 1, 3]], "class_dim": -1}
    ),
    Example("image", "An image, (N, C, H, W)", {"logits": PIXELS, "target": [[[0, 1], [0, 1]]]}),
    Example("masked", "Classes masked with -Infinity", {"logits": MASKED, "target": [0, 2]}),
    Example(
        "compact",
        "Compact tensors, in and out",
        {"logits": COMPACT_LOGITS, "target": COMPACT_TARGET, "encoding": "base64"},
    ),
    Example(
        "none",
        "The loss of every row, with log_probs",
        {"logits": LOGITS, "target": [0, 1, 2], "reduction": "none", "outputs": ["loss", "log_probs"]},
        gradient=False,
    ),
    Example(
        "upstream",
        "An upstream gradient for every row",
        {"logits": LOGITS, "target": [0, 1, 2], "reduction": "none", "grad_output": [1.0, 0.5, 0.0]},
        gradient=True,
    ),
    Example(
        "grad-target",
        "The gradient by the soft targets too",
        {"logits": LOGITS, "target": TEACHER, "outputs": ["loss", "grad_logits", "grad_target"]},
        gradient=True,
    ),
    Example(
        "micro-batch", "One row of a batch of total weight 3", {"logits": LOGITS[:1], "target": [0], "normalizer": 3.0}
    ),
)
