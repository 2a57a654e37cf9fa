"""How much memory is free, and whether an error says that there is none left."""

import torch

__all__ = ["free_memory", "is_out_of_memory", "keep_freed_memory"]

_LEARNED = 8 * 2**20  # bytes; of groups of passes few results are larger


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as facts:
            for line in facts:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 * 2**30  # where the system does not tell


def keep_freed_memory() -> None:
    """Lets glibc keep up to 16 MiB that tensors free, for each thread, as where one of 8 MiB has been freed before.

    Its allocator goes by the largest block that was freed so far. Before, results of a few MiB, of which every group of
    passes has some, go back to the system at once, and each of their pages comes again by a fault.
    """
    torch.empty(_LEARNED, dtype=torch.uint8, device="cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. PyTorch's CPU allocator has no class of its own for it, only a name in the text."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
