"""A decoding step as CUDA graphs: its many small kernels recorded once, then launched as one.

No machine of this project has had a CUDA device: of this module only the checks have ever run.
"""

from collections.abc import Callable, Sequence

import torch

# The shares of a sequence's positions that a step is recorded for: early ones look at less.
SPANS = (0.25, 0.5, 0.75, 1.0)
WARM_UP_STEPS = 3
LEAST_CAPABILITY = (7, 0)


def graphs_supported(device: torch.device) -> bool:
    """Whether a device can record and launch graphs: CUDA itself, of Volta or later."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def graph_spans(length: int) -> list[int]:
    """How many positions of the cache the recorded steps look at, rising."""
    return sorted({-(-length * round(4 * share) // 4) for share in SPANS})


class GraphedSteps:
    """Launches recorded steps.

    Args:
      step: decodes one position, looking at the first `span` of the cache. It works on tensors that
        stay where they are, and changes them: whoever records must start them anew afterwards.
      rewind: undoes what a step does to the position, so that it does not leave the sequence.
      spans: those to record.
    """

    def __init__(
        self, step: Callable[[int], None], rewind: Callable[[], None], spans: Sequence[int]
    ) -> None:
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        # Libraries choose kernels and take workspace in their first calls, off the main stream,
        # since neither can be recorded.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for span in spans:
                for _ in range(WARM_UP_STEPS):
                    step(span)
                    rewind()
        torch.cuda.current_stream().wait_stream(stream)
        pool = torch.cuda.graph_pool_handle()
        for span in spans:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                step(span)
            self._graphs[span] = graph

    def __call__(self, span: int) -> None:
        """Launches the step of that span; returns before it is done."""
        self._graphs[span].replay()
