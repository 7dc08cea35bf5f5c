from torch import nn

class MLPBlock(nn.Module):
    lin1: nn.Linear
    lin2: nn.Linear
    act: nn.Module

class LayerNorm2d(nn.Module):
    weight: nn.Parameter
    bias: nn.Parameter
    eps: float
    def __init__(self, num_channels: int, eps: float = 1e-6) -> None: ...
