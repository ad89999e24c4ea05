"""Loss Service: softmax, log-softmax, NLL, cross-entropy and their gradients over HTTP."""

from importlib.metadata import version

__version__ = version("loss-service")
