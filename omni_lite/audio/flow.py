import torch
from torch import nn
class FlowDecoder(nn.Module):
    def __init__(self,*a,**k): super().__init__(); self.register_buffer('mel_mean',torch.zeros(80)); self.register_buffer('mel_std',torch.ones(80))
class FlowStream: pass
