"""Which errors are the machine's fault and not the adapter's."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Format an exception as one line: its class and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"[:1500]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch raises RuntimeError both for that and for errors in an adapter."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text


def machine_fault(error: BaseException) -> bool:
    """Whether memory ran out or a device failed: the attempt fails, and so does the process."""
    return out_of_memory(error) or "cuda error" in str(error).lower() or type(error).__name__ == "AcceleratorError"
