"""ResNet image towers: CLIP's, with an attention pool, and the plain one, with an average pool.

From Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (CLIP): an
average pool before every strided convolution (Zhang 2019, anti-aliasing), and in `ModifiedResNet` a stem of
three convolutions and attention in place of the last average pool. Parameter names are those of the published
PMC-CLIP checkpoints.
"""

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn

from pmc_clip.config import VisionConfig

EXPANSION = 4  # a bottleneck's output channels over its inner ones


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a skip; with a stride, both paths average first: [B, C, H, W].

    Every block starts as the identity (Goyal et al. 2017).
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        out_channels = channels * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.bn3.weight)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride) if stride > 1 else nn.Identity()),
                        ("0", nn.Conv2d(in_channels, out_channels, 1, bias=False)),
                        ("1", nn.BatchNorm2d(out_channels)),
                    ]
                )
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, channels * 4, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return self.relu(out + self.downsample(x))


def _stages(vision: VisionConfig) -> Iterator[nn.Sequential]:
    """The four stages of blocks; each but the first halves the side and doubles the channels."""
    in_channels = vision.width
    for index, blocks in enumerate(vision.layers):
        channels = vision.width * 2**index
        first = Bottleneck(in_channels, channels, stride=1 if index == 0 else 2)
        in_channels = channels * EXPANSION
        yield nn.Sequential(first, *(Bottleneck(in_channels, channels) for _ in range(blocks - 1)))


class AttentionPool(nn.Module):
    """Multi-head attention of the mean position over all positions: [B, C, H, W] -> [B, out_dim].

    The published pool attends from every position and keeps the first. Here only that query is computed. One
    query meeting many positions, the key and value projections are applied to the query and to the attended
    mean instead of to each position: the same sums in another order, for a fiftieth of the work at 7 x 7.
    """

    def __init__(self, side: int, channels: int, heads: int, out_dim: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(side * side + 1, channels) / channels**0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, out_dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(projection.weight, std=channels**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, channels, side, side] -> [B, out_dim]."""
        x = x.flatten(2).transpose(1, 2)
        x = (
            torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        )  # [B, 1 + side², C]
        batch, _, channels = x.shape
        per_head = (self.heads, channels // self.heads)

        query = self.q_proj(x[:, 0]).view(batch, *per_head) / per_head[1] ** 0.5
        key_query = torch.einsum("bhd,hdc->bhc", query, self.k_proj.weight.view(*per_head, channels))
        # The keys' bias shifts all scores of a head alike, so it cannot matter; it stays for its (zero)
        # gradient, without which DistributedDataParallel would wait for it.
        bias = (query * self.k_proj.bias.view(per_head)).sum(-1, keepdim=True)
        weights = (key_query @ x.transpose(1, 2) + bias).softmax(-1)  # [B, heads, 1 + side²]
        values = torch.einsum("bhc,hdc->bhd", weights @ x, self.v_proj.weight.view(*per_head, channels))
        return self.c_proj(values.reshape(batch, channels) + self.v_proj.bias)


class ModifiedResNet(nn.Module):
    """CLIP's ResNet: normalised images [B, 3, S, S] -> features [B, embed_dim] (not normalised)."""

    def __init__(self, vision: VisionConfig, embed_dim: int):
        super().__init__()
        width = vision.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(vision)
        self.attnpool = AttentionPool(vision.image_size // 32, width * 32, vision.heads, embed_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] float -> [B, embed_dim]."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.relu(self.bn3(self.conv3(x)))
        x = self.avgpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.attnpool(x)


class ResNet(nn.Module):
    """The plain ResNet: normalised images [B, 3, S, S] -> features [B, embed_dim] (not normalised)."""

    def __init__(self, vision: VisionConfig, embed_dim: int):
        super().__init__()
        width = vision.width
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(vision)
        self.head = nn.Linear(width * 32, embed_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] float -> [B, embed_dim]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.head(x.mean(dim=(2, 3)))
