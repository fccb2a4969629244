"""What went wrong at a provider: one classification for retries, fallbacks, breakers and limits."""

from .classification import FAULT_KINDS, Classifier, Fault, FaultKind, classify

__all__ = [
    "FAULT_KINDS",
    "Classifier",
    "Fault",
    "FaultKind",
    "classify",
]
