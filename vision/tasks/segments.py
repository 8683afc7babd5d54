"""What panoptic segmentation is given and what it predicts."""

from dataclasses import dataclass

from vision.data.segments import SegmentMap

__all__ = ["PanopticTarget", "SegmentMap"]


@dataclass(frozen=True)
class PanopticTarget:
    """The ground truth of an example.

    Attributes:
      segments: at the model's size; row 0 is void.
      own_size: as annotated, at the image's own size, where the metric is computed; of an
        augmented image the same as `segments`.
    """

    segments: SegmentMap
    own_size: SegmentMap
