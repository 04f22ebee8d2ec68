"""What evenkeel raises: every message says what (with numbers), where (layer path, file:line) and what to do."""


class EvenkeelError(Exception):
    """Base of all errors that evenkeel raises on purpose.

    >>> import torch, evenkeel as ek
    >>> try:
    ...     ek.variance_shift(torch.nn.Linear(2, 2), [torch.ones(4, 2)])
    ... except EvenkeelError as error:
    ...     print(type(error).__name__)
    ModelError
    """


class TraceError(EvenkeelError):
    """The model could not be read into a graph: its forward pass raised, with or without fake tensors."""


class BatchError(EvenkeelError):
    """A batch or the iterable that yields it is at fault: it raised, ran short, was empty or not finite."""


class ActivationError(EvenkeelError):
    """A callable is no activation whose Gaussian moments exist: not elementwise, finite or deterministic."""


class ModelError(EvenkeelError):
    """The model has nothing for a verb to work on, such as no norm layer with running statistics."""


def brief(error: BaseException, most: int = 200) -> str:
    """An error of others in one line: its type and its message, cut after `most` letters.

    >>> brief(ValueError("no luck"))
    'ValueError: no luck'
    """
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:most]}{'...' if len(message) > most else ''}"
