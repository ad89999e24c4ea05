"""The operators: one file each, one line each in the table."""

from __future__ import annotations

from service.ops import cross_entropy, log_softmax, nll_loss, softmax
from service.ops.spec import Operator

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        softmax.OPERATOR,
        log_softmax.OPERATOR,
        nll_loss.OPERATOR,
        cross_entropy.OPERATOR,
    )
}
"""Every operator by name, in the order of the documentation."""
