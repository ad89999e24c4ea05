"""Every operator of the service as a method.

Generated from the service's operator table by `generate.py`; not to be edited."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from loss_client.answers import Answer
from loss_client.arrays import ArrayT
from loss_client.options import CLIENT_DEFAULT, Call, Outputs, ProgressOption, TimeoutOption
from loss_client.splitting import Operator

if TYPE_CHECKING:
    from loss_client.arrays import ArrayLike
OPERATORS: dict[str, Operator] = {
    "softmax": Operator(
        name="softmax",
        inputs={"logits": "classes", "grad_output": "classes"},
        outputs={"probs": "classes", "logsumexp": "rows", "grad_logits": "classes"},
        defaults={"outputs": None, "non_finite": "reject", "accuracy": "fast", "class_dim": None, "temperature": 1.0},
        is_loss=False,
    ),
    "log-softmax": Operator(
        name="log-softmax",
        inputs={"logits": "classes", "grad_output": "classes"},
        outputs={"log_probs": "classes", "logsumexp": "rows", "grad_logits": "classes"},
        defaults={"outputs": None, "non_finite": "reject", "accuracy": "fast", "class_dim": None, "temperature": 1.0},
        is_loss=False,
    ),
    "nll-loss": Operator(
        name="nll-loss",
        inputs={"log_probs": "classes", "target": "indices", "weight": "weight", "grad_output": "loss"},
        outputs={"loss": "reduced", "total_weight": "scalar", "grad_log_probs": "classes"},
        defaults={
            "outputs": None,
            "non_finite": "reject",
            "accuracy": "fast",
            "class_dim": None,
            "ignore_index": -100,
            "reduction": "mean",
            "normalizer": None,
        },
        is_loss=True,
    ),
    "cross-entropy": Operator(
        name="cross-entropy",
        inputs={"logits": "classes", "target": "target", "weight": "weight", "grad_output": "loss"},
        outputs={
            "loss": "reduced",
            "total_weight": "scalar",
            "log_probs": "classes",
            "logsumexp": "rows",
            "grad_logits": "classes",
            "grad_target": "classes",
        },
        defaults={
            "outputs": None,
            "non_finite": "reject",
            "accuracy": "fast",
            "class_dim": None,
            "ignore_index": -100,
            "reduction": "mean",
            "normalizer": None,
            "temperature": 1.0,
            "target_kind": "auto",
            "label_smoothing": 0.0,
        },
        is_loss=True,
    ),
}
"""Every operator by name."""


class SoftmaxAnswer(Answer[ArrayT]):
    """What softmax gives: `probs`, unless told otherwise."""

    @property
    def probs(self) -> ArrayT:
        """Class probabilities; those of a row sum to 1. Shape: [N, C, d1, ..., dk]."""
        return self._output("probs")

    @property
    def logsumexp(self) -> ArrayT:
        """ln of the sum of e^(logits / temperature) over the classes. Given on request. Shape: [N, d1, ..., dk]."""
        return self._output("logsumexp")


class SoftmaxGradientAnswer(Answer[ArrayT]):
    """What softmax_gradient gives: `probs` and `grad_logits`, unless told otherwise."""

    @property
    def probs(self) -> ArrayT:
        """Class probabilities; those of a row sum to 1. Shape: [N, C, d1, ..., dk]."""
        return self._output("probs")

    @property
    def logsumexp(self) -> ArrayT:
        """ln of the sum of e^(logits / temperature) over the classes. Given on request. Shape: [N, d1, ..., dk]."""
        return self._output("logsumexp")

    @property
    def grad_logits(self) -> ArrayT:
        """Gradient by the logits. Shape: [N, C, d1, ..., dk]."""
        return self._output("grad_logits")


class LogSoftmaxAnswer(Answer[ArrayT]):
    """What log_softmax gives: `log_probs`, unless told otherwise."""

    @property
    def log_probs(self) -> ArrayT:
        """Logarithms of the class probabilities. Shape: [N, C, d1, ..., dk]."""
        return self._output("log_probs")

    @property
    def logsumexp(self) -> ArrayT:
        """ln of the sum of e^(logits / temperature) over the classes. Given on request. Shape: [N, d1, ..., dk]."""
        return self._output("logsumexp")


class LogSoftmaxGradientAnswer(Answer[ArrayT]):
    """What log_softmax_gradient gives: `log_probs` and `grad_logits`, unless told otherwise."""

    @property
    def log_probs(self) -> ArrayT:
        """Logarithms of the class probabilities. Shape: [N, C, d1, ..., dk]."""
        return self._output("log_probs")

    @property
    def logsumexp(self) -> ArrayT:
        """ln of the sum of e^(logits / temperature) over the classes. Given on request. Shape: [N, d1, ..., dk]."""
        return self._output("logsumexp")

    @property
    def grad_logits(self) -> ArrayT:
        """Gradient by the logits. Shape: [N, C, d1, ..., dk]."""
        return self._output("grad_logits")


class NllLossAnswer(Answer[ArrayT]):
    """What nll_loss gives: `loss` and `total_weight`, unless told otherwise."""

    @property
    def loss(self) -> ArrayT:
        """The loss: one number, or one a row with reduction `none`. Shape: [] or, with reduction none, [N, d1, ...,
        dk].
        """
        return self._output("loss")

    @property
    def total_weight(self) -> ArrayT:
        """What `mean` divides by unless a `normalizer` is given. Shape: []."""
        return self._output("total_weight")


class NllLossGradientAnswer(Answer[ArrayT]):
    """What nll_loss_gradient gives: `loss` and `total_weight` and `grad_log_probs`, unless told otherwise."""

    @property
    def loss(self) -> ArrayT:
        """The loss: one number, or one a row with reduction `none`. Shape: [] or, with reduction none, [N, d1, ...,
        dk].
        """
        return self._output("loss")

    @property
    def total_weight(self) -> ArrayT:
        """What `mean` divides by unless a `normalizer` is given. Shape: []."""
        return self._output("total_weight")

    @property
    def grad_log_probs(self) -> ArrayT:
        """Gradient by the log-probabilities. Shape: [N, C, d1, ..., dk]."""
        return self._output("grad_log_probs")


class CrossEntropyAnswer(Answer[ArrayT]):
    """What cross_entropy gives: `loss` and `total_weight`, unless told otherwise."""

    @property
    def loss(self) -> ArrayT:
        """The loss: one number, or one a row with reduction `none`. Shape: [] or, with reduction none, [N, d1, ...,
        dk].
        """
        return self._output("loss")

    @property
    def total_weight(self) -> ArrayT:
        """What `mean` divides by unless a `normalizer` is given. Shape: []."""
        return self._output("total_weight")

    @property
    def log_probs(self) -> ArrayT:
        """Logarithms of the class probabilities. Given on request. Shape: [N, C, d1, ..., dk]."""
        return self._output("log_probs")

    @property
    def logsumexp(self) -> ArrayT:
        """ln of the sum of e^(logits / temperature) over the classes. Given on request. Shape: [N, d1, ..., dk]."""
        return self._output("logsumexp")


class CrossEntropyGradientAnswer(Answer[ArrayT]):
    """What cross_entropy_gradient gives: `loss` and `total_weight` and `grad_logits`, unless told otherwise."""

    @property
    def loss(self) -> ArrayT:
        """The loss: one number, or one a row with reduction `none`. Shape: [] or, with reduction none, [N, d1, ...,
        dk].
        """
        return self._output("loss")

    @property
    def total_weight(self) -> ArrayT:
        """What `mean` divides by unless a `normalizer` is given. Shape: []."""
        return self._output("total_weight")

    @property
    def log_probs(self) -> ArrayT:
        """Logarithms of the class probabilities. Given on request. Shape: [N, C, d1, ..., dk]."""
        return self._output("log_probs")

    @property
    def logsumexp(self) -> ArrayT:
        """ln of the sum of e^(logits / temperature) over the classes. Given on request. Shape: [N, d1, ..., dk]."""
        return self._output("logsumexp")

    @property
    def grad_logits(self) -> ArrayT:
        """Gradient by the logits. Shape: [N, C, d1, ..., dk]."""
        return self._output("grad_logits")

    @property
    def grad_target(self) -> ArrayT:
        """Gradient by a target of class probabilities. Given on request. Shape: [N, C, d1, ..., dk]."""
        return self._output("grad_target")


class BlockingOperators(ABC):
    """The operators as methods that block."""

    @abstractmethod
    def _call(self, call: Call) -> Outputs:
        """Compute an operator; returns its outputs and the ids of the requests."""

    def softmax(
        self,
        logits: ArrayT,
        *,
        outputs: Sequence[Literal["probs", "logsumexp"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        temperature: float = 1.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> SoftmaxAnswer[ArrayT]:
        """Softmax: q_j = e^(z_j / temperature) / sum_k e^(z_k / temperature), the distribution that the logits z
        describe.

        Gradient for an upstream g: dz_j = q_j (g_j - sum_k g_k q_k) / temperature.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `probs`, `logsumexp`, in the kind of `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "temperature": temperature,
        }
        return SoftmaxAnswer(*self._call(Call("softmax", tensors, options, False, timeout, progress)))

    def softmax_gradient(
        self,
        logits: ArrayT,
        grad_output: ArrayLike,
        *,
        outputs: Sequence[Literal["probs", "logsumexp", "grad_logits"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        temperature: float = 1.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> SoftmaxGradientAnswer[ArrayT]:
        """Softmax and its gradient, in one pass. Softmax: q_j = e^(z_j / temperature) / sum_k e^(z_k / temperature),
        the distribution that the logits z describe.

        Gradient for an upstream g: dz_j = q_j (g_j - sum_k g_k q_k) / temperature.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            grad_output: Upstream gradient, the shape of `probs`.
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `probs`, `logsumexp`, `grad_logits`, in the kind of `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits, "grad_output": grad_output}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "temperature": temperature,
        }
        return SoftmaxGradientAnswer(*self._call(Call("softmax", tensors, options, True, timeout, progress)))

    def log_softmax(
        self,
        logits: ArrayT,
        *,
        outputs: Sequence[Literal["log_probs", "logsumexp"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        temperature: float = 1.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> LogSoftmaxAnswer[ArrayT]:
        """Log-softmax: ln q_j = z_j / temperature - ln sum_k e^(z_k / temperature), without ever forming the
        probability.

        Gradient for an upstream g: dz_j = (g_j - q_j sum_k g_k) / temperature.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `log_probs`, `logsumexp`, in the kind of `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "temperature": temperature,
        }
        return LogSoftmaxAnswer(*self._call(Call("log-softmax", tensors, options, False, timeout, progress)))

    def log_softmax_gradient(
        self,
        logits: ArrayT,
        grad_output: ArrayLike,
        *,
        outputs: Sequence[Literal["log_probs", "logsumexp", "grad_logits"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        temperature: float = 1.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> LogSoftmaxGradientAnswer[ArrayT]:
        """Log-softmax and its gradient, in one pass. Log-softmax: ln q_j = z_j / temperature - ln sum_k e^(z_k /
        temperature), without ever forming the probability.

        Gradient for an upstream g: dz_j = (g_j - q_j sum_k g_k) / temperature.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            grad_output: Upstream gradient, the shape of `log_probs`.
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `log_probs`, `logsumexp`, `grad_logits`, in the kind of `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits, "grad_output": grad_output}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "temperature": temperature,
        }
        return LogSoftmaxGradientAnswer(*self._call(Call("log-softmax", tensors, options, True, timeout, progress)))

    def nll_loss(
        self,
        log_probs: ArrayT,
        target: ArrayLike,
        weight: ArrayLike | None = None,
        *,
        outputs: Sequence[Literal["loss", "total_weight"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalizer: float | None = None,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> NllLossAnswer[ArrayT]:
        """Negative log-likelihood: the loss of a row is -w_y ln q_y, for log-probabilities, target class y and class
        weight w.

        `log-softmax` followed by `nll-loss` is `cross-entropy` in two steps. That the input is normalised is not
        checked, as in torch. Gradient: -w_y for the target class and 0 for the others, times the upstream gradient.

        Args:
            log_probs: Log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            target: Class indices, the shape of log_probs without its class dimension.
            weight: One weight a class, shape (C).
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            ignore_index: A row whose class index equals this is skipped: its loss and gradient are 0, whatever it
                holds. Must be an integer from -9223372036854775808 to 9223372036854775807.
            reduction: `none` gives the loss of every row, `sum` their sum, `mean` their sum divided by `total_weight`
                (index targets: the summed weight of the kept rows; probability targets: the number of rows).
            normalizer: Replaces the denominator of `mean`, so that micro-batches can be recombined exactly: give every
                part the total weight of the whole and add the losses. Must be a finite number greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `loss`, `total_weight`, in the kind of `log_probs`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"log_probs": log_probs, "target": target, "weight": weight}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "normalizer": normalizer,
        }
        return NllLossAnswer(*self._call(Call("nll-loss", tensors, options, False, timeout, progress)))

    def nll_loss_gradient(
        self,
        log_probs: ArrayT,
        target: ArrayLike,
        weight: ArrayLike | None = None,
        grad_output: ArrayLike | None = None,
        *,
        outputs: Sequence[Literal["loss", "total_weight", "grad_log_probs"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalizer: float | None = None,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> NllLossGradientAnswer[ArrayT]:
        """Negative log-likelihood and its gradient, in one pass. Negative log-likelihood: the loss of a row is -w_y ln
        q_y, for log-probabilities, target class y and class weight w.

        `log-softmax` followed by `nll-loss` is `cross-entropy` in two steps. That the input is normalised is not
        checked, as in torch. Gradient: -w_y for the target class and 0 for the others, times the upstream gradient.

        Args:
            log_probs: Log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            target: Class indices, the shape of log_probs without its class dimension.
            weight: One weight a class, shape (C).
            grad_output: Upstream gradient, the shape of `loss`; 1 unless given.
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            ignore_index: A row whose class index equals this is skipped: its loss and gradient are 0, whatever it
                holds. Must be an integer from -9223372036854775808 to 9223372036854775807.
            reduction: `none` gives the loss of every row, `sum` their sum, `mean` their sum divided by `total_weight`
                (index targets: the summed weight of the kept rows; probability targets: the number of rows).
            normalizer: Replaces the denominator of `mean`, so that micro-batches can be recombined exactly: give every
                part the total weight of the whole and add the losses. Must be a finite number greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `loss`, `total_weight`, `grad_log_probs`, in the kind of `log_probs`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {
            "log_probs": log_probs,
            "target": target,
            "weight": weight,
            "grad_output": grad_output,
        }
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "normalizer": normalizer,
        }
        return NllLossGradientAnswer(*self._call(Call("nll-loss", tensors, options, True, timeout, progress)))

    def cross_entropy(
        self,
        logits: ArrayT,
        target: ArrayLike,
        weight: ArrayLike | None = None,
        *,
        outputs: Sequence[Literal["loss", "total_weight", "log_probs", "logsumexp"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalizer: float | None = None,
        temperature: float = 1.0,
        target_kind: Literal["auto", "index", "probs"] = "auto",
        label_smoothing: float = 0.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> CrossEntropyAnswer[ArrayT]:
        """Cross-entropy of logits against class indices or class probabilities, softmax and logarithm fused.

        For logits z, q = softmax(z / temperature) and the target mass t_j of each class, the loss of a row is -sum_j
        t_j ln q_j, and its gradient by z_j is (T q_j - t_j) / temperature with T = sum_j t_j. With class weights w and
        label smoothing e over C classes:

        - index target y: t_j = (1 - e) w_y [j = y] + (e / C) w_j, and nothing for a skipped row;
        - probabilities p: t_j = w_j ((1 - e) p_j + e / C).

        Without weights and smoothing the first is the familiar -ln q_y with the gradient q_j - [j = y]. Softmax and
        logarithm are one operation because the slope of the one cancels the 1 / q of the other that blows up as q tends
        to 0.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            target: Class indices, the shape of logits without the class dimension, or class probabilities in their
                shape.
            weight: One weight a class, shape (C).
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            ignore_index: A row whose class index equals this is skipped: its loss and gradient are 0, whatever it
                holds. Must be an integer from -9223372036854775808 to 9223372036854775807.
            reduction: `none` gives the loss of every row, `sum` their sum, `mean` their sum divided by `total_weight`
                (index targets: the summed weight of the kept rows; probability targets: the number of rows).
            normalizer: Replaces the denominator of `mean`, so that micro-batches can be recombined exactly: give every
                part the total weight of the whole and add the losses. Must be a finite number greater than 0.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            target_kind: What the target holds: class indices, or class probabilities (which need not sum to 1). `auto`:
                a target of the logits' shape holds probabilities, any other indices.
            label_smoothing: The part of each row's target mass that is spread evenly over all C classes. Must be a
                finite number from 0 to 1.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `loss`, `total_weight`, `log_probs`, `logsumexp`, in the kind of
                `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits, "target": target, "weight": weight}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "normalizer": normalizer,
            "temperature": temperature,
            "target_kind": target_kind,
            "label_smoothing": label_smoothing,
        }
        return CrossEntropyAnswer(*self._call(Call("cross-entropy", tensors, options, False, timeout, progress)))

    def cross_entropy_gradient(
        self,
        logits: ArrayT,
        target: ArrayLike,
        weight: ArrayLike | None = None,
        grad_output: ArrayLike | None = None,
        *,
        outputs: Sequence[Literal["loss", "total_weight", "log_probs", "logsumexp", "grad_logits", "grad_target"]]
        | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalizer: float | None = None,
        temperature: float = 1.0,
        target_kind: Literal["auto", "index", "probs"] = "auto",
        label_smoothing: float = 0.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> CrossEntropyGradientAnswer[ArrayT]:
        """Cross-entropy and its gradient, in one pass. Cross-entropy of logits against class indices or class
        probabilities, softmax and logarithm fused.

        For logits z, q = softmax(z / temperature) and the target mass t_j of each class, the loss of a row is -sum_j
        t_j ln q_j, and its gradient by z_j is (T q_j - t_j) / temperature with T = sum_j t_j. With class weights w and
        label smoothing e over C classes:

        - index target y: t_j = (1 - e) w_y [j = y] + (e / C) w_j, and nothing for a skipped row;
        - probabilities p: t_j = w_j ((1 - e) p_j + e / C).

        Without weights and smoothing the first is the familiar -ln q_y with the gradient q_j - [j = y]. Softmax and
        logarithm are one operation because the slope of the one cancels the 1 / q of the other that blows up as q tends
        to 0.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            target: Class indices, the shape of logits without the class dimension, or class probabilities in their
                shape.
            weight: One weight a class, shape (C).
            grad_output: Upstream gradient, the shape of `loss`; 1 unless given.
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            ignore_index: A row whose class index equals this is skipped: its loss and gradient are 0, whatever it
                holds. Must be an integer from -9223372036854775808 to 9223372036854775807.
            reduction: `none` gives the loss of every row, `sum` their sum, `mean` their sum divided by `total_weight`
                (index targets: the summed weight of the kept rows; probability targets: the number of rows).
            normalizer: Replaces the denominator of `mean`, so that micro-batches can be recombined exactly: give every
                part the total weight of the whole and add the losses. Must be a finite number greater than 0.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            target_kind: What the target holds: class indices, or class probabilities (which need not sum to 1). `auto`:
                a target of the logits' shape holds probabilities, any other indices.
            label_smoothing: The part of each row's target mass that is spread evenly over all C classes. Must be a
                finite number from 0 to 1.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `loss`, `total_weight`, `log_probs`, `logsumexp`, `grad_logits`,
                `grad_target`, in the kind of `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits, "target": target, "weight": weight, "grad_output": grad_output}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "normalizer": normalizer,
            "temperature": temperature,
            "target_kind": target_kind,
            "label_smoothing": label_smoothing,
        }
        return CrossEntropyGradientAnswer(*self._call(Call("cross-entropy", tensors, options, True, timeout, progress)))


class AsyncOperators(ABC):
    """The operators as methods that are awaited."""

    @abstractmethod
    async def _call(self, call: Call) -> Outputs:
        """Compute an operator; returns its outputs and the ids of the requests."""

    async def softmax(
        self,
        logits: ArrayT,
        *,
        outputs: Sequence[Literal["probs", "logsumexp"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        temperature: float = 1.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> SoftmaxAnswer[ArrayT]:
        """Softmax: q_j = e^(z_j / temperature) / sum_k e^(z_k / temperature), the distribution that the logits z
        describe.

        Gradient for an upstream g: dz_j = q_j (g_j - sum_k g_k q_k) / temperature.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `probs`, `logsumexp`, in the kind of `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "temperature": temperature,
        }
        return SoftmaxAnswer(*await self._call(Call("softmax", tensors, options, False, timeout, progress)))

    async def softmax_gradient(
        self,
        logits: ArrayT,
        grad_output: ArrayLike,
        *,
        outputs: Sequence[Literal["probs", "logsumexp", "grad_logits"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        temperature: float = 1.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> SoftmaxGradientAnswer[ArrayT]:
        """Softmax and its gradient, in one pass. Softmax: q_j = e^(z_j / temperature) / sum_k e^(z_k / temperature),
        the distribution that the logits z describe.

        Gradient for an upstream g: dz_j = q_j (g_j - sum_k g_k q_k) / temperature.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            grad_output: Upstream gradient, the shape of `probs`.
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `probs`, `logsumexp`, `grad_logits`, in the kind of `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits, "grad_output": grad_output}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "temperature": temperature,
        }
        return SoftmaxGradientAnswer(*await self._call(Call("softmax", tensors, options, True, timeout, progress)))

    async def log_softmax(
        self,
        logits: ArrayT,
        *,
        outputs: Sequence[Literal["log_probs", "logsumexp"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        temperature: float = 1.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> LogSoftmaxAnswer[ArrayT]:
        """Log-softmax: ln q_j = z_j / temperature - ln sum_k e^(z_k / temperature), without ever forming the
        probability.

        Gradient for an upstream g: dz_j = (g_j - q_j sum_k g_k) / temperature.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `log_probs`, `logsumexp`, in the kind of `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "temperature": temperature,
        }
        return LogSoftmaxAnswer(*await self._call(Call("log-softmax", tensors, options, False, timeout, progress)))

    async def log_softmax_gradient(
        self,
        logits: ArrayT,
        grad_output: ArrayLike,
        *,
        outputs: Sequence[Literal["log_probs", "logsumexp", "grad_logits"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        temperature: float = 1.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> LogSoftmaxGradientAnswer[ArrayT]:
        """Log-softmax and its gradient, in one pass. Log-softmax: ln q_j = z_j / temperature - ln sum_k e^(z_k /
        temperature), without ever forming the probability.

        Gradient for an upstream g: dz_j = (g_j - q_j sum_k g_k) / temperature.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            grad_output: Upstream gradient, the shape of `log_probs`.
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `log_probs`, `logsumexp`, `grad_logits`, in the kind of `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits, "grad_output": grad_output}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "temperature": temperature,
        }
        return LogSoftmaxGradientAnswer(
            *await self._call(Call("log-softmax", tensors, options, True, timeout, progress))
        )

    async def nll_loss(
        self,
        log_probs: ArrayT,
        target: ArrayLike,
        weight: ArrayLike | None = None,
        *,
        outputs: Sequence[Literal["loss", "total_weight"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalizer: float | None = None,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> NllLossAnswer[ArrayT]:
        """Negative log-likelihood: the loss of a row is -w_y ln q_y, for log-probabilities, target class y and class
        weight w.

        `log-softmax` followed by `nll-loss` is `cross-entropy` in two steps. That the input is normalised is not
        checked, as in torch. Gradient: -w_y for the target class and 0 for the others, times the upstream gradient.

        Args:
            log_probs: Log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            target: Class indices, the shape of log_probs without its class dimension.
            weight: One weight a class, shape (C).
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            ignore_index: A row whose class index equals this is skipped: its loss and gradient are 0, whatever it
                holds. Must be an integer from -9223372036854775808 to 9223372036854775807.
            reduction: `none` gives the loss of every row, `sum` their sum, `mean` their sum divided by `total_weight`
                (index targets: the summed weight of the kept rows; probability targets: the number of rows).
            normalizer: Replaces the denominator of `mean`, so that micro-batches can be recombined exactly: give every
                part the total weight of the whole and add the losses. Must be a finite number greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `loss`, `total_weight`, in the kind of `log_probs`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"log_probs": log_probs, "target": target, "weight": weight}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "normalizer": normalizer,
        }
        return NllLossAnswer(*await self._call(Call("nll-loss", tensors, options, False, timeout, progress)))

    async def nll_loss_gradient(
        self,
        log_probs: ArrayT,
        target: ArrayLike,
        weight: ArrayLike | None = None,
        grad_output: ArrayLike | None = None,
        *,
        outputs: Sequence[Literal["loss", "total_weight", "grad_log_probs"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalizer: float | None = None,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> NllLossGradientAnswer[ArrayT]:
        """Negative log-likelihood and its gradient, in one pass. Negative log-likelihood: the loss of a row is -w_y ln
        q_y, for log-probabilities, target class y and class weight w.

        `log-softmax` followed by `nll-loss` is `cross-entropy` in two steps. That the input is normalised is not
        checked, as in torch. Gradient: -w_y for the target class and 0 for the others, times the upstream gradient.

        Args:
            log_probs: Log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            target: Class indices, the shape of log_probs without its class dimension.
            weight: One weight a class, shape (C).
            grad_output: Upstream gradient, the shape of `loss`; 1 unless given.
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            ignore_index: A row whose class index equals this is skipped: its loss and gradient are 0, whatever it
                holds. Must be an integer from -9223372036854775808 to 9223372036854775807.
            reduction: `none` gives the loss of every row, `sum` their sum, `mean` their sum divided by `total_weight`
                (index targets: the summed weight of the kept rows; probability targets: the number of rows).
            normalizer: Replaces the denominator of `mean`, so that micro-batches can be recombined exactly: give every
                part the total weight of the whole and add the losses. Must be a finite number greater than 0.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `loss`, `total_weight`, `grad_log_probs`, in the kind of `log_probs`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {
            "log_probs": log_probs,
            "target": target,
            "weight": weight,
            "grad_output": grad_output,
        }
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "normalizer": normalizer,
        }
        return NllLossGradientAnswer(*await self._call(Call("nll-loss", tensors, options, True, timeout, progress)))

    async def cross_entropy(
        self,
        logits: ArrayT,
        target: ArrayLike,
        weight: ArrayLike | None = None,
        *,
        outputs: Sequence[Literal["loss", "total_weight", "log_probs", "logsumexp"]] | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalizer: float | None = None,
        temperature: float = 1.0,
        target_kind: Literal["auto", "index", "probs"] = "auto",
        label_smoothing: float = 0.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> CrossEntropyAnswer[ArrayT]:
        """Cross-entropy of logits against class indices or class probabilities, softmax and logarithm fused.

        For logits z, q = softmax(z / temperature) and the target mass t_j of each class, the loss of a row is -sum_j
        t_j ln q_j, and its gradient by z_j is (T q_j - t_j) / temperature with T = sum_j t_j. With class weights w and
        label smoothing e over C classes:

        - index target y: t_j = (1 - e) w_y [j = y] + (e / C) w_j, and nothing for a skipped row;
        - probabilities p: t_j = w_j ((1 - e) p_j + e / C).

        Without weights and smoothing the first is the familiar -ln q_y with the gradient q_j - [j = y]. Softmax and
        logarithm are one operation because the slope of the one cancels the 1 / q of the other that blows up as q tends
        to 0.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            target: Class indices, the shape of logits without the class dimension, or class probabilities in their
                shape.
            weight: One weight a class, shape (C).
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            ignore_index: A row whose class index equals this is skipped: its loss and gradient are 0, whatever it
                holds. Must be an integer from -9223372036854775808 to 9223372036854775807.
            reduction: `none` gives the loss of every row, `sum` their sum, `mean` their sum divided by `total_weight`
                (index targets: the summed weight of the kept rows; probability targets: the number of rows).
            normalizer: Replaces the denominator of `mean`, so that micro-batches can be recombined exactly: give every
                part the total weight of the whole and add the losses. Must be a finite number greater than 0.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            target_kind: What the target holds: class indices, or class probabilities (which need not sum to 1). `auto`:
                a target of the logits' shape holds probabilities, any other indices.
            label_smoothing: The part of each row's target mass that is spread evenly over all C classes. Must be a
                finite number from 0 to 1.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `loss`, `total_weight`, `log_probs`, `logsumexp`, in the kind of
                `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits, "target": target, "weight": weight}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "normalizer": normalizer,
            "temperature": temperature,
            "target_kind": target_kind,
            "label_smoothing": label_smoothing,
        }
        return CrossEntropyAnswer(*await self._call(Call("cross-entropy", tensors, options, False, timeout, progress)))

    async def cross_entropy_gradient(
        self,
        logits: ArrayT,
        target: ArrayLike,
        weight: ArrayLike | None = None,
        grad_output: ArrayLike | None = None,
        *,
        outputs: Sequence[Literal["loss", "total_weight", "log_probs", "logsumexp", "grad_logits", "grad_target"]]
        | None = None,
        non_finite: Literal["reject", "propagate"] = "reject",
        accuracy: Literal["fast", "accurate"] = "fast",
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalizer: float | None = None,
        temperature: float = 1.0,
        target_kind: Literal["auto", "index", "probs"] = "auto",
        label_smoothing: float = 0.0,
        timeout: TimeoutOption = CLIENT_DEFAULT,
        progress: ProgressOption | None = None,
    ) -> CrossEntropyGradientAnswer[ArrayT]:
        """Cross-entropy and its gradient, in one pass. Cross-entropy of logits against class indices or class
        probabilities, softmax and logarithm fused.

        For logits z, q = softmax(z / temperature) and the target mass t_j of each class, the loss of a row is -sum_j
        t_j ln q_j, and its gradient by z_j is (T q_j - t_j) / temperature with T = sum_j t_j. With class weights w and
        label smoothing e over C classes:

        - index target y: t_j = (1 - e) w_y [j = y] + (e / C) w_j, and nothing for a skipped row;
        - probabilities p: t_j = w_j ((1 - e) p_j + e / C).

        Without weights and smoothing the first is the familiar -ln q_y with the gradient q_j - [j = y]. Softmax and
        logarithm are one operation because the slope of the one cancels the 1 / q of the other that blows up as q tends
        to 0.

        Args:
            logits: Unnormalised log-probabilities: (C), (N, C) or (N, C, d1, ..., dk).
            target: Class indices, the shape of logits without the class dimension, or class probabilities in their
                shape.
            weight: One weight a class, shape (C).
            grad_output: Upstream gradient, the shape of `loss`; 1 unless given.
            outputs: Names of the outputs wanted, without repeats. Unless given, the default outputs.
            non_finite: What happens when an output would hold NaN: `reject` answers 422 and names the first such row,
                `propagate` returns the NaN that torch would return. Infinite losses are results either way.
            accuracy: `fast` is at least as accurate as torch; `accurate` computes in float64 and rounds once, so that
                results of float32 and below are within one unit in the last place.
            class_dim: The dimension that holds the classes, negative counted from the end. Unless given, 1, or 0 for
                one-dimensional input, as in torch. Language-model shapes (B, T, V) take -1.
            ignore_index: A row whose class index equals this is skipped: its loss and gradient are 0, whatever it
                holds. Must be an integer from -9223372036854775808 to 9223372036854775807.
            reduction: `none` gives the loss of every row, `sum` their sum, `mean` their sum divided by `total_weight`
                (index targets: the summed weight of the kept rows; probability targets: the number of rows).
            normalizer: Replaces the denominator of `mean`, so that micro-batches can be recombined exactly: give every
                part the total weight of the whole and add the losses. Must be a finite number greater than 0.
            temperature: Divides the logits everywhere in the operator, `logsumexp` included. Must be a finite number
                greater than 0.
            target_kind: What the target holds: class indices, or class probabilities (which need not sum to 1). `auto`:
                a target of the logits' shape holds probabilities, any other indices.
            label_smoothing: The part of each row's target mass that is spread evenly over all C classes. Must be a
                finite number from 0 to 1.
            timeout: Seconds within which each request must be answered, None for no bound.
            progress: A function that is told how far the call has come, or True for a bar.

        Returns:
            The outputs that were asked for, of `loss`, `total_weight`, `log_probs`, `logsumexp`, `grad_logits`,
                `grad_target`, in the kind of `logits`.

        Raises:
            ServiceError: the service refused the request or could not answer; its class says how.
            LossClientError: there was no answer.
        """
        tensors: dict[str, object] = {"logits": logits, "target": target, "weight": weight, "grad_output": grad_output}
        options: dict[str, object] = {
            "outputs": outputs,
            "non_finite": non_finite,
            "accuracy": accuracy,
            "class_dim": class_dim,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "normalizer": normalizer,
            "temperature": temperature,
            "target_kind": target_kind,
            "label_smoothing": label_smoothing,
        }
        return CrossEntropyGradientAnswer(
            *await self._call(Call("cross-entropy", tensors, options, True, timeout, progress))
        )
