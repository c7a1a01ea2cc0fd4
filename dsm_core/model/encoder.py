"""Volume to feature pyramid: convolutions near the surface, Mamba blocks in the deep stages.

Axis legend: B batch, C channels, X Y Z voxels in RAS+ order.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsm_core.model.layers import ConvBlock, ResidualBlock, space_to_depth
from dsm_core.model.mamba import MambaBlock3d


class Encoder(nn.Module):
    """Four stages at 1/2, 1/4, 1/8 and 1/16 of the volume.

    The first stage reads 2x2x2 blocks as channels: full detail at an eighth of the voxels, since a convolution at full
    resolution is by far the dearest part of a step on CPU.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        mamba_blocks: tuple[int, ...],
        state_size: int = 16,
        backend: str = "auto",
        checkpointing: bool = False,
    ):
        """Put the stages together.

        Args:
            checkpointing: keep only what goes into a stage, and compute it again on the way back.
        """
        super().__init__()
        self.widths, self.checkpointing = widths, checkpointing
        stages = []
        for stage, (width, blocks) in enumerate(zip(widths, mamba_blocks, strict=True)):
            down = ConvBlock(8, width) if stage == 0 else ConvBlock(widths[stage - 1], width, stride=2)
            local = [ConvBlock(width, width)] if stage == 0 else [ResidualBlock(width)]
            mamba = [MambaBlock3d(width, state_size, is_reversed=i % 2 == 1, backend=backend) for i in range(blocks)]
            stages.append(nn.Sequential(down, *local, *mamba))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of a scan.

        Args:
            image: (B, 1, X, Y, Z) in [0, 1]; X, Y and Z are multiples of 16.

        Returns:
            Four tensors (B, C_s, X/2^s, Y/2^s, Z/2^s), s = 1..4.
        """
        if image.ndim != 5 or image.shape[1] != 1 or any(size % 16 for size in image.shape[2:]):
            raise ValueError(f"image wants (B, 1, X, Y, Z) with X, Y, Z multiples of 16, found {tuple(image.shape)}")
        x = space_to_depth(image - 0.5)
        pyramid = []
        for stage in self.stages:
            x = checkpoint(stage, x, use_reentrant=False) if self.checkpointing and self.training else stage(x)
            pyramid.append(x)
        return pyramid
